"""Bytes and text of a stream to token ids, independent of how they arrive.  Knows no model and no session.

`feed` gives out the ids of all text up to the last exact cut (`text_cuts.py`) and holds the rest back; `flush` gives
out what is held. For any way of cutting the bytes into feeds,

    feed* + flush  ==  tokenizer(text, split_special_tokens=True).input_ids, without the ids added at its end.

What happens where:

- Start. The ids that the tokenizer adds before a text (BOS, [CLS]) come once, with the first ids or the first flush.
  Those that it adds behind one (EOS, [SEP]) never come, a stream has no end; they are in `suffix_ids`. The dummy prefix
  (Llama 2's "▁") comes once, before the first text.
- Ask, turn border, end: `flush`. The held text is encoded as the end of a text, as the tokenizer does there. What
  comes later is a continuation: a fresh piece, encoded by the same tokenizer without BOS and without the additions at
  the start of a text (normalizer Prepend and left Strip, Metaspace prefix, ByteLevel prefix space). So a word that is
  cut by a flush becomes the tokens of its two parts, and "the" after a flush is "the", not "▁the". Where every word
  carries the prefix anyway (WhitespaceSplit before Metaspace), that of a continuation does too.
- Save: `state_dict` holds the pending text and bytes; nothing is flushed, so saving changes no token.
- Bytes are UTF-8; an unfinished character waits for its other bytes. Invalid bytes, and lone surrogates in a `str`,
  become U+FFFD as in `bytes.decode("utf-8", "replace")`. A `str` after unfinished bytes ends them, and so does `flush`
  unless told to keep them.
- Special tokens written in the text are plain text (a log cannot end a turn), also where the tokenizer's own
  `split_special_tokens=True` makes tokens of them, because its model has them as pieces (Unigram: T5's "</s>"); such
  text is the one exception to the equation. `special=True` reads them as tokens; it then holds with
  `split_special_tokens=False`. Added tokens that the tokenizer does not call special (Qwen's "<think>") are matched in
  both cases, as the tokenizer itself does. The unknown token is never hidden: it controls nothing.
- Cap. Text without an exact cut for more than `cap` characters is cut in its first `cap` ones: before the last word
  that begins in their second half, else eight tokens before their end, else at their end. This is exactly a flush at
  that place, depends on the text alone, and is counted in `forced_cuts`; the equation is promised while that is 0.
  At most `cap` characters and 3 bytes are pending after a feed.
"""

from __future__ import annotations

import codecs
import copy
import re
from typing import Any
from weakref import WeakKeyDictionary

from transformers import PreTrainedTokenizerBase

from penstock.errors import InputError, SnapshotError, UsageError
from penstock.models.text_pieces import Pieces, backend_of

CAP = 4096
"""Characters held back at most, unless told otherwise."""

_SURROGATE = re.compile("[\ud800-\udfff]")


