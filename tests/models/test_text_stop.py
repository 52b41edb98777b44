"""Stop strings: the first complete one ends the text, however the text is cut."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.errors import UsageError
from penstock.models.text import StopResult, StopStrings


def shown(stops: list[str], pieces: list[str]) -> tuple[str, bool]:
    strings, text = StopStrings(stops), ""
    for piece in pieces:
        result = strings.push(piece)
        text += result.text
        assert strings.pending < max(map(len, stops), default=1)
    stopped = strings.matched is not None
    return text + strings.flush(), stopped


def naive(stops: list[str], text: str) -> tuple[str, bool]:
    for end in range(len(text) + 1):
        done = [stop for stop in stops if text[:end].endswith(stop)]
        if done:
            return text[: end - max(map(len, done))], True
    return text, False


@given(
    stops=st.lists(st.text("ab\n", min_size=1, max_size=4), max_size=3),
    pieces=st.lists(st.text("ab\nc", max_size=4), max_size=12),
)
def test_any_split_stops_at_the_same_place(stops: list[str], pieces: list[str]) -> None:
    text = "".join(pieces)
    assert shown(stops, pieces) == shown(stops, [text]) == shown(stops, list(text)) == naive(stops, text)


def test_what_may_begin_a_stop_is_held() -> None:
    strings = StopStrings(["\nUser:", "###"])
    assert strings.push("fine\nUs") == ("fine", False)
    assert strings.push("ing #") == ("\nUsing ", False)
    fork = strings.copy()
    assert strings.push("##more") == StopResult("", True)
    assert strings.matched == "###"
    assert strings.push("more") == ("", True)
    assert strings.flush() == ""
    assert (fork.push(" 1"), fork.flush()) == (("# 1", False), "")


def test_mistakes_are_named() -> None:
    for stops in ([""], "stop", [3]):
        with pytest.raises(UsageError, match="non-empty strings"):
            StopStrings(stops)  # type: ignore[arg-type]
