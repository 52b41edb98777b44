// Line plots over the last minutes, in SVG: colours come from the style sheet, so light and dark are free.
import { h, s, say } from "./dom.js";

const MINUTE = 60 * 1000;
const SPANS = [MINUTE / 2, MINUTE, 2 * MINUTE, 5 * MINUTE]; // milliseconds shown: the shortest that holds all
const LEFT = 44, RIGHT = 6, TOP = 6, BOTTOM = 18;

/** Round numbers from 0 to above `most`, about three steps. */
export function ticks(most, base = 10) {
  if (!(most > 0)) return [0, 1];
  const raw = most / 3;
  const power = base ** Math.floor(Math.log(raw) / Math.log(base));
  const steps = base === 10 ? [1, 2, 2.5, 5, 10] : [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024];
  const step = steps.find((candidate) => candidate * power >= raw * 0.999) * power;
  const out = [0];
  while (out.at(-1) < most * 0.999) out.push(out.at(-1) + step);
  return out;
}

const short = (label) => label.replace(/\.0+(?= |$)/, "");

/** A sparkline of the newest values, 64 by 20. */
export function spark() {
  const path = s("path");
  const svg = s("svg", { class: "spark", width: 64, height: 20, viewBox: "0 0 64 20", "aria-hidden": "true" }, path);
  svg.draw = (values) => {
    const shown = values.slice(-64);
    const most = Math.max(...shown, 1e-9);
    const points = shown.map((value, i) => `${(i + 64 - shown.length).toFixed(0)} ${(18 - (value / most) * 16).toFixed(1)}`);
    path.setAttribute("d", points.length > 1 ? `M${points.join("L")}` : "");
  };
  return svg;
}

/** One plot; `draw(samples, now)` with samples { at, [series] }. */
export function plot({ series, title, unit, base, none }) {
  const value = h("output", { class: "plot-value" });
  const svg = s("svg", { role: "img" });
  const card = h("section", { class: "card plot", "data-series": series, tabindex: "-1" },
    h("div", { class: "plot-head" }, h("h3", {}, title), value), svg);
  let drawn = [];
  let pointed = null; // where the pointer is, in pixels

  function read(sample) {
    const is = sample === undefined || sample[series] === null;
    say(value, is ? none : unit(sample[series]));
    value.classList.toggle("none", is);
  }

  function render(samples, now) {
    const width = svg.clientWidth || 240, height = svg.clientHeight || 128;
    const age = samples.length ? now - samples[0].at : 0;
    const span = SPANS.find((each) => each >= age) ?? SPANS.at(-1);
    const known = samples.filter((sample) => sample[series] !== null && now - sample.at <= span);
    const most = known.reduce((top, sample) => Math.max(top, sample[series]), 0);
    const scale = ticks(most, base);
    const x = (time) => LEFT + (width - LEFT - RIGHT) * (1 - (now - time) / span);
    const y = (amount) => TOP + (height - TOP - BOTTOM) * (1 - amount / scale.at(-1));
    const parts = [];
    for (const tick of scale) {
      const level = Math.round(y(tick)) + 0.5;
      parts.push(s("line", { class: "grid", x1: LEFT, x2: width - RIGHT, y1: level, y2: level }));
      if (known.length) parts.push(s("text", { x: LEFT - 6, y: level + 3.5, "text-anchor": "end" }, short(unit(tick))));
    }
    for (const [time, name, anchor] of [[now - span, span < MINUTE ? "−30 s" : `−${span / MINUTE} min`, "start"], [now, "now", "end"]]) {
      parts.push(s("text", { x: x(time), y: height - 3, "text-anchor": anchor }, name));
    }
    drawn = known.map((sample) => [x(sample.at), y(sample[series]), sample]);
    if (drawn.length) {
      const line = drawn.map(([px, py]) => `${px.toFixed(1)} ${py.toFixed(1)}`).join("L");
      const floor = y(0).toFixed(1);
      parts.push(s("path", { class: "area", d: `M${drawn[0][0].toFixed(1)} ${floor}L${line}L${drawn.at(-1)[0].toFixed(1)} ${floor}Z` }));
      parts.push(s("path", { class: "line", d: `M${line}` }));
    }
    const near = pointed === null ? drawn.at(-1) : drawn.reduce(
      (best, point) => (best === undefined || Math.abs(point[0] - pointed) < Math.abs(best[0] - pointed) ? point : best), undefined);
    if (near !== undefined) {
      if (pointed !== null) parts.push(s("line", { class: "cursor", x1: near[0], x2: near[0], y1: TOP, y2: height - BOTTOM }));
      parts.push(s("circle", { class: "point", cx: near[0], cy: near[1], r: 3.5 }));
    }
    svg.replaceChildren(...parts);
    read(near?.[2]);
    svg.setAttribute("aria-label", near === undefined ? `${title}: ${none}` : `${title}: ${unit(near[2][series])}, at most ${unit(most)}`);
  }

  let newest = [[], 0];
  svg.addEventListener("pointermove", (event) => {
    pointed = event.clientX - svg.getBoundingClientRect().left;
    render(...newest);
  });
  svg.addEventListener("pointerleave", () => {
    pointed = null;
    render(...newest);
  });
  card.draw = (samples, now) => {
    newest = [samples, now];
    render(samples, now);
  };
  return card;
}
