"""Token ids of a reply to text, piece by piece, and the strings that end it.  Knows no model and no session.

`TextDecoder` gives out text that no later token can change, with a bounded amount of work and of held tokens:

    push* + flush  ==  tokenizer.decode(ids, skip_special_tokens=..., clean_up_tokenization_spaces=False)

- Byte-level (GPT-2, Llama 3, Qwen): the bytes of the tokens go through an incremental UTF-8 decoder; only the 1 to 3
  bytes of an unfinished character are held.
- Byte fallback (Llama 2, Gemma): a run of byte tokens is text only if all of it is valid UTF-8, else every byte of it
  becomes U+FFFD. So a run is held until it ends or turns out invalid. `max_run` (64) bounds that: of a longer run,
  whole characters are given out as they come, which differs from `decode` only if the run turns invalid after that.
- Everything else (Metaspace, WordPiece, Unigram, unknown): the new tokens are decoded behind the last four visible
  ones, and what was not there before is new. So spaces come out as in the middle of a text, and the one that decoding
  drops at the start of a text is dropped once.
- Skipped special tokens count as absent. `decode` leaves a special token that its normalizer changes in the text
  (marked `normalized` in old Llama files: "<s>" stays); here it is skipped all the same.
"""

from __future__ import annotations

import codecs
import copy
import json
import re
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

from tokenizers import Tokenizer
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerBase

from penstock.errors import UsageError
from penstock.models.text_pieces import backend_of

_BYTE = re.compile("<0x([0-9A-Fa-f]{2})>")
_CONTEXT = 4  # visible tokens kept as left context


