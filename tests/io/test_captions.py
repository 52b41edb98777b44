"""Captions of three kinds, and streams merged by time."""

from __future__ import annotations

from pathlib import Path

import pytest

from penstock.errors import InputError
from penstock.io.captions import Caption, merge, parse_captions, read_captions

VTT = """WEBVTT

NOTE a comment

1
00:01.500 --> 00:03.000 align:start
<v Ann>Good &amp; <i>early</i>
morning

01:00:00.000 --> 01:00:01.000
late
"""
SRT = "1\r\n00:00:01,500 --> 00:00:02,000\r\n{\\an8}One\r\n\r\n2\r\n00:00:00,000 --> 00:00:01,000\r\nZero\r\n"
LINES = "0.5 a door opens\n[1:02] a dog\nno time here\n1:00:00.5, an hour\n7s: seven\n"


def test_the_three_kinds() -> None:
    assert parse_captions(VTT) == [Caption(1.5, 3.0, "Good & early morning"), Caption(3600.0, 3601.0, "late")]
    assert parse_captions(SRT) == [Caption(0.0, 1.0, "Zero"), Caption(1.5, 2.0, "One")]
    assert [(c.t, c.text) for c in parse_captions(LINES)] == [
        (0.5, "a door opens"), (7.0, "seven"), (62.0, "a dog"), (3600.5, "an hour"),
    ]  # fmt: skip


def test_files(tmp_path: Path) -> None:
    (tmp_path / "a.vtt").write_bytes(b"\xef\xbb\xbf" + VTT.encode() + b"\n00:09.000 --> 00:10.000\n\xff\n")
    assert len(read_captions(tmp_path / "a.vtt")) == 3
    (tmp_path / "b.txt").write_text("nothing timed\n")
    for name in ("b.txt", "missing.srt", "."):
        with pytest.raises(InputError):
            read_captions(tmp_path / name)


def test_merge_keeps_time_and_order() -> None:
    a, b = [Caption(t, t, "a") for t in (0, 2, 4)], [Caption(t, t, "b") for t in (1, 2, 3)]
    assert [(c.t, c.text) for c in merge(a, b)] == [(0, "a"), (1, "b"), (2, "a"), (2, "b"), (3, "b"), (4, "a")]
