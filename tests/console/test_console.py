"""The console: what is served, and what a person sees and does in a real browser."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import httpx
import pytest

from penstock.models.load import Model, load
from penstock.models.paths import Runner
from penstock.testing import server

from .browser import Page, find, page

FILES = {
    entry.name: entry.read_text() for entry in resources.files("penstock.serve.console").joinpath("page").iterdir()
}
FACT, QUESTION = "Note: brave otter 483 is amber.\n", "\nAsk: brave otter 483 is"


@pytest.fixture(scope="module")
def model() -> Model:
    return load(None)


@pytest.fixture(scope="module")
def tab() -> Iterator[Page]:
    browser = find()
    if browser is None:
        pytest.skip("no browser is installed: apt-get install chromium runs this test")
    with page(browser) as found:
        yield found


def test_the_page_is_whole_and_may_load_nothing_else(model: Model) -> None:
    with server(model, tokens={"secret": "alice"}) as running, httpx.Client(base_url=running.address) as http:
        shown = http.get("/")
        assert shown.status_code == 200
        assert shown.text == http.get("/console").text == FILES["index.html"]
        policy = shown.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert shown.headers["x-content-type-options"] == "nosniff"
        wanted = set(re.findall(r'(?:src|href)="(/[^"]+)"', shown.text))
        wanted |= {f"/console/{name}" for text in FILES.values() for name in re.findall(r'from "\./([^"]+)"', text)}
        assert {f"/console/{name}" for name in FILES} == wanted | {"/console/index.html"}, "files that nobody loads"
        for path in wanted:
            got = http.get(path)
            assert got.status_code == 200, path
            assert http.get(path, headers={"if-none-match": got.headers["etag"]}).status_code == 304
        for path in ("/console/../app.py", "/console/%2e%2e/app.py", "/console/nothing.js", "/console/"):
            assert http.get(path).status_code in (307, 401, 404), path
        assert http.get("/v1/sessions").status_code == 401, "the page is open, what it shows is not"
        assert http.get("/", headers={"host": "evil.example"}).status_code == 403


def test_the_files_ask_nobody_else_and_make_no_markup() -> None:
    for name, text in FILES.items():
        elsewhere = set(re.findall(r"(?:https?:)?//[\w.-]+\.\w+", text)) - {"http://www.w3.org"}
        assert not elsewhere, (name, elsewhere)
        assert not re.search(
            r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(|Function\(| on\w+=\"|style=\"", text
        ), name


def fill(tab: Page, selector: str, text: str) -> None:
    tab.click(selector)
    tab.write(text)


def create(tab: Page, name: str) -> None:
    tab.click("#new")
    tab.until("document.getElementById('new-dialog').open")
    tab.write(name)
    tab.press("Enter", 13)
    tab.until(f"document.querySelector('.view')?.dataset.session === '{name}'")


def live(tab: Page) -> None:
    tab.until("document.getElementById('link').dataset.state === 'live'")


def test_a_session_in_a_browser(
    tab: Page, model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    """Make, feed, ask, see it spoken, cancel, fork, delete, at the width of a phone too; nothing complains."""
    with server(model, rows=2) as running:
        client = running.client()
        tab.size(1280, 900)
        tab.open(running.address)
        live(tab)
        create(tab, "notes")
        fill(tab, ".feed textarea", "lines of a log\n" * 40 + FACT)
        tab.press("Enter", 13, modifiers=2)
        tab.until("document.querySelector('.feed .said').textContent.includes('appended,')")
        assert tab.run("document.querySelector('.feed textarea').value") == ""
        session = client.sessions.get("notes")
        assert session.info().bytes == 40 * 15 + len(FACT)

        tab.run(
            "window.states = []; new MutationObserver(all => all.forEach(m => states.push(m.target.dataset.state)))"
            ".observe(document.querySelector('.talk-log'), {subtree: true, attributeFilter: ['data-state']})"
        )
        tab.run("document.querySelector('[name=max_tokens]').value = 8")
        fill(tab, ".talk textarea", QUESTION)
        tab.press("Enter", 13)
        tab.until("document.querySelector('.turn')?.dataset.state === 'done'")
        assert tab.run("document.querySelector('.answer').textContent").startswith(" amber")
        assert tab.run("states[0]") == "speaking"
        assert tab.run("document.querySelector('.answer').childNodes.length") > 1, "it came in pieces"
        tab.until("document.querySelectorAll('.plot[data-series=memory] .line').length === 1")
        tab.until("document.querySelector('.plot[data-series=latency] .plot-value').textContent.endsWith('ms')")
        tab.until("!document.querySelector('.plot[data-series=loss] .plot-value').classList.contains('none')")
        tab.until(f"document.querySelector('[data-figure=tokens]').textContent === '{session.info().tokens}'")

        step = Runner.step

        def slow(self: Runner, *args: Any, **more: Any) -> Any:
            time.sleep(0.02)  # as a larger model: what is cancelled has not ended by itself meanwhile
            return step(self, *args, **more)

        monkeypatch.setattr(Runner, "step", slow)
        tab.run("document.querySelector('[name=max_tokens]').value = 4000")
        fill(tab, ".talk textarea", "<img src=x onerror=alert(1)><b>")
        tab.press("Enter", 13)
        tab.until("document.querySelector('.turn:last-child').dataset.state === 'speaking'")
        assert "<img src=x onerror" in tab.run("document.querySelector('.turn:last-child .question').textContent")
        assert tab.run("document.querySelectorAll('.talk-log img, .talk-log b').length") == 0
        tab.press("Escape", 27)
        tab.until("document.querySelector('.turn:last-child').dataset.state === 'cancelled'")
        while session.info().answering:
            time.sleep(0.02)
        assert session.info().tokens < 3000
        monkeypatch.undo()

        tab.click("[data-act=fork]")
        tab.until("document.querySelector('.view')?.dataset.session === 'notes-fork'")
        assert {info.id for info in client.sessions.list()} == {"notes", "notes-fork"}
        tab.size(390, 844)
        tab.until("document.documentElement.scrollWidth <= 390")
        tab.click("[data-act=remove]")
        tab.click("#delete-ok")
        tab.until("document.querySelector('.view') === null && document.querySelectorAll('.session-link').length === 1")
        assert [info.id for info in client.sessions.list()] == ["notes"]
        tab.run("document.querySelector('.session-link').focus()")
        tab.press("Enter", 13)
        tab.until("document.querySelectorAll('.view[data-session=notes] .turn').length === 2")
        assert tab.faults == []


def test_a_server_that_comes_back_and_wants_a_token(tab: Page, model: Model, tmp_path: Path) -> None:
    tokens = {"the-token": "alice"}
    with server(model, tokens=tokens, state=tmp_path) as running:
        port = int(running.address.rpartition(":")[2])
        running.client(token="the-token").sessions.create("kept")
        tab.open(running.address)
        tab.until("document.getElementById('token-dialog').open")
        tab.write("the-token")
        tab.press("Enter", 13)
        live(tab)
        tab.click(".session-link")
        tab.until("document.querySelector('.view')?.dataset.session === 'kept'")
        assert tab.run("[localStorage.length, sessionStorage.length, document.cookie]") == [0, 1, ""]
    tab.until("document.getElementById('link').dataset.state === 'reconnecting'")
    tab.click(".feed [data-act=append]")
    fill(tab, ".feed textarea", "not lost")
    tab.press("Enter", 13, modifiers=2)
    tab.until("document.querySelector('.feed .said').textContent.includes('not appended')")
    assert tab.run("document.querySelector('.feed textarea').value") == "not lost"
    with server(model, tokens=tokens, state=tmp_path, port=port):
        live(tab)
        tab.press("Enter", 13, modifiers=2)
        tab.until("document.querySelector('.feed .said').textContent.startsWith('8 B of text appended')")
    unforeseen = [fault for fault in tab.faults if not re.search("401|ERR_CONNECTION|net::ERR|503", fault)]
    assert unforeseen == []
