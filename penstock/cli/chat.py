"""penstock chat: an endless conversation with a server, in a terminal or in a pipe."""

from __future__ import annotations

import contextlib
import difflib
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Table

from penstock.cli.derive import Common, argument, option
from penstock.cli.output import Output, say
from penstock.client import Client, ClientSession, Refused
from penstock.errors import InputError, PenstockError, UsageError

_PROMPT = "› "
_HELP = {
    "/read FILE": "append a file to the stream, of any length",
    "/info": "how long the stream is, what its memory takes, where it is",
    "/save": "write a snapshot at the server, and keep the session when this ends",
    "/fork [NAME]": "go on in a copy; the session itself stays as it is",
    "/forget": "delete the session and begin a new one",
    "/quit": "end; so does the end of the input (Ctrl-D)",
}


@dataclass(frozen=True)
class ChatOptions(Common):
    """Checked when made; raises UsageError with the fix."""

    url: str | None = argument(None, "A server.  [default: $PENSTOCK_URL, or http://127.0.0.1:8321]", "[URL]")
    session: str | None = option(None, "Go on in this session; it is made if there is none.", "ID")
    token: str | None = option(None, "A bearer token.  [default: $PENSTOCK_TOKEN]", "T")
    max_tokens: int | None = option(None, "Tokens of one answer at most.  [default: the server's]", "N")
    temperature: float | None = option(None, "0 always takes the likeliest token.  [default: the server's]", "X")
    seed: int | None = option(None, "Same seed, same stream, same answer.", "N")
    raw: bool = option(False, "Questions as they are, without the turns of the model's chat template.")

    def __post_init__(self) -> None:
        if self.max_tokens is not None and self.max_tokens < 1:
            raise UsageError(f"--max-tokens cannot be {self.max_tokens}: give a whole number from 1 on.")
        if self.temperature is not None and not 0 <= self.temperature <= 2:
            raise UsageError(f"--temperature cannot be {self.temperature}: give a number from 0 to 2.")


def chat(options: ChatOptions) -> int | None:
    """Talk with a session of a server; a line is a question, /help lists commands."""
    out = Output(options.json)
    is_terminal = out.is_terminal and sys.stdin is not None and sys.stdin.isatty()
    with Client(options.url, token=options.token) as client:
        talk = Talk(client, options, out, is_terminal)
        try:
            if is_terminal:
                talk.greet()
            for line in _lines(is_terminal):
                if not talk.take(line):
                    break
        finally:
            talk.end()
    return None


def _lines(is_terminal: bool) -> Iterator[str]:
    """Lines of the input; in a terminal with a prompt, editing and history, and Ctrl-C drops the line."""
    if sys.stdin is None:
        return
    if not is_terminal:
        with contextlib.suppress(AttributeError, ValueError):
            sys.stdin.reconfigure(errors="replace")  # type: ignore[union-attr]
        yield from (line.rstrip("\r\n") for line in sys.stdin)
        return
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  (editing and history for input)
    is_leaving = False
    while True:
        try:
            line = input(_PROMPT)
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            print()
            if is_leaving:
                return
            is_leaving = True
            say("Ctrl-C again, or Ctrl-D, ends the conversation.")
            continue
        is_leaving = False
        while line.endswith("\\"):
            line = line[:-1] + "\n" + input("  ")
        yield line


