"""Clients of `penstock serve`, synchronous and asynchronous (docs/console.md, docs/protocol.md).

    with penstock.Client("http://127.0.0.1:8321") as client:
        session = client.sessions.create()
        session.append("a line of the stream\\n")
        for piece in session.ask("What happened?"):
            print(piece, end="", flush=True)

    async with penstock.AsyncClient() as client:
        session = await client.sessions.create()
        async with await session.ask("What happened?") as answer:
            async for piece in answer: ...

What the server refuses is an error of penstock.errors, with `status` and `code` (`Refused`).  Needs the extra `serve`.
"""

from penstock.client.asynchronous import AsyncAnswer, AsyncClient, AsyncClientSession, AsyncSessions
from penstock.client.failures import BrokenOff, Refused, Unreachable
from penstock.client.records import Appended, SessionInfo, Usage
from penstock.client.synchronous import Answer, Client, ClientSession, Sessions

__all__ = [
    "Answer",
    "Appended",
    "AsyncAnswer",
    "AsyncClient",
    "AsyncClientSession",
    "AsyncSessions",
    "BrokenOff",
    "Client",
    "ClientSession",
    "Refused",
    "SessionInfo",
    "Sessions",
    "Unreachable",
    "Usage",
]