class TextDecoder:
    """The text of one reply; see the module docstring.

    `skip_special`: special tokens have no text. `max_run`: byte tokens held at most (>= 4). Ids that the tokenizer does
    not know (padding of the embedding) have no text.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, skip_special: bool = True, max_run: int = 64) -> None:
        if max_run < 4:
            raise UsageError(f"max_run={max_run} cannot hold one character: give 4 bytes or more.")
        self._backend = backend_of(tokenizer)
        added = self._backend.get_added_tokens_decoder()
        self._skipped = frozenset(i for i, token in added.items() if skip_special and token.special)
        kinds = _decoder_kinds(self._backend)
        self._byte_level = kinds == ["ByteLevel"]
        self._byte_fallback = "ByteFallback" in kinds
        self._max_run = max_run
        self._context: tuple[int, ...] = ()
        self._base = ""  # text of _context alone
        self._run: tuple[int, ...] = ()  # byte tokens not yet given out
        self._run_is_bad = False  # an invalid run goes on: its bytes are U+FFFD
        self._bytes = b""

    @property
    def pending(self) -> int:
        """Bytes held back, at most `max_run`."""
        return len(self._bytes) + len(self._run)

    def push(self, token_id: int) -> str:
        """The text that this token makes final; often empty. Costs O(1), not O(length of the reply)."""
        token = None if token_id in self._skipped else self._backend.id_to_token(token_id)
        if token is None:
            return ""
        if self._byte_level:
            text, used = codecs.utf_8_decode(self._bytes + _token_bytes(token), "replace", False)
            self._bytes = (self._bytes + _token_bytes(token))[used:]
            return text
        if self._byte_fallback and _BYTE.fullmatch(token):
            return self._push_byte(token_id)
        text = self._decode((*self._run, token_id))
        self._run, self._run_is_bad = (), False
        self._advance((token_id,))
        return text

    def flush(self) -> str:
        """The held text, as the end of a reply; the decoder is then as new."""
        text = self._bytes.decode("utf-8", "replace") if self._byte_level else self._decode(self._run)
        self._bytes, self._run, self._run_is_bad = b"", (), False
        self._context, self._base = (), ""
        return text

    def copy(self) -> TextDecoder:
        """An independent decoder in the same state (for a fork)."""
        return copy.copy(self)  # all state is immutable values

    def _push_byte(self, token_id: int) -> str:
        if self._run_is_bad:
            return "\ufffd"
        self._run += (token_id,)
        raw = bytes(int(str(self._backend.id_to_token(i))[3:5], 16) for i in self._run)
        try:
            _, used = codecs.utf_8_decode(raw, "strict", False)
        except UnicodeDecodeError:
            self._run, self._run_is_bad = (), True
            if not self._context:
                self._advance((token_id,))  # so that what follows is not taken for the start of the text
            return "\ufffd" * len(raw)
        if len(raw) < self._max_run:
            return ""
        # Give out all but the last whole character: what is decoded next then begins with a visible one.
        used -= len(codecs.utf_8_decode(raw, "strict", False)[0][-1].encode())
        text = self._decode(self._run[:used])
        self._run = self._run[used:]
        return text

    def _decode(self, ids: tuple[int, ...]) -> str:
        return self._text((*self._context, *ids))[len(self._base) :]

    def _advance(self, ids: tuple[int, ...]) -> None:
        self._context = (self._context + ids)[-_CONTEXT:]
        self._base = self._text(self._context)

    def _text(self, ids: Sequence[int]) -> str:
        return self._backend.decode(ids, skip_special_tokens=False) if ids else ""


class StopResult(NamedTuple):
    """`text` may be shown; `stopped`: a stop string was found behind it."""

    text: str
    stopped: bool


class StopStrings:
    """Ends a reply at the first of some strings; neither it nor what follows is given out.

    First means: the one that is complete first; of several complete at the same character, the longest. That depends
    on the text alone, not on how it is cut into pieces. `matched` is the string found, or None. Holds back less than
    the longest stop string.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        if isinstance(stops, str) or not all(isinstance(stop, str) and stop for stop in stops):
            raise UsageError(f"stop strings are a list of non-empty strings, not {stops!r}: leave empty ones out.")
        self.stops = tuple(stops)
        self.matched: str | None = None
        self._held = ""

    @property
    def pending(self) -> int:
        """Characters held back, because they may begin a stop string."""
        return len(self._held)

    def push(self, piece: str) -> StopResult:
        """The text that is certain to come before any stop string. After a stop: nothing, and still stopped."""
        if self.matched is not None:
            return StopResult("", True)
        text = self._held + piece
        found = [(at + len(stop), at, stop) for stop in self.stops if (at := text.find(stop)) >= 0]
        if found:
            _, at, self.matched = min(found)
            self._held = ""
            return StopResult(text[:at], True)
        longest = max(map(len, self.stops), default=1) - 1
        begins = range(max(len(text) - longest, 0), len(text))
        keep = next((at for at in begins if any(stop.startswith(text[at:]) for stop in self.stops)), len(text))
        self._held = text[keep:]
        return StopResult(text[:keep], False)

    def flush(self) -> str:
        """The held text: the reply ended without a stop string in it."""
        held, self._held = self._held, ""
        return held

    def copy(self) -> StopStrings:
        """An independent copy in the same state (for a fork)."""
        return copy.copy(self)


def _decoder_kinds(backend: Tokenizer) -> list[str]:
    shell = Tokenizer(BPE())
    shell.decoder = backend.decoder
    part = json.loads(shell.to_str())["decoder"]
    return [member["type"] for member in (part.get("decoders", [part]) if part else [])]


@lru_cache(maxsize=1)
def _byte_of_char() -> dict[str, int]:
    """The byte-level alphabet: printable Latin-1 bytes stand for themselves, the others for U+0100 and on."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + i): byte for i, byte in enumerate(others)}


def _token_bytes(token: str) -> bytes:
    """The bytes that a byte-level token stands for; a token with a foreign character stands for its own text."""
    table = _byte_of_char()
    try:
        return bytes(table[char] for char in token)
    except KeyError:
        return token.encode()
