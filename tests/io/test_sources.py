"""Text sources: files, folders, pipes, worlds, and what is refused with a sentence."""

from __future__ import annotations

import os
import threading
import time
from itertools import islice, pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.errors import InputError, UnknownName
from penstock.io import FileSource, FolderSource, PipeSource, TextCheck, open_text
from penstock.worlds.library import heldout_text


def whole(source: object, size: int = 7) -> bytes:
    return b"".join(source.pieces(size))  # type: ignore[attr-defined]


# -- text or not --------------------------------------------------------------------------------------------------


def refused(data: bytes, cuts: list[int] | None = None) -> bool:
    check = TextCheck("it")
    borders = [0, *sorted(min(c, len(data)) for c in cuts or []), len(data)]
    try:
        for start, stop in pairwise(borders):
            check.push(data[start:stop])
        check.push(b"", end=True)
    except InputError:
        return True
    return False


@pytest.mark.parametrize(
    ("data", "is_binary"),
    [
        (b"plain", False),
        ("日本語 and 🙂".encode(), False),
        ("déjà vu, façade".encode("latin-1"), False),  # a few odd bytes are read as U+FFFD
        (b"\x1b[31mred\x1b[0m\ttab\r\n\f", False),
        (b"a\0b", True),
        ("text".encode("utf-16"), True),
        (bytes(range(128, 256)) * 4, True),
        (b"\x89PNG\r\n\x1a\n\x00\x00\x00", True),
        (b"\x1f\x8b\x08\x01" + bytes(range(1, 256)), True),
        (b"", False),
    ],
)
def test_binary_data_is_told_from_text(data: bytes, is_binary: bool) -> None:
    assert refused(data) is is_binary


@given(st.text(), st.lists(st.integers(0, 200), max_size=5))
def test_text_is_text_however_it_arrives(text: str, cuts: list[int]) -> None:
    printable = "".join(c for c in text if c.isprintable() and c != "\ufffd") + "x"
    assert not refused(printable.encode("utf-8", "ignore"), cuts)


@given(st.binary(min_size=600, max_size=900), st.lists(st.integers(0, 900), max_size=5))
def test_the_verdict_does_not_depend_on_the_cuts_when_bytes_are_zero(data: bytes, cuts: list[int]) -> None:
    assert refused(b"text" + data + b"\0", cuts)


def test_a_stray_zero_byte_late_in_a_stream_does_not_end_it() -> None:
    check = TextCheck("it")
    for _ in range(70):
        check.push(b"a" * 1024)
    check.push(b"\0")


# -- files and folders --------------------------------------------------------------------------------------------


def test_a_file_is_read_in_pieces(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"0123456789")
    assert list(FileSource(path).pieces(4)) == [b"0123", b"4567", b"89"]


@pytest.mark.parametrize(("content", "word"), [(b"", "empty"), (b"a\0b", "binary"), ("x".encode("utf-16"), "UTF-16")])
def test_unreadable_files_are_refused_when_opened(tmp_path: Path, content: bytes, word: str) -> None:
    path = tmp_path / "a"
    path.write_bytes(content)
    with pytest.raises(InputError, match=word):
        open_text(str(path))


@pytest.mark.parametrize("where", ["missing.txt", "", "a\0b", "x" * 5000, "https://example.org/x"])
def test_what_is_not_there_is_refused_with_a_sentence(where: str) -> None:
    with pytest.raises(InputError) as caught:
        open_text(where)
    assert str(caught.value).count("\n") == 0
    assert str(caught.value).endswith(".")


def test_a_folder_is_its_text_files_in_order(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / ".git").mkdir()
    (tmp_path / "b.txt").write_bytes(b"second, no line end")
    (tmp_path / "a.txt").write_bytes(b"first\n")
    (tmp_path / "c.bin").write_bytes(b"\0\1\2")
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / ".hidden").write_bytes(b"no")
    (tmp_path / ".git" / "x").write_bytes(b"no")
    (tmp_path / "sub" / "a.txt").write_bytes("drëi".encode())
    (tmp_path / "sub" / "loop").symlink_to(tmp_path, target_is_directory=True)
    source = FolderSource(tmp_path)
    assert source.notes == []
    for size in (1, 3, 100):
        assert whole(source, size).decode() == "first\nsecond, no line end\ndrëi\n"
        assert len(source.notes) == 1
        assert "skipped 1 file " in source.notes[0]
        assert "c.bin" in source.notes[0]


def test_a_folder_without_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "c.bin").write_bytes(b"\0\1\2")
    with pytest.raises(InputError, match="no text files"):
        open_text(str(tmp_path))


# -- pipes --------------------------------------------------------------------------------------------------------


def piped(data: bytes, size: int) -> list[bytes]:
    reading, writing = os.pipe()

    def write() -> None:
        with os.fdopen(writing, "wb") as file:
            file.write(data)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        return list(PipeSource(descriptor=reading).pieces(size))
    finally:
        os.close(reading)
        writer.join()


def test_a_pipe_is_read_to_its_end() -> None:
    data = "line ü\n".encode() * 3000
    pieces = [piece for piece in piped(data, 100) if piece]
    assert b"".join(pieces) == data
    assert max(map(len, pieces)) <= 100


def test_an_empty_pipe_is_refused_at_its_end() -> None:
    with pytest.raises(InputError, match="standard input is empty"):
        piped(b"", 100)


def test_bytes_are_given_out_as_they_arrive_and_no_sooner_than_asked_for() -> None:
    reading, writing = os.pipe()
    pieces = PipeSource(descriptor=reading).pieces(4)
    try:
        assert next(pieces) == b""  # nothing yet: the reader gets control
        os.write(writing, b"no line end")
        began = time.monotonic()
        assert next(pieces) == b"no l"
        assert time.monotonic() - began < 0.5
        assert os.read(reading, 100) == b"ine end"  # the rest is still in the pipe
    finally:
        os.close(writing)
        os.close(reading)


def test_a_named_pipe_is_an_input(tmp_path: Path) -> None:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    writer = threading.Thread(target=lambda: path.write_bytes(b"through a fifo"))
    writer.start()
    source = open_text(str(path))
    assert source.is_endless
    assert whole(source) == b"through a fifo"
    writer.join()


def test_binary_data_in_a_pipe_is_refused_when_it_shows() -> None:
    with pytest.raises(InputError, match="standard input is binary"):
        piped(b"text at first, then \0", 8)


# -- worlds -------------------------------------------------------------------------------------------------------


def test_the_facts_world_is_endless_and_named_by_its_seed() -> None:
    first = [b"".join(islice(open_text("world:facts", seed).pieces(50), 40)) for seed in (0, 0, 1)]
    assert first[0] == first[1] != first[2]
    assert b"Note: " in first[0]


def test_the_library_is_what_was_held_out_of_training_again_and_again() -> None:
    text = "".join(heldout_text()).encode("utf-8", "replace")
    read = bytearray()
    for piece in open_text("world:library").pieces(1 << 16):
        read += piece
        if len(read) > 1.2 * len(text):
            break
    assert read[: len(text)] == text
    assert read[len(text) :] == text[: len(read) - len(text)]


def test_an_unknown_world_is_refused_with_a_suggestion() -> None:
    with pytest.raises(UnknownName, match="did you mean facts"):
        open_text("world:fact")
