"""Triggers: pure, with the edges that their cards name."""

from __future__ import annotations

import pickle

import pytest

from penstock.errors import InputError, UnknownName
from penstock.triggers import Debounce, Signs, Trigger, parse, registry
from penstock.triggers.change import Change
from penstock.triggers.perplexity import Perplexity
from penstock.triggers.silence import Silence


def signs(i: int) -> Signs:
    odd = i % 7 == 3
    return Signs(i / 2, 0.9 if odd else 0.1, 0.2 if odd else 0.9, not odd, 3.0 if odd else 1.0, i == 1, 1.0)


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


def test_perplexity_is_compared_with_the_answer_as_it_was_given() -> None:
    same = [Signs(0.0)] + [Signs(i / 2, perplexity=2.0, spoke=i == 1, answered=2.0) for i in range(1, 6)]
    assert run(Perplexity(), same)[1] == [True] + [False] * 5  # nothing changes: never again
    assert run(Perplexity(float("inf")), same)[1] == [True] + [False] * 5
    assert run(Perplexity(0.0), same)[1] == [True] * 6


def test_change_speaks_at_about_the_share_asked_for() -> None:
    given = [Signs(float(i), change=((i * 37) % 100) / 100) for i in range(2000)]
    fired = sum(run(Change(share=0.1), given)[1][500:]) / 1500
    assert 0.05 < fired < 0.2


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
