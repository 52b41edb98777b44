// Questions and answers; an answer appears as it is spoken and can be cancelled.
import * as api from "./api.js";
import { h, say } from "./dom.js";
import * as format from "./format.js";

const MOST = 200; // turns kept on the page

export function talk(session, { id, failed, changed }) {
  const isVideo = session.kind === "video";
  const log = h("div", { class: "talk-log", role: "log", "aria-label": "Questions and answers", tabindex: "0" },
    h("p", { class: "talk-empty" }, isVideo ? "Ask about what has been seen. It goes on seeing while it answers." : "Ask about what the stream has said so far. Question and answer become part of it."));
  const box = h("textarea", { id: `ask-${id}`, rows: "1", placeholder: isVideo ? "Ask about what is seen" : "Ask a question, or leave it empty to let the model go on", spellcheck: "false" });
  const send = h("button", { class: "primary", type: "button", "data-act": "ask" }, "Ask");
  const cancel = h("button", { type: "button", "data-act": "cancel", hidden: true }, "Cancel");
  const number = (name, label, value, limits) => h("label", {}, label, h("input", { type: "number", name, value, ...limits }));
  const check = (name, label, on) => h("label", { class: "check" }, h("input", { type: "checkbox", name, checked: on }), label);
  const options = isVideo ? h("div", { class: "options options-grid" }, check("interrupt", "End the answer under way", true)) : h("details", { class: "options" }, h("summary", {}, "Options"),
    h("div", { class: "options-grid" },
      number("max_tokens", "Tokens at most", 64, { min: 1, max: 4000, step: 1 }),
      number("temperature", "Temperature", 0, { min: 0, max: 2, step: 0.1 }),
      number("seed", "Seed", 0, { step: 1 }),
      check("remember", "Remember", true), check("raw", "Raw text", false)));
  const panel = h("section", { class: "talk", "aria-label": "Conversation" },
    h("div", { class: "panel-head" }, h("h3", {}, h("label", { for: `ask-${id}` }, "Ask"))),
    log, h("div", { class: "talk-form" }, box, cancel, send), options);
  let answering = null;

  function body() {
    const given = (name) => options.querySelector(`[name=${name}]`);
    if (isVideo) return { interrupt: given("interrupt").checked };
    const out = { temperature: Number(given("temperature").value), max_tokens: Number(given("max_tokens").value) };
    if (given("seed").value !== "") out.seed = Number(given("seed").value);
    if (given("raw").checked) out.raw = true;
    if (!given("remember").checked) out.remember = false;
    return out;
  }

  function turn(question) {
    const answer = h("div", { class: "answer" });
    const facts = h("p", { class: "turn-facts" }, "waiting");
    const element = h("article", { class: "turn", "data-state": "waiting" },
      h("p", { class: question ? "question" : "question going" }, question || "go on"), answer, facts);
    log.querySelector(".talk-empty")?.remove();
    while (log.children.length >= MOST) log.firstElementChild.remove();
    log.append(element);
    log.scrollTop = log.scrollHeight;
    return { element, answer, facts };
  }

  async function ask() {
    const question = box.value;
    if (answering !== null || (isVideo && !question.trim())) return;
    const { element, answer, facts } = turn(question);
    answering = new AbortController();
    send.disabled = true;
    cancel.hidden = false;
    box.value = "";
    const began = performance.now();
    let first = null;
    const end = (state, words) => {
      element.dataset.state = state;
      say(facts, words);
    };
    try {
      const { finish, usage } = await api.ask(id, { ...body(), ...(question ? { question } : {}) }, (piece) => {
        const follows = log.scrollHeight - log.scrollTop - log.clientHeight < 40;
        first ??= performance.now() - began;
        element.dataset.state = "speaking";
        say(facts, `first text after ${format.ms(first)}`);
        answer.append(piece);
        if (follows) log.scrollTop = log.scrollHeight;
      }, answering.signal);
      const spent = performance.now() - began;
      const tokens = usage?.completion_tokens ?? 0;
      const rate = first !== null && tokens > 1 ? `, ${format.ms((spent - first) / (tokens - 1))} per token` : "";
      const why = finish === "length" ? ", all that was asked for" : finish === "interrupted" || finish === "monitor" ? `, cut: ${finish}` : "";
      end("done", `${format.some(tokens, "token")}${why} · first text after ${format.ms(first ?? spent)}${rate}`);
    } catch (error) {
      if (error.name === "AbortError") end("cancelled", "cancelled: the stream keeps what was spoken");
      else {
        end("failed", error.message);
        if (first === null && question && !box.value) box.value = question;
        failed(error);
      }
    } finally {
      answering = null;
      send.disabled = false;
      cancel.hidden = true;
      changed();
    }
  }

  send.addEventListener("click", ask);
  cancel.addEventListener("click", () => {
    answering?.abort();
    box.focus();
  });
  panel.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && answering !== null) answering.abort();
    if (event.target === box && event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      ask();
    }
  });
  panel.close = () => answering?.abort();
  return panel;
}
