"""Who may ask, and how often: bearer tokens from a file, rates, and which origins are ours.  Free of I/O but the file.

A line of the file is one token and, behind it, what it may do:

    sk-Zk3v...                                   a token; its owner is a hash of it
    sk-9fQw...  name=alice requests=600          at most 600 requests a minute
    sk-b7Xy...  sessions=20                      at most 20 sessions at once
    # a comment

Sessions belong to the name of the token that made them.
"""

from __future__ import annotations

import hashlib
import re
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from penstock.core import Clock, RealClock
from penstock.errors import InputError
from penstock.serve.refusal import Refusal

OPEN = frozenset({"/", "/console", "/health"})  # need no token
OPEN_BELOW = "/console/"  # the files of the page
_KNOWN = 10_000  # callers whose rate is remembered
_COUNT = re.compile(r"[1-9]\d{0,8}")
_IN_PROTOCOL = "openai-insecure-api-key."
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


@dataclass(frozen=True)
class Caller:
    """Who asks; without tokens everybody is the same one."""

    name: str = ""
    requests: int | None = None  # a minute
    sessions: int | None = None  # at once


class Bucket:
    """A rate per minute: full at first, refilled evenly."""

    def __init__(self, per_minute: int, clock: Clock) -> None:
        self.per_minute, self._clock = per_minute, clock
        self._left, self._at = float(per_minute), clock.now()

    def take(self) -> float:
        """Take one; returns 0, or the seconds until there is one again."""
        self._fill()
        if self._left >= 1:
            self._left -= 1
            return 0.0
        return (1 - self._left) * 60 / self.per_minute

    def left(self) -> tuple[int, float]:
        """How many may come now, and the seconds until it is full again."""
        self._fill()
        return int(self._left), round((self.per_minute - self._left) * 60 / self.per_minute, 3)

    def _fill(self) -> None:
        now = self._clock.now()
        self._left = min(float(self.per_minute), self._left + (now - self._at) * self.per_minute / 60)
        self._at = now


def read_tokens(path: Path) -> dict[bytes, Caller]:
    """Callers by the hash of their token; raises InputError."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"the tokens in {path} cannot be read ({error}): give a text file.") from None
    callers = callers_of(lines, str(path))
    if not callers:
        raise InputError(f"{path} has no tokens: write one per line.")
    return callers


def callers_of(lines: Iterable[str], where: str) -> dict[bytes, Caller]:
    """Callers by the hash of their token; `where` names the lines in an InputError."""
    found: dict[bytes, Caller] = {}
    for number, line in enumerate(lines, 1):
        token, *settings = line.partition("#")[0].split() or [""]
        if not token:
            continue
        key = _hash(token)
        values = dict(setting.partition("=")[::2] for setting in settings)
        rate, share = values.pop("requests", None), values.pop("sessions", None)
        name = values.pop("name", key.hex()[:16])
        if values or not name or not all(_COUNT.fullmatch(given) for given in (rate, share) if given is not None):
            raise InputError(
                f"line {number} of {where} is not understood: write TOKEN [name=NAME] [requests=N] [sessions=N]."
            )
        if key in found:
            raise InputError(f"line {number} of {where} has a token for the second time: leave one out.")
        found[key] = Caller(name, None if rate is None else int(rate), None if share is None else int(share))
    return found


def _hash(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "replace")).digest()


class Access:
    """Admits requests or refuses them.  Tokens are looked up by their hash, so timing tells nothing of them."""

    def __init__(
        self, tokens: Mapping[bytes, Caller] | None = None, requests: int | None = None, is_local: bool = True,
        clock: Clock | None = None,
    ) -> None:  # fmt: skip
        self.tokens, self.requests, self.is_local = tokens, requests, is_local
        self._clock = clock or RealClock()
        self._buckets: OrderedDict[tuple[str, str], Bucket] = OrderedDict()

    def admit(self, path: str, headers: Mapping[str, str], address: str) -> Caller:
        """The caller, or a Refusal: a foreign page (403), no valid token (401), too many requests (429)."""
        self._check_origin(headers)
        if path in OPEN or path.startswith(OPEN_BELOW):
            return Caller()
        caller = self._caller(headers)
        self.take(caller, address)
        return caller

    def take(self, caller: Caller, address: str) -> None:
        """Count one request, or a Refusal (429)."""
        bucket = self._bucket(caller, address)
        wait = 0.0 if bucket is None else bucket.take()
        if bucket is not None and wait > 0:
            raise Refusal(
                f"more than {bucket.per_minute} requests a minute: try again in {wait:.1f} seconds.", 429,
                code="rate_limit_exceeded", retry_after=wait,
            )  # fmt: skip

    def rates(self, caller: Caller, address: str) -> list[dict[str, Any]]:
        """The limits of a caller as the Realtime protocol shows them; empty if there are none."""
        bucket = self._bucket(caller, address)
        if bucket is None:
            return []
        left, seconds = bucket.left()
        return [{"name": "requests", "limit": bucket.per_minute, "remaining": left, "reset_seconds": seconds}]

    def _check_origin(self, headers: Mapping[str, str]) -> None:
        """Pages of other sites may not use a server that trusts its own machine; other origins are off by default."""
        host = headers.get("host", "")
        if self.is_local and _name(host) not in _LOOPBACK:
            raise Refusal(f"this server is local and is not called {_name(host)!r}: use 127.0.0.1.", 403, code="host")
        origin = headers.get("origin")
        if origin is not None and origin.partition("://")[2] != host:
            raise Refusal(
                "requests of pages from other origins are refused: call from the same one.", 403, code="origin"
            )

    def _caller(self, headers: Mapping[str, str]) -> Caller:
        if self.tokens is None:
            return Caller()
        scheme, _, token = (headers.get("authorization") or _offered(headers)).partition(" ")
        caller = self.tokens.get(_hash(token.strip())) if scheme.lower() == "bearer" else None
        if caller is None:
            raise Refusal(
                "this server needs a valid token: send the header Authorization: Bearer TOKEN.", 401,
                code="invalid_api_key",
            )  # fmt: skip
        return caller

    def _bucket(self, caller: Caller, address: str) -> Bucket | None:
        rate = caller.requests or self.requests
        if rate is None:
            return None
        key = (caller.name, "" if self.tokens else address)
        bucket = self._buckets.pop(key, None) or Bucket(rate, self._clock)
        self._buckets[key] = bucket
        if len(self._buckets) > _KNOWN:
            self._buckets.popitem(last=False)
        return bucket


def _offered(headers: Mapping[str, str]) -> str:
    """A token among the subprotocols of a WebSocket: pages cannot set headers there."""
    for name in headers.get("sec-websocket-protocol", "").split(","):
        if name.strip().startswith(_IN_PROTOCOL):
            return f"Bearer {name.strip().removeprefix(_IN_PROTOCOL)}"
    return ""


def _name(host: str) -> str:
    """The host of a Host header, without its port."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0].lower()
