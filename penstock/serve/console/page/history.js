// What the plots show: samples of each session since the page was opened, in bounded space.
const MOST = 300; // samples of one session

const kept = new Map();

function sample(now, session, before) {
  const out = { at: now, memory: session.memory_bytes, lag: session.lag_ms, latency: null, loss: session.loss ?? null, rate: 0 };
  const tokens = before === null ? 0 : session.tokens_ingested - before.tokens;
  if (session.seconds !== undefined && tokens > 0 && session.seconds > before.seconds) {
    out.latency = ((session.seconds - before.seconds) * 1000) / tokens;
  }
  if (tokens > 0 && now > before.at) out.rate = (tokens * 1000) / (now - before.at);
  if (tokens === 0 && before !== null) out.loss = null; // nothing was read: the old loss is not measured again
  return out;
}

/** One more look at all sessions. */
export function note(sessions, now) {
  const here = new Set();
  for (const session of sessions) {
    here.add(session.id);
    let mine = kept.get(session.id);
    if (mine === undefined) {
      mine = { samples: [], tokens: 0, seconds: 0, isFirst: true };
      kept.set(session.id, mine);
    }
    mine.samples.push(sample(now, session, mine.isFirst ? null : mine));
    if (mine.samples.length > MOST) mine.samples.shift();
    mine.isFirst = false;
    mine.at = now;
    mine.tokens = session.tokens_ingested;
    mine.seconds = session.seconds ?? 0;
  }
  for (const id of kept.keys()) if (!here.has(id)) kept.delete(id);
}

export const samplesOf = (id) => kept.get(id)?.samples ?? [];
