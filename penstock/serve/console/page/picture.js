// What a watcher sees and says: the newest picture it has read, and events with their times.
import * as api from "./api.js";
import { h, say } from "./dom.js";
import * as format from "./format.js";

const EVERY = 500, HIDDEN = 15000; // milliseconds between looks
const MOST = 200; // events kept on the page
const NAMES = { answer: "answer", announcement: "said by itself", silence: "silence", dropped: "dropped", error: "trouble" };

export function picture(session, { id }) {
  const image = h("img", { class: "seen", alt: "The newest picture that was read", hidden: true });
  const none = h("p", { class: "talk-empty" }, "No frame has been read yet.");
  const below = h("p", { class: "turn-facts" });
  const log = h("ol", { class: "events", role: "log", "aria-label": "What happened", tabindex: "0" });
  const panel = h("section", { class: "watched", "aria-label": "Picture and events" },
    h("div", { class: "panel-head" }, h("h3", {}, "Seen")), h("div", { class: "screen" }, image, none), below,
    h("div", { class: "panel-head" }, h("h3", {}, "Said")), log);
  let after = 0, shown = null, timer = 0, isOver = false;

  function add(event) {
    const words = [event.question ? h("span", { class: "asked" }, event.question) : null, h("span", { class: "told" }, event.text || "(nothing)")];
    const facts = [event.cut ? `cut: ${event.cut}` : null, event.frames_while_speaking ? `${format.some(event.frames_while_speaking, "frame")} seen meanwhile` : null];
    log.append(h("li", { class: "event", "data-kind": event.kind },
      h("span", { class: "when num" }, format.clock(event.t)), h("span", { class: "what" }, NAMES[event.kind] ?? event.kind), words,
      facts.filter(Boolean).map((text) => h("span", { class: "turn-facts" }, text))));
    while (log.children.length > MOST) log.firstElementChild.remove();
  }

  async function look() {
    try {
      const news = await api.events(id, after);
      const follows = log.scrollHeight - log.scrollTop - log.clientHeight < 40;
      for (const event of news.events) add(event);
      after = news.events.at(-1)?.number ?? after;
      if (follows && news.events.length) log.scrollTop = log.scrollHeight;
      if (news.frame !== null && news.frame !== shown) {
        shown = news.frame;
        image.src = api.pictureOf(id, shown); // the old one stays until this one has come
        image.hidden = false;
        none.hidden = true;
      }
    } catch {
      // the page's own loop says that the server is gone
    }
    if (!isOver) timer = setTimeout(look, document.hidden ? HIDDEN : EVERY);
  }

  panel.update = (now) => say(below, `${format.clock(now.t ?? 0)} of the stream${now.ended ? `, ended: ${now.ended}` : ""} · ${format.some(now.frames_dropped ?? 0, "frame")} dropped, ${format.count(now.waiting ?? 0)} waiting`);
  panel.close = () => {
    isOver = true;
    clearTimeout(timer);
  };
  look();
  return panel;
}
