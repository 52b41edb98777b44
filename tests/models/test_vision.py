"""Vision models behind the seam: frame by frame equals the model's own one pass, and what a session does with it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import penstock
from penstock.core import Frame
from penstock.errors import CompositionError, InputError, NotRewindable, UnsupportedModel
from penstock.models.vision import Vision
from penstock.models.vision.pictures import fitted, patches
from tests.models.vlms import FAMILIES, around, build, eyes, one_shot, video

HEAD, TAIL = [3, 4, 5, 6], [9, 10, 11]


def streamed(family: str, vision: Vision, memory: str, budget: int | None, frames: list[Frame]) -> penstock.Session:
    session = penstock.open(vision.model, memory=memory, budget=budget, vision=vision, chunk=7, path="eager")
    session.ingest(HEAD)
    watch(family, session, frames)
    session.ingest(TAIL)
    return session


def watch(family: str, session: penstock.Session, frames: list[Frame]) -> None:
    for frame in frames:
        visual = session.seer.push(session, frame)
        if visual is not None:
            before, behind = around(family, session.seer.now.units)
            session.ingest_embeddings(replace(visual, before=before, behind=behind))


@pytest.mark.parametrize("family", FAMILIES)
def test_frames_one_by_one_equal_the_models_own_video(family: str) -> None:
    vision, frames = eyes(family), video()
    expected = one_shot(family, vision, frames, HEAD, TAIL)
    for memory in ("dense", "streaming-llm", "rekv:positions=clamped"):
        session = streamed(family, vision, memory, None if memory == "dense" else 400, frames)
        assert session.logits is not None
        assert float((session.logits - expected).abs().max()) < 1e-4 * max(1.0, float(expected.abs().max())), memory


def test_the_axes_matter() -> None:
    """The law above can fail: with height and width exchanged the answer is another one."""
    vision, frames = eyes("qwen3_vl"), video()
    session = penstock.open(vision.model, memory="dense", vision=vision)
    session.ingest(HEAD)
    for frame in frames:
        visual = session.seer.push(session, frame)
        if visual is not None:
            before, behind = around("qwen3_vl", session.seer.now.units)
            turned = visual.positions[[0, 2, 1]]
            session.ingest_embeddings(replace(visual, positions=turned, before=before, behind=behind))
    session.ingest(TAIL)
    expected = one_shot("qwen3_vl", vision, frames, HEAD, TAIL)
    assert session.logits is not None
    assert float((session.logits - expected).abs().max()) > 1e-3


def test_three_axes_are_refused_where_entries_are_numbered_anew() -> None:
    vision = eyes("qwen2_5_vl")
    with pytest.raises(CompositionError, match="positions=clamped"):
        penstock.open(vision.model, memory="rekv", budget=64, vision=vision)


@pytest.mark.parametrize("family", ["internvl", "qwen3_vl"])
def test_a_bounded_session_goes_back_branches_and_resumes(family: str, tmp_path: Any) -> None:
    model = build(family)
    vision = eyes(family, model)
    session = streamed(family, vision, "window", 48, video(8))
    branch = session.fork()
    session.save(tmp_path / "s")
    resumed = penstock.resume(tmp_path / "s", vision.model, vision=vision)
    mark = session.mark()
    after = []
    for one in (session, branch, resumed):
        watch(family, one, video(4, seed=5))
        one.ingest([8, 9])
        after.append(one.logits)
    assert torch.equal(after[0], after[1])
    assert torch.equal(after[0], after[2])
    assert session.log.digest == resumed.log.digest
    before = session.tokens
    session.rollback(mark)
    watch(family, session, video(4, seed=5))
    session.ingest([8, 9])
    assert session.tokens == before
    assert torch.equal(session.logits, after[0])


def test_a_cut_inside_text_behind_pictures_is_exact_and_one_inside_a_picture_is_refused() -> None:
    vision = eyes("qwen3_vl")
    session = streamed("qwen3_vl", vision, "dense", None, video(4))
    expected = session.logits
    length = session.tokens
    session.ingest([12, 13, 14])
    session.truncate(length)
    assert torch.allclose(session.logits, expected, atol=1e-5)
    picture = next(i for i in range(length) if session.log.slice(i, i + 1)[0] < 0)
    with pytest.raises(NotRewindable, match="picture"):
        session.truncate(picture + 1)
    assert session.tokens == length


def test_dropped_tokens_keep_the_positions_of_the_others() -> None:
    vision = eyes("qwen3_vl")
    visual = vision.encode(video(2))
    kept = visual.keep([0, 2, 5])
    assert torch.equal(kept.positions, visual.positions[:, [0, 2, 5]])
    assert kept.extent == visual.extent
    assert torch.equal(kept.deep[1], visual.deep[1][[0, 2, 5]])
    session = penstock.open(vision.model, memory="dense", vision=vision)
    assert session.ingest_embeddings(kept) == 3
    assert all(token < 0 for token in session.log.slice(0, 3))
    with torch.no_grad():
        flat = eyes("internvl").encode(video(1)).keep([1, 3])
    assert flat.positions.tolist() == [[0, 1]]


def test_bad_pictures_are_refused_in_one_sentence() -> None:
    vision = eyes("internvl")
    session = penstock.open(vision.model, memory="window", budget=32, vision=vision)
    for image in (np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32), np.zeros((0, 4, 3), np.uint8)):
        with pytest.raises(InputError):
            session.see(Frame(image, 0.0, 0))
    assert session.tokens == 0
    assert session.see(video(1)[0]) == 4
    assert session.see(video(1, size=(50, 70))[0]) == 4  # another size in mid-stream
    with pytest.raises(InputError, match="tokens"):
        session.ingest_embeddings(replace(vision.encode(video(1)), embeddings=torch.zeros(3, 5)))
    with pytest.raises(UnsupportedModel, match="internvl"):
        Vision(penstock.load())


def test_sizes_and_patches() -> None:
    assert fitted(360, 640, 28, 4 * 28 * 28, 16384 * 28 * 28) == (364, 644)
    height, width = fitted(1000, 2000, 28, 4 * 28 * 28, 100 * 28 * 28)
    assert height * width <= 100 * 28 * 28
    assert height % 28 == width % 28 == 0
    pixels = torch.arange(2 * 3 * 8 * 8).float().reshape(2, 3, 8, 8)
    cut = patches(pixels, 4, 2, 2)
    assert torch.equal(cut[1], pixels[:, :, :4, 4:].transpose(0, 1).reshape(-1))  # right neighbour in the block
