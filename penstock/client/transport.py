"""The one place that knows httpx, so that penstock can be imported without it."""

from __future__ import annotations

from typing import Any

from penstock.client.calls import Where
from penstock.client.failures import BrokenOff, Unreachable
from penstock.errors import MissingExtra, PenstockError


def library() -> Any:
    """httpx, or the sentence that says how to get it."""
    try:
        import httpx
    except ImportError:
        raise MissingExtra("a client of penstock serve", "serve") from None
    return httpx


def settings(at: Where, timeout: float, transport: Any) -> dict[str, Any]:
    """What both kinds of client are made with; a proxy is never asked for the loopback."""
    httpx = library()
    return {
        "base_url": at.url, "headers": at.headers, "timeout": httpx.Timeout(timeout, connect=min(timeout, 10.0)),
        "trust_env": not at.is_loopback, "transport": transport, "follow_redirects": False,
    }  # fmt: skip


def failed(error: Exception, at: Where) -> tuple[PenstockError, bool]:
    """Our error for one of httpx's, and whether the request may have reached the server."""
    httpx = library()
    if isinstance(error, (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)):
        return Unreachable(f"no server answers at {at.url}: start one with penstock serve, or give its URL."), False
    if isinstance(error, httpx.TimeoutException):
        return Unreachable(f"the server at {at.url} did not answer in time: try again, or give a longer timeout."), True
    if isinstance(error, httpx.UnsupportedProtocol):
        return Unreachable(f"{at.url} is not the URL of a server: give one like http://127.0.0.1:8321."), False
    return BrokenOff(f"the connection to {at.url} broke off: see whether the server still runs, and try again."), True
