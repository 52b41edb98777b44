"""Snapshots: bit-identical continuation; refused when anything is wrong; never half written."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_session import MODEL, TEXT, TOKENIZER, assert_same, session

import penstock
import penstock.snapshot
from penstock import Session
from penstock.errors import InputError, OutputError, PenstockError, SnapshotError
from penstock.testing import tiny_model


def fed(memory: str = "streaming-llm", budget: int | None = 24, **options: Any) -> Session:
    new = session(memory, budget, **options)
    new.feed(TEXT[:250])  # a tail is held back
    return new


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "session.penstock"
    fed().save(path)
    return path


def same_storage(a: Session, b: Session) -> bool:
    one, other = a._memory.save_row(0), b._memory.save_row(0)
    return set(one) == set(other) and all(torch.equal(one[name], other[name]) for name in one)


# -- and back -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("memory", "budget"), [("streaming-llm:sinks=2", 24), ("window", 7), ("streaming-llm", 4096), ("dense", None)]
)
@pytest.mark.parametrize("chars", [0, 5, 250])
def test_a_session_goes_on_as_if_it_had_never_stopped(
    tmp_path: Path, memory: str, budget: int | None, chars: int
) -> None:
    s = session(memory, budget)
    s.feed(TEXT[:chars].encode() + b"\xe6\x97")  # ends inside a character
    s.save(tmp_path / "s")
    later = penstock.resume(tmp_path / "s", MODEL)
    assert (later.method, later.budget, later.chunk) == (s.method, s.budget, s.chunk)
    for each in (s, later):
        each.feed(b"\xa5 and so on " * 10)
        each.flush()
    assert same_storage(s, later)
    assert torch.equal(s.logits, later.logits)  # type: ignore[arg-type]
    assert_same(s, later)


def test_saving_changes_nothing(saved: Path, tmp_path: Path) -> None:
    one, other = fed(), fed()
    one.save(tmp_path / "s")
    assert same_storage(one, other)
    assert one.stats().pending_bytes == other.stats().pending_bytes > 0
    assert os.listdir(saved.parent) == [saved.name, "s"] or sorted(os.listdir(tmp_path)) == ["s", saved.name]


def test_a_snapshot_of_a_snapshot_is_the_same(saved: Path, tmp_path: Path) -> None:
    later = penstock.resume(saved, MODEL)
    later.save(tmp_path / "again")
    one, other = penstock.snapshot.read(saved), penstock.snapshot.read(tmp_path / "again")
    assert one[0] == other[0]
    assert all(torch.equal(one[1][name], other[1][name]) for name in one[1])


def test_a_model_folder_is_found_again_with_its_precision(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    model: Any = tiny_model("llama", vocab_size=len(TOKENIZER))
    model.save_pretrained(folder)
    TOKENIZER.save_pretrained(folder)
    s = penstock.open(folder, "window", 8, dtype="bfloat16")
    s.feed("some words")
    s.save(tmp_path / "s")
    later = penstock.resume(tmp_path / "s")
    assert later.model.attached.geometry.dtype == torch.bfloat16
    with pytest.raises(SnapshotError, match="saved in bfloat16, not float32"):
        penstock.resume(tmp_path / "s", dtype="float32")


def test_how_special_tokens_are_read_is_kept(tmp_path: Path) -> None:
    s = session(special=True)
    s.feed("one<|eos|>two")
    s.save(tmp_path / "s")
    later = penstock.resume(tmp_path / "s", MODEL)
    later.feed("<|eos|>")
    later.flush()
    assert list(later.log.tail).count(TOKENIZER.eos_token_id) == 2


def test_equal_settings_are_accepted(saved: Path) -> None:
    later = penstock.resume(saved, MODEL, memory="streaming-llm:sinks=4", budget="24", chunk=3)
    assert later.chunk == 3


# -- damage ---------------------------------------------------------------------------------------------------------


def test_a_shortened_file_is_refused(saved: Path) -> None:
    data = saved.read_bytes()
    for length in {*range(0, 64), *range(64, len(data), len(data) // 40), len(data) - 1}:
        saved.write_bytes(data[:length])
        with pytest.raises(SnapshotError, match=r"damaged|not a penstock"):
            penstock.snapshot.read(saved)
    saved.write_bytes(data + b"\0")
    with pytest.raises(SnapshotError):
        penstock.snapshot.read(saved)


@settings(max_examples=300)
@given(where=st.floats(0, 1, exclude_max=True), in_header=st.booleans(), flip=st.integers(1, 255))
def test_an_altered_byte_anywhere_is_refused(where: float, in_header: bool, flip: int) -> None:
    altered = bytearray(ORIGINAL.read_bytes())
    header = 8 + int.from_bytes(altered[:8], "little")
    at = int(where * header) if in_header else int(where * len(altered))
    altered[at] ^= flip
    path = ORIGINAL.with_name("altered")
    path.write_bytes(altered)
    with pytest.raises(SnapshotError) as caught:
        penstock.snapshot.read(path)
    assert str(caught.value).count("\n") == 0


@pytest.mark.parametrize("flip", [0x01, 0x20, 0x2A, 0x29, 0xFF])
def test_no_byte_of_the_header_can_be_altered(flip: int, tmp_path: Path) -> None:
    # Spaces behind the header could once be turned into tabs and line ends.
    data = ORIGINAL.read_bytes()
    header = 8 + int.from_bytes(data[:8], "little")
    path = tmp_path / "altered"
    for at in {*range(0, 200), *range(200, header, 17), *range(header - 40, header)}:
        altered = bytearray(data)
        altered[at] ^= flip
        path.write_bytes(altered)
        with pytest.raises(SnapshotError):
            penstock.snapshot.read(path)


@pytest.fixture(scope="module", autouse=True)
def original(tmp_path_factory: pytest.TempPathFactory) -> None:
    global ORIGINAL
    ORIGINAL = tmp_path_factory.mktemp("snapshots") / "original"
    fed().save(ORIGINAL)


ORIGINAL: Path


def test_what_is_no_snapshot_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    with pytest.raises(InputError, match="there is no snapshot"):
        penstock.resume(tmp_path / "missing")
    with pytest.raises(InputError, match="there is no snapshot"):
        penstock.resume(tmp_path)
    (tmp_path / "text").write_text("hello")
    save_file({"x": torch.ones(2)}, tmp_path / "tensors")
    for name in ("text", "tensors"):
        with pytest.raises(SnapshotError):
            penstock.resume(tmp_path / name)


# -- of something else ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings_", "word"),
    [
        ({"memory": "window"}, "memory streaming-llm, not window"),
        ({"memory": "streaming-llm:sinks=3"}, "not streaming-llm:sinks=3"),
        ({"budget": 25}, "budget of 24, not 25"),
        ({"budget": "1MiB"}, "budget of 24"),
    ],
)
def test_another_memory_is_refused(saved: Path, settings_: dict[str, Any], word: str) -> None:
    with pytest.raises(SnapshotError, match=word) as caught:
        penstock.resume(saved, MODEL, **settings_)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("family", "changes"), [("llama", {"seed": 1}), ("qwen2", {}), ("llama", {"num_hidden_layers": 2})]
)
def test_another_model_is_refused(saved: Path, family: str, changes: dict[str, Any]) -> None:
    other = tiny_model(family, vocab_size=len(TOKENIZER), **changes)
    with pytest.raises(SnapshotError, match="was saved with"):
        penstock.resume(saved, penstock.load(other, tokenizer=TOKENIZER))


# -- never half written ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["no folder/s", ".", os.devnull])
def test_a_place_that_takes_no_file_is_refused(tmp_path: Path, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OutputError, match="cannot be written"):
        fed().save(where)
    assert os.listdir(tmp_path) == []


def test_a_full_disk_leaves_the_old_snapshot_and_nothing_else(saved: Path) -> None:
    before = saved.read_bytes()
    s = penstock.resume(saved, MODEL)
    s.feed(TEXT)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
        with pytest.raises(OutputError, match="was not written"):
            s.save(saved)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert saved.read_bytes() == before
    assert os.listdir(saved.parent) == [saved.name]
    s.save(saved)  # with room again, nothing was lost
    assert_same(penstock.resume(saved, MODEL), s)


@pytest.mark.parametrize("place", ["save_file", "os.fsync", "os.replace"])
def test_an_interruption_at_any_point_leaves_the_old_snapshot(
    saved: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    before = saved.read_bytes()
    s = penstock.resume(saved, MODEL)
    s.feed(TEXT)
    monkeypatch.setattr(f"penstock.snapshot.{place}", interrupted)
    with pytest.raises(KeyboardInterrupt):
        s.save(saved)
    assert saved.read_bytes() == before
    assert os.listdir(saved.parent) == [saved.name]


SAVING = """
import sys
sys.path.insert(0, {tests!r})
from test_snapshot import fed
from test_session import TEXT
from pathlib import Path
s = fed("window", 600)
path = Path({path!r})
s.save(path)
print("saved", flush=True)
while True:
    s.feed(TEXT[:64])
    s.save(path)
"""


def test_a_process_killed_while_saving_leaves_a_whole_snapshot(tmp_path: Path) -> None:
    path = tmp_path / "session.penstock"
    script = SAVING.format(tests=str(Path(__file__).parent), path=str(path))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, env=environment)
    assert process.stdout is not None
    with process:
        assert process.stdout.readline() == b"saved\n"
        for pause in (0.31, 0.17, 0.05):  # whole at every moment it is looked at
            time.sleep(pause)
            penstock.snapshot.read(path)
        process.kill()
    lengths = []
    for _ in range(2):
        later = penstock.resume(path, MODEL)
        assert later.tokens > 0
        lengths.append(later.tokens)
        later.feed("more of it")
        later.save(path)  # what the killed process left beside it is in nobody's way
    assert lengths[0] <= lengths[1]


def test_errors_are_ours() -> None:
    assert issubclass(SnapshotError, PenstockError)
    assert SnapshotError("x").exit_code == 1
