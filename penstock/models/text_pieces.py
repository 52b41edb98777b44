"""One tokenizer as an encoder of pieces: of the start of a stream, and of text that continues one.

Everything here works on private copies of the tokenizer, derived from its own description: without what it does at the
start of a text only, and without special tokens that plain text can spell.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from tokenizers import Tokenizer
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerBase

from penstock.errors import UnsupportedModel
from penstock.models.text_cuts import Cuts, probe_text


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
                f"{type(tokenizer).__name__} changes text outside its tokenizer.json, so it cannot be streamed "
                "exactly: load it with PreTrainedTokenizerFast.from_pretrained instead."
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


def _private(backend: Tokenizer, special: bool) -> Tokenizer:
    own = Tokenizer.from_str(backend.to_str())
    own.no_truncation()
    own.no_padding()
    own.encode_special_tokens = not special
    if not special and (names := _reachable(own)):
        own = Tokenizer.from_str(_hidden(own, names))
        own.encode_special_tokens = True
    if getattr(own.model, "dropout", None):
        own.model.dropout = None
    return own


def _reachable(backend: Tokenizer) -> set[str]:
    """Special tokens (the unknown token aside) that the model itself makes from plain text.

    Unigram vocabularies hold them as pieces with the best score of all; a word-level one may hold them as words.
    """
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
    if part is None:
        return None
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
