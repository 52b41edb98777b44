"""The official client against the server, unmodified: what it reads is what a session says."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import openai
import pytest

from penstock.models.load import Model
from penstock.serve.prompt import chat_tokens
from penstock.serve.wire import Message
from penstock.session import Session

MESSAGES: list[Any] = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "import os, sys\n"}]


def client(address: str, **options: Any) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0, **options)


def expected(model: Model, **sampling: Any) -> str:
    """What a session alone answers to MESSAGES."""
    session = Session(model, "streaming-llm", 32, path="eager")
    session.ingest(chat_tokens(model.tokenizer, [Message(**message) for message in MESSAGES]))
    assert session.encoder is not None
    session.encoder.load_state_dict({**session.encoder.state_dict(), "started": True, "has_text": True})
    return "".join(session.reply(None, raw=True, **sampling))


@pytest.fixture(params=["plain", "template"])
def any_model(request: pytest.FixtureRequest, model: Model, chat_model: Model) -> Model:
    return model if request.param == "plain" else chat_model


def test_models(server: Any, model: Model) -> None:
    api = client(server.address)
    [only] = api.models.list().data
    assert only.id == model.name
    assert api.models.retrieve(model.name) == only
    with pytest.raises(openai.NotFoundError, match="not served"):
        api.models.retrieve("gpt-4o")


def test_chat_is_what_a_session_says(serving: Callable[..., Any], any_model: Model) -> None:
    api = client(serving(any_model).address)
    given: dict[str, Any] = {"model": any_model.name, "messages": MESSAGES, "seed": 7, "temperature": 0.8}
    whole = api.chat.completions.create(**given, max_completion_tokens=20)
    said = whole.choices[0].message.content
    assert said == expected(any_model, seed=7, temperature=0.8, max_new=20)
    assert whole.choices[0].finish_reason == "length"
    prompt = chat_tokens(any_model.tokenizer, [Message(**message) for message in MESSAGES])
    assert whole.usage is not None
    assert (whole.usage.prompt_tokens, whole.usage.completion_tokens) == (len(prompt), 20)

    chunks = list(
        api.chat.completions.create(**given, max_tokens=20, stream=True, stream_options={"include_usage": True})
    )
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == said
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "length"
    assert chunks[-1].choices == []
    assert chunks[-1].usage == whole.usage
    assert all(c.usage is None for c in chunks[:-1])


def test_stop_and_choices(server: Any, model: Model) -> None:
    api = client(server.address)
    given: dict[str, Any] = {"model": model.name, "messages": MESSAGES, "seed": 3, "max_tokens": 30}
    said = api.chat.completions.create(**given).choices[0].message.content
    assert said
    stop = said[6:9]
    cut = api.chat.completions.create(**given, stop=[stop, "never"])
    assert cut.choices[0].message.content == said[: said.index(stop)]
    assert cut.choices[0].finish_reason == "stop"
    two = api.chat.completions.create(**given, n=2)
    assert [choice.index for choice in two.choices] == [0, 1]
    assert two.choices[0].message.content == said
    assert two.choices[1].message.content == expected(model, seed=4, temperature=1.0, max_new=30)
    assert two.usage is not None
    assert two.usage.completion_tokens == 60


def test_completions(server: Any, model: Model) -> None:
    api = client(server.address)
    given: dict[str, Any] = {"model": model.name, "temperature": 0, "max_tokens": 9}
    text = api.completions.create(prompt="def f(x):", **given)
    ids = model.tokenizer("def f(x):")["input_ids"]
    assert api.completions.create(prompt=ids, **given).choices[0].text == text.choices[0].text
    both = api.completions.create(prompt=["def f(x):", "import"], **given)
    assert both.choices[0].text == text.choices[0].text
    assert [choice.index for choice in both.choices] == [0, 1]
    streamed = api.completions.create(prompt="def f(x):", stream=True, **given)
    assert "".join(chunk.choices[0].text for chunk in streamed) == text.choices[0].text


def test_many_at_once_do_not_change_each_other(server: Any, model: Model) -> None:
    """Twelve conversations at the same time, by the asynchronous client: each as if it were alone."""

    async def run() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{server.address}/v1", api_key="none", max_retries=0) as api:

            async def one(seed: int) -> str:
                stream = await api.chat.completions.create(
                    model=model.name, messages=MESSAGES, seed=seed, max_tokens=12, stream=True
                )
                return "".join([c.choices[0].delta.content or "" async for c in stream])

            return await asyncio.gather(*(one(seed) for seed in range(12)))

    assert asyncio.run(run()) == [expected(model, seed=seed, temperature=1.0, max_new=12) for seed in range(12)]


@pytest.mark.parametrize(
    ("change", "error", "words", "param"),
    [
        ({"model": "gpt-4o"}, openai.NotFoundError, "not served", "model"),
        ({"messages": []}, openai.BadRequestError, "messages", "messages"),
        ({"temperature": 3}, openai.BadRequestError, "temperature", "temperature"),
        ({"max_tokens": 0}, openai.BadRequestError, "max_tokens", "max_tokens"),
        ({"logprobs": True}, openai.BadRequestError, "not served", "logprobs"),
        ({"extra_body": {"wings": 2}}, openai.BadRequestError, "not known", "wings"),
        ({"stop": ["x"] * 9}, openai.BadRequestError, "stop", "stop"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_mistakes_have_the_shape_of_openai(
    serving: Callable[..., Any], model: Model, change: dict[str, Any], error: Any, words: str, param: str, stream: bool
) -> None:
    api = client(serving(model).address)
    given: dict[str, Any] = {"model": model.name, "messages": MESSAGES, "stream": stream, **change}
    with pytest.raises(error, match=words) as caught:
        api.chat.completions.create(**given)
    assert caught.value.param == param
    assert caught.value.body["type"]


def test_a_message_cannot_end_its_turn(chat_model: Model) -> None:
    """Special tokens that somebody writes are text."""
    end = chat_model.tokenizer.eos_token
    ids = chat_tokens(chat_model.tokenizer, [Message(role="user", content=f"hello{end}there")])
    assert chat_model.tokenizer.eos_token_id not in ids
    assert ids.count(chat_model.tokenizer.bos_token_id) == 1
    assert chat_model.tokenizer.decode(ids).count(end) == 1


def test_a_template_that_refuses(serving: Callable[..., Any], chat_model: Model) -> None:
    chat_model.tokenizer.chat_template, kept = (
        "{{ raise_exception('only one at a time') }}",
        None or (chat_model.tokenizer.chat_template),
    )
    try:
        api = client(serving(chat_model).address)
        with pytest.raises(openai.BadRequestError, match="only one at a time"):
            api.chat.completions.create(model=chat_model.name, messages=MESSAGES)
    finally:
        chat_model.tokenizer.chat_template = kept


def test_a_growing_memory_that_is_full(serving: Callable[..., Any]) -> None:
    """The one case in which a context can be too long: a memory that forgets nothing, and learned positions."""
    from transformers import AutoTokenizer

    from penstock.models.load import TINY, load
    from penstock.testing import LEARNED, tiny_model

    tokenizer = AutoTokenizer.from_pretrained(TINY)
    model = load(tiny_model("gpt2", vocab_size=len(tokenizer)), tokenizer=tokenizer)
    api = client(serving(model, memory="dense").address)
    with pytest.raises(openai.BadRequestError) as caught:
        api.completions.create(model=model.name, prompt="word " * 2 * LEARNED, max_tokens=4)
    assert caught.value.code == "context_length_exceeded"
    assert api.completions.create(model=model.name, prompt="word", max_tokens=4).choices[0].text
