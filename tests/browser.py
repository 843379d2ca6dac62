"""A headless Chromium for tests, spoken to over its debugging pipe: no driver and no package is needed."""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

COMMANDS = ("chromium", "chromium-browser", "google-chrome")
PROGRAM = next((found for name in COMMANDS if (found := shutil.which(name))), None)
QUIET = ("--headless=new", "--no-first-run", "--disable-gpu", "--disable-dev-shm-usage", "--disable-extensions",
         "--disable-background-networking", "--hide-scrollbars", "--mute-audio", "--remote-debugging-pipe")  # fmt: skip
KEYS = {"Enter": 13, "ArrowRight": 39, "ArrowDown": 40}


class Browser:
    """One page of its own, with an empty profile in `folder`."""

    def __init__(self, folder: Path, width: int = 900, height: int = 700) -> None:
        to_read, self.writer = os.pipe()
        self.reader, to_write = os.pipe()

        def pipes() -> None:  # the browser reads from 3 and writes to 4
            high = os.dup(to_read), os.dup(to_write)
            os.dup2(high[0], 3)
            os.dup2(high[1], 4)

        words = [PROGRAM, *QUIET, f"--user-data-dir={folder / 'profile'}", f"--window-size={width},{height}"]
        words += ["--no-sandbox"] if os.geteuid() == 0 else []
        log = (folder / "chromium.log").open("wb")
        self.process = subprocess.Popen(
            [*words, "about:blank"], preexec_fn=pipes, pass_fds=(3, 4), stdout=log, stderr=log, start_new_session=True
        )
        log.close()
        os.close(to_read)
        os.close(to_write)
        self.rest, self.number, self.session = b"", 0, None
        self.errors: list[str] = []
        targets = self("Target.getTargets")["targetInfos"]
        page = next(one for one in targets if one["type"] == "page")
        self.session = self("Target.attachToTarget", targetId=page["targetId"], flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self(f"{domain}.enable")
        self.resize(width, height)

    def __call__(self, method: str, **parameters):
        number = self._write(method, **parameters)
        while True:
            answer = self._read()
            if answer.get("id") == number:
                assert "error" not in answer, answer["error"]
                return answer["result"]
            if answer.get("method") == "Page.javascriptDialogOpening":  # "leave the page?"
                self.errors.append(answer["params"]["type"])
                self._write("Page.handleJavaScriptDialog", accept=True)  # or the page, and the test, waits for ever
            if answer.get("method") == "Runtime.exceptionThrown":
                self.errors.append(str(answer["params"]["exceptionDetails"]))
            if answer.get("method") == "Log.entryAdded" and answer["params"]["entry"]["source"] == "security":
                self.errors.append(answer["params"]["entry"]["text"])

    def _write(self, method: str, **parameters) -> int:
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.writer, json.dumps(message).encode() + b"\0")
        return self.number

    def _read(self):
        while b"\0" not in self.rest:
            part = os.read(self.reader, 2**20)
            assert part, "the browser has ended"
            self.rest += part
        line, _, self.rest = self.rest.partition(b"\0")
        return json.loads(line)

    def resize(self, width: int, height: int, dark: bool = False, touch: bool = False) -> None:
        self("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=touch)
        features = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self("Emulation.setEmulatedMedia", features=features)

    def open(self, address: str) -> None:
        self("Page.navigate", url=address)

    def value(self, expression: str):
        result = self("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def until(self, expression: str, seconds: float = 60):
        """Wait until an expression is true; a page that is just being loaded has none."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if found := self.value(f"(() => {{ try {{ return {expression} }} catch {{ return null }} }})()"):
                return found
            time.sleep(0.05)
        raise AssertionError(
            f"not within {seconds} s: {expression}; the page says {self.value('document.body.innerText')}"
        )

    def drag(self, *points: tuple[float, float]) -> None:
        """Press the left button at the first point, move over the others, and let it go."""
        for kind, (x, y) in [("mousePressed", points[0]), *(("mouseMoved", one) for one in points[1:]),
                             ("mouseReleased", points[-1])]:  # fmt: skip
            self("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", buttons=1, clickCount=1)

    def key(self, key: str, shift: bool = False) -> None:
        text = {} if len(key) > 1 and key != "Enter" else {"text": "\r" if key == "Enter" else key}
        code = KEYS.get(key, 0)
        for kind in ("keyDown", "keyUp"):
            more = text if kind == "keyDown" else {}
            self("Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=code, modifiers=8 * shift, **more)

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self("Page.captureScreenshot", format="png")["data"]))

    def close(self) -> None:
        os.close(self.writer)
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        os.close(self.reader)
