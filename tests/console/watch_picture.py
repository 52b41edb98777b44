"""The picture of penstock watch --serve in docs/console.md, from a real run: python -m tests.console.watch_picture

The shipped video-language model watches the shapes world for a while, in a headless Chromium.
"""

from __future__ import annotations

import re
import subprocess
import sys
import time

from .browser import find, page
from .pictures import FOLDER

SECONDS = 20.0  # of watching, before the picture
QUESTIONS = ("How many things are there?", "What is northwest?")


def main() -> int:
    browser = find()
    if browser is None:
        print("no browser is installed: apt-get install chromium", file=sys.stderr)
        return 1
    command = [
        sys.executable,
        "-m",
        "penstock",
        "watch",
        "--serve",
        "--port",
        "0",
        "--tell-me-when",
        "Tell me what comes.",
    ]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as process:
        try:
            assert process.stderr is not None
            found = next(match for line in process.stderr if (match := re.search(r"http://127\.0\.0\.1:\d+/", line)))
            with page(browser) as tab:
                tab.size(1280, 1010)
                tab.scheme("light")
                tab.open(found[0])
                tab.until("document.querySelector('.seen')?.naturalWidth > 0")
                time.sleep(SECONDS)
                for number, question in enumerate(QUESTIONS, 1):
                    tab.click(".talk textarea")
                    tab.write(question)
                    tab.press("Enter", 13)
                    tab.until(f"document.querySelectorAll('.turn[data-state=done]').length === {number}")
                time.sleep(2)
                tab.run("document.activeElement.blur(), scrollTo(0, 0)")
                tab.picture(FOLDER / "console-watch.png")
                if tab.faults:
                    print(*tab.faults, sep="\n", file=sys.stderr)
                return int(bool(tab.faults))
        finally:
            process.terminate()


if __name__ == "__main__":
    sys.exit(main())
