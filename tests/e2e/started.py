"""`semroute up` and `semroute go` as a person runs them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import httpx2
from gateway import chat, wait_for
from semroute_demo.pool import Speed
from semroute_demo.process import HTTP, free_port

EASY = "What is the capital of Australia?"
FAST = Speed(first_token_seconds=0.005, token_seconds=0.0005, slots=64)


def command(name: str, *arguments: str) -> list[str]:
    return [sys.executable, "-c", f"from semroute_demo.up import {name}; {name}()", *arguments]


def run(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(name, *arguments), capture_output=True, text=True, timeout=60)


class Up:
    """A running `semroute up`, and what it has printed."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.folder, self.printed, self.port = folder, "", free_port()
        options = ["--dir", str(folder), "--port", str(self.port), *arguments]
        # A busy test machine needs more than the default deadline.
        environment = {
            **os.environ,
            "SEMROUTE__SERVER__DEADLINE_MS": "2500",
            "SEMROUTE__SERVER__DRAIN_SECONDS": "0",
        }
        self.child = subprocess.Popen(
            command("up", *options), stderr=subprocess.PIPE, text=True, env=environment
        )
        threading.Thread(target=self._read, daemon=True).start()
        wait_for(lambda: "Ctrl-C stops both" in self.printed or self.child.poll() is not None, 90, "up")
        assert self.child.poll() is None, self.printed
        wait_for(self.decides, 30, "Envoy to reach the sidecar")

    def _read(self) -> None:
        for line in self.child.stderr or ():
            self.printed += line

    def decides(self) -> bool:
        models = HTTP.get(f"http://127.0.0.1:{self.port}/v1/models")
        return b'"owned_by": "semroute"' in models.content

    def ask(self, model: str, text: str) -> httpx2.Response:
        body = chat(text, model=model, max_tokens=8)
        answer = HTTP.post(f"http://127.0.0.1:{self.port}/v1/chat/completions", json=body, timeout=60.0)
        assert answer.status_code == 200, answer.text
        return answer

    def answered_by(self, model: str, text: str = EASY) -> str:
        """The simulated pool that answered."""
        return self.ask(model, text).headers["x-sim-pool"]

    def model(self, model: str, text: str = EASY) -> str:
        """The model that answered, as it says."""
        return str(self.ask(model, text).json()["model"])

    def stop(self) -> None:
        self.child.send_signal(signal.SIGINT)
        self.child.wait(40)
