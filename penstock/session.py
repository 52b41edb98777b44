"""One live stream: feed it for ever, ask it at any time, save it, go back, branch off.

    session = penstock.open("Qwen/Qwen3-0.6B", memory="streaming-llm", budget=4096)
    session.feed(text)
    for piece in session.reply("What changed since noon?"):
        print(piece, end="")

The order of what enters the memory is the order of the calls, token-exact (log.py).  Text that is fed may be held back
until no later text can change its tokens; a question, `save` and `end` first let in what is held.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from penstock import rewind
from penstock.core import Budget, Chunk, Frame, Phase, Span
from penstock.errors import CompositionError, InputError, UsageError
from penstock.log import TokenLog
from penstock.memory import Memory
from penstock.meter import Meter
from penstock.methods import Method, parse
from penstock.methods.base import entries_for
from penstock.models.chat import Turns, turns
from penstock.models.embedded import Inputs
from penstock.models.load import Model
from penstock.models.paths import Runner
from penstock.models.sampling import Sampling
from penstock.models.support import check_supported
from penstock.models.text import TextEncoder
from penstock.models.vision import Vision, Visual
from penstock.reply import reply
from penstock.report import Evicted, RememberedMemory, Stats
from penstock.rewind import Mark, Marks
from penstock.seeing import Seer, cascades_for
from penstock.spans import Spans
from penstock.spans import end as end_span
from penstock.spans import prune as prune_span

CHUNK = 64


class Session:
    """One stream on one model.  Make it with `penstock.open` or `penstock.resume`."""

    def __init__(
        self, model: Model, method: Method | str, budget: Budget | int | str | None, *, chunk: int = CHUNK,
        path: str = "auto", log: Path | None = None, measure: bool = False, special: bool = False,
        shared: Runner | None = None, row: int = 0, vision: Vision | None = None,
    ) -> None:  # fmt: skip
        if chunk < 1:
            raise UsageError(f"a chunk cannot have {chunk} tokens: give at least 1.")
        self.model, self.method, self.chunk, self.measure = model, parse(method), chunk, measure
        geometry = model.attached.geometry
        check_supported(geometry, self.method)
        self.budget = entries_for(
            self.method, geometry, default_budget(model) if budget is None else Budget.parse(budget)
        )
        check_supported(geometry, self.method, self.budget)
        if shared is None:
            memory = Memory(geometry, cascades_for(model, self.method.cascades(geometry, self.budget)))
            shared = Runner(model.attached, memory, path, chunk)
            self._has_own = True
        else:  # a row of the memory of many sessions: whoever shares it steps it, and feeds the encoder ahead of it
            self._has_own = False
        self.runner, self._memory, self.row = shared, shared.memory, row
        self.log = TokenLog(sink=log)
        self.spans = Spans(getattr(self.method, "stack", None))
        self.meter = Meter()
        self._special = special
        self.encoder = self._new_encoder()
        self._turns: Turns | bool | None = False  # False: not looked at yet
        self._in_answer = False  # an answer was given and its turn is still open
        self._turns_from: int | None = None  # length of the stream before its first turn
        self._logits: Tensor | None = None  # [V] after the newest token
        self.marks = Marks()
        self._on_evict: list[Callable[[Evicted], None]] = []
        self._replying = False
        self.seer = Seer(model, vision)

    # -- perceive -----------------------------------------------------------------------------------------------

    @property
    def tokens(self) -> int:
        """Model inputs so far."""
        return self._memory.length(self.row) if self._has_own else self.log.count

    def feed(self, data: str | bytes | Chunk) -> int:
        """Read more of the stream; returns how many tokens entered the memory (a tail may be held back)."""
        self._check_idle()
        payload = data.payload if isinstance(data, Chunk) else data
        return self.ingest(self._text().feed(payload))

    def see(self, frame: Frame) -> int:
        """Look at one frame; returns how many tokens entered (0 while a model's temporal unit is incomplete)."""
        visual = self.seer.push(self, frame)
        return 0 if visual is None else self.ingest_embeddings(visual)

    def ingest_embeddings(self, visual: Visual, phase: Phase = Phase.INGEST) -> int:
        """Let in what a vision tower saw (`Vision.encode`, less what a reducer dropped); returns the tokens entered."""
        return self.seer.ingest(self, visual, phase)

    def flush(self) -> int:
        """Let in what is held back, as the end of a piece of text; returns how many tokens entered."""
        self._check_idle()
        return self.ingest(self._text().flush()) if self.encoder is not None else 0

    def _text(self) -> TextEncoder:
        if self.encoder is None:
            raise InputError("this session has no tokenizer: open it with one, or feed token ids with ingest().")
        return self.encoder

    def ingest(
        self, tokens: Sequence[int], phase: Phase = Phase.INGEST, kinds: Sequence[int] | None = None
    ) -> int:  # fmt: skip
        """Read token ids (of kinds, core.Kind; text if not given); returns their number."""
        if phase is Phase.INGEST:
            self._check_idle()
        self._check_tokens(tokens)
        if kinds is not None and len(kinds) != len(tokens):
            raise InputError(f"got {len(tokens)} tokens and {len(kinds)} kinds: give one kind per token.")
        if len(tokens):
            self.seer.close(self, phase)
        for start in range(0, len(tokens), self.chunk):
            part = list(tokens[start : start + self.chunk])
            self._step(part, phase, None if kinds is None else torch.tensor(kinds[start : start + self.chunk]))
        return len(tokens)

    def _check_idle(self) -> None:
        """While a reply is open, the newest tokens are not settled: nothing may be put behind them or taken away."""
        if self._replying:
            raise UsageError("this session is replying: read the reply to its end or close it first, or use a fork.")

    def _check_tokens(self, tokens: Sequence[int]) -> None:
        size = self.model.attached.vocabulary
        for token in tokens:
            if not 0 <= token < size:
                raise InputError(
                    f"token {token} is not in the vocabulary of {size}: encode with this model's tokenizer."
                )

    def _step(self, tokens: list[int], phase: Phase, kinds: Tensor | None = None, inputs: Inputs | None = None) -> None:
        """One step of the model, with its bookkeeping: log, losses, latency, evictions."""
        at, began = self.tokens, time.perf_counter()
        span = Span(self.row, len(tokens))
        inputs = self.seer.inputs(len(tokens), inputs) if self._has_own else inputs
        logits = self.runner.step([span], tokens, "all" if self.measure else "last", phase, kinds, inputs)
        assert logits is not None
        self.seer.stepped(at, len(tokens), inputs)
        self.stepped(at, tokens, logits, time.perf_counter() - began)

    def stepped(self, at: int, tokens: list[int], logits: Tensor, seconds: float) -> None:
        """A step let in these tokens behind `at`; logits [1, V] of the last one, or [n, V] if losses are measured."""
        losses = self._losses(logits, tokens) if self.measure else []
        self._logits = logits[-1]
        self.meter.step(at, len(tokens), seconds, self._memory.nbytes)
        self.meter.losses(at + len(tokens) - len(losses), losses)
        self.log.append(tokens)  # last: its file may be on a full disk, and the session must be whole then
        if self._on_evict:
            for gone in self._memory.evicted(at, self.tokens, self.row):
                self._tell_evicted(gone, self.log.slice(gone.start, gone.stop))

    def _tell_evicted(self, gone: range, tokens: Sequence[int]) -> None:
        for callback in self._on_evict:
            callback(Evicted(gone, tuple(tokens)))

    def _losses(self, logits: Tensor, tokens: list[int]) -> list[float]:
        """Negative log-likelihoods of the tokens that had a prediction: all but the first of the stream."""
        known = logits[:-1] if self._logits is None else torch.cat((self._logits[None], logits[:-1]))
        if not len(known):
            return []
        target = torch.tensor(tokens[-len(known) :], device=known.device)
        if bool((target < 0).any()):  # pictures are not predicted
            return []
        return torch.nn.functional.cross_entropy(known.float(), target, reduction="none").tolist()

    def decode(self, token: int) -> Tensor:
        """Let in one token as part of an answer; returns the logits [V] after it."""
        self._check_tokens([token])
        self._step([token], Phase.ANSWER)
        assert self._logits is not None
        return self._logits

    @property
    def logits(self) -> Tensor | None:
        """Logits [V] after the newest token; None before the first."""
        return self._logits

    # -- respond ------------------------------------------------------------------------------------------------

    def reply(
        self, question: str | None = None, *, raw: bool = False, remember: bool = True, max_new: int = 128,
        temperature: float = 0.0, top_k: int = 0, top_p: float = 1.0, stop: Sequence[str] = (), seed: int = 0,
    ) -> Iterator[str]:  # fmt: skip
        """Ask (or, without a question, let the model go on); yields pieces of text as they become final.

        With a chat template the open turn is closed and the question wrapped; `raw` turns that off.  Question and
        answer enter the memory unless `remember` is False (then they happen on a fork).  A reply that is not read to
        its end is interrupted: the memory keeps exactly the tokens of which some text was delivered.
        """
        sampling = Sampling(max_new, temperature, top_k, top_p, tuple(stop), seed)
        self._check_idle()
        return reply(self if remember else self.fork(), question, raw, sampling)

    @property
    def turns(self) -> Turns | None:
        """The turns of the model's chat template, if it has one."""
        if isinstance(self._turns, bool):
            self._turns = turns(self.model.tokenizer)
        return self._turns

    def turn_opens(self) -> None:
        """The next tokens are the first of a turn."""
        if self._turns_from is None:
            self._turns_from = self.tokens

    def end(self) -> None:
        """The stream is over: let in what is held back and finish background work."""
        self.flush()
        self.runner.close()

    # -- go back, branch off ------------------------------------------------------------------------------------

    def mark(self, max_new: int = 256) -> Mark:
        """Open a mark; until it is committed, at most `max_new` evicted entries per layer are held for it."""
        return rewind.mark(self, max_new)

    def rollback(self, mark: Mark) -> None:
        """Return exactly to an open mark; it stays open."""
        self._check_idle()
        index = self.marks.index(mark)
        rewind.return_to(self, mark)
        del self.marks.open[index + 1 :]

    def commit(self, mark: Mark) -> None:
        """Close a mark: what happened since stays."""
        rewind.commit(self, mark)

    def truncate(self, length: int) -> None:
        """Forget the newest tokens so that `length` remain; exact, or NotRewindable.  Held-back text is dropped."""
        self._check_idle()
        self.take_back(length)

    def take_back(self, length: int) -> None:
        """`truncate`, for the reply that is open."""
        rewind.take_back(self, length)

    def drop_held(self) -> None:
        """Forget text that is held back."""
        if self.encoder is not None:
            has_text = self.tokens > len(self.encoder.prefix_ids)
            state = self.encoder.state_dict()
            self.encoder.load_state_dict({**state, "text": "", "bytes": "", "has_text": state["has_text"] and has_text})

    def reset(self) -> None:
        """Begin a new stream."""
        self._check_idle()
        self.clear()

    def clear(self) -> None:
        """`reset`, for the reply that is open."""
        self._memory.reset(self.row)
        self.log.clear()
        self.spans = Spans(self.spans.stack)
        self._logits, self.marks = None, Marks()
        self._in_answer, self._turns_from = False, None
        self.seer.clear()
        self.encoder = self._new_encoder()

    def _new_encoder(self) -> TextEncoder | None:
        return None if self.model.tokenizer is None else TextEncoder(self.model.tokenizer, special=self._special)

    def fork(self) -> Session:
        """A second session with the same past; from here on neither affects the other."""
        other = Session(
            self.model, self.method, self.budget, chunk=self.chunk, path=self.runner.path, measure=self.measure,
            special=self._special, vision=self.seer.vision,
        )  # fmt: skip
        self._memory.copy_row(self.row, other._memory, 0)
        self.share_past(other)
        other.runner.use_as(self.runner)
        return other

    def share_past(self, other: Session) -> None:
        """Give another session everything but the memory's row."""
        other.log, other.spans = self.log.copy(), self.spans.copy()
        other.encoder = self.encoder.copy() if self.encoder is not None else None
        other.seer.load_state_dict(self.seer.state_dict())
        other._logits = None if self._logits is None else self._logits.clone()
        other._in_answer, other._turns_from, other._turns = self._in_answer, self._turns_from, self._turns

    # -- prune --------------------------------------------------------------------------------------------------

    def begin_span(self) -> None:
        """Subtasks begin here: what follows, up to `end_span`, can be pruned when it is done.  Spans nest."""
        self.flush()
        self.spans.begin(self.tokens)

    def end_span(self) -> list[range]:
        """The innermost span is done; those beyond the method's `stack` are pruned, oldest first, and returned."""
        self.flush()
        return end_span(self)

    def prune(self, start: int, stop: int) -> int:
        """Take tokens [start, stop) out, as if they had never been read; returns how many were read again (spans.py).

        Open marks behind `start` are closed.  Exact, or NotRewindable and nothing is changed.
        """
        self._check_idle()
        return prune_span(self, start, stop)

    def _pruned(self, first: int, start: int, stop: int) -> None:
        """Bookkeeping of a prune that goes back to `first` tokens."""
        self.marks.keep(first)
        self.spans.cut(start, stop)
        self._logits = None
        if self._turns_from is not None and self._turns_from > start:
            self._turns_from = max(start, self._turns_from - (stop - start))

    # -- keep ---------------------------------------------------------------------------------------------------

    def save(self, path: str | Path) -> None:
        """Write the session to one file (snapshot.py).  Held-back text is kept as it is, not let in."""
        from penstock.snapshot import save

        self._check_idle()
        save(self, Path(path))

    # -- report -------------------------------------------------------------------------------------------------

    @property
    def memory(self) -> RememberedMemory:
        """What is remembered now; not kept here, so that nothing refers back and a session ends with its last owner."""
        return RememberedMemory(self)

    def on_evict(self, callback: Callable[[Evicted], None]) -> None:
        """Call back after each step with what no layer holds any more."""
        if not self._memory.is_bounded:
            raise CompositionError(f"{self.method.name} evicts nothing: choose a bounded memory.")
        self._on_evict.append(callback)

    def stats(self) -> Stats:
        """Counters, bytes and latencies of this moment."""
        return Stats(
            self.tokens, self._memory.nbytes, self._memory.budget_bytes,
            self.encoder.pending if self.encoder is not None else 0, self.meter.nll_mean,
            self.meter.tokens_per_second, self.meter.step_percentiles(), self.runner.status, self.log.digest,
        )  # fmt: skip


def default_budget(model: Model) -> Budget:
    """Half of what the model was trained on at once, at most 4096 entries."""
    return Budget(entries=max(8, min(4096, (model.context or 2048) // 2)))
