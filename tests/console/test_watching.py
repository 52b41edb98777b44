"""penstock watch --serve: what its server says, and what a person sees and does in a real browser."""

from __future__ import annotations

import io
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import numpy as np
import pytest

pytest.importorskip("av", reason="the extra video is not installed")

from penstock.cli.summary import ResidentSet
from penstock.cli.watch_page import served
from penstock.core import Frame, RealClock
from penstock.errors import UsageError
from penstock.io.video.world import Generated
from penstock.serve.png import png
from penstock.serve.watched import EVENTS, QUESTIONS, Watched
from penstock.watch import Limits, Watch
from tests.watch.fake import sight, video
from tests.watch.test_watch import watcher

from .browser import find, page


class Camera(Generated):
    """Frames as fast as they are read, until it is closed."""

    def __init__(self) -> None:
        super().__init__(video(0), "a camera", is_live=True)
        self.is_closed = threading.Event()

    def frames(self) -> Iterator[Frame]:
        for frame in video(1 << 20, 20.0, (48, 64)):
            if self.is_closed.wait(0.03):
                return
            yield frame

    def close(self) -> None:
        self.is_closed.set()


@contextmanager
def watching(**given: object) -> Iterator[tuple[Watch, str]]:
    """A watcher on a thread, with its page."""
    seen, over = sight(budget=256), threading.Event()
    watch, _ = watcher(
        Camera(), sight=seen, clock=RealClock(), policy="drop-oldest", stopped=over.is_set, limits=Limits(max_new=12),
        **given,
    )  # fmt: skip
    with served(watch, seen, 0) as shown:
        resident = ResidentSet()

        def run() -> None:
            for _ in watch.run():
                shown.tick(resident)

        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield watch, shown.address
        finally:
            over.set()
            thread.join(20)


def test_the_server_shows_one_stream_and_takes_questions() -> None:
    with (
        watching(requests=["Tell me what comes."], trigger="every:seconds=0.5") as (watch, address),
        httpx.Client(base_url=address, timeout=30) as http,
    ):
        assert http.get("/health").json()["watching"] == "watch"
        while watch.newest is None or watch.counts.frames < 3:
            pass
        said = http.post("/v1/sessions/watch/ask", json={"question": "What is there?"}).text
        assert '"finish_reason": "stop"' in said or '"finish_reason": "interrupted"' in said
        assert said.endswith("data: [DONE]\n\n")
        events = http.get("/v1/sessions/watch/events?after=0").json()["events"]
        answer = next(event for event in events if event["kind"] == "answer")
        assert answer["question"] == "What is there?"
        later = http.get(f"/v1/sessions/watch/events?after={events[-1]['number']}").json()["events"]
        assert all(event["number"] > events[-1]["number"] for event in later)
        shown = http.get("/v1/sessions/watch/picture")
        assert shown.headers["content-type"] == "image/png"
        (session,) = http.get("/v1/sessions").json()["data"]
        assert session["kind"] == "video"
        assert session["frames"] >= 3
        assert 0 < session["memory_bytes"] <= session["budget_bytes"]
        for method, path, code in (
            ("GET", "/v1/sessions/other", 404), ("GET", "/v1/sessions/watch/events?after=x", 400),
            ("POST", "/v1/sessions/watch/ask", 400), ("GET", "/v1/nothing", 404),
        ):  # fmt: skip
            assert http.request(method, path).status_code == code, path
        assert http.post("/v1/sessions/watch/ask", content=b"x" * 20_000).status_code == 413
        assert http.get("/v1/sessions", headers={"host": "evil.example"}).status_code == 403
        assert http.get("/", headers={"origin": "http://evil.example"}).status_code == 403
    assert watch.ended == "interrupted"


def test_what_waits_for_pages_is_bounded_and_the_newest() -> None:
    put: list[str] = []

    class Never:
        pieces: tuple[str, ...] = ()
        event = None

        def cancel(self) -> None: ...

    watched = Watched("watch", "m", lambda text, interrupts: (put.append(text), Never())[1])
    assert watched.picture() is None
    for number in range(EVENTS + 10):
        watched.event({"kind": "answer", "t": float(number)})
    assert [event["number"] for event in watched.news(0)["events"]] == list(range(11, EVENTS + 11))
    image = np.zeros((4, 4, 3), np.uint8)
    for number in range(5):
        watched.show({}, (number, image))
        assert watched.picture() is not None
    assert watched.pictures == 1, "the others came too early for a new one"
    for _ in range(QUESTIONS):
        watched.ask("x", False)
    with pytest.raises(Exception, match="questions wait"):
        watched.ask("x", False)
    assert len(put) == QUESTIONS


def test_a_picture_is_what_was_seen() -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (5, 7, 3), dtype=np.uint8)
    file = io.BytesIO(png(image))
    assert file.read(8) == b"\x89PNG\r\n\x1a\n"
    found: dict[bytes, bytes] = {}
    while head := file.read(8):
        size, name = int.from_bytes(head[:4], "big"), head[4:]
        found[name] = file.read(size)
        assert int.from_bytes(file.read(4), "big") == zlib.crc32(name + found[name])
    lines = np.frombuffer(zlib.decompress(found[b"IDAT"]), np.uint8).reshape(5, 1 + 21)
    assert (lines[:, 0] == 1).all()
    assert (lines[:, 1:].reshape(5, 7, 3).cumsum(1, dtype=np.uint8) == image).all()
    assert png(np.zeros((2000, 10, 3), np.uint8))[16:24] == (3).to_bytes(4, "big") + (500).to_bytes(4, "big")


def test_in_a_browser() -> None:
    browser = find()
    if browser is None:
        pytest.skip("no browser is installed: apt-get install chromium runs this test")
    with watching() as (watch, address), page(browser) as tab:
        tab.size(1280, 900)
        tab.open(address)
        tab.until("document.querySelector('.view')?.dataset.session === 'watch'")
        tab.until("document.querySelector('.seen').naturalWidth === 64")
        before = tab.run("document.querySelector('.seen').src")
        tab.until(f"document.querySelector('.seen').src !== '{before}'")
        tab.until("Number(document.querySelector('[data-figure=frames]').textContent) > 3")
        assert tab.run("document.getElementById('new').checkVisibility()") is False
        tab.click(".talk textarea")
        tab.write("<b>What is there?")
        tab.press("Enter", 13)
        tab.until("document.querySelector('.turn')?.dataset.state === 'done'")
        tab.until("document.querySelector('.event[data-kind=answer] .asked')?.textContent === '<b>What is there?'")
        tab.size(390, 844)
        tab.until("document.documentElement.scrollWidth <= 390")
        assert tab.faults == []
    assert watch.counts.answers == 1


def test_a_port_that_is_taken_is_one_sentence() -> None:
    from penstock.serve.run import listen

    with listen("127.0.0.1", 0) as taken:
        watch, _ = watcher(video(1), sight=sight())
        with pytest.raises(UsageError, match="is taken"), served(watch, sight(), taken.getsockname()[1]):
            pass
