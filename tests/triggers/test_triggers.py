"""Triggers: pure, with the edges that their cards name."""

from __future__ import annotations

import pickle

import pytest

from penstock.errors import InputError, UnknownName, UsageError
from penstock.triggers import Debounce, Draft, Objections, Signs, Trigger, parse, registry
from penstock.triggers.change import Change
from penstock.triggers.clips import Clips
from penstock.triggers.evidence import Evidence, offset
from penstock.triggers.monitor import parse_monitor
from penstock.triggers.perplexity import Perplexity
from penstock.triggers.silence import Silence


def signs(i: int) -> Signs:
    odd = i % 7 == 3
    return Signs(
        i / 2, 0.9 if odd else 0.1, 0.2 if odd else 0.9, not odd, 3.0 if odd else 1.0, i == 1, 1.0, 0.9 if odd else 0.1
    )  # fmt: skip


def run(trigger: Trigger, given: list[Signs], state: object = None) -> tuple[object, list[bool]]:
    state, out = trigger.start() if state is None else state, []
    for item in given:
        state, fires = trigger.step(state, item)
        out.append(fires)
    return state, out


@pytest.mark.parametrize("name", registry())
def test_laws(name: str) -> None:
    trigger = registry()[name]()
    given = [signs(i) for i in range(40)]
    _, out = run(trigger, given)
    assert len(set(out)) == 2, "the signs exercise nothing"
    middle, first = run(trigger, given[:17])
    assert first == out[:17]  # causal
    kept = pickle.dumps(middle)
    if middle is not None:
        assert run(trigger, given[17:], middle)[1] == out[17:]
        run(trigger, [signs(3)], middle)
        assert pickle.dumps(middle) == kept  # a value


def test_silence_needs_the_threshold_and_the_first_place() -> None:
    quiet, loud = Signs(0.0, silence=0.6, prefers_silence=True), Signs(0.0, silence=0.4, prefers_silence=False)
    assert [Silence(0.0).step((), s)[1] for s in (quiet, loud)] == [False, True]  # the likeliest token
    assert [Silence(2.0).step((), s)[1] for s in (quiet, loud)] == [True, True]
    assert Silence().step((), quiet)[1]


def test_silence_keeps_sure_words_that_were_not_said_just_now() -> None:
    assert not Silence().weighs
    assert all(Silence().keeps(Draft(least, since)) for least in (0.0, 1.0) for since in (0.5, float("inf")))
    rule = Silence(sure=0.5, again=3.0)
    assert rule.weighs
    assert [rule.keeps(Draft(least)) for least in (0.49, 0.5, 1.0)] == [False, True, True]
    assert [rule.keeps(Draft(0.9, since)) for since in (0.5, 3.0, 3.5)] == [False, False, True]


@pytest.mark.parametrize("name", registry())
def test_a_trigger_that_does_not_weigh_keeps_everything(name: str) -> None:
    trigger = registry()[name]()
    assert trigger.weighs or all(trigger.keeps(Draft(least, since)) for least in (0.0, 1.0) for since in (0.0, 9.0))


def test_perplexity_is_compared_with_the_answer_as_it_was_given() -> None:
    same = [Signs(0.0)] + [Signs(i / 2, perplexity=2.0, spoke=i == 1, answered=2.0) for i in range(1, 6)]
    assert run(Perplexity(), same)[1] == [True] + [False] * 5  # nothing changes: never again
    assert run(Perplexity(float("inf")), same)[1] == [True] + [False] * 5
    assert run(Perplexity(0.0), same)[1] == [True] * 6


def test_change_speaks_at_about_the_share_asked_for() -> None:
    given = [Signs(float(i), change=((i * 37) % 100) / 100) for i in range(2000)]
    fired = sum(run(Change(share=0.1), given)[1][500:]) / 1500
    assert 0.05 < fired < 0.2


INTERVALS = [(0.0, 0.5), (3.0, 3.0), (5.5, 9.0), (19.5, 19.5)]


