"""The shapes world: pictures, events, and questions whose answers are in view when it says so."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from penstock.errors import InputError, OutputError, SnapshotError
from penstock.models.load import TINY
from penstock.models.vision.tower import VLM
from penstock.worlds.net import Rotations, rotary
from penstock.worlds.runs import load_run
from penstock.worlds.shapes import Look, Shapes, Timeline
from penstock.worlds.shapes.export import Progress
from penstock.worlds.shapes.net import ShapesNet
from penstock.worlds.shapes.outline import CODES, WORDS, Outline, spread
from penstock.worlds.shapes.perceive import labels_at
from penstock.worlds.shapes.rows import NOW, PAST, Reduces, Row, RowMaker, Seen, batch_of
from penstock.worlds.shapes.tokens import EOS_ID, FRAME_ID, PICTURE_ID, VOCABULARY, encode, train_tokenizer
from penstock.worlds.shapes.train import TrainConfig, Trainer
from penstock.worlds.shapes.wording import where


def test_frames_are_a_function_of_the_seed_and_the_time() -> None:
    one, two, other = Shapes(1), Shapes(1, rate=4.0), Shapes(2)
    for _ in range(10):
        a = next(one)
        b, _ = next(two), next(two)
        assert a.t == b.t
    noiseless = Shapes(1, noise=0), Shapes(1, noise=0)
    frames = [[next(world).image for _ in range(12)] for world in noiseless]
    assert all(np.array_equal(x, y) for x, y in zip(*frames))
    assert not np.array_equal(frames[0][0], next(other).image)
    assert next(Shapes(1, (90, 160))).image.shape == (90, 160, 3)


def test_a_look_is_not_used_again_soon_and_places_hold_one_thing() -> None:
    timeline = Timeline(4)
    timeline.until(400)
    looks = [thing.look for thing in timeline.things[:150]]
    assert len(set(looks)) == 150
    for t in range(0, 300, 3):
        assert len({thing.place for thing in timeline.at(t)}) == len(timeline.at(t)) <= 3


def test_the_past_that_is_kept_is_bounded() -> None:
    world = Shapes(5, (16, 16), rate=0.25)
    for _ in range(1000):
        next(world)
    assert len(world.timeline.things) < 1100
    assert world.events[0].t > world.now - 1801


@pytest.mark.parametrize("kind", ["present", "past", "count", "order", "forward"])
def test_answers_follow_from_what_was_in_view(kind: str) -> None:
    world = Shapes(9)
    found = [q for q in world.questions(600) if q.kind == kind]
    assert len(found) > 15
    for question in found:
        assert question.evidence_from <= question.evidence_to
        assert (question.asked_at < question.evidence_from) == (kind == "forward")
        middle = (question.evidence_from + question.evidence_to) / 2
        there = Timeline(9).at(middle)
        if kind == "past" and question.text.startswith("\nWhere"):
            thing = next(x for x in there if where(x.look) == question.text)
            assert question.answer == f" {('northwest', 'northeast', 'southwest', 'southeast')[thing.place]}"
        if kind == "count":
            assert question.answer.strip() == ("none", "one", "two", "three")[len(there)]
    assert len({q.answer for q in found}) > 2 or kind == "forward"


def test_meetings_touch() -> None:
    timeline = Timeline(11)
    meetings = [e for e in timeline.events(0, 600) if e.kind == "meet"]
    assert len(meetings) > 5
    for event in meetings[:5]:
        labels = labels_at(timeline, event.t + 0.5)
        assert sorted(np.flatnonzero(labels[:, 4])) == sorted(thing.place for thing in event.things)
        assert not labels_at(timeline, event.t - 0.4)[:, 4].any()


def test_rows_answer_and_stay_silent() -> None:
    tokenizer = train_tokenizer()
    assert tokenizer.get_vocab_size() <= VOCABULARY
    assert len(encode(tokenizer, where(Look(0, 1, 2)))) == 9  # the words of the world are one token each
    maker, rng = RowMaker(tokenizer, 200), random.Random(1)
    rows = [maker.make(rng) for _ in range(20)]
    batch = batch_of(rows)
    assert batch.tokens.shape == (20, 200)
    assert int((batch.tokens == PICTURE_ID).sum()) == len(batch.picked)
    frames = (batch.tokens == FRAME_ID) & (batch.weights > 0)
    assert (batch.targets[frames] == EOS_ID).float().mean() > 0.7  # mostly silent
    assert (batch.targets[frames] != EOS_ID).any()  # but not always
    asked = Counter(batch.kinds[batch.weights > 0].tolist())
    assert len(asked) == 9
    assert set(PAST) == {"where", "plate", "later"}


def test_a_row_leaves_out_what_did_not_change() -> None:
    timeline = Timeline(3)
    row = Row(200)
    rng = random.Random(2)
    shown = []
    for i in range(20):
        labels = labels_at(timeline, i / 2)
        shown.append(Reduces(False, 0.0, False).kept(labels, row, rng))
        changed = {k for k in range(4) if not row.labels or (labels[k] != row.labels[-1][k]).any()}
        assert shown[-1] == changed | {4}
        assert Reduces(True, 0.0, False).kept(labels, row, rng) == (set(range(5)) if changed else set())
        row.labels.append(labels)
    assert shown[0] == set(range(5))
    assert {4} in shown


@pytest.mark.parametrize("again", [True, False])
def test_questions_of_rows_with_whole_frames_left_out_are_about_what_is_there(again: bool) -> None:
    """What is asked about now stands behind a frame: the last one that came, or, after others, that one once more."""
    tokenizer = train_tokenizer()
    asked: list[tuple[bool, str]] = []

    class Quiet(RowMaker):
        def _ask(self, row: Row, seen: Seen, rng: random.Random, kinds: dict[str, int]) -> bool:
            asked.append((row.tokens[-1] == FRAME_ID, "now" if kinds is NOW else "past"))
            return super()._ask(row, seen, rng, kinds)

        def _frame_end(self, *_: object) -> None:
            """Nothing is said of it."""

    maker = Quiet(tokenizer, 200, pictures=False, reduced=1.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Reduces, "drawn", staticmethod(lambda rng: Reduces(True, 0.0, again)))
        rows = [maker.make(random.Random(seed)) for seed in range(12)]
    shown = [[label.tobytes() for label in row.labels] for row in rows]
    assert any(a == b for frames in shown for a, b in pairwise(frames)) == again
    behind = [is_behind for is_behind, kind in asked if kind == "now"]
    assert behind
    assert all(behind) == again


def test_questions_about_the_present_stand_anywhere_in_a_row() -> None:
    """None stood behind the 196th of 256 tokens, and in full memories half of them were answered wrongly."""
    at: list[float] = []

    class Noting(RowMaker):
        def _ask(self, row: Row, seen: Seen, rng: random.Random, kinds: dict[str, int]) -> bool:
            at.extend([len(row.tokens) / self.length] if kinds is NOW else [])
            return super()._ask(row, seen, rng, kinds)

    maker = Noting(train_tokenizer(), 256, pictures=False)
    for seed in range(40):
        maker.make(random.Random(seed))
    assert sum(where > 0.8 for where in at) > len(at) / 20


def test_a_training_goes_on_from_the_weights_of_a_model(tmp_path: Path) -> None:
    config = TrainConfig(run=str(tmp_path / "run"), out=str(tmp_path / "out"), start=str(VLM))
    trainer = Trainer(config, Console(quiet=True))
    shipped = load_file(VLM / "model.safetensors")
    found = trainer.net.exported()
    assert trainer.state.sees
    assert all(torch.equal(found[key], shipped[key].float()) for key in found)
    for wrong in (tmp_path, TINY):
        with pytest.raises(InputError, match="a folder that was written with --out"):
            Trainer(replace(config, start=str(wrong)), Console(quiet=True))


def test_the_outline_knows_what_is_new_before_any_training() -> None:
    net, tokenizer = ShapesNet(0), train_tokenizer()
    words = [encode(tokenizer, f" {word}")[0] for word in WORDS]
    net.outline.prepare(net.language_model.embed_tokens, net.language_model.layers, words)
    timeline = Timeline(21)
    labels = np.stack([labels_at(timeline, i / 2) for i in range(24)])
    tokens = torch.tensor([([PICTURE_ID] * 4 + [FRAME_ID]) * len(labels)])
    flat = torch.from_numpy(labels).flatten(0, 1)
    with torch.no_grad():
        first = net.language_model.layers[0]
        out = first(net.embed(tokens, net.outline.target(flat)), Rotations(rotary(torch.arange(120), net.config)))
    sign = (out[tokens == PICTURE_ID] @ net.outline.new)[:, 0]
    there = flat[:, 0] >= 0
    new, stays = there[4:] & ~there[:-4], there[4:] & there[:-4]
    assert new.sum() > 4
    assert sign[4:][new].mean() > 3 * sign[4:][stays].mean().abs()


def test_the_outline_says_what_is_in_a_picture() -> None:
    from penstock.worlds.shapes.net import text_config

    outline = Outline(text_config(), 0)
    labels = torch.tensor([[1, 2, 3, 0, 0], [-1, -1, -1, 2, 0], [5, 7, 0, 3, 1]])
    scores = outline.scores(outline.target(labels))
    for column, kind in enumerate(CODES):
        wanted = [len(CODES[kind]) if label < 0 else label for label in labels[:, column].tolist()]
        assert scores[kind].argmax(1).tolist() == wanted
    assert scores["meets"].argmax(1).tolist() == [0, 0, 1]
    angles = spread(27, 18)
    assert float((angles @ angles.T - torch.eye(27)).abs().max()) < 0.5


def test_bad_worlds_files_and_runs_are_refused(tmp_path: Path) -> None:
    for wrong in ({"size": (4, 4)}, {"rate": 0.0}, {"pace": 0.1}):
        with pytest.raises(InputError):
            Shapes(0, **wrong)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="--resume"):
        load_run(tmp_path, None, [], Progress)  # type: ignore[arg-type]
    (tmp_path / "state.safetensors").write_bytes(b"nonsense")
    with pytest.raises(SnapshotError):
        load_run(tmp_path, None, [], Progress)  # type: ignore[arg-type]


def test_a_video_file_shows_the_world(tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    assert Shapes(3, (96, 128), rate=8.0).write(tmp_path / "v.mp4", 2.0) == 16
    with av.open(str(tmp_path / "v.mp4")) as container:
        images = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(images) == 16
    fresh = Shapes(3, (96, 128), rate=8.0, noise=0)
    expected = [next(fresh).image for _ in range(16)]
    assert np.abs(images[15].astype(int) - expected[15].astype(int)).mean() < 8
    with pytest.raises(OutputError):
        Shapes(3).write(tmp_path / "v.nothing", 1.0)
    with pytest.raises(InputError, match="even"):
        Shapes(3, (97, 96)).write(tmp_path / "w.mp4", 1.0)
