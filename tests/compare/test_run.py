"""A pass: what it asks, what it measures, what it leaves alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import penstock
from penstock.compare import Stream, make_plan
from penstock.compare.baselines import ORACLE, TEXT_SEARCH, beside, block_around, prompt_spans
from penstock.compare.run import Pass, Stopped, read, slope
from penstock.compare.search import LONGEST, TextSearch
from penstock.memory.archive_blocks import Archived
from penstock.methods import parse
from penstock.models.load import Model


def test_a_window_recalls_what_it_sees_and_nothing_else(model: Model, stream: Stream) -> None:
    plan = make_plan(stream, 256, (100, 1500), per_bin=20)
    found = read(model, parse("window"), 256, stream, [plan], 64)
    near, far = found.row(plan)["recall"]
    assert near["recall"] > 0.8
    assert far["recall"] < 0.2
    assert near["n"] == far["n"] == 20


def test_a_pass_measures_the_stream_and_not_the_questions(model: Model, stream: Stream) -> None:
    plan = make_plan(stream, 256, (100,), per_bin=20)
    found = read(model, parse("window"), 256, stream, [plan], 64)
    quiet = penstock.Session(model, "window", 256, path="eager", measure=True)
    quiet.ingest(stream.ids)
    row = found.row(plan)
    assert row["nll_mean"] == pytest.approx(quiet.meter.nll_mean, abs=1e-4)
    assert row["bytes"] == {"device": quiet.memory.nbytes, "ram": 0, "disk": 0}
    assert row["tokens"] == len(stream.ids)
    assert len(found.ask_seconds) == row["questions"] == 20
    assert 0 < row["step_ms"]["p50"] <= row["step_ms"]["p99"]
    assert row["first_token_ms"] > 0
    assert row["ingest_tokens_per_second"] == pytest.approx(found.tokens / found.seconds)


def test_an_oracle_that_fetches_says_what_the_choice_costs(
    model: Model, stream: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    """Only archives have it; it is at least as good as the choice, and leaves no trace in what else is measured."""
    plan = make_plan(stream, 128, (1500,), per_bin=20)

    def badly(self: Archived, query: Tensor, slots: int, *, together: bool = False, **more: object) -> Tensor:
        return torch.arange(self.oldest, min(self.count, self.oldest + slots)).expand(
            1 if together else query.shape[2], -1
        )

    monkeypatch.setattr(Archived, "choose", badly)  # always the oldest blocks
    found = read(model, parse("rekv"), 128, stream, [plan], 64)
    row = found.row(plan)
    [chosen], [fetched] = row["recall"], row["oracle_fetch"]
    assert fetched["n"] == chosen["n"] == 20
    assert fetched["recall"] > chosen["recall"]
    assert len(found.ask_seconds) == row["questions"] == 20
    assert "oracle_fetch" not in read(model, parse("window"), 128, stream, [plan], 64).row(plan)


def test_results_do_not_depend_on_the_chunk(model: Model, stream: Stream) -> None:
    plan = make_plan(stream, 128, (60, 150), per_bin=20)
    rows = [read(model, parse("streaming-llm"), 128, stream, [plan], chunk).row(plan) for chunk in (24, 100)]
    assert rows[0]["recall"] == rows[1]["recall"]
    assert rows[0]["nll_mean"] == pytest.approx(rows[1]["nll_mean"], abs=1e-3)


def test_a_tick_can_end_a_pass(model: Model, stream: Stream) -> None:
    def tick(found: Pass) -> None:
        if found.tokens >= 640:
            raise Stopped

    with pytest.raises(Stopped):
        read(model, parse("window"), 64, stream, [], 64, tick)


def test_the_slope_is_that_of_least_squares_and_ignores_a_pause_of_the_machine() -> None:
    positions = [64.0 * i for i in range(200)]
    rising = [0.01 + 2e-3 * x / 1e6 for x in positions]  # seconds: 2 ms per million tokens
    assert slope(positions, rising) == pytest.approx(2.0, rel=0.02)
    rising[50] += 10.0
    assert slope(positions, rising) == pytest.approx(2.0, rel=0.1)
    flat = [0.5 if x < 640 else 0.01 for x in positions]
    assert slope(positions, flat, after=640) == pytest.approx(0.0, abs=1e-6)


def test_the_oracle_and_the_text_search_find_what_a_window_has_lost(model: Model, stream: Stream) -> None:
    plan = make_plan(stream, 128, (1500,), per_bin=20)
    for name in (ORACLE, TEXT_SEARCH):
        row = beside(name, model, stream, [plan]).row(plan)
        assert row["recall"][0]["recall"] >= 0.85, name
        assert row["first_token_ms"] > 0


@pytest.mark.parametrize(
    ("block", "at", "room", "spans"),
    [
        ((100, 148), 1000, 100, [(0, 4), (100, 148), (952, 1000)]),
        ((960, 1000), 1000, 100, [(0, 4), (944, 1000)]),
        ((2, 50), 1000, 60, [(0, 50), (992, 1000)]),
        (None, 30, 100, [(0, 30)]),
    ],
)
def test_a_prompt_is_first_tokens_block_and_newest(
    block: tuple[int, int] | None, at: int, room: int, spans: list[tuple[int, int]]
) -> None:
    assert prompt_spans(block, at, room) == spans
    assert sum(end - start for start, end in spans) <= room


def test_a_block_holds_its_statement_and_ends_before_the_question() -> None:
    for start, end, at in ((0, 12, 13), (500, 514, 9000), (500, 514, 514), (10, 90, 200)):
        low, high = block_around(start, end, at)
        assert low <= start
        assert end <= high <= at
        assert high - low <= max(48, end - start)


def test_a_search_finds_the_statement_among_all_passages(model: Model, stream: Stream) -> None:
    search = TextSearch(model.tokenizer, stream.ids)
    for fact in stream.facts[:40]:
        start, end = search.best(f"Ask: {fact.key} is", len(stream.ids)) or (0, 0)
        assert start <= fact.start
        assert fact.end <= end
        assert end - start <= LONGEST
    fact = stream.facts[20]
    early = search.best(f"Ask: {fact.key} is", fact.start)
    assert early is None or early[1] <= fact.start, "a search must not see what comes later"
    assert search.best("", 1000) is None
