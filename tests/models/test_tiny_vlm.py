"""The shipped video-language model: small, loadable by transformers alone, and right about what it sees."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers

import penstock
from penstock.compare.shapes import INSIDE, Tally, announce, answer, by_distance, inside, main, opened
from penstock.models.load import Model
from penstock.models.vision.tower import VLM, Vision
from penstock.worlds.shapes import Shapes
from penstock.worlds.shapes.net import ShapesNet, hf_config, pixels
from penstock.worlds.shapes.tokens import EOS_ID


@pytest.fixture(scope="module")
def model() -> Model:
    return penstock.load(VLM)


def test_it_is_small_and_loads_without_us() -> None:
    assert sum(file.stat().st_size for file in VLM.iterdir()) < 16 << 20
    hf = transformers.AutoModelForImageTextToText.from_pretrained(VLM)
    assert type(hf).__name__ == "InternVLForConditionalGeneration"
    assert list(hf.config.vision_config.patch_size) == [12, 12]
    assert hf.config.downsample_ratio == hf_config().downsample_ratio


def test_the_training_net_is_the_same_model(model: Model) -> None:
    net = ShapesNet(0)
    net.load_exported(model.attached.hf.state_dict())
    vision, frame = Vision(model), next(Shapes(1))
    with torch.no_grad():
        ours = net.vision(pixels(torch.from_numpy(frame.image[None])))[0]
    assert torch.allclose(ours, vision.encode([frame]).embeddings.float(), atol=0.05)


def test_it_answers_what_is_in_view(model: Model) -> None:
    found = inside(model, 3, frames=24)
    assert set(found) == set(INSIDE)
    assert (found["past"].share or 0) > 0.6  # guessing gives 0.2


def test_a_window_forgets_what_retrieval_brings_back(model: Model) -> None:
    window = by_distance(model, "streaming-llm", 80, [3.0], 1, 10)[3.0]
    assert window.asked == 10
    assert (window.share or 0) < 0.4


def test_it_is_silent_until_asked(model: Model) -> None:
    found = announce(model, "streaming-llm:sinks=8", 160, 60)
    assert found.events > 8
    assert found.in_time > 0
    session = opened(model, "window", 80)
    session.see(next(Shapes(2)))
    assert session.logits is not None
    assert int(session.logits.argmax()) == EOS_ID  # nobody asked
    question = Shapes(2).questions(30)[0]
    before = session.tokens
    answer(session, question)
    assert session.tokens == before  # it was not remembered


def test_the_command_ends_in_json_and_refuses_in_one_sentence(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["--streams", "1"]) == 0
    assert capsys.readouterr().out.strip().splitlines()[-1].startswith('{"present"')
    assert main(["--model", str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert str(Tally()) == "-"
