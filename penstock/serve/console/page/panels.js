// What a session can show below its plots.  A panel is { kinds, wide, make(session, context) } -> an element, with an
// optional update(session).  A session without `kind` is a stream of text; one that watches a camera comes with
// `kind: "video"`.  For more: add a file and a line here.
import { feed } from "./feed.js";
import { picture } from "./picture.js";
import { talk } from "./talk.js";

const PANELS = [
  { kinds: ["text"], make: feed },
  { kinds: ["video"], make: picture },
  { kinds: ["text", "video"], make: talk },
];

/** The panels of a session, in order. */
export function panelsFor(session, context) {
  const kind = session.kind ?? "text";
  return PANELS.filter((panel) => panel.kinds.includes(kind)).map((panel) => {
    const element = panel.make(session, context);
    element.classList.add("card", "panel");
    element.classList.toggle("wide", panel.wide === true);
    return element;
  });
}
