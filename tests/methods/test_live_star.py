"""live-star: peak-end memory of the frames behind each answer."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from penstock.errors import BudgetError, UsageError
from penstock.methods.live_star import LiveStar, chosen
from penstock.testing import tiny_tokens
from tests.methods.kinds import ANSWER, TEXT, VISION, Alone, Mixed, random_kinds

PATTERN = (TEXT, TEXT, *[VISION] * 8, ANSWER, ANSWER, *[VISION] * 16, TEXT, TEXT, TEXT, TEXT)


def literal(keys: torch.Tensor, queries: torch.Tensor, kinds: list[int], frame: int, limit: int) -> list[int]:
    """The card, token by token: indices of the vision entries that stay."""
    groups: list[list[tuple[float, list[int]]]] = [[]]  # frames behind each answer: (fit, indices)
    answer: list[int] = []
    opened: list[int] = []
    for i, kind in enumerate(kinds):
        if kind == ANSWER:
            if i == 0 or kinds[i - 1] != ANSWER:
                groups.append([])
                answer = []
            answer.append(i)
        if kind != VISION:
            continue
        opened.append(i)
        if len(opened) < frame:
            continue
        asked = queries[:, answer].mean(1) if answer else torch.zeros(queries.shape[0], queries.shape[2])
        scores = [float(asked[h] @ keys[h, j]) for h in range(keys.shape[0]) for j in opened]
        groups[-1].append((sum(scores) / len(scores), opened))
        opened = []
        for halved in (groups[:-1], groups[-1:]):
            if sum(map(len, groups)) > limit:
                for group in halved:
                    best = sorted(group, key=lambda f: (f[0], f[1][0]), reverse=True)[: (len(group) + 1) // 2]
                    group[:] = [f for f in group if f in best]
        while sum(map(len, groups)) > limit:
            next(group for group in groups if group).pop(0)
    return [i for group in groups for _, held in group for i in held] + opened


def test_d_frames_stay_as_the_card_says() -> None:
    method = LiveStar(frame=4)
    _, frames = method.sizes(96)
    alone, kinds = Alone(method.cascade(96)), random_kinds(1200, 5, frame=4)[:1200]
    generator = torch.Generator().manual_seed(2)
    keys, queries = (torch.randn(2, 1200, 4, generator=generator) for _ in range(2))
    for start in range(0, 1200, 8):
        cut = slice(start, start + 8)
        alone.feed(keys[:, cut], kinds[cut], queries[:, cut])
        if start % 80 == 0:
            assert alone.held()[0] == literal(keys, queries, kinds[: start + 8].tolist(), 4, frames)
        assert len(alone.held()[0]) <= (frames + 1) * 4 - 1


def test_the_better_half_of_each_closed_group_stays() -> None:
    group, fit = [0, 0, 0, 1, 1, 2, 2], [0.3, 0.1, 0.2, 0.5, 0.9, 0.1, 0.2]
    assert chosen(group, fit, 2, 6) == [0, 2, 4, 5, 6]
    assert chosen(group, fit, 2, 4) == [0, 2, 4, 6]  # the open group too
    assert chosen(group, fit, 2, 3) == [2, 4, 6]  # then the oldest leave
    assert chosen([0, 0, 0, 0], [0.0] * 4, 0, 3) == [2, 3]  # without an answer: the newer half


def test_the_frame_that_an_answer_speaks_of_stays() -> None:
    """Frames of noise, one of them along the answer's query: it is the one that is kept of its group."""
    method = LiveStar(frame=4, frames=4, unit=4)
    alone, generator = Alone(method.cascade(96)), torch.Generator().manual_seed(3)
    asked = torch.randn(2, 1, 4, generator=generator).expand(2, 4, 4)
    alone.feed(torch.zeros(2, 4, 4), torch.full((4,), ANSWER), asked)
    for i in range(4):
        key = 3 * asked if i == 1 else torch.randn(2, 4, 4, generator=generator) * 0.1
        alone.feed(key, torch.full((4,), VISION), torch.zeros(2, 4, 4))
    for _ in range(5):
        alone.feed(torch.zeros(2, 4, 4), torch.full((4,), ANSWER), torch.zeros(2, 4, 4))
        alone.feed(torch.zeros(2, 4, 4), torch.full((4,), TEXT), torch.zeros(2, 4, 4))
    for _ in range(3):
        alone.feed(torch.zeros(2, 4, 4), torch.full((4,), VISION), torch.zeros(2, 4, 4))
    frames = Counter(i // 4 for i in alone.held()[0])
    assert set(frames.values()) == {4}
    assert 2 in frames  # the second frame behind the answer, tokens 8 to 11
    assert sum(f in frames for f in (1, 2, 3, 4)) == 1


def test_c_a_verification_pass_leaves_nothing() -> None:
    """Scoring the last answer behind a new frame, on a mark, changes nothing."""
    case = Mixed(LiveStar(), "llama", PATTERN)
    memory, plain = case.memory(), case.memory()
    for m in (memory, plain):
        case.feed(m, tiny_tokens(100, 1), 7)
    mark = memory.mark(0, 16)
    checked = case.feed(memory, tiny_tokens(12, 2), 4)
    again = case.memory()
    case.feed(again, tiny_tokens(100, 1), 7)
    assert float((checked - case.feed(again, tiny_tokens(12, 2), 4)).abs().max()) <= 1e-4
    memory.rollback(mark)
    memory.commit(mark)
    assert torch.equal(case.feed(memory, tiny_tokens(30, 3), 6), case.feed(plain, tiny_tokens(30, 3), 6))


def test_laws_on_a_stream_of_both() -> None:
    Mixed(LiveStar(frame=4), "llama", PATTERN).check()
    Mixed(LiveStar(frame=4, positions="stream"), "llama", PATTERN).check("naive", "chunk_invariant")


def test_refused() -> None:
    with pytest.raises(BudgetError, match="needs a budget"):
        LiveStar().cascade(None)
    with pytest.raises(BudgetError, match="give at least") as caught:
        LiveStar().cascade(24)
    LiveStar().cascade(int(str(caught.value).split("give at least ")[1].split(",")[0]))
    with pytest.raises(UsageError, match="vision from 0"):
        LiveStar(frames=0).cascade(64)
