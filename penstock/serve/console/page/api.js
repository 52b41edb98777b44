// What the page says to its server.  The token stays in this tab (sessionStorage) and goes to this origin only.
const KEY = "penstock-token";

export const token = {
  get: () => sessionStorage.getItem(KEY) ?? "",
  set: (value) => (value ? sessionStorage.setItem(KEY, value) : sessionStorage.removeItem(KEY)),
};

/** A request that was not served: `status` 0 when nobody answered. */
export class Failure extends Error {
  constructor(message, status, code, retryAfter) {
    super(message);
    this.status = status;
    this.code = code;
    this.retryAfter = retryAfter;
  }
}

async function send(method, path, { body, type, signal } = {}) {
  const headers = {};
  if (token.get()) headers.authorization = `Bearer ${token.get()}`;
  if (type) headers["content-type"] = type;
  let response;
  try {
    response = await fetch(path, { method, headers, body, signal, cache: "no-store", credentials: "omit" });
  } catch (error) {
    if (error.name === "AbortError" || error.name === "TimeoutError") throw error;
    throw new Failure("The server does not answer.", 0, "unreachable");
  }
  if (response.ok || (path === "/health" && response.status === 503)) return response;
  let told = {};
  try {
    told = (await response.json()).error ?? {};
  } catch {
    // not ours: the status says enough
  }
  const message = told.message ?? `The server said ${response.status}.`;
  throw new Failure(message, response.status, told.code, Number(response.headers.get("retry-after")) || 0);
}

const json = async (method, path, value) => {
  const body = value === undefined ? {} : { body: JSON.stringify(value), type: "application/json" };
  return (await send(method, path, body)).json();
};

const one = (id, what = "") => `/v1/sessions/${encodeURIComponent(id)}${what}`;
const soon = () => ({ signal: AbortSignal.timeout(20000) });

export const health = async () => (await send("GET", "/health", soon())).json();
export const metrics = async () => (await send("GET", "/metrics", soon())).text();
export const list = async () => (await (await send("GET", "/v1/sessions", soon())).json()).data;
export const create = (id) => json("POST", "/v1/sessions", id ? { id } : {});
export const remove = (id) => json("DELETE", one(id));
export const fork = (id, name) => json("POST", one(id, "/fork"), name ? { id: name } : {});
export const save = (id) => json("POST", one(id, "/save"), {});

/** What a watcher did since event number `after`. */
export const events = async (id, after) => (await send("GET", one(id, `/events?after=${after}`), soon())).json();
export const pictureOf = (id, frame) => one(id, `/picture?frame=${frame}`);

/** Text or a file of any length; the answer comes when the server has it for good. */
export async function append(id, data, signal) {
  return (await send("POST", one(id, "/append"), { body: data, type: "text/plain; charset=utf-8", signal })).json();
}

/** Put a question; `tell` gets each piece of text as it is spoken.  Resolves with { finish, usage }. */
export async function ask(id, body, tell, signal) {
  const given = { ...body, stream: true, stream_options: { include_usage: true } };
  const response = await send("POST", one(id, "/ask"), { body: JSON.stringify(given), type: "application/json", signal });
  const out = { finish: null, usage: null };
  const reader = response.body.getReader();
  const decoder = new TextDecoder();
  let rest = "";
  for (;;) {
    let read;
    try {
      read = await reader.read();
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Failure("The answer broke off: the server has gone.", 0, "broken");
    }
    if (read.done) throw new Failure("The answer broke off: the server has gone.", 0, "broken");
    const lines = (rest + decoder.decode(read.value, { stream: true })).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      if (!line.startsWith("data:")) continue;
      const data = line.slice(5).trim();
      if (data === "[DONE]") return out;
      const event = JSON.parse(data);
      if (event.error) throw new Failure(event.error.message, 500, event.error.code);
      if (event.usage) out.usage = event.usage;
      for (const choice of event.choices ?? []) {
        if (choice.finish_reason) out.finish = choice.finish_reason;
        if (choice.delta?.content) tell(choice.delta.content);
      }
    }
  }
}
