// One session, whole: head, figures, plots, and the panels of its kind.
import { h, say } from "./dom.js";
import * as format from "./format.js";
import { samplesOf } from "./history.js";
import { panelsFor } from "./panels.js";
import { plot } from "./plot.js";

const PLOTS = [
  { series: "memory", title: "Memory", unit: format.bytes, base: 2, none: "nothing read yet" },
  { series: "latency", title: "Latency per token", unit: format.ms, none: "no step yet" },
  { series: "lag", title: "Lag", unit: format.ms, none: "no lag" },
  { series: "loss", title: "Loss, nats per token", unit: format.nats, none: "not measured" },
];

const VIDEO = [
  ["frames", "Frames read", (x) => format.count(x.frames ?? 0)],
  ["fps", "Rate", (x) => `${(x.fps ?? 0).toFixed(1)} /s`],
  ["kept", "Tokens kept", (x) => format.count(x.tokens_kept ?? 0)],
  ["dropped", "Tokens left out", (x) => format.count(x.tokens_dropped ?? 0)],
  ["memory", "Memory", (x) => format.bytes(x.memory_bytes)],
  ["budget", "Budget", (x) => (x.budget_bytes ? format.bytes(x.budget_bytes) : "none: grows")],
  ["lag", "Lag", (x) => format.ms(x.lag_ms)],
];

const TILES = [
  ["tokens", "Tokens in the stream", (x) => format.count(x.tokens)],
  ["ingested", "Read by the model", (x) => format.count(x.tokens_ingested)],
  ["pending", "Waiting", (x) => format.bytes(x.bytes_pending)],
  ["bytes", "Appended", (x) => format.bytes(x.bytes)],
  ["memory", "Memory", (x) => format.bytes(x.memory_bytes)],
  ["lag", "Lag", (x) => format.ms(x.lag_ms)],
];

/** The element of a session; `update(session)` shows how it is now, `close()` ends what it does. */
export function view(session, context) {
  const id = session.id;
  const isVideo = session.kind === "video";
  const shown = isVideo ? VIDEO : TILES;
  const place = h("span", { class: "badge" });
  const mark = h("span", { class: "place" });
  place.append(mark);
  const kept = h("span", { class: "badge" }, isVideo ? "watched" : session.durable ? "kept on disk" : "ends with the server");
  const answering = h("span", { class: "badge answering", hidden: true }, "answering");
  const fault = h("p", { class: "fault", role: "alert", hidden: true });
  const button = (name, act, style) => h("button", { type: "button", class: style, "data-act": act, onclick: () => context[act](id) }, name);
  const save = button("Save", "save", "");
  save.hidden = !session.durable;
  const head = h("div", { class: "view-head" }, h("h2", { class: "view-title" }, id), place, kept, answering,
    isVideo ? null : h("div", { class: "row" }, button("Fork", "fork", ""), save, button("Delete", "remove", "danger")));
  const figures = shown.map(([name, title]) => [name, h("dd", { "data-figure": name }), title]);
  const tiles = h("dl", { class: "tiles" }, figures.map(([, value, title]) => h("div", { class: "tile" }, h("dt", {}, title), value)));
  const plots = PLOTS.filter((each) => !isVideo || each.series !== "loss").map(plot);
  const panels = panelsFor(session, { ...context, id });
  const element = h("article", { class: "view", "data-session": id, "aria-label": `Session ${id}` },
    head, fault, tiles, h("div", { class: "plots" }, plots), h("div", { class: "panels" }, panels));

  element.update = (now) => {
    mark.dataset.place = now.place;
    say(mark, format.place(now.place));
    answering.hidden = now.answering === 0;
    fault.hidden = !now.error;
    say(fault, now.error ?? "");
    shown.forEach(([, , words], i) => say(figures[i][1], words(now)));
    for (const panel of panels) panel.update?.(now);
    element.redraw();
  };
  element.redraw = () => {
    const samples = samplesOf(id);
    const time = samples.at(-1)?.at ?? Date.now();
    for (const each of plots) each.draw(samples, time);
  };
  element.close = () => panels.forEach((panel) => panel.close?.());
  return element;
}
