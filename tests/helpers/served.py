"""`semroute serve` as a real process, from its first moment to its last."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from semroute_demo.process import HTTP, free_port, wait_until

CONFIG = """\
pools:
  small: {cluster: vllm-small, model: org/small}
  large: {cluster: vllm-large, model: org/large}
default_pool: large
models: {auto: {policy: main}}
policies:
  main: {otherwise: {pool: small}}
encoder: {threads: 1}
"""


class Served:
    """One process, with a socket and a log in its folder."""

    def __init__(self, folder: Path, workers: int = 1, stderr: Any = None) -> None:
        file = folder / "semroute.yaml"
        file.write_text(CONFIG)
        self.port, self.socket, self.log = free_port(), folder / "w0.sock", folder / "log"
        own = {
            "SEMROUTE__SERVER__LISTEN": f"unix:{folder}/w{{worker}}.sock",
            "SEMROUTE__SERVER__WORKERS": str(workers),
            "SEMROUTE__SERVER__DRAIN_SECONDS": "0.3",
            "SEMROUTE__ADMIN__LISTEN": f"127.0.0.1:{self.port}",
        }
        self.process = subprocess.Popen(
            [sys.executable, "-m", "semroute_extproc", "serve", "--config", str(file)],
            env={**os.environ, **own},
            stderr=stderr or self.log.open("wb"),
            start_new_session=True,
        )
        self.pid = self.process.pid

    def get(self, path: str) -> str:
        return HTTP.get(f"http://127.0.0.1:{self.port}{path}", timeout=5.0).text

    def ready(self) -> bool:
        assert self.process.poll() is None, "it has ended"
        return self.get("/readyz") == "ok\n"

    def handles(self, number: signal.Signals, what: str) -> bool:
        """Whether the kernel knows that it ignores (SigIgn) or catches (SigCgt) a signal."""
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        [mask] = [line.split()[1] for line in lines if line.startswith(f"{what}:")]
        return bool(int(mask, 16) >> (number - 1) & 1)

    def children(self) -> list[int]:
        return [int(pid) for pid in Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()]

    def until(self, condition: Callable[[], bool], meanwhile: Callable[[], object], seconds: float) -> None:
        """Do something every few milliseconds until a condition holds."""

        def both() -> bool:
            for _ in range(5):
                meanwhile()
                time.sleep(0.005)
            return condition()

        wait_until(both, seconds, "the process")


@contextmanager
def served(folder: Path, **options: Any) -> Iterator[Served]:
    running = Served(folder, **options)
    try:
        yield running
    finally:
        for pid in running.children() if running.process.poll() is None else ():
            os.kill(pid, signal.SIGKILL)
        running.process.kill()
        running.process.wait()
