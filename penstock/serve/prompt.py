"""Messages to token ids.  What people wrote never becomes a special token: a message cannot end its own turn.

A chat template is rendered with a marker in place of each message's text; what stands between the markers is the
template's own and is read with its special tokens, what a marker stands for is read as plain text.  A model without a
template reads the texts of the messages, a line end between them, and goes on from there.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Sequence
from typing import Any

from penstock.models.text import TextEncoder
from penstock.serve.refusal import Refusal
from penstock.serve.wire import Message


def chat_tokens(tokenizer: Any, messages: Sequence[Message]) -> list[int]:
    """All ids of a conversation, up to where the answer begins."""
    if not getattr(tokenizer, "chat_template", None):
        return text_tokens(tokenizer, "\n".join(message.text for message in messages if message.text))
    mark = secrets.token_hex(8)
    told = [{"role": m.role, "content": f"({mark}-{index})"} for index, m in enumerate(messages)]
    try:
        whole = tokenizer.apply_chat_template(told, tokenize=False, add_generation_prompt=True)
    except Exception as error:  # templates are programs of their authors and raise what they like
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise Refusal(
            f"the model's chat template refuses these messages ({reason}): change them.", param="messages"
        ) from None
    ids: list[int] = []
    for index, part in enumerate(re.split(rf"\({mark}-(\d+)\)", whole)):
        if index % 2:
            encoder = TextEncoder(tokenizer, bos=False)
            ids += encoder.feed(messages[int(part)].text) + encoder.flush()
        elif part:
            ids += tokenizer(part, add_special_tokens=False)["input_ids"]
    return ids


def text_tokens(tokenizer: Any, text: str) -> list[int]:
    """The ids of a text from its beginning."""
    encoder = TextEncoder(tokenizer)
    return encoder.feed(text) + encoder.flush()


def prompts_of(tokenizer: Any, prompt: str | list[str] | list[int] | list[list[int]]) -> list[list[int]]:
    """The prompts of a completion, each as ids."""
    if isinstance(prompt, str):
        return [text_tokens(tokenizer, prompt)]
    if all(isinstance(part, int) for part in prompt):
        return [[int(part) for part in prompt if isinstance(part, int)]]
    if len(prompt) > 16:
        raise Refusal(f"got {len(prompt)} prompts in one request: send at most 16.", param="prompt")
    return [text_tokens(tokenizer, part) if isinstance(part, str) else list(part) for part in prompt]  # type: ignore[arg-type]