class Talk:
    """One conversation: a session, and what was said in it."""

    def __init__(self, client: Client, options: ChatOptions, out: Output, is_terminal: bool) -> None:
        self.client, self.options, self.out, self.is_terminal = client, options, out, is_terminal
        self.model = client.model()  # before a session is made: a wrong token or URL leaves nothing behind
        self.is_kept = options.session is not None
        self.asked = 0
        self._commands: dict[str, Callable[[str], None]] = {
            "/read": self._read, "/info": self._info, "/save": self._save, "/fork": self._fork,
            "/forget": self._forget, "/help": self._help,
        }  # fmt: skip
        self.session = self._opened(options.session)

    def _opened(self, id: str | None) -> ClientSession:
        if id is not None:
            try:
                return self.client.sessions.get(id)
            except Refused as error:
                if error.status != 404:
                    raise
        return self.client.sessions.create(id)

    def greet(self) -> None:
        info = self.session.info()
        past = f", {info.tokens} tokens" if info.tokens else ""
        self.out.write(f"{self.model} at {self.client.at.url}, session {self.session.id}{past}\n")
        self.out.write("A line is a question. /help lists commands, Ctrl-C ends an answer, Ctrl-D all.\n\n")

    def take(self, line: str) -> bool:
        """A line of the input; False when the conversation is over.  In a terminal a failure is told, and no more."""
        if not line.strip():
            return True
        name, _, rest = line.partition(" ")
        if name in ("/quit", "/exit"):
            return False
        try:
            if line.startswith("//"):
                self._ask(line[1:])
            elif name in self._commands:
                self._commands[name](rest.strip())
            elif name.startswith("/"):
                near = difflib.get_close_matches(name, [*self._commands, "/quit"], n=1, cutoff=0.7)
                hint = f"did you mean {near[0]}?" if near else "/help lists them, // begins a question with a slash."
                raise UsageError(f"there is no command {name}: {hint}")
            else:
                self._ask(line)
        except PenstockError as error:
            if not self.is_terminal:
                raise
            say(f"penstock: {error}")
        return True

    # -- questions ----------------------------------------------------------------------------------------------

    def _ask(self, question: str) -> None:
        began, first, said, finish, tokens = time.monotonic(), None, "", None, 0
        options = self.options
        try:
            with self.session.ask(
                question, raw=options.raw, max_tokens=options.max_tokens, temperature=options.temperature,
                seed=options.seed,
            ) as answer:  # fmt: skip
                for piece in answer:
                    first = first or time.monotonic() - began
                    said += piece
                    if not options.json:
                        self.out.write(piece)
                finish = answer.finish
                tokens = 0 if answer.usage is None else answer.usage.completion_tokens
        except KeyboardInterrupt:
            finish = "cancelled"
            if not self.is_terminal:
                raise
        finally:
            if said and not options.json and not said.endswith("\n"):
                self.out.write("\n")
        self.asked += 1
        if options.json:
            self.out.document({
                "question": question, "answer": said, "finish": finish, "tokens": tokens,
                "first_text_s": first, "seconds": time.monotonic() - began,
            })  # fmt: skip
        elif self.is_terminal:
            self.out.write("(cancelled)\n\n" if finish == "cancelled" else "\n")

    # -- commands -----------------------------------------------------------------------------------------------

    def _tell(self, document: dict[str, Any], sentence: str) -> None:
        if self.options.json:
            self.out.document(document)
        elif self.is_terminal:
            self.out.write(f"{sentence}\n\n")
        else:
            say(sentence)  # standard output carries answers

    def _read(self, path: str) -> None:
        if not path:
            raise UsageError("/read needs a file: write /read FILE.")
        try:
            with open(path, "rb") as file:
                done = self.session.append(iter(lambda: file.read(1 << 16), b""))
        except OSError as error:
            raise InputError(f"{path} cannot be read ({error.strerror}): give a file.") from None
        self._tell(
            {"read": path, "bytes": done.bytes, "tokens": done.session_tokens},
            f"{done.bytes} bytes of {path} are in the stream, which has {done.session_tokens} tokens.",
        )

    def _info(self, _: str) -> None:
        info = asdict(self.session.info())
        if self.options.json:
            self.out.document({"info": info})
            return
        table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
        for name, value in info.items():
            if value is not None:
                table.add_row(name, f"{value:,}" if type(value) is int and name != "created" else str(value))
        if self.is_terminal:
            self.out.show(table)
            self.out.write("\n")
        else:
            say(", ".join(f"{name} {value}" for name, value in info.items()))

    def _save(self, _: str) -> None:
        size = self.session.save()
        self.is_kept = True
        self._tell({"saved": self.session.id, "bytes": size}, f"{self.session.id} is saved, {size} bytes.")

    def _fork(self, name: str) -> None:
        before = self.session
        self.session = before.fork(name or None)
        self.is_kept = True
        self._tell(
            {"fork": self.session.id, "of": before.id}, f"this is {self.session.id} now; {before.id} stays as it was."
        )

    def _forget(self, _: str) -> None:
        self.session.delete()
        self.session = self.client.sessions.create(self.options.session)
        self._tell({"forgot": True, "session": self.session.id}, f"forgotten; {self.session.id} is a new session.")

    def _help(self, _: str) -> None:
        if self.options.json:
            self.out.document({"commands": _HELP})
        else:
            say("\n".join(f"  {name:14}{about}" for name, about in _HELP.items()))

    # -- the end ------------------------------------------------------------------------------------------------

    def end(self) -> None:
        """Delete a session that nobody can want again; say how to go on in one that stays."""
        is_kept = self.is_kept or (self.is_terminal and self.asked > 0)
        try:
            if not is_kept:
                self.session.delete()
        except PenstockError as error:
            say(f"penstock: the session {self.session.id} may still be there: {error}")
            return
        if self.options.json:
            self.out.document({"session": self.session.id, "kept": is_kept, "questions": self.asked})
        elif is_kept and self.is_terminal:
            say(f"penstock chat {self.client.at.url} --session {self.session.id}   goes on with this conversation.")
