"""Replies: what is delivered, what is remembered, what an interruption leaves."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_session import MODEL, TEXT, TOKENIZER, assert_same, replayed, session

import penstock
import penstock.reply
from penstock import Session
from penstock.errors import InputError, NotRewindable, OutputError, UsageError
from penstock.models.sampling import Sampling

BOS, EOS = 0, 1


@pytest.fixture
def says(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Make replies choose given tokens, whatever the model thinks."""

    def say(answer: str | list[int]) -> list[int]:
        tokens = TOKENIZER(answer, add_special_tokens=False)["input_ids"] if isinstance(answer, str) else answer

        class Scripted:
            def __init__(self, sampling: Sampling) -> None:
                self.left = iter([*tokens, EOS])

            def choose(self, logits: torch.Tensor) -> int:
                return next(self.left)

        monkeypatch.setattr(penstock.reply, "Sampler", Scripted)
        return tokens

    return say


def fed(budget: int | None = 24, memory: str = "streaming-llm") -> Session:
    """A session whose memory is full and gives something up at every step."""
    new = session(memory, budget)
    new.feed(TEXT[:300])
    new.flush()
    return new


def tail(of: Session, since: int) -> list[int]:
    return of.log.slice(since, of.tokens)


# -- what is delivered and remembered -------------------------------------------------------------------------------


def test_an_answer_is_delivered_and_remembered_whole(says: Any) -> None:
    tokens = says(" The café 日本 🙂 is open.")
    s = fed()
    start = s.tokens
    pieces = list(s.reply(max_new=100))
    assert "".join(pieces) == " The café 日本 🙂 is open."
    assert all("\ufffd" not in piece for piece in pieces)
    assert tail(s, start) == tokens  # the end token is not one of them
    assert_same(s, replayed(s))


@pytest.mark.parametrize("stop", ["END", " wor", "d END", "Hello", "H", "ful world E", "d", "more"])
@pytest.mark.parametrize("memory", ["streaming-llm", "dense"])
def test_stop_strings_end_an_answer_across_token_borders(says: Any, memory: str, stop: str) -> None:
    answer = "Hello wonderful world END more"
    tokens = says(answer)
    s = fed(24 if memory != "dense" else None, memory)
    start = s.tokens
    given = "".join(s.reply(max_new=100, stop=[stop, "never said"]))
    assert given == answer[: answer.index(stop)]
    kept = tail(s, start)
    assert kept == tokens[: len(kept)]
    said = TOKENIZER.decode(kept)
    assert said.startswith(given)
    assert not kept or not given.startswith(said) or said == given  # no token that delivered nothing
    assert len(TOKENIZER.decode(kept[:-1])) < max(1, len(given))
    assert_same(s, replayed(s))


def test_an_answer_that_begins_with_a_stop_string_leaves_no_trace(says: Any) -> None:
    # Once refused with "entries it needs were evicted": the answer was taken back to the place of its own mark by way
    # of the token before it.
    says("STOP here")
    s = fed()
    before = s.stats().digest
    assert list(s.reply(stop=["STOP"])) == []
    assert s.stats().digest == before
    assert_same(s, replayed(s))


def test_max_new_counts_tokens(says: Any) -> None:
    tokens = says("one two three four five six seven")
    for count in (1, 2, 5):
        s = fed()
        start = s.tokens
        text = "".join(s.reply(max_new=count))
        assert tail(s, start) == tokens[:count]
        assert text == TOKENIZER.decode(tokens[:count])