class TextEncoder:
    """Turns the text of one stream into token ids; the module docstring states every case.

    `special`: read special tokens written in the text as tokens. `cap`: characters held back at most (>= 16). `bos`:
    begin with the ids that the tokenizer adds before a text.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, *, special: bool = False, cap: int = CAP, bos: bool = True
    ) -> None:
        if cap < 16:
            raise UsageError(f"a text encoder cannot hold back at most {cap} characters: give a cap of 16 or more.")
        self._pieces = _shared(tokenizer, special)
        self.cap = cap
        self.forced_cuts = 0
        self._started = not bos
        self._has_text = False  # some text was encoded, so what follows is a continuation
        self._text = ""
        self._bytes = b""
        self._scanned = 0  # no cut of _text is below this character

    @property
    def pending(self) -> int:
        """Bytes held back: UTF-8 of the held text, and those of an unfinished character."""
        return len(self._text.encode()) + len(self._bytes)

    @property
    def prefix_ids(self) -> tuple[int, ...]:
        """Ids that the tokenizer adds before a text; they begin every stream once."""
        return self._pieces.prefix_ids

    @property
    def suffix_ids(self) -> tuple[int, ...]:
        """Ids that the tokenizer adds behind a text; never part of a stream."""
        return self._pieces.suffix_ids

    @property
    def rules(self) -> tuple[str, ...]:
        """Where this tokenizer's text can be cut exactly; empty: at a flush or at the cap only."""
        return tuple(str(rule) for rule in self._pieces.cuts.rules)

    def feed(self, data: str | bytes) -> list[int]:
        """Take some text; returns the ids that no later text can change. Amortised cost is linear in the text."""
        if isinstance(data, str):
            self._end_bytes()
            self._text += data if data.isascii() else _SURROGATE.sub("\ufffd", data)
        elif isinstance(data, (bytes, bytearray, memoryview)):
            raw = self._bytes + bytes(data)
            text, used = codecs.utf_8_decode(raw, "replace", False)
            self._text, self._bytes = self._text + text, raw[used:]
        else:
            raise InputError(f"a text stream takes str or bytes, not {type(data).__name__}: decode or encode it first.")
        return self._settle()

    def flush(self, keep_bytes: bool = False) -> list[int]:
        """Give out everything held back, as the end of a text; what is fed later is a continuation.

        `keep_bytes` leaves the bytes of an unfinished character (at most 3) for the next feed of bytes; else they end
        here, as U+FFFD. The first flush of a stream also gives out the ids before a text, if there was none.
        """
        if not keep_bytes:
            self._end_bytes()
        ids = self._settle()
        ids += self._begin() + self._piece(self._text)
        self._text, self._scanned = "", 0
        return ids

    def copy(self) -> TextEncoder:
        """An independent encoder in the same state (for a fork); the tokenizer's tables are shared."""
        return copy.copy(self)  # all state is immutable values

    def state_dict(self) -> dict[str, Any]:
        """The whole state as JSON values; saving flushes nothing."""
        return {
            "tokenizer": self._pieces.fingerprint,
            "cap": self.cap,
            "text": self._text,
            "bytes": self._bytes.hex(),
            "started": self._started,
            "has_text": self._has_text,
            "forced_cuts": self.forced_cuts,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken; raises SnapshotError for another tokenizer or a damaged state."""
        if not isinstance(state, dict) or set(state) != set(self.state_dict()):
            raise SnapshotError("the text state is damaged, its fields are not those of a text encoder: save it again.")
        if state["tokenizer"] != self._pieces.fingerprint:
            raise SnapshotError(
                f"the text state was saved with another tokenizer ({state['tokenizer']}, here "
                f"{self._pieces.fingerprint}) or another choice of special: open the model that it was saved with."
            )
        try:
            held = bytes.fromhex(state["bytes"])
            codecs.utf_8_decode(held, "strict", False)
            text, cap, forced_cuts = str(state["text"]), int(state["cap"]), int(state["forced_cuts"])
        except (TypeError, ValueError) as error:
            raise SnapshotError(f"the text state is damaged ({error}): save it again.") from error
        if len(held) > 3 or cap < 16 or len(text) > cap or forced_cuts < 0:
            raise SnapshotError("the text state is damaged, a value is out of its range: save it again.")
        self._bytes, self._text, self.cap, self.forced_cuts = held, text, cap, forced_cuts
        self._started, self._has_text = bool(state["started"]), bool(state["has_text"])
        self._scanned = 0

    def _end_bytes(self) -> None:
        if self._bytes:
            self._text += self._bytes.decode("utf-8", "replace")
            self._bytes = b""

    def _settle(self) -> list[int]:
        """Ids of everything up to the last cut.

        _text  |........c........c....|.......x.......c.............|
               0        windows of at most cap characters           len, less than cap behind the last cut
                                      x: no cut in a window, forced
        """
        text, size, start = self._text, len(self._text), 0
        low = self._scanned
        ids: list[int] = []
        while True:
            low = max(low, start + 1)
            cut = self._pieces.cuts.last(text, low, start + self.cap)
            if not cut and size - start > self.cap:
                cut = start + self._pieces.forced_cut(text[start : start + self.cap])
                self.forced_cuts += 1
                low = cut + 1
            if not cut:
                break
            ids += self._piece(text[start:cut])
            start = cut
        self._text, self._scanned = text[start:], size - start
        return self._begin() + ids if ids else ids

    def _piece(self, text: str) -> list[int]:
        if not text:
            return []
        encode = self._pieces.tail if self._has_text else self._pieces.head
        self._has_text = True
        return encode(text)

    def _begin(self) -> list[int]:
        if self._started:
            return []
        self._started = True
        return list(self._pieces.prefix_ids)


_cache: WeakKeyDictionary[PreTrainedTokenizerBase, dict[tuple[bool, int], Pieces]] = WeakKeyDictionary()


def _shared(tokenizer: PreTrainedTokenizerBase, special: bool) -> Pieces:
    """One `Pieces` per tokenizer object and vocabulary size: tokens added later are seen by encoders made later."""
    backend_of(tokenizer)
    known = _cache.setdefault(tokenizer, {})
    key = (special, len(tokenizer))
    if key not in known:
        known[key] = Pieces(tokenizer, special)
    return known[key]
