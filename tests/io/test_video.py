"""Sources of video: what they give, what they survive, and how they say what they cannot read."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("av", reason="the extra video is not installed")

import itertools

from penstock.core import Frame, SimulatedClock
from penstock.errors import InputError, UnknownName
from penstock.io.frames import Notice
from penstock.io.video import Opening, VideoSource, open_frames
from penstock.io.video.container import hidden
from penstock.io.video.groups import LOOK, cut
from penstock.io.video.parallel import decode_groups
from penstock.io.video.pipe import Pipe
from penstock.io.video.times import Grid, Times
from tests.io.videos import picture, write

CLIPS = Path(__file__).parents[3] / "shared" / "data" / "video"


def read(source: Any) -> tuple[list[Frame], list[Notice]]:
    items = list(source.frames())
    return [x for x in items if isinstance(x, Frame)], [x for x in items if isinstance(x, Notice)]


def same(a: list[Frame], b: list[Frame]) -> bool:
    return [(f.t, f.index) for f in a] == [(f.t, f.index) for f in b] and all(
        np.array_equal(x.image, y.image) for x, y in zip(a, b, strict=True)
    )


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("video") / "clip.mp4", 40)


def test_a_file_is_its_frames_at_their_times(clip: Path) -> None:
    frames, notices = read(open_frames(str(clip)))
    assert [f.t for f in frames] == pytest.approx([i / 10 for i in range(40)], abs=1e-3)
    assert [f.index for f in frames] == list(range(40))
    assert not notices
    for i in (0, 7, 39):
        assert np.abs(frames[i].image.astype(int) - picture(i)).mean() < 12
    few, _ = read(open_frames(str(clip), rate=2.5, longest=32))
    assert [f.t for f in few] == pytest.approx([0.4 * i for i in range(10)], abs=1e-3)
    assert few[0].image.shape == (24, 32, 3)


@pytest.mark.parametrize("given", [{"b_frames": 2}, {"group": 12, "codec": "libx264", "b_frames": 2}])
def test_decoding_in_groups_is_decoding_in_turn(tmp_path: Path, given: dict[str, Any]) -> None:
    path = write(tmp_path / "v.mkv", 40, **given)
    for rate in (None, 3.0):
        plain, _ = read(open_frames(str(path), rate=rate))
        for workers in (2, 3):
            assert same(read(open_frames(str(path), rate=rate, workers=workers))[0], plain)


def test_groups_are_cut_only_where_nothing_reaches_back() -> None:
    def packets(text: str) -> list[Any]:  # k7: a keyframe shown at 7
        return [SimpleNamespace(is_keyframe=p[0] == "k", pts=int(p[1:])) for p in text.split()]

    def numbers(text: str) -> list[int]:
        return [index for index, _ in cut(packets(text))]

    assert numbers("k0 p1 p2 k3 p4 k5") == [0, 0, 0, 1, 1, 2]
    assert numbers("k0 p3 p1 p2 k6 p4 p5 p7") == [0] * 8  # 4 and 5 are shown before the keyframe 6: an open group
    held = iter(packets("k0 " + "p1 " * 100))
    next(cut(held))
    assert len(list(held)) == 100 - LOOK  # no more than that is read ahead


def test_what_is_decoded_ahead_is_bounded(clip: Path) -> None:
    """A reader that stops early leaves no threads; one that is slow makes the workers wait."""
    source = VideoSource(Opening(str(clip), "clip"), workers=2)
    frames = source.frames()
    next(frames)
    before = threading.active_count()
    frames.close()  # type: ignore[attr-defined]
    assert threading.active_count() < before

    def broken() -> Iterator[Any]:
        raise InputError("gone.")
        yield

    with pytest.raises(InputError, match="gone"):
        list(decode_groups(broken(), lambda: None))


def test_times_never_go_back_and_missing_ones_are_made_up() -> None:
    times = Times(0.1)
    given = [5.0, 5.1, None, 5.4, 2.0, 2.1, 99999.0, float("nan"), 99999.2]
    assert [round(times.next(t), 6) for t in given] == [0.0, 0.1, 0.2, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]
    assert times.repaired == 4
    times.restart(10.0)
    assert [times.next(t) for t in (70.0, 70.5)] == [10.0, 10.5]
    grid = Grid(2.0)
    assert [grid.keeps(t) for t in (0.0, 0.4, 0.5, 0.9, 2.1, 2.4, 2.5)] == [True, False, True, False, True, False, True]


def test_variable_rates_and_rotation_are_kept(tmp_path: Path) -> None:
    times = [0.0, 0.05, 0.3, 1.0, 1.01, 4.0]
    frames, _ = read(open_frames(str(write(tmp_path / "v.mkv", 6, times=times, rate=100))))
    assert [f.t for f in frames] == pytest.approx(times, abs=2e-3)
    turned, _ = read(open_frames(str(write(tmp_path / "t.mp4", 3, rotation=90))))
    plain, _ = read(open_frames(str(write(tmp_path / "p.mp4", 3))))
    assert turned[0].image.shape == (64, 48, 3)
    assert np.array_equal(turned[2].image, np.rot90(plain[2].image)) or np.array_equal(
        turned[2].image, np.rot90(plain[2].image, -1)
    )


def test_damage_in_the_middle_costs_only_what_is_damaged(tmp_path: Path) -> None:
    path = write(tmp_path / "v.ts", 60, kind="mpegts")
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 2000] = np.random.default_rng(0).integers(0, 256, 2000, np.uint8).tobytes()
    path.write_bytes(data)
    frames, _ = read(open_frames(str(path)))
    assert 40 <= len(frames) <= 61
    assert frames[-1].t == pytest.approx(5.9, abs=0.15)
    (tmp_path / "cut.ts").write_bytes(data[: len(data) // 4])
    assert 5 <= len(read(open_frames(str(tmp_path / "cut.ts")))[0]) < 40


def test_a_change_of_size_is_fitted_and_told(tmp_path: Path) -> None:
    small = write(tmp_path / "a.ts", 5, kind="mpegts", codec="libx264").read_bytes()
    wide = write(tmp_path / "b.ts", 5, kind="mpegts", codec="libx264", size=(48, 128)).read_bytes()
    (tmp_path / "both.ts").write_bytes(small + wide)
    frames, notices = read(open_frames(str(tmp_path / "both.ts")))
    assert {f.image.shape for f in frames} == {(48, 64, 3)}
    assert len(frames) >= 9
    assert any("64x48 to 128x48" in n.text for n in notices if n.kind == "resized")
    assert not frames[-1].image[:10].any()  # bars above and below
    assert all(b.t >= a.t for a, b in itertools.pairwise(frames))


def test_a_folder_is_its_pictures_by_name(tmp_path: Path) -> None:
    import av

    for i in (10, 2, 1):
        with av.open(str(tmp_path / f"{i}.png"), "w", format="image2", options={"update": "1"}) as container:
            stream = container.add_stream("png", rate=1)
            stream.width, stream.height, stream.pix_fmt = 8, 8, "rgb24"
            frame = av.VideoFrame.from_ndarray(np.full((8, 8, 3), i, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
    (tmp_path / "3.png").write_text("no picture")
    (tmp_path / "loop").symlink_to(tmp_path)
    frames, notices = read(open_frames(str(tmp_path), rate=4.0))
    assert [(int(f.image[0, 0, 0]), f.t) for f in frames] == [(1, 0.0), (2, 0.25), (10, 0.5)]
    assert [n.kind for n in notices] == ["skipped"]


def test_videos_of_a_folder_follow_each_other(tmp_path: Path) -> None:
    write(tmp_path / "a.mp4", 5)
    write(tmp_path / "b.mp4", 5)
    (tmp_path / "c.mp4").write_text("no video")
    frames, notices = read(open_frames(str(tmp_path)))
    assert [f.t for f in frames] == pytest.approx([i / 10 for i in range(10)], abs=2e-3)
    assert [n.kind for n in notices] == ["skipped"]


def test_a_pipe_is_a_file_that_cannot_go_back(clip: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "v.ts", 12, kind="mpegts")

    with path.open("rb") as file:
        frames, _ = read(VideoSource(Opening(Pipe(file.fileno()), "standard input")))
    assert len(frames) == 12


@pytest.mark.parametrize(
    ("where", "says"),
    [
        ("", "the source is empty"),
        ("nowhere.mp4", "there is no video 'nowhere.mp4'"),
        ("x" * 5000, "there is no video"),
        ("a\0b", "there is no video"),
        ("itself", "too many levels of symbolic links"),
        ("notes.txt", "not a video|is text"),
        ("empty.mp4", "is empty"),
        ("noise.mp4", "is not a video that can be read"),
        ("sound.wav", "it has sound"),
        ("texts", "neither pictures nor videos"),
        ("http://127.0.0.1:9/v", "cannot be reached"),
        ("rtsp://me:secret@127.0.0.1:9/v", r"rtsp://\*\*\*@127.0.0.1:9/v cannot be reached"),
        ("gopher://x", "cannot be"),
        ("/dev/null", "cannot be opened"),
    ],
)
def test_what_is_no_video_is_one_sentence(
    where: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import wave

    monkeypatch.chdir(tmp_path)
    (tmp_path / "itself").symlink_to("itself")
    (tmp_path / "notes.txt").write_text("words\n" * 99)
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "noise.mp4").write_bytes(np.random.default_rng(0).bytes(5000))
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "loop").symlink_to(tmp_path / "texts")
    with wave.open(str(tmp_path / "sound.wav"), "wb") as sound:
        sound.setparams((1, 2, 8000, 800, "NONE", ""))
        sound.writeframes(bytes(1600))
    with pytest.raises(InputError, match=says) as caught:
        open_frames(where)
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)


def test_worlds_and_screens_that_are_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DISPLAY", raising=False)
    with pytest.raises(UnknownName):
        open_frames("world:circles")
    with pytest.raises(InputError, match="screen"):
        open_frames("screen")
    assert hidden("https://a:b@c/d?token=e&x=1") == "https://***@c/d?token=***&x=1"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """/live breaks off three times, then is gone; /file is a file; /secret wants a password."""
    folder = tmp_path_factory.mktemp("server")
    stream = write(folder / "v.ts", 20, kind="mpegts").read_bytes()
    file = write(folder / "v.mp4", 20).read_bytes()
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            code = {"/file": 200, "/live": 200, "/secret": 401}.get(self.path, 404)
            if self.path == "/live" and asked.count("/live") > 3:
                code = 503
            self.send_response(code)
            if self.path == "/file":
                self.send_header("Content-Length", str(len(file)))
            self.end_headers()
            if code == 200:
                self.wfile.write(file if self.path == "/file" else stream)

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{httpd.server_port}"
        httpd.shutdown()


def test_an_address_is_a_file_or_a_stream_that_is_opened_again(server: str) -> None:
    with pytest.raises(InputError, match="needs a password"):
        open_frames(f"{server}/secret")
    with pytest.raises(InputError, match="404"):
        open_frames(f"{server}/nothing")
    source = open_frames(f"{server}/file")
    assert not source.is_live
    assert len(read(source)[0]) == 20

    clock = SimulatedClock()
    opening = Opening(f"{server}/live", "live", is_live=True, attempts=3)
    live = VideoSource(opening, clock=clock)
    live.is_endless = True  # a stream without a length, as cameras send
    frames, notices = read(live)
    assert len(frames) == 60
    assert all(b.t > a.t for a, b in itertools.pairwise(frames))
    kinds = [n.kind for n in notices]
    assert kinds.count("reconnecting") == 5  # two that worked, three of a server that is gone
    assert kinds[-1] == "ended"
    assert clock.time == 0.5 + 0.5 + 0.5 + 1.0 + 2.0  # longer each time, in a row


@pytest.mark.skipif(not CLIPS.exists(), reason="the real clips are not here")
@pytest.mark.parametrize(
    ("name", "count"), [("mdn/friday.mp4", 185), ("mdn/flower.webm", 150), ("intel/asl_no.mkv", 66)]
)
def test_real_clips(name: str, count: int) -> None:
    plain, notices = read(open_frames(str(CLIPS / name), longest=96))
    assert (len(plain), notices) == (count, [])
    assert same(read(open_frames(str(CLIPS / name), longest=96, workers=2))[0], plain)