@settings(max_examples=25)
@given(st.integers(0, 40), st.sampled_from([(), ("zzz",), ("e",), ("🙂",), ("日本語日",)]))
def test_an_interruption_keeps_exactly_the_tokens_that_delivered_text(pieces: int, stop: tuple[str, ...]) -> None:
    tokens = TOKENIZER("naïve 日本語日本 🙂🙃 tail zz", add_special_tokens=False)["input_ids"]
    with pytest.MonkeyPatch.context() as patch:
        scripted = iter([*tokens, EOS])
        patch.setattr(penstock.reply.Sampler, "choose", lambda self, logits: next(scripted))
        s = fed()
        start = s.tokens
        answer = s.reply(max_new=100, stop=stop)
        given = "".join(piece for _, piece in zip(range(pieces), answer))
        answer.close()  # type: ignore[attr-defined]
    kept = tail(s, start)
    assert kept == tokens[: len(kept)]
    text = TOKENIZER.decode(kept).rstrip("\ufffd")
    assert text.startswith(given) or given.startswith(text)
    assert (kept == []) is (given == "")
    if kept:  # without its last token, the memory would not have all that was delivered
        assert not TOKENIZER.decode(kept[:-1]).startswith(given)
    assert_same(s, replayed(s))


def test_tokens_without_text_are_not_remembered_at_the_end_of_an_answer(says: Any) -> None:
    tokens = says("fine")
    says([*tokens, BOS, BOS, BOS])
    s = fed()
    start = s.tokens
    assert "".join(s.reply(max_new=100)) == "fine"
    assert tail(s, start) == tokens
    assert_same(s, replayed(s))


def test_an_answer_without_any_text_ends(says: Any) -> None:
    says([BOS] * 1000)
    s = fed()
    before = s.stats().digest
    assert list(s.reply(max_new=1000)) == []
    assert s.stats().digest == before
    assert_same(s, replayed(s))


# -- choosing -------------------------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_answer() -> None:
    answers = ["".join(fed().reply(max_new=12, temperature=2.0, top_k=50, top_p=0.9, seed=seed)) for seed in (3, 3, 4)]
    assert answers[0] == answers[1] != answers[2]


def test_sampling_uses_no_global_random_state() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    "".join(fed().reply(max_new=4, temperature=2.0))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    "wrong", [{"max_new": 0}, {"temperature": -1}, {"top_k": -1}, {"top_p": 0}, {"stop": [""]}], ids=str
)
def test_wrong_settings_are_refused_when_asked(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="cannot be"):
        fed().reply(**wrong)


# -- beside other things --------------------------------------------------------------------------------------------


def test_what_is_not_to_be_remembered_leaves_the_session_bit_identical() -> None:
    s = fed()
    before, logits = s._memory.save_row(0), s.logits
    state, digest = s.encoder.state_dict(), s.stats().digest  # type: ignore[union-attr]
    assert "".join(s.reply("What was that?", remember=False, max_new=6, temperature=2.0))
    after = s._memory.save_row(0)
    assert set(before) == set(after)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert logits is s.logits
    assert (state, digest) == (s.encoder.state_dict(), s.stats().digest)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "action",
    [
        lambda s, path: s.feed("more"),
        lambda s, path: s.flush(),
        lambda s, path: s.ingest([5]),
        lambda s, path: s.truncate(3),
        lambda s, path: s.reset(),
        lambda s, path: s.save(path / "s"),
        lambda s, path: s.reply("again"),
    ],
)
def test_nothing_is_put_behind_an_open_reply(says: Any, tmp_path: Path, action: Any) -> None:
    tokens = says("one two three")
    s = fed()
    start = s.tokens
    answer = s.reply(max_new=10)
    first = next(answer)
    with pytest.raises(UsageError, match="replying"):
        action(s, tmp_path)
    assert first + "".join(answer) == "one two three"
    assert tail(s, start) == tokens
    s.feed("and on it goes")


def test_of_two_replies_that_have_not_begun_the_second_is_refused(says: Any) -> None:
    says("one two three")
    s = fed()
    first, second = s.reply(max_new=10), s.reply(max_new=10)
    next(first)
    with pytest.raises(UsageError, match="already replying"):
        next(second)
    assert "".join(first) == " two three"


def test_a_mark_of_ones_own_survives_a_reply_that_marks_the_same_place(says: Any) -> None:
    # The reply's own mark, at the same length, once closed the caller's with it.
    says("maybe END")
    s = fed()
    before = s.stats().digest
    mark = s.mark(max_new=100)
    "".join(s.reply(stop=["may not"]))
    s.rollback(mark)
    assert s.stats().digest == before
    assert_same(s, replayed(s))


