// The list of sessions, and what the server says of itself.
import { at, h, say } from "./dom.js";
import * as format from "./format.js";
import { samplesOf } from "./history.js";
import { spark } from "./plot.js";

const MOST = 200; // sessions shown at once; the filter finds the others
const FILTER_FROM = 8;
const rows = new Map();

function row(id) {
  const name = h("span", { class: "session-name" }, id);
  const facts = h("span", { class: "session-facts num" });
  const line = spark();
  const link = h("a", { class: "session-link", href: `#/s/${encodeURIComponent(id)}` }, name, line, facts);
  return { item: h("li", { "data-id": id }, link), link, facts, line };
}

/** Show the sessions; `chosen` is the id of the open one. */
export function showSessions(sessions, chosen) {
  const filter = at("filter").value.trim().toLowerCase();
  at("filter-label").hidden = sessions.length < FILTER_FROM && !filter;
  say(at("count"), sessions.length ? String(sessions.length) : "");
  const found = sessions.filter((session) => session.id.toLowerCase().includes(filter)).reverse();
  const shown = found.slice(0, MOST);
  const here = new Set(shown.map((session) => session.id));
  for (const [id, each] of rows) {
    if (!here.has(id)) {
      each.item.remove();
      rows.delete(id);
    }
  }
  shown.forEach((session, i) => {
    let each = rows.get(session.id);
    if (each === undefined) rows.set(session.id, (each = row(session.id)));
    const list = at("sessions");
    if (list.children[i] !== each.item) list.insertBefore(each.item, list.children[i] ?? null);
    const what = session.error ? "stopped" : session.answering ? "answering" : session.bytes_pending > 64 ? "reading" : format.place(session.place);
    say(each.facts, `${what} · ${format.some(session.tokens, "token")}`);
    if (session.id === chosen) each.link.setAttribute("aria-current", "true");
    else each.link.removeAttribute("aria-current");
    each.line.draw(samplesOf(session.id).map((sample) => sample.rate));
  });
  const hint = at("sessions-hint");
  hint.hidden = shown.length > 0 && found.length <= MOST;
  say(hint, found.length > MOST ? `the newest ${MOST} of ${found.length}: filter to find others` : filter ? "no session has this in its name" : "none yet");
  showPlaces(sessions);
}

function showPlaces(sessions) {
  const counts = { device: 0, ram: 0, disk: 0, new: 0 };
  for (const session of sessions) counts[session.place] = (counts[session.place] ?? 0) + 1;
  const bar = at("places");
  const parts = Object.entries(counts).filter(([, many]) => many > 0);
  const words = parts.map(([name, many]) => `${many} ${format.place(name)}`).join(", ") || "no sessions";
  bar.setAttribute("aria-label", `Where memories are: ${words}`);
  bar.title = words;
  while (bar.children.length > parts.length) bar.lastChild.remove();
  parts.forEach(([name, many], i) => {
    const piece = bar.children[i] ?? bar.appendChild(h("span"));
    piece.dataset.place = name;
    piece.style.flexGrow = many;
  });
  facts.places = words;
}

const facts = { places: "" };

/** Samples of a page for Prometheus: name{labels} -> value. */
function parse(page) {
  const out = new Map();
  for (const line of page.split("\n")) {
    const cut = line.lastIndexOf(" ");
    if (!line.startsWith("#") && cut > 0) out.set(line.slice(0, cut), Number(line.slice(cut + 1)));
  }
  return out;
}

const sum = (samples, name) => {
  let total = 0;
  for (const [key, value] of samples) if (key === name || key.startsWith(`${name}{`)) total += value;
  return total;
};

const mean = (samples, name) => {
  const many = sum(samples, `${name}_count`);
  return many ? format.ms((sum(samples, `${name}_sum`) / many) * 1000) : "–";
};

/** Show the server's metrics. */
export function showMetrics(page) {
  const samples = parse(page);
  const lines = [
    ["Memories are in", facts.places],
    ["Memory of all", format.bytes(sum(samples, "penstock_memory_bytes"))],
    ["Waiting", format.bytes(sum(samples, "penstock_pending_bytes"))],
    ["Largest lag", format.ms(sum(samples, "penstock_lag_seconds") * 1000)],
    ["Appended", format.bytes(sum(samples, "penstock_appended_bytes_total"))],
    ["Answers", format.count(sum(samples, "penstock_answers_total"))],
    ["To the first text, mean", mean(samples, "penstock_first_piece_seconds")],
    ["Between pieces, mean", mean(samples, "penstock_between_pieces_seconds")],
    ["Requests", format.count(sum(samples, "penstock_requests_total"))],
  ];
  const list = at("server-facts");
  if (list.children.length !== lines.length * 2) list.replaceChildren(...lines.flatMap(() => [h("dt"), h("dd")]));
  lines.forEach(([name, value], i) => {
    say(list.children[2 * i], name);
    say(list.children[2 * i + 1], value);
  });
}
