"""The endpoints that official OpenAI clients know: models, chat completions, completions.  Nothing is remembered."""

from __future__ import annotations

import secrets
import time
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from penstock.errors import InputError
from penstock.serve.chunks import Chat, Text
from penstock.serve.http import Server, json_body, server_of
from penstock.serve.prompt import chat_tokens, prompts_of
from penstock.serve.refusal import Refusal
from penstock.serve.replies import once, respond, sampling_of
from penstock.serve.wire import ChatBody, CompletionBody, checked


async def models(request: Request) -> Response:
    """GET /v1/models."""
    return JSONResponse({"object": "list", "data": [_model(server_of(request))]})


async def model(request: Request) -> Response:
    """GET /v1/models/{model}."""
    server = server_of(request)
    _check_model(server, request.path_params["model"])
    return JSONResponse(_model(server))


def _model(server: Server) -> dict[str, Any]:
    return {"id": server.model.name, "object": "model", "created": int(server.started), "owned_by": "penstock"}


def _check_model(server: Server, name: str) -> None:
    if name != server.model.name:
        raise Refusal(
            f"the model {name!r} is not served here: use {server.model.name!r}.", 404, param="model",
            code="model_not_found",
        )  # fmt: skip


def _check_tokens(server: Server, ids: list[int], param: str) -> None:
    size = server.model.attached.vocabulary
    if not ids:
        raise Refusal("there is no text to go on from: write some.", param=param, code="invalid_value")
    if not all(0 <= token < size for token in ids):
        raise InputError(f"a token is not in the vocabulary of {size}: encode with this model's tokenizer.")


async def chat(request: Request) -> Response:
    """POST /v1/chat/completions."""
    server, body = server_of(request), checked(ChatBody, await json_body(request))
    _check_model(server, body.model)
    prompt = await server.blocking(lambda: chat_tokens(server.model.tokenizer, body.messages))
    _check_tokens(server, prompt, "messages")
    sampling = sampling_of(body, 1.0, secrets.randbits(31), body.max_completion_tokens)
    shape = Chat(f"chatcmpl-{secrets.token_hex(12)}", body.model, int(time.time()), body.wants_usage)
    choices = body.n or 1
    starts = [once(server.engine, prompt, {**sampling, "seed": sampling["seed"] + i}) for i in range(choices)]
    return await respond(request, shape, starts, bool(body.stream), choices)


async def completions(request: Request) -> Response:
    """POST /v1/completions."""
    server, body = server_of(request), checked(CompletionBody, await json_body(request))
    _check_model(server, body.model)
    prompts = await server.blocking(lambda: prompts_of(server.model.tokenizer, body.prompt))
    for ids in prompts or [[]]:
        _check_tokens(server, ids, "prompt")
    sampling = sampling_of(body, 1.0, secrets.randbits(31))
    shape = Text(f"cmpl-{secrets.token_hex(12)}", body.model, int(time.time()), body.wants_usage)
    choices = body.n or 1
    starts = [
        once(server.engine, ids, {**sampling, "seed": sampling["seed"] + i}) for ids in prompts for i in range(choices)
    ]
    return await respond(request, shape, starts, bool(body.stream), choices)