def test_a_reply_that_outgrows_a_mark_says_so_and_ends() -> None:
    s = fed()
    s.mark(max_new=3)
    with pytest.raises(NotRewindable, match="open mark holds 3"):
        list(s.reply(max_new=50, temperature=2.0))
    s.fork().feed("it is not replying any more")
    assert_same(s, replayed(s))


def test_a_log_on_a_full_disk_does_not_double_a_token(says: Any, tmp_path: Path) -> None:
    tokens = says("one two three four five")
    s = session(log=tmp_path / "log")
    s.feed(TEXT[:100])
    s.flush()
    start = s.tokens
    answer = s.reply(max_new=10)
    next(answer)
    s.log._sink = tmp_path / "no folder" / "log"
    with pytest.raises(OutputError):
        list(answer)
    s.log._sink = tmp_path / "log"
    kept = tail(s, start)
    assert kept == tokens[: len(kept)]
    assert_same(s, replayed(s))


def test_nothing_can_be_replied_to_nothing() -> None:
    bare = copy.deepcopy(TOKENIZER)
    bare.backend_tokenizer.post_processor = None
    empty = penstock.open(penstock.load(MODEL.attached.hf, tokenizer=bare), "window", 8)
    with pytest.raises(InputError, match="nothing to reply to"):
        list(empty.reply())
    assert list(session().reply(max_new=2, temperature=1.0))  # with a BOS there is


# -- turns ----------------------------------------------------------------------------------------------------------

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


@pytest.fixture
def chat() -> Session:
    tokenizer = copy.deepcopy(TOKENIZER)
    tokenizer.chat_template = TEMPLATE
    return penstock.open(penstock.load(MODEL.attached.hf, tokenizer=tokenizer), "streaming-llm", 64)


def text_of(of: Session) -> str:
    return TOKENIZER.decode(list(of.log.tail))


def test_questions_are_wrapped_in_turns(says: Any, chat: Session) -> None:
    says("Fine.")
    assert "".join(chat.reply("How are you?")) == "Fine."
    assert text_of(chat) == "<|bos|>[user]How are you?<|eos|>[assistant]Fine."
    "".join(chat.reply("And now?"))
    assert text_of(chat).endswith("[assistant]Fine.<|eos|>[user]And now?<|eos|>[assistant]Fine.")
    assert chat.log.tail[0] == BOS
    assert list(chat.log.tail).count(EOS) == 3
    assert_same(chat, replayed(chat))


def test_raw_questions_and_fed_text_are_not_wrapped(says: Any, chat: Session) -> None:
    says(" Good.")
    chat.feed("The news [user] <|eos|> of today.")
    "".join(chat.reply(" So?", raw=True))
    assert text_of(chat) == "<|bos|>The news [user] <|eos|> of today. So? Good."
    assert list(chat.log.tail).count(EOS) == 0  # written in the text, not a token


def test_a_conversation_that_is_taken_back_begins_anew(says: Any, chat: Session) -> None:
    says("Fine.")
    chat.feed("Some news.\n")
    chat.flush()
    length, mark = chat.tokens, chat.mark()
    "".join(chat.reply("How are you?"))
    chat.rollback(mark)
    "".join(chat.reply("How are you?"))
    assert text_of(chat) == "<|bos|>Some news.\n[user]How are you?<|eos|>[assistant]Fine."
    chat.commit(mark)
    chat.truncate(length)
    "".join(chat.reply("How are you?"))
    assert text_of(chat) == "<|bos|>Some news.\n[user]How are you?<|eos|>[assistant]Fine."


def test_an_open_turn_is_open_after_resuming(says: Any, chat: Session, tmp_path: Path) -> None:
    says("Fine.")
    "".join(chat.reply("How are you?"))
    chat.save(tmp_path / "s")
    later = penstock.resume(tmp_path / "s", chat.model)
    "".join(later.reply("And now?"))
    assert text_of(later).endswith("Fine.<|eos|>[user]And now?<|eos|>[assistant]Fine.")
