"""videoscan: one entry per frame, and the ones that say the same go first."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from penstock.errors import BudgetError, UsageError
from penstock.methods.videoscan import VideoScan
from penstock.testing import tiny_tokens
from tests.laws.cases import same
from tests.methods.kinds import TEXT, VISION, Alone, Mixed, random_kinds

PATTERN = (*[TEXT] * 16, *[VISION] * 48)  # frames of 16 that begin with units


def test_a_no_more_than_text_carriers_and_the_current_frame() -> None:
    method = VideoScan(frame=4, unit=8)
    window, bank = method.sizes(64)
    alone, kinds = Alone(method.cascade(64)), random_kinds(1600, 1, frame=4)[:1600]
    assert method.cascade(64).entries == 64
    for part in kinds.split(8):
        alone.feed(torch.randn(2, 8, 4), part)
        assert len(alone.held()[0]) <= 4 + window + bank + 3


def test_b_one_pass_with_the_mask_of_training_gives_the_same() -> None:
    """A frame's tokens are visible within the frame; later positions see its carrier only."""
    count = 96
    tokens, case = tiny_tokens(count, 3), Mixed(VideoScan(positions="stream"), "llama", PATTERN)
    kinds = case.kinds(0, count)
    visible = torch.ones(count, count, dtype=torch.bool).tril()
    for i in range(count):
        for j in range(i):
            if kinds[j] == VISION and j // 16 != i // 16 and j % 16 != 15:
                visible[i, j] = False
    mask = torch.zeros(1, 1, count, count).masked_fill(~visible, torch.finfo(torch.float32).min)
    with case.model.native(), torch.no_grad():
        expected = case.model.hf(input_ids=tokens[None], attention_mask=mask, use_cache=False).logits[0]
    for chunk in (1, 16, count):
        same(case.feed(case.memory(entries=400), tokens, chunk), expected, 1e-4)


def test_c_duplicates_go_first_and_d_the_newest_stays() -> None:
    method = VideoScan(frame=4, unit=4)
    _, bank = method.sizes(64)
    alone = Alone(method.cascade(64))
    generator = torch.Generator().manual_seed(1)
    frames = [torch.randn(2, 4, 4, generator=generator) for _ in range(3 * bank)]
    carriers: list[tuple[int, torch.Tensor]] = []
    for i in range(3 * bank):
        key = frames[i - 1] if i in (2, 5, bank + 3) else frames[i]
        frames[i] = key
        alone.feed(key, torch.full((4,), VISION))
        carriers.append((4 * i + 3, key[:, 3].flatten()))
        if len(carriers) > bank:
            likeness = [
                float(a @ b / (a.norm() * b.norm())) for (_, a), (_, b) in pairwise(carriers)
            ]  # the card, literally
            gone = max(range(len(likeness)), key=lambda k: likeness[k])
            if i == bank:
                assert carriers[gone][0] in (4 * 1 + 3, 4 * 4 + 3)  # the older of two equal frames
            del carriers[gone]
        assert alone.held()[0] == [seen for seen, _ in carriers]
        assert alone.held()[0][-1] == 4 * i + 3


def test_frames_need_not_begin_with_units() -> None:
    method = VideoScan(frame=5, unit=8)
    alone = Alone(method.cascade(96))
    for i in range(3):
        alone.feed(torch.randn(2, 8, 4), torch.full((8,), VISION))
        complete = 8 * (i + 1) // 5
        assert alone.held()[0] == [5 * f + 4 for f in range(complete)] + list(range(5 * complete, 8 * (i + 1)))


def test_recent_frames_stay_whole() -> None:
    method = VideoScan(frame=4, unit=8, recent=2)
    alone = Alone(method.cascade(96))
    for _ in range(4):
        alone.feed(torch.randn(2, 8, 4), torch.full((8,), VISION))
    assert alone.held()[0] == [4 * f + 3 for f in range(6)] + list(range(24, 32))


def test_laws_on_a_stream_of_both() -> None:
    Mixed(VideoScan(frame=4, unit=8), "llama", (*[TEXT] * 3, *[VISION] * 12, TEXT)).check()
    Mixed(VideoScan(positions="stream"), "llama", PATTERN).check("naive", "chunk_invariant")


def test_refused() -> None:
    with pytest.raises(BudgetError, match="needs a budget"):
        VideoScan().cascade(None)
    with pytest.raises(BudgetError, match="give at least") as caught:
        VideoScan().cascade(24)
    VideoScan().cascade(int(str(caught.value).split("give at least ")[1].split(",")[0]))
    with pytest.raises(UsageError, match="vision from 0"):
        VideoScan(vision=1.5).cascade(64)
