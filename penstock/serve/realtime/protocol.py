"""The Realtime protocol of one connection, without input or output.

    flow = protocol.receive(text)      a generator: yields Send, Put, Admit, Speak, Stop, Release (outputs.py), is sent
                                       the result of each, or has the refusal thrown into it

The order of events and what they mean: docs/protocol.md.  Nothing that a client sends raises; it is answered with an
`error` event and has then changed nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NoReturn

from penstock.core import Clock
from penstock.models.chat import Turns
from penstock.serve.asked import Finished
from penstock.serve.realtime.config import DEAF, UNSUPPORTED, first_session, updated
from penstock.serve.realtime.conversation import Conversation
from penstock.serve.realtime.items import Item, Items, message_of
from penstock.serve.realtime.outputs import Admit, Flow, Release, Send, Speak, Stop
from penstock.serve.realtime.response import Response
from penstock.serve.realtime.turn import Wanted, wanted
from penstock.serve.refusal import Refusal, refusal_of
from penstock.serve.wire import whole_text

MOST_RESPONSES = 8  # under way at once; one of them in the conversation
_BUSY = "conversation_already_has_active_response"


@dataclass(frozen=True)
class Facts:
    """What a connection begins with: `window` tokens stay in the memory (None: all), `tokens` are in the stream."""

    session_id: str
    model: str
    window: int | None
    turns: Turns | None
    said: str = ""
    tokens: int = 0


class Protocol:
    """See the module's docstring; `new_id(prefix)` makes ids that were never used."""

    def __init__(self, facts: Facts, clock: Clock, new_id: Callable[[str], str], items: Items | None = None) -> None:
        self.clock, self.new_id = clock, new_id
        self.session = first_session(facts.session_id, facts.model)
        self.conversation = Conversation(facts.turns, facts.window, facts.said, facts.tokens, items)
        self.responses: dict[str, Response] = {}
        self.active: Response | None = None  # the one that is written to the stream
        self._handlers: dict[str, Callable[[dict[str, Any]], Flow]] = {
            "session.update": self._session_update,
            "conversation.item.create": self._item_create,
            "conversation.item.delete": self._item_delete,
            "conversation.item.truncate": self._item_truncate,
            "conversation.item.retrieve": self._item_retrieve,
            "response.create": self._response_create,
            "response.cancel": self._response_cancel,
        }

    def _send(self, event: dict[str, Any]) -> Send:
        return Send({"event_id": self.new_id("event"), **event})

    def _error(self, refusal: Refusal, event_id: str | None) -> Send:
        told = refusal.document()["error"]
        return self._send({"type": "error", "error": {**told, "event_id": event_id}})

    # -- in ------------------------------------------------------------------------------------------------------

    def begin(self) -> Flow:
        """The connection is open."""
        yield self._send({"type": "session.created", "session": self.session})

    def receive(self, data: str | bytes) -> Flow:
        """One message of the client."""
        event_id: str | None = None
        try:
            event = _event_of(data)
            found = event.get("event_id")
            if found is not None and not (isinstance(found, str) and len(found) <= 512):
                raise Refusal("event_id is not a string of at most 512 characters: shorten it.", param="event_id")
            event_id = found
            yield from self._handler(event)(event)
        except Refusal as refusal:
            yield self._error(refusal, event_id)
        except Exception as error:  # ours: the client hears of it, the connection goes on
            yield self._error(refusal_of(error), event_id)

    def _handler(self, event: dict[str, Any]) -> Callable[[dict[str, Any]], Flow]:
        kind = event.get("type")
        if not isinstance(kind, str):
            raise Refusal("type is missing: say what the event is.", param="type", code="missing_required_parameter")
        if kind.startswith(("input_audio_buffer.", "output_audio_buffer.")):
            raise Refusal(DEAF, param="type", code=UNSUPPORTED)
        handler = self._handlers.get(kind)
        if handler is None:
            known = ", ".join(self._handlers)
            raise Refusal(f"there is no client event {kind[:64]!r}: send one of {known}.", param="type", code=_INVALID)
        return handler

    def said(self, response_id: str, text: str) -> Flow:
        """A piece of an answer."""
        response = self.responses.get(response_id)
        if response is not None:
            yield self._send(response.piece(text, self.clock.now()))

    def finished(self, response_id: str, end: Finished) -> Flow:
        """An answer is over."""
        response = self.responses.pop(response_id, None)
        if response is None:
            return
        response.finish(end.reason, end.tokens)
        if response is self.active:
            self.active = None
            self.conversation.answered(response.item, end)
        elif response.conversation_id is not None:
            try:
                yield from self.conversation.append([response.item])
            except Refusal as refusal:
                response.conversation_id = None
                response.fail(refusal)
        for event in response.end(self.conversation.id_before(response.item)):
            yield self._send(event)

    def failed(self, response_id: str, refusal: Refusal) -> Flow:
        """An answer broke off."""
        response = self.responses.pop(response_id, None)
        if response is None:
            return
        if response is self.active:
            self.active = None
        elif response.conversation_id is not None:
            response.conversation_id = None
        response.fail(refusal)
        for event in response.end(self.conversation.id_before(response.item)):
            yield self._send(event)

    # -- the session ---------------------------------------------------------------------------------------------

    def _session_update(self, event: dict[str, Any]) -> Flow:
        _only(event, "session")
        self.session = updated(self.session, event.get("session"))
        yield self._send({"type": "session.updated", "session": self.session})

    # -- the conversation ----------------------------------------------------------------------------------------

    def _item_create(self, event: dict[str, Any]) -> Flow:
        _only(event, "item", "previous_item_id")
        message = message_of(event.get("item"), "item")
        items = self.conversation.items
        if message.id is not None and items.has(message.id):
            raise Refusal(
                f"there is an item {message.id!r} already: leave its id out.", param="item.id",
                code="item_already_exists",
            )  # fmt: skip
        before, at = event.get("previous_item_id"), len(items.all)
        if before is not None:
            at = 0 if before == "root" else items.find(before, "previous_item_id") + 1
        item = Item(message.id or self.new_id("item"), message.role, message.text)
        if at < len(items.all):
            self._check_settled()
            yield from self.conversation.rewrite(at, [item, *items.all[at:]])
        else:
            prelude = [] if item.role == "assistant" else self.conversation.prelude(self.session["instructions"])
            yield from self.conversation.append([*prelude, item])
        previous = self.conversation.id_before(item)
        for kind in ("added", "done"):
            yield self._send({
                "type": f"conversation.item.{kind}", "previous_item_id": previous, "item": item.document(),
            })  # fmt: skip

    def _item_retrieve(self, event: dict[str, Any]) -> Flow:
        _only(event, "item_id")
        items = self.conversation.items
        item = items.all[items.find(event.get("item_id"))]
        yield self._send({"type": "conversation.item.retrieved", "item": item.document()})

    def _item_delete(self, event: dict[str, Any]) -> Flow:
        _only(event, "item_id")
        items = self.conversation.items
        at = items.find(event.get("item_id"))
        item = items.all[at]
        if item.start is None and not (self.active and self.active.item is item):
            items.all.pop(at)
        else:
            self._check_settled()
            yield from self.conversation.rewrite(at, items.all[at + 1 :])
        yield self._send({"type": "conversation.item.deleted", "item_id": item.id})

    def _item_truncate(self, event: dict[str, Any]) -> Flow:
        _only(event, "item_id", "content_index", "audio_end_ms")
        items = self.conversation.items
        at = items.find(event.get("item_id"))
        item, end = items.all[at], event.get("audio_end_ms")
        if event.get("content_index") != 0 or isinstance(event["content_index"], bool):
            raise Refusal("content_index is not 0: an answer has one part.", param="content_index", code=_INVALID)
        if not isinstance(end, int) or isinstance(end, bool) or end < 0:
            raise Refusal(
                "audio_end_ms is not a number of milliseconds: send a whole one.", param="audio_end_ms", code=_INVALID
            )
        self._check_settled()
        if not item.is_spoken or not item.times:
            raise Refusal(
                "only one of the newest answers can be cut: delete the item instead.", param="item_id", code=_INVALID
            )
        if end > item.times[-1]:
            raise Refusal(
                f"the answer took {item.times[-1]} ms: audio_end_ms is at most that.", param="audio_end_ms",
                code=_INVALID,
            )  # fmt: skip
        text = item.heard(end)
        if text != item.text:
            cut = replace(item, text=text, times=[], sizes=[])
            yield from self.conversation.rewrite(at, [cut, *items.all[at + 1 :]])
        yield self._send({
            "type": "conversation.item.truncated", "item_id": item.id, "content_index": 0, "audio_end_ms": end,
        })  # fmt: skip

    def _check_settled(self) -> None:
        if self.active is not None:
            raise Refusal("a response is being spoken: wait for response.done, or cancel it.", 409, code=_BUSY)

    # -- responses -----------------------------------------------------------------------------------------------

    def _response_create(self, event: dict[str, Any]) -> Flow:
        _only(event, "response")
        want = wanted(event.get("response"), self.session, self.conversation.items)
        if want.is_written:
            self._check_settled()
        if len(self.responses) >= MOST_RESPONSES:
            raise Refusal(f"{MOST_RESPONSES} responses are under way: wait for one.", 429, code="rate_limit_exceeded")
        item = Item(self.new_id("item"), "assistant", "", "in_progress", is_spoken=True)
        response = Response(
            self.new_id("resp"), item, want.conversation_id(self.session["id"]), want.max_output_tokens, want.metadata,
            is_inside=want.is_written and want.messages is None,
        )  # fmt: skip
        self.responses[response.id] = response
        if want.is_written:
            self.active = response
        try:
            rates = yield Admit(response.id)
            yield from self._start(response, want)
        except Exception:
            del self.responses[response.id]
            self.conversation.drop(item)
            self.active = None if response is self.active else self.active
            yield Release(response.id)
            raise
        if not response.is_inside and response is self.active:
            self.active = None  # its text comes into the conversation when it is over
        for told in response.begin(rates, self.conversation.id_before(item)):
            yield self._send(told)

    def _start(self, response: Response, want: Wanted) -> Flow:
        conversation = self.conversation
        if want.messages is not None:
            yield Speak(response.id, want.sampling, messages=want.messages)
        elif not want.is_written:
            parts = conversation.question(want.instructions)
            response.input_tokens, response.cached_tokens = conversation.usage()
            yield Speak(response.id, want.sampling, parts=parts)
        else:
            most = yield from conversation.prepare(response.item, want.instructions, self.session["truncation"])
            response.input_tokens, response.cached_tokens = conversation.usage()
            allowed = want.sampling["max_new"]
            yield Speak(response.id, {**want.sampling, "max_new": allowed if most is None else min(most, allowed)})

    def _response_cancel(self, event: dict[str, Any]) -> Flow:
        _only(event, "response_id")
        id = event.get("response_id")
        response = self.active if id is None else self.responses.get(id) if isinstance(id, str) else None
        if response is None:
            raise Refusal(
                "there is no such response under way: nothing was cancelled.", param="response_id",
                code="response_cancel_not_active",
            )  # fmt: skip
        response.is_cancelled = True
        yield Stop(response.id)


_INVALID = "invalid_value"


def _only(event: dict[str, Any], *fields: str) -> None:
    for name in event:
        if name not in ("type", "event_id", *fields):
            raise Refusal(f"{name[:64]}: is not known: leave it out.", param=name[:64], code="unknown_parameter")


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _event_of(data: str | bytes) -> dict[str, Any]:
    try:
        event = json.loads(data, parse_constant=_refuse_constant)
        whole_text(data, event)
    except (ValueError, RecursionError):
        raise Refusal("the message is not JSON: send one JSON object, as text.", code="invalid_json") from None
    if not isinstance(event, dict):
        raise Refusal("the message is not a JSON object: send an event.", code="invalid_json")
    return event
