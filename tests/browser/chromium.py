"""A headless Chromium, spoken to over two pipes: JSON messages of its debugging protocol."""

import base64
import contextlib
import fcntl
import json
import os
import select
import shutil
import signal
import time
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
_SECONDS = 30


def find():
    """The first Chromium on the path, or the one that `CHROMIUM` names; None without one."""
    named = os.environ.get("CHROMIUM")
    return named or next(filter(None, map(shutil.which, NAMES)), None)


@contextlib.contextmanager
def browser(program, profile: Path):
    """A page that has no network, with its own empty profile; the process ends with the block."""
    # Out of the way of 3 and 4, on which the browser reads and writes.
    to_read, from_us, from_it, to_write = map(_away, (*os.pipe(), *os.pipe()))
    words = [
        program,
        "--headless=new",
        "--no-sandbox",  # which the super-user's processes cannot have
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--no-first-run",
        "--disable-background-networking",
        "--host-resolver-rules=MAP * ~NOTFOUND",
        "--remote-debugging-pipe",
        f"--user-data-dir={profile}",
    ]
    silent = [(os.POSIX_SPAWN_OPEN, number, os.devnull, os.O_WRONLY, 0) for number in (1, 2)]
    pipes = [(os.POSIX_SPAWN_DUP2, to_read, 3), (os.POSIX_SPAWN_DUP2, to_write, 4)]
    process = os.posix_spawn(program, words, os.environ, file_actions=[*silent, *pipes])
    os.close(to_read)
    os.close(to_write)
    try:
        yield Page(from_us, from_it)
    finally:
        os.close(from_us)
        os.kill(process, signal.SIGTERM)
        os.waitpid(process, 0)
        os.close(from_it)


def _away(number: int) -> int:
    """The same file under a number of 10 or more that a new process does not inherit."""
    moved = fcntl.fcntl(number, fcntl.F_DUPFD_CLOEXEC, 10)
    os.close(number)
    return moved


class Page:
    """One tab: what it asked for over any protocol, and what it complained of."""

    def __init__(self, to, back):
        self.to, self.back = to, back
        self.number, self.rest, self.session = 0, b"", None
        self.requests, self.complaints, self.events = [], [], set()
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)[
            "sessionId"
        ]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def open(self, path: Path, width: int, *, dark: bool = False):
        """Show a file at a width in pixels, in a light or dark scheme."""
        self.requests, self.complaints, self.events = [], [], set()
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.call("Page.navigate", url=path.resolve().as_uri())
        while "Page.loadEventFired" not in self.events:
            self._take()
        # Whatever the page has still to say comes before the answer.
        self.ask("new Promise(done => requestAnimationFrame(() => setTimeout(done, 50)))")

    def ask(self, code: str):
        """The value of JavaScript in the page."""
        answer = self.call(
            "Runtime.evaluate", expression=code, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def picture(self, path: Path):
        """Write the whole page as a PNG file."""
        shot = self.call("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(shot["data"]))

    def call(self, method, **params):
        """The answer to a command; events that come before it are kept."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.to, json.dumps(message).encode() + b"\0")
        while (answer := self._take()).get("id") != self.number:
            pass
        assert "error" not in answer, answer
        return answer["result"]

    def _take(self):
        deadline = time.monotonic() + _SECONDS
        while b"\0" not in self.rest:
            ready, _, _ = select.select([self.back], [], [], max(0, deadline - time.monotonic()))
            assert ready, "Chromium does not answer"
            piece = os.read(self.back, 1 << 20)
            assert piece, "Chromium has ended"
            self.rest += piece
        line, _, self.rest = self.rest.partition(b"\0")
        message = json.loads(line)
        self._note(message.get("method"), message.get("params", {}))
        return message

    def _note(self, method, params):
        self.events.add(method)
        if method == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        elif method in ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded"):
            self.complaints.append(params)
