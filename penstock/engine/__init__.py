"""Many sessions on one model: rows of one memory, one packed step for all that have something to do.

    engine = Engine(model, "streaming-llm", 256, rows=16)
    engine.run()                                  # a thread; or call engine.step() yourself
    session = engine.open()
    session.append("a line of the stream\\n")      # queued, returns at once
    for piece in session.ask("What happened?", max_new=64):
        print(piece, end="")

What a caller may rely on:

    Engine(model, memory="streaming-llm", budget=None, rows=16, ram="1GiB", folder=None, policy="first-come",
           clock=RealClock(), *, chunk=64, tokens=256, lag=None, path="auto", measure=False, targets=None,
           draft=None, demotion="swap", ...)
    engine.open(id=None, *, lag=None)     EngineSession; an id that exists is refused, one that is None is made up
    engine.resume(path, id=None)          a session from a snapshot (of an engine or of `Session.save`)
    open_together(engine, prompts)        sessions of prompts (token ids) whose common beginnings are read once
    engine[id], id in engine, engine.ids  sessions that are open
    engine.step()                         one step -> Stepped, falsy when there was nothing to do
    engine.run() / engine.stop()          step in a thread / stop it; `with engine:` does both and closes
    engine.drain(timeout=None)            wait (or step) until nothing is pending; True if so
    engine.check()                        raises MemoryStateError if a byte is unaccounted for; returns the account
    engine.stats()                        EngineStats

    session.append(data)      str, bytes or token ids -> Appended; Overloaded if the lag policy refuses it
    session.ask(question=None, *, raw=False, remember=True, deadline=None, max_new=128, temperature=0.0, top_k=0,
                top_p=1.0, stop=(), seed=0) -> Answer     begins behind all that was appended before it
    session.fork(id=None)     EngineSession with the same past and the same input pending
    session.draft()           Draft: input that may still be rewritten; nothing is sampled until it has ended
    session.truncate(n)       keep the first n tokens; refused while an answer is open; held-back text is dropped
    session.save(path)        the session in one file, input pending included; refused while an answer is open
    session.drained(timeout)  wait (or step) until its queue is empty; True if so
    session.close()           cancels its answers, gives up its memory; a second close does nothing
    session.status()          Status

    answer                    an iterator and an asynchronous iterator of pieces of text, one reader
    answer.cancel()           end it here: the memory keeps exactly the tokens of which text was put out
    answer.finish             Finish when it has ended, else None
    answer.tokens             tokens of the answer so far; answer.question_tokens those of the question and its turn
    answer.said               token ids that the stream keeps of it, once it has ended; `ask(said=...)` says them again

All of this may be called from any thread.  `append`, `ask` and `cancel` never wait for the model; `fork`, `truncate`,
`save`, `close` wait for the step under way.  If no thread runs the engine, readers of answers, `drained` and `drain`
call `step()` themselves.  Results do not depend on company: a session's tokens are those of a `Session` alone.
"""

from penstock.engine.answer import Answer
from penstock.engine.controller import Targets
from penstock.engine.drafting import Drafter, Drafting, NGram, SmallModel
from penstock.engine.engine import Engine
from penstock.engine.lag import LAG_POLICIES, Lag
from penstock.engine.policies import POLICIES, PastFuture, Policy
from penstock.engine.prefixes import open_together
from penstock.engine.records import Appended, EngineStats, Finish, Pace, Place, Status, Stepped
from penstock.engine.rewriting import Draft
from penstock.engine.session import EngineSession

__all__ = [
    "LAG_POLICIES",
    "POLICIES",
    "Answer",
    "Appended",
    "Draft",
    "Drafter",
    "Drafting",
    "Engine",
    "EngineSession",
    "EngineStats",
    "Finish",
    "Lag",
    "NGram",
    "Pace",
    "PastFuture",
    "Place",
    "Policy",
    "SmallModel",
    "Status",
    "Stepped",
    "Targets",
    "open_together",
]
