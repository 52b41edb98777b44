"""A headless Chromium, driven through its DevTools protocol over one WebSocket: no driver, nothing to download."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from websockets.sync.client import ClientConnection, connect

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
    "--hide-scrollbars", "--remote-debugging-port=0", "--remote-allow-origins=*",
)  # fmt: skip
PATIENCE = 60.0  # seconds that anything may take


def find() -> str | None:
    """The path of a browser, if there is one."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Page:
    """One tab.  `faults` collects what its console or its loader complained of."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket, self._number = socket, 0
        self.faults: list[str] = []
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One command, and its result; events that come first are looked at."""
        self._number += 1
        self._socket.send(json.dumps({"id": self._number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self._socket.recv(timeout=PATIENCE))
            if message.get("id") == self._number:
                assert "error" not in message, (method, message["error"])
                return dict(message["result"])
            self._note(message)

    def _note(self, message: dict[str, Any]) -> None:
        given = message.get("params", {})
        if message["method"] == "Runtime.exceptionThrown":
            details = given["exceptionDetails"]
            self.faults.append(str(details.get("exception", {}).get("description", details["text"])))
        elif message["method"] == "Runtime.consoleAPICalled" and given["type"] in ("error", "warning", "assert"):
            self.faults.append(" ".join(str(part.get("value", part)) for part in given["args"]))
        elif message["method"] == "Log.entryAdded" and given["entry"]["level"] in ("error", "warning"):
            self.faults.append(f"{given['entry']['text']} {given['entry'].get('url', '')}")

    def run(self, script: str) -> Any:
        """The value of an expression, or of the promise that it is."""
        out = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True, userGesture=True)
        assert "exceptionDetails" not in out, (script, out["exceptionDetails"])
        return out["result"].get("value")

    def until(self, script: str) -> Any:
        """Wait for an expression to be true; returns its value."""
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            value = self.run(script)
            if value:
                return value
            time.sleep(0.05)
        raise AssertionError(f"never true: {script}; the page says: {self.run('document.body.innerText')[-600:]}")

    def open(self, address: str) -> None:
        self.call("Page.navigate", url=address)
        self.until("document.readyState === 'complete'")

    def click(self, selector: str) -> None:
        """With the mouse, where the element is; it must be visible and not covered."""
        quoted = json.dumps(selector)
        self.until(f"document.querySelector({quoted})?.checkVisibility() && !document.querySelector({quoted}).disabled")
        x, y = self.run(
            f"(() => {{ const e = document.querySelector({quoted}); e.scrollIntoView({{block: 'center'}});"
            "const r = e.getBoundingClientRect(); const at = [r.x + r.width / 2, r.y + r.height / 2];"
            "const top = document.elementFromPoint(...at);"
            "return e.contains(top) ? at : ['covered by', top?.outerHTML.slice(0, 80)]; })()"
        )  # fmt: skip
        assert not isinstance(x, str), (selector, x, y)
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def write(self, text: str) -> None:
        """What a paste puts where the caret is."""
        self.call("Input.insertText", text=text)

    def press(self, key: str, code: int, modifiers: int = 0) -> None:
        given = {"key": key, "code": key, "windowsVirtualKeyCode": code, "modifiers": modifiers}
        if key == "Enter":
            given["text"] = "\r"
        self.call("Input.dispatchKeyEvent", type="keyDown", **given)
        self.call("Input.dispatchKeyEvent", type="keyUp", **given)

    def size(self, width: int, height: int, scale: float = 1) -> None:
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=scale, mobile=False
        )

    def scheme(self, name: str) -> None:
        """light or dark."""
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": name}])

    def picture(self, path: Path, whole: bool = False) -> None:
        shot = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(shot["data"]))


@contextmanager
def page(browser: str) -> Iterator[Page]:
    """A fresh browser with one empty tab; it ends with the block."""
    with TemporaryDirectory(prefix="penstock-browser-", ignore_cleanup_errors=True) as profile:
        process = subprocess.Popen(
            [browser, *FLAGS, f"--user-data-dir={profile}", "about:blank"], stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL, env={**os.environ, "HOME": profile}, start_new_session=True,
        )  # fmt: skip
        try:
            port = _port(process, Path(profile) / "DevToolsActivePort")
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list", timeout=PATIENCE) as answer:
                target = next(tab for tab in json.load(answer) if tab["type"] == "page")
            with connect(target["webSocketDebuggerUrl"], max_size=None, proxy=None, ping_interval=None) as socket:
                yield Page(socket)
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _port(process: subprocess.Popen[bytes], file: Path) -> int:
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        if process.poll() is not None:
            raise RuntimeError(f"the browser ended with {process.returncode}")
        if file.exists() and (lines := file.read_text().splitlines()):
            return int(lines[0])
        time.sleep(0.05)
    raise RuntimeError("the browser did not open its DevTools port")
