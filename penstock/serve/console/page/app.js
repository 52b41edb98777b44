// The page: what is open, and a loop that looks at the server, quickly while something happens, slowly while not.
import * as api from "./api.js";
import { at, say } from "./dom.js";
import { note } from "./history.js";
import { showMetrics, showSessions } from "./side.js";
import { view } from "./view.js";

const BUSY = 700, IDLE = 2000, HIDDEN = 15000; // milliseconds between looks
const FIRST = 500, LAST = 15000; // after failures, doubling
const METRICS = 3000;

const state = { sessions: [], chosen: null, failures: 0, isKnown: false, watching: null, metricsAt: 0, isLooking: false, timer: 0 };
const views = new Map(); // of sessions that were opened: what they said stays while others are looked at

// -- what is shown -----------------------------------------------------------------------------------------------

function link(kind, text) {
  at("link").dataset.state = kind;
  say(at("link-text"), text);
}

let noticeTimer = 0;
function notify(text) {
  say(at("notice-text"), text);
  at("notice").hidden = false;
  clearTimeout(noticeTimer);
  noticeTimer = setTimeout(() => (at("notice").hidden = true), 12000);
}

const chosenOf = () => {
  const found = /^#\/s\/(.+)$/.exec(location.hash);
  try {
    return found === null ? null : decodeURIComponent(found[1]);
  } catch {
    return null;
  }
};

const open = (id) => (location.hash = id === null ? "" : `#/s/${encodeURIComponent(id)}`);

function show() {
  state.chosen = chosenOf();
  showSessions(state.sessions, state.chosen);
  const session = state.sessions.find((each) => each.id === state.chosen);
  const here = document.querySelector(".view");
  if (session === undefined) {
    here?.remove();
    at("empty").hidden = false;
    const isGone = state.chosen !== null && state.isKnown;
    say(at("empty-title"), isGone ? `There is no session ${state.chosen}` : state.sessions.length ? "Choose a session" : "No session is open");
    document.title = "penstock";
    return;
  }
  at("empty").hidden = true;
  let element = views.get(session.id);
  if (element === undefined) {
    element = view(session, actions);
    views.set(session.id, element);
  }
  if (here !== element) {
    here?.remove();
    at("main").append(element);
  }
  document.title = `${session.id} · penstock`;
  element.update(session);
}

// -- the loop ----------------------------------------------------------------------------------------------------

function later(wait) {
  clearTimeout(state.timer);
  state.timer = setTimeout(look, wait);
}

async function look() {
  if (state.isLooking) return;
  state.isLooking = true;
  try {
    const now = Date.now();
    if (!state.isKnown) {
      const health = await api.health();
      say(at("model"), health.model ?? "");
      state.watching = health.watching ?? null;
      for (const id of ["new", "empty-new", "token-button"]) at(id).hidden = state.watching !== null;
      if (state.watching !== null && chosenOf() === null) open(state.watching);
    }
    state.sessions = await api.list();
    note(state.sessions, now);
    forget();
    state.isKnown = true;
    state.failures = 0;
    link("live", "live");
    show();
    if (now - state.metricsAt >= METRICS) {
      state.metricsAt = now;
      showMetrics(await api.metrics());
    }
    const isBusy = state.sessions.some((session) => session.answering || session.bytes_pending > 64 || (session.kind === "video" && !session.ended));
    later(document.hidden ? HIDDEN : isBusy ? BUSY : IDLE);
  } catch (error) {
    missed(error);
  } finally {
    state.isLooking = false;
  }
}

function missed(error) {
  if (error.status === 401) {
    link("token", "a token is needed");
    if (!at("token-dialog").open && document.querySelector("dialog[open]") === null && state.failures === 0) ask("token-dialog");
    state.failures += 1;
    return; // until somebody gives one
  }
  state.failures += 1;
  const wait = Math.max((error.retryAfter ?? 0) * 1000, Math.min(LAST, FIRST * 2 ** (state.failures - 1))) * (0.8 + 0.4 * Math.random());
  if (error.status === 429) link("reconnecting", "slowed down by the server");
  else {
    state.isKnown = false; // it may be another one when it is back
    link("reconnecting", "reconnecting");
  }
  later(wait);
}

/** Views of sessions that are gone. */
function forget() {
  const here = new Set(state.sessions.map((session) => session.id));
  for (const [id, element] of views) {
    if (!here.has(id)) {
      element.close();
      element.remove();
      views.delete(id);
    }
  }
}

const changed = () => later(state.isLooking ? 120 : 0);

function failed(error) {
  if (error.status === 401) missed(error);
  else if (error.status === 0) changed();
}

// -- what people do ----------------------------------------------------------------------------------------------

function ask(id) {
  const dialog = at(id);
  dialog.showModal();
  dialog.querySelector("input")?.focus();
}

async function attempt(work) {
  try {
    return await work();
  } catch (error) {
    failed(error);
    notify(error.message);
    return null;
  } finally {
    changed();
  }
}

async function reach(session) {
  if (!session) return;
  state.sessions = [...state.sessions.filter((each) => each.id !== session.id), session];
  open(session.id);
  show();
}

function nameOfFork(id) {
  const base = id.replace(/-fork(-\d+)?$/, "").slice(0, 52);
  const taken = new Set(state.sessions.map((session) => session.id));
  for (let i = 1; ; i += 1) {
    const name = `${base}-fork${i > 1 ? `-${i}` : ""}`;
    if (!taken.has(name)) return name;
  }
}

let doomed = null;
const actions = {
  failed,
  changed,
  fork: async (id) => reach(await attempt(() => api.fork(id, nameOfFork(id)))),
  save: (id) => attempt(() => api.save(id)),
  remove: (id) => {
    doomed = id;
    say(at("delete-text"), `${id} and all that it remembers will be gone.`);
    ask("delete-dialog");
  },
};

async function create() {
  const name = at("new-id").value.trim();
  at("new-dialog").close();
  await reach(await attempt(() => api.create(name)));
  document.querySelector(".feed textarea")?.focus();
}

async function remove() {
  at("delete-dialog").close();
  const id = doomed;
  if (id === null || (await attempt(() => api.remove(id))) === null) return;
  state.sessions = state.sessions.filter((session) => session.id !== id);
  forget();
  if (state.chosen === id) open(null);
  show();
}

function useToken() {
  api.token.set(at("token").value.trim());
  at("token").value = "";
  at("token-dialog").close();
  state.failures = 0;
  link("connecting", "connecting");
  later(0);
}

const entered = (id, act) => at(id).addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.isComposing) {
    event.preventDefault();
    act();
  }
});

for (const id of ["new", "empty-new"]) {
  at(id).addEventListener("click", () => {
    at("new-id").value = "";
    ask("new-dialog");
  });
}
at("new-ok").addEventListener("click", create);
entered("new-id", create);
at("delete-ok").addEventListener("click", remove);
at("token-button").addEventListener("click", () => ask("token-dialog"));
at("token-ok").addEventListener("click", useToken);
entered("token", useToken);
at("notice-close").addEventListener("click", () => (at("notice").hidden = true));
at("filter").addEventListener("input", show);
for (const button of document.querySelectorAll("[data-close]")) button.addEventListener("click", () => button.closest("dialog").close());
window.addEventListener("hashchange", show);
window.addEventListener("resize", () => document.querySelector(".view")?.redraw());
window.addEventListener("dragover", (event) => event.preventDefault()); // a file that misses must not replace the page
window.addEventListener("drop", (event) => event.preventDefault());
document.addEventListener("visibilitychange", () => !document.hidden && later(0));
window.addEventListener("online", () => later(0));
look();
