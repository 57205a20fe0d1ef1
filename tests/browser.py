"""Headless Chromium over the DevTools pipe, with the standard library alone: enough to look at a page.

with Browser(find_chromium()) as browser:
    page = browser.open(path, width=390, dark=True)
    assert page.evaluate("document.title") == "..."
    assert not page.problems
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--no-first-run",
    "--disable-gpu",
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-dev-shm-usage",
    "--disable-extensions",
    "--disable-sync",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
)


def find_chromium() -> str | None:
    """The browser at $MODEGAP_CHROMIUM, else chromium, chromium-browser or google-chrome on the PATH."""
    named = os.environ.get("MODEGAP_CHROMIUM")
    if named:
        return shutil.which(named)
    return next((found for name in NAMES if (found := shutil.which(name))), None)


class Browser:
    """One browser process with a profile of its own; both go when the block ends."""

    def __init__(self, executable: str, *, timeout: float = 60.0) -> None:
        self.timeout = timeout
        self._profile = tempfile.mkdtemp(prefix="modegap-chromium-")
        commands, self._commands = os.pipe()
        self._replies, replies = os.pipe()
        # Chromium reads commands from descriptor 3 and writes replies to 4; bash puts the pipes there.
        launch = f'exec "$@" 3<&{commands} 4>&{replies}'
        self._process = subprocess.Popen(
            [
                "bash",
                "-c",
                launch,
                "bash",
                executable,
                *FLAGS,
                f"--user-data-dir={self._profile}",
                "about:blank",
            ],
            pass_fds=(commands, replies),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        os.close(commands)
        os.close(replies)
        self.events: dict[str, list[dict[str, Any]]] = {}
        self._buffer = b""
        self._last = 0

    def __enter__(self) -> Browser:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(OSError, RuntimeError, TimeoutError):
            self.call("Browser.close")
        os.close(self._commands)
        os.close(self._replies)
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        shutil.rmtree(self._profile, ignore_errors=True)

    def open(
        self, path: Path, *, width: int = 1280, height: int = 900, dark: bool = False, scripts: bool = True
    ) -> Page:
        """A new tab on the file, loaded; `dark` sets prefers-color-scheme, `scripts` allows JavaScript."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page = Page(self, session)
        for domain in ("Page", "Runtime", "Log", "Network"):
            page.call(f"{domain}.enable")
        page.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        page.call("Emulation.setEmulatedMedia", features=[scheme])
        page.call("Emulation.setScriptExecutionDisabled", value=not scripts)
        page.call("Page.navigate", url=path.resolve().as_uri())
        page.wait("Page.loadEventFired")
        return page

    def call(self, method: str, session: str | None = None, **params: Any) -> dict[str, Any]:
        """Sends a command and returns its result; events that arrive meanwhile go to their page."""
        self._last += 1
        message: dict[str, Any] = {"id": self._last, "method": method, "params": params}
        if session:
            message["sessionId"] = session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self._commands, data) :]
        deadline = time.monotonic() + self.timeout
        while True:
            reply = self.receive(deadline)
            if reply.get("id") == message["id"]:
                if "error" in reply:
                    raise RuntimeError(f"{method}: {reply['error']['message']}")
                result: dict[str, Any] = reply["result"]
                return result

    def receive(self, deadline: float) -> dict[str, Any]:
        """The next message from the browser; events are kept for the page they belong to."""
        while b"\0" not in self._buffer:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self._replies], [], [], left)[0]:
                raise TimeoutError(f"no answer from the browser in {self.timeout:.0f} s")
            chunk = os.read(self._replies, 1 << 20)
            if not chunk:
                raise RuntimeError("the browser has gone")
            self._buffer += chunk
        raw, _, self._buffer = self._buffer.partition(b"\0")
        message: dict[str, Any] = json.loads(raw)
        if "method" in message:
            self.events.setdefault(message.get("sessionId", ""), []).append(message)
        return message


class Page:
    """A tab: `problems` are console errors, exceptions and policy violations, `requests` what it loaded."""

    def __init__(self, browser: Browser, session: str) -> None:
        self._browser, self._session = browser, session
        self._events = browser.events.setdefault(session, [])

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """A DevTools command in this tab."""
        return self._browser.call(method, self._session, **params)

    def wait(self, event: str) -> None:
        """Returns when the event has come."""
        deadline = time.monotonic() + self._browser.timeout
        while not any(message["method"] == event for message in self._events):
            self._browser.receive(deadline)

    def wait_for(self, expression: str) -> None:
        """Returns when the JavaScript expression is true."""
        deadline = time.monotonic() + self._browser.timeout
        while not self.evaluate(expression):
            if time.monotonic() > deadline:
                raise TimeoutError(f"still not true after {self._browser.timeout:.0f} s: {expression}")
            time.sleep(0.05)

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression, awaited if it is a promise."""
        reply = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in reply:
            raise RuntimeError(json.dumps(reply["exceptionDetails"].get("exception", {}))[:500])
        return reply["result"].get("value")

    @property
    def problems(self) -> list[str]:
        """Console warnings and errors, uncaught exceptions and log errors, as text."""
        return [text for message in self._events for text in _problem(message)]

    @property
    def requests(self) -> list[str]:
        """The URLs the page asked for, data URIs aside."""
        urls = (
            message["params"]["request"]["url"]
            for message in self._events
            if message["method"] == "Network.requestWillBeSent"
        )
        return [url for url in urls if not url.startswith("data:")]

    def screenshot(self, path: Path) -> Path:
        """A PNG of the whole page."""
        reply = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(reply["data"]))
        return path

    def pdf(self, path: Path) -> Path:
        """The page printed on A4."""
        reply = self.call("Page.printToPDF", paperWidth=8.27, paperHeight=11.69, preferCSSPageSize=True)
        path.write_bytes(base64.b64decode(reply["data"]))
        return path


def _problem(message: dict[str, Any]) -> Iterable[str]:
    params = message["params"]
    if message["method"] == "Runtime.exceptionThrown":
        details = params["exceptionDetails"]
        yield str(details.get("exception", {}).get("description") or details["text"])
    elif message["method"] == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning", "assert"):
        yield " ".join(str(arg.get("value", arg.get("description", ""))) for arg in params["args"])
    elif message["method"] == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
        yield str(params["entry"]["text"])
