"""group-positions: reading is not disturbed by writing, and both count for themselves."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from penstock.core import Phase, Span
from penstock.errors import BudgetError, CompositionError, ContextFull, UsageError
from penstock.memory import Entries, Memory
from penstock.methods.group_positions import GroupPositions
from penstock.testing import tiny_tokens
from tests.laws.cases import attached, same
from tests.methods.kinds import ANSWER, TEXT, VISION, Alone, Mixed, random_kinds, states

PATTERN = (*[TEXT] * 5, ANSWER, ANSWER, *[TEXT] * 3, VISION, VISION, ANSWER, TEXT, ANSWER, TEXT)


def case(**options: object) -> Mixed:
    return Mixed(GroupPositions(**options), "llama", PATTERN)  # type: ignore[arg-type]


@torch.no_grad()
def feed(memory: Memory, tokens: Tensor, kinds: Tensor, chunk: int) -> Tensor:
    out = []
    for part, kind in zip(tokens.split(chunk), kinds.split(chunk)):
        with memory.step([Span(0, len(part))], Phase.INGEST, kind) as step:
            logits = case().model.run(part, step, None, "all")
            assert logits is not None
            out.append(logits)
    return torch.cat(out)


def source(memory: Memory) -> list[Entries]:
    """Per layer: the source entries in stream order, with raw keys."""
    out = []
    for group in memory.groups:
        for branches, (lane, *_) in zip(group.branches, group.lanes[0]):
            held = [branches[0].place.raw(v) for v in lane.states[0].values()] + [lane.tail.entries]
            whole = Entries.join(held).ordered()
            out.append(whole.where(whole.kind != ANSWER))
    return out


@pytest.mark.parametrize("chunk", [1, 5, 60])
def test_a_what_is_read_is_as_if_nothing_were_written(chunk: int) -> None:
    tokens, kinds = tiny_tokens(60, 2), case().kinds(0, 60)
    read = kinds != ANSWER
    mixed, alone = case().memory(entries=300), case().memory(entries=300)
    both = feed(mixed, tokens, kinds, chunk)
    same(both[read], feed(alone, tokens[read], kinds[read], 60))
    for ours, theirs in zip(source(mixed), source(alone)):
        assert torch.equal(ours.at, theirs.at)
        assert float((ours.key - theirs.key).abs().max()) <= 1e-5
        assert float((ours.value - theirs.value).abs().max()) <= 1e-5


def test_b_read_first_then_written_is_one_pass_with_grouped_positions() -> None:
    tokens = tiny_tokens(50, 4)
    kinds = torch.tensor([TEXT] * 30 + [ANSWER] * 20, dtype=torch.uint8)
    where = torch.cat([torch.arange(30), torch.arange(20)])
    model = case().model
    mask = torch.full((1, 1, 50, 50), torch.finfo(torch.float32).min).triu(
        1
    )  # given, or positions that fall pack texts
    with model.native(), torch.no_grad():
        out = model.hf(input_ids=tokens[None], position_ids=where[None], attention_mask=mask, use_cache=False)
    expected = out.logits[0]
    same(feed(case().memory(entries=300), tokens, kinds, 7), expected)


@pytest.mark.parametrize("written", [3, 8])  # within a unit, and at its border
def test_c_a_token_that_is_taken_back_leaves_nothing(written: int) -> None:
    tokens, kinds = tiny_tokens(40, 5), torch.tensor([TEXT] * 24 + [ANSWER] * 16, dtype=torch.uint8)
    memory, plain = case().memory(), case().memory()
    length = 24 + written
    feed(memory, tokens[: length - 1], kinds[: length - 1], 4)
    feed(plain, tokens[: length - 1], kinds[: length - 1], 4)
    mark = memory.mark(0, 8)
    feed(memory, tokens[length - 1 : length], kinds[length - 1 : length], 1)
    memory.rollback(mark)
    memory.commit(mark)
    assert memory.length() == 24 + written - 1
    more = torch.tensor([TEXT, ANSWER, ANSWER], dtype=torch.uint8)
    assert torch.equal(feed(memory, tiny_tokens(3, 6), more, 1), feed(plain, tiny_tokens(3, 6), more, 1))


SCHEMES = {"decoupled": ({}, 0), "overlapped": ({"overlap": True}, 30), "isolated": ({"gap": 200}, 200)}


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("chunk", [1, 7])
def test_schemes_of_speak_while_watching_are_one_masked_pass(scheme: str, chunk: int) -> None:
    """Source 0..29, target, more source, target again: positions and visibility of each scheme, in one plain pass."""
    options, first = SCHEMES[scheme]
    tokens, written = tiny_tokens(60, 4), torch.zeros(60, dtype=torch.bool)
    written[30:36] = written[45:55] = True
    where = torch.where(written, first + written.cumsum(0) - 1, (~written).cumsum(0) - 1)
    sees = torch.ones(60, 60, dtype=torch.bool).tril() & (written[:, None] | ~written[None])
    mask = torch.zeros(60, 60).masked_fill(~sees, torch.finfo(torch.float32).min)[None, None]
    model = case().model
    with model.native(), torch.no_grad():
        out = model.hf(input_ids=tokens[None], position_ids=where[None], attention_mask=mask, use_cache=False)
    kinds = torch.where(written, ANSWER, TEXT).to(torch.uint8)
    same(feed(case(**options).memory(entries=300), tokens, kinds, chunk), out.logits[0])  # type: ignore[arg-type]


@pytest.mark.parametrize("scheme", ["decoupled", "isolated"])
def test_what_is_not_yet_seen_changes_no_word(scheme: str) -> None:
    """Logits of the first words are the same whatever number of frames comes behind them."""
    options, _ = SCHEMES[scheme]
    kinds = torch.tensor([VISION] * 12 + [ANSWER] * 6, dtype=torch.uint8)
    found = []
    for more in (0, 5, 30):
        memory = case(**options).memory(entries=300)  # type: ignore[arg-type]
        words = feed(memory, tiny_tokens(18, 2), kinds, 4)[12:]
        feed(memory, tiny_tokens(more, 3), torch.full((more,), VISION, dtype=torch.uint8), 4) if more else None
        last = torch.tensor([ANSWER], dtype=torch.uint8)
        found.append((words, feed(memory, tiny_tokens(1, 5), last, 1)))
    assert all(torch.equal(words, found[0][0]) for words, _ in found)
    assert not torch.equal(found[0][1], found[2][1])  # what is seen counts


def test_an_overlapped_stream_is_saved_like_any_other() -> None:
    case(overlap=True).saved()


def test_reading_does_not_reach_an_isolated_target() -> None:
    memory = case(gap=20).memory(entries=300)
    feed(memory, tiny_tokens(25, 1), torch.tensor([TEXT] * 18 + [ANSWER] * 5 + [TEXT] * 2, dtype=torch.uint8), 5)
    with pytest.raises(ContextFull, match="position 20"):
        feed(memory, tiny_tokens(1, 2), torch.tensor([TEXT], dtype=torch.uint8), 1)
    feed(memory, tiny_tokens(3, 2), torch.tensor([ANSWER] * 3, dtype=torch.uint8), 1)  # the row is whole
    with pytest.raises(UsageError, match="two schemes"):
        GroupPositions(gap=20, overlap=True).cascade(64)


def test_each_side_has_its_window() -> None:
    method = GroupPositions()
    window, target = method.sizes(64)
    alone, kinds = Alone(method.cascade(64)), random_kinds(800, 7)[:800]
    for part in kinds.split(8):
        alone.feed(torch.randn(2, 8, 4), part)
    read = [i for i in range(800) if kinds[i] != ANSWER]
    written = [i for i in range(800) if kinds[i] == ANSWER]
    assert alone.held()[0] == sorted(read[:4] + read[-window:] + written[-target:])
    assert method.cascade(64).entries == 64


def test_laws_on_a_stream_of_both() -> None:
    case().check()
    case(positions="stream").check("naive", "chunk_invariant")


def test_positions_count_apart() -> None:
    memory = case().memory(entries=300)
    case().feed(memory, tiny_tokens(64, 1), 7)
    for parts, _ in states(memory):
        held = list(parts[0].values())
        for value in held:
            if len(value):
                read = value.kind[0, 0] != ANSWER
                ordered = value.at[0].sort().values
                first = 4 if read and int(value.at[0].min()) else 0  # the window begins behind the sinks
                assert ordered.tolist() == list(range(first, first + len(value)))


def test_refused() -> None:
    with pytest.raises(BudgetError, match="needs a budget"):
        GroupPositions().cascade(None)
    with pytest.raises(BudgetError, match="give at least") as caught:
        GroupPositions().cascade(12)
    GroupPositions().cascade(int(str(caught.value).split("give at least ")[1].split(",")[0]))
    for family, words in (("cohere2", "window of its own"), ("mpt", "ALiBi")):
        geometry = attached(family).geometry
        with pytest.raises(CompositionError, match=words):
            Memory(geometry, GroupPositions().cascades(geometry, 64))
    with pytest.raises(UsageError, match="target share"):
        GroupPositions(target=1.0).cascade(64)