def test_an_answer_misses_its_evidence_by_nothing_inside_and_continuously_outside() -> None:
    for start, end in INTERVALS:
        assert [offset(t, start, end) for t in (start, (start + end) / 2, end)] == [0.0, 0.0, 0.0]
        for edge in (start, end):
            assert abs(offset(edge - 1e-6, start, end) - offset(edge + 1e-6, start, end)) < 1e-5
        assert (offset(start - 2, start, end), offset(end + 3, start, end)) == (-2.0, 3.0)


@pytest.mark.parametrize(("start", "end"), INTERVALS)
def test_evidence_is_answered_when_it_is_there_and_the_question_stays_open_until_then(start: float, end: float) -> None:
    given = [Signs(i / 2, evidence=float(start <= i / 2 <= end)) for i in range(60)]
    said = [s.t for s, fires in zip(given, run(Evidence(every=0.0, longest=0.0), given)[1]) if fires]
    assert len(said) == 1  # once, though the evidence stays
    assert offset(said[0], start, end) == 0.0
    late = [s.t for s, fires in zip(given, run(Evidence(), given)[1]) if fires]
    assert all(0 <= offset(t, start, start) <= Evidence().longest for t in late)


def test_looks_that_find_nothing_become_rarer_and_are_bounded() -> None:
    rule, looks = Evidence(every=0.5, backoff=2.0, longest=8.0), 0
    state = rule.start()
    for i in range(2000):
        looks += rule.looks(state, i / 2)
        signs = Signs(i / 2, evidence=0.0) if rule.looks(state, i / 2) else Signs(i / 2)
        state, fires = rule.step(state, signs)  # nothing is measured where it does not look
        assert not fires
    assert looks <= 5 + 1000 / 8 + 1


def test_a_clip_is_decided_on_at_its_end_alone_and_by_what_was_seen() -> None:
    def some(i: int, scenes: tuple[int, ...], p: float = 0.2) -> Signs:
        return Signs(i / 2, change=float(i in scenes), silence=p)

    rule = Clips(longest=6)
    assert [i for i, fires in enumerate(run(rule, [some(i, (3, 8)) for i in range(20)])[1]) if fires] == [3, 8, 14]
    assert not any(run(rule, [some(i, (3, 8), 0.6) for i in range(20)])[1])  # silence is likelier
    assert run(rule, [some(i, (3,)) for i in range(9)])[1] == run(rule, [some(i, (3, 9, 10)) for i in range(20)])[1][:9]


def test_a_sign_that_was_not_measured_is_asked_for() -> None:
    with pytest.raises(InputError, match="needs silence"):
        parse("silence").step((), Signs(0.0))
    with pytest.raises(UnknownName):
        parse("sometimes")


def test_debounce_lets_one_odd_token_pass() -> None:
    rule, state, stops = Debounce(0.5, 2, 3), (), []
    for score in (0.9, 0.1, 0.1, 0.9, 0.1, 0.7, 0.9):
        state, stop = rule.step(state, score)
        stops.append(stop)
    assert stops == [False, False, False, False, False, True, True]


class Scores:
    """A monitor with given scores."""

    def __init__(self, *scores: float | None) -> None:
        self.scores = scores

    def start(self) -> None:
        self.left = list(self.scores)

    def score(self, text: str, token: int) -> float | None:
        return self.left.pop(0)


def test_an_answer_is_objected_to_from_its_own_beginning_and_half_words_change_nothing() -> None:
    monitor = Scores(0.9, None, 0.9)
    for _ in range(2):  # the second answer does not inherit the first one's scores
        objections = Objections(monitor, Debounce(0.5, 2, 2))
        assert [objections.to("text", 1) for _ in range(3)] == [False, False, True]
    assert not Objections(None).to("text", 1)


def test_a_monitor_is_read_from_its_name_and_options() -> None:
    rule = parse_monitor("guard:threshold=0.9,need=3,of=4")
    assert (rule.threshold, rule.need, rule.of, str(rule)) == (0.9, 3, 4, "guard:threshold=0.9,need=3,of=4")
    assert parse_monitor("guard").need == Debounce().need
    for text, says in (("gard", "guard"), ("guard:need=3", "3 of the last 2"), ("guard:threshold=2", "0 to 1")):
        with pytest.raises(UsageError, match=says):
            parse_monitor(text)
