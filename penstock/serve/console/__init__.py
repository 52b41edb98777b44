"""The console: a page that shows a server's sessions and talks to them (docs/console.md).

Plain files in `page/`, read once, served from memory under names that are known: no path of a request is ever opened.
The page may load nothing but these files and talk to nobody but this server.
"""

from __future__ import annotations

import hashlib
from importlib import resources
from typing import NamedTuple

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

_KINDS = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types"
)
_HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
    "cache-control": "no-cache",  # asked for again, answered by 304
}


class _File(NamedTuple):
    content: bytes
    kind: str
    tag: str


def _files() -> dict[str, _File]:
    out = {}
    for entry in resources.files(__name__).joinpath("page").iterdir():
        kind = _KINDS.get("." + entry.name.rpartition(".")[2])
        if kind is not None:
            content = entry.read_bytes()
            out[entry.name] = _File(content, kind, f'"{hashlib.sha256(content).hexdigest()[:16]}"')
    return out


def console_routes() -> list[Route]:
    """`/` and `/console`: the page; `/console/NAME`: its files."""
    files = _files()

    def route(path: str, file: _File) -> Route:
        async def console(request: Request) -> Response:
            headers = {**_HEADERS, "etag": file.tag}
            if file.tag in request.headers.get("if-none-match", ""):
                return Response(status_code=304, headers=headers)
            return Response(file.content, media_type=file.kind, headers=headers)

        return Route(path, console, methods=["GET"])

    page = files["index.html"]
    return [route("/", page), route("/console", page), *(route(f"/console/{name}", files[name]) for name in files)]
