"""Damage to the archive of a session: a sentence about it, no wrong block, and the stream goes on."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from penstock.core import Phase, parse_size
from penstock.errors import BudgetError
from penstock.memory.archive_blocks import Archived
from penstock.memory.losses import KEPT, Losses
from penstock.memory.tiers import TierEvent
from penstock.models.load import Model, load
from penstock.session import Session
from penstock.snapshot import resume

BUDGET = 128


@pytest.fixture(scope="module")
def model() -> Model:
    return load()


def archives(session: Session) -> Iterator[Archived]:
    for group in session._memory.groups:
        for layer in group.lanes[0]:
            for lane in layer:
                yield lane.states[-1]["blocks"]


def stream(count: int) -> list[int]:
    return torch.randint(0, 200, (count,), generator=torch.Generator().manual_seed(3)).tolist()


@pytest.mark.parametrize("damage", ["deleted", "altered"])
def test_damaged_files_lead_to_an_event_and_to_no_wrong_block(model: Model, tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "blocks"
    session = Session(model, f"infllm:representatives=1,ram=2MiB,disk=8MiB,folder={folder}", BUDGET)
    whole = Session(model, "infllm:representatives=1", BUDGET)
    for each in (session, whole):
        each.ingest(stream(1000))
    assert session.memory.events == []
    assert session._memory.disk_bytes > 0
    files = sorted(folder.glob("*.blocks"))
    assert files
    for path in files:
        if damage == "deleted":
            path.unlink()
        else:
            content = bytearray(path.read_bytes())
            for at in range(0, len(content), 64):
                content[at] ^= 0x55
            path.write_bytes(bytes(content))
    fork = session.fork()
    lost = 0
    for mine, right in zip(archives(fork), archives(whole)):
        assert mine.store is not None
        assert right.store is not None
        ids = torch.arange(len(right))
        got, there = mine.store.fetch(ids)
        expected, all_there = right.store.fetch(ids)
        assert all_there.all()
        assert torch.equal(got[there], expected[there])
        lost += int((~there).sum())
    if damage == "deleted":  # a file that is open can still be read: nothing is lost until the session ends
        assert lost == 0
        return
    assert lost > 0
    assert any("lost from the disk" in said for said in session.memory.events)
    assert fork.memory.events == session.memory.events, "a fork reads the same blocks"
    session.ingest(stream(40), Phase.ASK)
    session.ingest(stream(300))
    assert session.logits is not None
    assert torch.isfinite(session.logits).all()
    assert len(session.memory.events) <= KEPT
    assert whole.memory.events == []


def test_a_full_archive_is_one_sentence(model: Model) -> None:
    session = Session(model, "infllm:representatives=1,ram=1200KiB", BUDGET)
    session.ingest(stream(1400))
    [said] = session.memory.events
    assert "dropped for the limit" in said


def test_the_newest_sentences_are_kept() -> None:
    losses = Losses()
    losses.note(TierEvent("lost", "layer 1/0", (1, 2, 3, 4, 5, 6), "the checksum is wrong"))
    assert list(losses.sentences) == [
        "blocks 1, 2, 3, 4 and 2 more of layer 1 lost from the disk and not read: the checksum is wrong."
    ]
    for n in range(100):
        losses.note(TierEvent("dropped", "layer 1/0", (n,), "the limit"))
    assert len(losses.sentences) == 2
    for n in range(100):
        losses.note(TierEvent("late", "layer 1/0", (n,), "slow"))
    losses.note(TierEvent("unwritten", "", (), "no space"))
    assert len(losses.sentences) == KEPT
    assert losses.sentences[-1] == "unwritten: no space."


KILLED = """
import os, signal, sys
from penstock.models.load import load
from penstock.session import Session
from tests.test_archive_events import BUDGET, stream
folder, snapshot = sys.argv[1:]
session = Session(load(), f"infllm:ram=3MiB,disk=8MiB,folder={folder}", BUDGET)
session.ingest(stream(1500))
assert session._memory.disk_bytes > 0
session.save(snapshot)
session.ingest(stream(300))
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_session_goes_on_from_its_snapshot_in_the_same_folder(model: Model, tmp_path: Path) -> None:
    folder, snapshot = tmp_path / "blocks", tmp_path / "s.penstock"
    child = subprocess.run(
        [sys.executable, "-c", KILLED, str(folder), str(snapshot)], cwd=Path(__file__).parents[1], check=False
    )
    assert child.returncode == -signal.SIGKILL
    assert list(folder.glob("*.blocks"))
    resumed = resume(snapshot, model)
    whole = Session(model, f"infllm:ram=3MiB,disk=8MiB,folder={tmp_path / 'other'}", BUDGET)
    whole.ingest(stream(1500))
    for mine, right in zip(archives(resumed), archives(whole)):
        assert mine.store is not None
        assert right.store is not None
        assert len(mine) == len(right)
        got, there = mine.store.fetch(torch.arange(len(right)))
        expected, kept = right.store.fetch(torch.arange(len(right)))
        assert there.all()
        assert kept.all()
        assert torch.equal(got, expected)
    resumed.ingest(stream(100))
    assert resumed.memory.events == []


def test_tiers_without_room_are_refused_when_a_session_is_opened(model: Model, tmp_path: Path) -> None:
    """With sizes that will do; nothing is made on the disk before."""
    folder = tmp_path / "blocks"
    for method in ("infllm", "rekv", "lserve", "double-sparsity"):
        with pytest.raises(BudgetError, match="4 archives of this memory") as refused:
            Session(model, f"{method}:ram=64KiB", BUDGET)
        enough = str(refused.value).rpartition("give ")[2].removesuffix(" or more.")
        session = Session(model, f"{method}:{enough}", BUDGET)
        session.ingest(stream(600))
        assert session._memory.ram_bytes <= parse_size(enough.removeprefix("ram="))
    with pytest.raises(BudgetError, match="give disk="):
        Session(model, f"infllm:disk=1KiB,folder={folder}", BUDGET)
    assert not folder.exists()
