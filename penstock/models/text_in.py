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
- Special tokens written in the text are plain text (a log cannot end a turn); `special=True` reads them as tokens, and
  the equation then holds with `split_special_tokens=False`. Added tokens that the tokenizer does not call special
  (Qwen's "<think>") are matched in both cases, as the tokenizer itself does.
- Cap. Text without an exact cut for more than `cap` characters is cut in its first `cap` ones: before the last word
  that begins in their second half, else eight tokens before their end, else at their end. This is exactly a flush at
  that place, depends on the text alone, and is counted in `forced_cuts`; the equation is promised while that is 0.
  At most `cap` characters and 3 bytes are pending after a feed.
"""

from __future__ import annotations

import codecs
import copy
import hashlib
import json
import re
from typing import Any
from weakref import WeakKeyDictionary

from tokenizers import Tokenizer
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerBase

from penstock.errors import InputError, SnapshotError, UnsupportedModel, UsageError
from penstock.models.text_cuts import Cuts, probe_text

CAP = 4096
"""Characters held back at most, unless told otherwise."""

_SURROGATE = re.compile("[\ud800-\udfff]")


def backend_of(tokenizer: PreTrainedTokenizerBase) -> Tokenizer:
    """The Rust tokenizer inside; raises UnsupportedModel where there is none."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if not isinstance(backend, Tokenizer):
        raise UnsupportedModel(
            f"{type(tokenizer).__name__} is a slow tokenizer, whose pieces cannot be streamed exactly: choose a model "
            "with a tokenizer.json, or convert it once with AutoTokenizer.from_pretrained(...).save_pretrained(...)."
        )
    return backend


class Pieces:
    """One tokenizer as an encoder of heads (text at the start of a stream) and tails (continuations).

    Works on private copies, so settings of the given tokenizer (truncation, padding, special tokens) neither change nor
    matter. `prefix_ids` and `suffix_ids` are what the tokenizer adds around a text; `fingerprint` names the whole.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, special: bool) -> None:
        self._head = _private(backend_of(tokenizer), special)
        self._tail, sections_change = _continuation(self._head)
        added = self._head.get_added_tokens_decoder()
        active = {token_id: token for token_id, token in added.items() if special or not token.special}
        self._added = frozenset(active) if self._tail is not self._head else frozenset()
        self.cuts = Cuts(self._tail, list(active.values()), sections_change, self.head, self.tail)
        probe = self.head(probe_text())
        given = tokenizer(probe_text(), split_special_tokens=not special, verbose=False)["input_ids"]
        empty = tokenizer("", split_special_tokens=not special, verbose=False)["input_ids"]
        start = next((i for i in range(len(empty) + 1) if given[i : i + len(probe)] == probe), None)
        if start is None or len(given) != len(probe) + len(empty):
            raise UnsupportedModel(
                f"{type(tokenizer).__name__} changes text outside its tokenizer.json, so it cannot be streamed exactly: "
                "load it with PreTrainedTokenizerFast.from_pretrained instead."
            )
        self.prefix_ids: tuple[int, ...] = tuple(given[:start])
        self.suffix_ids: tuple[int, ...] = tuple(given[start + len(probe) :])
        content = json.dumps([given, empty, special, [str(rule) for rule in self.cuts.rules], len(tokenizer)])
        self.fingerprint = hashlib.blake2b(content.encode(), digest_size=8).hexdigest()

    def head(self, text: str) -> list[int]:
        """Ids of text at the start of a stream, without `prefix_ids`."""
        return self._encode(self._head, text)

    def tail(self, text: str) -> list[int]:
        """Ids of text that continues a stream.

        Sections behind an added token get the prefix that the tokenizer gives them; only the first one does not.
        """
        ids = self._encode(self._tail, text)
        if self._added.isdisjoint(ids):
            return ids
        encoding = self._tail.encode(text, add_special_tokens=False)
        at = next(span[0] for token, span in zip(encoding.ids, encoding.offsets) if token in self._added)
        return self._encode(self._tail, text[:at]) + self._encode(self._head, text[at:])

    def forced_cut(self, window: str) -> int:
        """Where to cut text that has no exact cut: in (0, len(window)], a function of `window` alone."""
        encoding = self._tail.encode(window, add_special_tokens=False)
        starts = [span[0] for span in encoding.offsets]
        words = encoding.word_ids
        borders = [starts[i] for i in range(1, len(starts)) if words[i] != words[i - 1]]
        good = [at for at in borders[:-1] or starts[:-8] if len(window) // 2 <= at <= len(window)]
        return max(good, default=len(window))

    @staticmethod
    def _encode(backend: Tokenizer, text: str) -> list[int]:
        return backend.encode_batch_fast([text], add_special_tokens=False)[0].ids if text else []


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


def _private(backend: Tokenizer, special: bool) -> Tokenizer:
    own = Tokenizer.from_str(backend.to_str())
    if not special and (names := _reachable(own)):
        own = Tokenizer.from_str(_hidden(own, names))
    own.no_truncation()
    own.no_padding()
    own.encode_special_tokens = not special
    if getattr(own.model, "dropout", None):
        own.model.dropout = None
    return own


def _reachable(backend: Tokenizer) -> set[str]:
    """Special tokens (the unknown token aside) that the model itself makes from plain text.

    Unigram vocabularies hold them as pieces with the best score of all; a word-level one may hold them as words.
    """
    backend.encode_special_tokens = True
    unknown = {getattr(backend.model, "unk_token", None)}
    added = backend.get_added_tokens_decoder()
    names = {i: token.content for i, token in added.items() if token.special and token.content not in unknown}
    if type(backend.model).__name__ == "Unigram":
        return set(names.values())
    found = (backend.encode(form.format(name), add_special_tokens=False) for name in names.values() for form in _PLACES)
    return {names[token] for encoding in found for token in encoding.ids if token in names}


_PLACES = ("{}", "x{}", "x {} x")


def _hidden(backend: Tokenizer, names: set[str]) -> str:
    """The tokenizer, as JSON, with these names replaced by ones that no text spells; ids stay as they are."""
    content = json.loads(backend.to_str())
    model = content["model"]
    if model.get("unk_id") is not None:
        names = names - {model["vocab"][model["unk_id"]][0]}

    def hide(name: str) -> str:
        return f"\ufdd0 {name} \ufdd0" if name in names else name

    if isinstance(model["vocab"], dict):
        model["vocab"] = {hide(name): token for name, token in model["vocab"].items()}
    else:
        model["vocab"] = [[hide(name), score] for name, score in model["vocab"]]
    if "merges" in model:
        model["merges"] = [merge for merge in model["merges"] if "".join(merge) not in names]
    for token in content["added_tokens"]:
        token["content"] = hide(token["content"])
    return json.dumps(content, ensure_ascii=False)


def _continuation(head: Tokenizer) -> tuple[Tokenizer, bool]:
    """The tokenizer without its additions at the start of a text (`head` itself when it has none).

    The second value: whether the normalizer adds to every section behind an added token.
    """
    shell = Tokenizer(BPE())
    shell.normalizer, shell.pre_tokenizer = head.normalizer, head.pre_tokenizer
    parts = json.loads(shell.to_str())
    normalizer = _without_start(parts["normalizer"], "normalizers")
    pre_tokenizer = _without_start(parts["pre_tokenizer"], "pretokenizers")
    if normalizer == parts["normalizer"] and pre_tokenizer == parts["pre_tokenizer"]:
        return head, False
    shell = Tokenizer.from_str(json.dumps(parts | {"normalizer": normalizer, "pre_tokenizer": pre_tokenizer}))
    tail = Tokenizer.from_str(head.to_str())
    tail.encode_special_tokens = head.encode_special_tokens
    tail.normalizer, tail.pre_tokenizer = shell.normalizer, shell.pre_tokenizer
    return tail, normalizer != parts["normalizer"]


def _without_start(part: dict[str, Any] | None, members: str) -> dict[str, Any] | None:
    """A normalizer or pre-tokenizer, as JSON, without what it does at the start of a text only."""
    match part:
        case {"type": "Prepend"}:
            return None
        case {"type": "Strip", "strip_left": True}:
            return part | {"strip_left": False}
        case {"type": "Metaspace", "prepend_scheme": "first" | "always"}:
            return part | {"prepend_scheme": "never"}
        case {"type": "ByteLevel", "add_prefix_space": True}:
            return part | {"add_prefix_space": False}
        case {"type": "Sequence"} if members == "normalizers":
            kept = [_without_start(member, members) for member in part[members]]
            return part | {members: [member for member in kept if member is not None]}
        case {"type": "Sequence"} if part[members]:
            # Behind a first splitter the second sees words, not the text: what it prepends belongs to each word.
            first, *rest = part[members]
            return part | {members: [_without_start(first, members), *rest]}
    return part
