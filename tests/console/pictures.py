"""The pictures of docs/console.md, from a real run: python -m tests.console.pictures

Four sessions on the shipped model, fed with held-out library text and facts, in a headless Chromium.
"""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path

from penstock.testing import server
from penstock.worlds.library import heldout_text

from .browser import Page, find, page

FOLDER = Path(__file__).parents[2] / "docs" / "images"
FACT, QUESTION = "Note: brave otter 483 is amber.\n", "Ask: brave otter 483 is"
SECONDS = 35.0  # of reading, before the pictures


def ask(tab: Page, question: str, tokens: int, turns: int) -> None:
    tab.run(f"document.querySelector('[name=max_tokens]').value = {tokens}")
    tab.click(".talk textarea")
    tab.write(question)
    tab.press("Enter", 13)
    tab.until(f"document.querySelectorAll('.turn[data-state=done]').length === {turns}")


def main() -> int:
    browser = find()
    if browser is None:
        print("no browser is installed: apt-get install chromium", file=sys.stderr)
        return 1
    FOLDER.mkdir(exist_ok=True)
    text = "".join(heldout_text())
    with server(rows=2, budget=256) as running, page(browser) as tab:
        client = running.client()
        sessions = [client.sessions.create(name) for name in ("access-log", "standup", "library", "support-inbox")]
        is_over = threading.Event()

        def feed() -> None:
            at = 0
            while not is_over.wait(1.1):
                for i, session in enumerate(sessions):
                    size = (700, 0, 1500, 260)[i] if at else 2000
                    if size and (i < 3 or at % 5000 < 2000):
                        session.append(text[at + 9000 * i : at + 9000 * i + size])
                at = (at + 1500) % 200_000

        feeder = threading.Thread(target=feed)
        feeder.start()
        tab.size(1440, 940)
        tab.scheme("light")
        tab.open(f"{running.address}/#/s/library")
        tab.until("document.querySelector('.view')?.dataset.session === 'library'")
        time.sleep(SECONDS)
        is_over.set()
        feeder.join()
        tab.click(".feed textarea")
        tab.write(FACT)
        tab.press("Enter", 13, modifiers=2)
        tab.until("document.querySelector('.feed .said').textContent.includes('appended,')")
        ask(tab, QUESTION, 2, 1)
        ask(tab, "def close(self):", 48, 2)
        tab.click(".feed textarea")
        tab.write(text[50_000:50_420])
        time.sleep(3)
        for name in ("light", "dark"):
            tab.scheme(name)
            time.sleep(0.5)
            tab.run(
                "document.activeElement.blur(), document.querySelector('.feed textarea').scrollTo(0, 0), scrollTo(0, 0)"
            )
            tab.picture(FOLDER / f"console-{name}.png")
        tab.size(390, 844, 2)
        time.sleep(0.5)
        tab.run("scrollTo(0, 0)")
        tab.picture(FOLDER / "console-phone.png")
        if tab.faults:
            print(*tab.faults, sep="\n", file=sys.stderr)
    for path in sorted(FOLDER.glob("console-*.png")):
        print(f"{path.name}: {path.stat().st_size / 1024:.0f} KiB")
    return int(bool(tab.faults))


if __name__ == "__main__":
    sys.exit(main())
