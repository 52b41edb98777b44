"""The log of a session: order, digest, tail, file."""

from __future__ import annotations

import json
from array import array
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.errors import NotRewindable, OutputError
from penstock.log import BLOCK, TAIL, TokenLog


def logged(tokens: list[int], step: int = 1000, tail: int = TAIL) -> TokenLog:
    log = TokenLog(tail)
    for start in range(0, len(tokens), step):
        log.append(tokens[start : start + step])
    return log


def stream(count: int, seed: int = 1) -> list[int]:
    return [(i * 7919 + seed) % 50_000 for i in range(count)]


@given(st.integers(0, 900), st.integers(1, 300))
def test_the_digest_depends_on_tokens_and_not_on_how_they_arrive(count: int, step: int) -> None:
    assert logged(stream(count), step).digest == logged(stream(count)).digest


@given(st.integers(1, 900), st.data())
def test_the_digest_depends_on_every_token(count: int, data: st.DataObject) -> None:
    tokens = stream(count)
    changed = list(tokens)
    changed[data.draw(st.integers(0, count - 1))] += 1
    assert logged(tokens).digest != logged(changed).digest
    assert logged(tokens).digest != logged(tokens[:-1]).digest


@given(st.integers(0, 6000), st.integers(0, 5000))
def test_truncating_is_as_if_the_tokens_had_never_come(count: int, gone: int) -> None:
    # At the border of the tail a block that had lost its first tokens once gave a wrong digest.
    tokens = stream(count)
    log = logged(tokens)
    if gone > log.rewindable:
        with pytest.raises(NotRewindable, match="can take back"):
            log.truncate(count - gone)
        assert log.digest == logged(tokens).digest
        return
    log.truncate(count - gone)
    assert log.count == count - gone
    assert log.digest == logged(tokens[: count - gone]).digest
    log.append([1, 2, 3])
    assert log.digest == logged([*tokens[: count - gone], 1, 2, 3]).digest


@pytest.mark.parametrize("count", [0, 1, 255, 256, 300, 5000, 100_000])
def test_nearly_the_whole_tail_can_be_taken_back(count: int) -> None:
    log = logged(stream(count))
    assert log.rewindable >= min(count, TAIL - BLOCK)
    log.truncate(count - log.rewindable)
    assert log.digest == logged(stream(count)[: log.count]).digest


def test_memory_is_bounded() -> None:
    log = logged(stream(100_000), tail=1024)
    assert log.count == 100_000
    assert len(log.tail) == 1024
    assert len(json.dumps(log.state_dict())) < 20_000
    assert log.slice(99_990, 99_995) == stream(100_000)[99_990:99_995]
    assert log.slice(0, 10) == []


@given(st.integers(0, 3000))
def test_state_and_copies_go_on_alike(count: int) -> None:
    log = logged(stream(count))
    loaded = TokenLog()
    loaded.load_state_dict(json.loads(json.dumps(log.state_dict())))
    copied = log.copy()
    for other in (log, loaded, copied):
        other.append([5, 6])
    assert log.digest == loaded.digest == copied.digest
    copied.append([7])
    assert log.count == loaded.count == copied.count - 1


# -- the file -----------------------------------------------------------------------------------------------------


def written(path: Path) -> list[int]:
    values = array("i")
    values.frombytes(path.read_bytes())
    return list(values)


def test_the_file_has_every_token_that_was_not_taken_back(tmp_path: Path) -> None:
    path = tmp_path / "log"
    log = TokenLog(sink=path)
    log.append(stream(10))
    log.append(stream(700))
    log.truncate(300)
    log.append([1, 2])
    assert written(path) == [*(stream(10) + stream(700))[:300], 1, 2]
    log.clear()
    log.append([3])
    assert written(path) == [3]


def test_a_file_that_was_there_is_continued_and_never_cut_into(tmp_path: Path) -> None:
    path = tmp_path / "log"
    first = TokenLog(sink=path)
    first.append([1, 2, 3])
    second = TokenLog(sink=path)
    second.append([4, 5])
    second.truncate(0)
    assert written(path) == [1, 2, 3]
    # A resumed log in a new file begins in the middle of its stream; it was once filled up with zeros.
    resumed = TokenLog(sink=tmp_path / "new")
    resumed.load_state_dict(first.state_dict())
    resumed.append([4, 5])
    resumed.truncate(4)
    assert written(tmp_path / "new") == [4]
    resumed.truncate(2)
    assert written(tmp_path / "new") == []


def test_a_full_disk_loses_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    log = TokenLog(sink=folder / "log")
    with pytest.raises(OutputError, match="cannot be written"):
        log.append([1, 2, 3])
    assert log.count == 3
    assert log.digest == logged([1, 2, 3]).digest
    with pytest.raises(OutputError):
        log.append([4, 5])
    log.truncate(4)
    folder.mkdir()
    log.append([6])
    assert written(folder / "log") == [1, 2, 3, 4, 6]


def test_a_copy_has_no_file(tmp_path: Path) -> None:
    log = TokenLog(sink=tmp_path / "log")
    log.append([1])
    log.copy().append([2])
    assert written(tmp_path / "log") == [1]
