// The stream: type or paste into it, or drop a file on it.
import * as api from "./api.js";
import { h, say } from "./dom.js";
import * as format from "./format.js";

export function feed(session, { id, failed, changed }) {
  const box = h("textarea", {
    id: `feed-${id}`, "aria-describedby": `feed-said-${id}`, spellcheck: "false", autocomplete: "off",
    placeholder: "Type or paste the next piece of the stream, or drop a file here.",
  });
  const said = h("p", { class: "said", id: `feed-said-${id}`, role: "status" });
  const file = h("input", { type: "file", class: "unseen", tabindex: "-1", "aria-label": "File to append" });
  const append = h("button", { class: "primary", type: "button", "data-act": "append" }, "Append");
  const choose = h("button", { type: "button", onclick: () => file.click() }, "Choose a file");
  const stop = h("button", { type: "button", hidden: true }, "Stop");
  const panel = h("section", { class: "feed", "aria-label": "Stream" },
    h("div", { class: "panel-head" }, h("h3", {}, h("label", { for: `feed-${id}` }, "Stream"))),
    box, said,
    h("div", { class: "row" }, append, choose, stop, file, h("span", { class: "help" }, "Ctrl+Enter appends")));
  let upload = null;

  async function put(data, name, size) {
    if (upload !== null) return false;
    upload = new AbortController();
    append.disabled = choose.disabled = true;
    stop.hidden = typeof data === "string";
    say(said, `appending ${name} (${format.bytes(size)}) …`);
    try {
      const done = await api.append(id, data, upload.signal);
      say(said, `${format.bytes(done.bytes)} of ${name} appended, ${format.some(done.session_tokens, "token")} in the stream`);
      return true;
    } catch (error) {
      if (error.name === "AbortError") say(said, `${name} was stopped: what had arrived stays in the stream`);
      else {
        say(said, `${name} was not appended as a whole: ${error.message}`);
        failed(error);
      }
      return false;
    } finally {
      upload = null;
      append.disabled = choose.disabled = false;
      stop.hidden = true;
      changed();
    }
  }

  async function putText() {
    const text = box.value;
    if (!text) {
      say(said, "there is nothing to append yet");
      box.focus();
    } else if (await put(text, "text", new Blob([text]).size)) {
      if (box.value === text) box.value = "";
      else if (box.value.startsWith(text)) box.value = box.value.slice(text.length);
    }
  }

  async function putFiles(files) {
    for (const each of files) if (!(await put(each, each.name, each.size))) return;
  }

  append.addEventListener("click", putText);
  stop.addEventListener("click", () => upload?.abort());
  box.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      putText();
    }
  });
  file.addEventListener("change", async () => {
    await putFiles([...file.files]);
    file.value = "";
  });
  let inside = 0;
  const carries = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");
  panel.addEventListener("dragenter", (event) => {
    if (carries(event)) panel.classList.toggle("over", (inside += 1) > 0);
  });
  panel.addEventListener("dragleave", (event) => {
    if (carries(event)) panel.classList.toggle("over", (inside -= 1) > 0);
  });
  panel.addEventListener("dragover", (event) => carries(event) && event.preventDefault());
  panel.addEventListener("drop", (event) => {
    if (!carries(event)) return;
    event.preventDefault();
    inside = 0;
    panel.classList.remove("over");
    putFiles([...event.dataTransfer.files]);
  });
  panel.close = () => upload?.abort();
  return panel;
}
