"""Prefix groups: each prompt is its group's prefix and a rest, and never more is read than without them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from penstock.engine.prefixes import Group, open_together, prefix_groups, tokens_to_read

from .company import alone, assert_equals, engine


@given(st.lists(st.lists(st.integers(0, 2), max_size=7), max_size=9))
def test_every_prompt_is_a_prefix_and_a_rest(prompts: list[list[int]]) -> None:
    groups = prefix_groups(prompts)
    assert sorted(i for g in groups for i in g.members) == list(range(len(prompts)))
    for group in groups:
        for i in group.members:
            assert tuple(prompts[i][: len(group.shared)]) == group.shared
    assert tokens_to_read(prompts, groups) <= sum(map(len, prompts))


def test_a_long_run_below_a_short_one_leaves_it() -> None:
    c, g = [1] * 100, [2] * 50
    prompts = [[*c, *g, i] for i in range(10, 14)] + [[*c, i] for i in range(20, 23)]
    groups = prefix_groups(prompts)
    assert groups == [Group(tuple(c), (4, 5, 6)), Group((*c, *g), (0, 1, 2, 3))]
    one_level = len(c) + sum(len(p) - len(c) for p in prompts)
    assert one_level - tokens_to_read(prompts, groups) == 3 * 50 - 100


def test_sessions_of_one_batch_are_those_they_would_be_alone() -> None:
    e = engine()
    shared = list(range(40, 90))
    prompts = [[*shared, 5, 6], [*shared, 7], [8, 9, 10], list(shared)]
    sessions = open_together(e, prompts)
    e.drain()
    assert e.tokens_ingested == len(shared) + 3 + 3
    for session, prompt in zip(sessions, prompts):
        single = alone(e)
        single.ingest(prompt)
        single._text().flush()  # what begins with token ids has no BOS, also not before its first answer
        assert_equals(session, single)
        assert session.ask(max_new=4).text() == "".join(single.reply(max_new=4))
    assert len(e.ids) == 4
    e.check()
