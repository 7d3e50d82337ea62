"""The sidecar as a child process, run as an operator would: `semroute serve` and a configuration."""

import os
import sys
from collections.abc import Mapping
from pathlib import Path

from semroute_demo.process import HTTP, Process, free_port

CONFIG_PATH = Path(__file__).with_name("semroute.yaml")
"""The demo's configuration: two pools, four rules, a strategy and sessions."""


class Sidecar:
    """A sidecar with a socket per worker in `folder`, where its log stays when it has stopped."""

    def __init__(self, config_path: Path, folder: Path, settings: Mapping[str, str] | None = None) -> None:
        """`settings` replace those of `config_path` through the environment."""
        settings = settings or {}
        workers = int(settings.get("SEMROUTE__SERVER__WORKERS", 1))
        self.sockets = [folder / f"w{worker}.sock" for worker in range(workers)]
        self.socket = self.sockets[0]
        self.admin = f"127.0.0.1:{free_port()}"
        own = {
            "SEMROUTE__SERVER__LISTEN": f"unix:{folder}/w{{worker}}.sock",
            "SEMROUTE__ADMIN__LISTEN": self.admin,
        }
        command = [sys.executable, "-m", "semroute_extproc", "serve", "--config", str(config_path)]
        environment = {**os.environ, **own, **settings}
        self.process = Process("semroute", command, folder / "sidecar.log", environment=environment)

    def start(self) -> None:
        """Start it and wait until it is ready; raises `ProcessError` with the log's end."""
        self.process.start(self.ready, 30.0)

    def ready(self) -> bool:
        """Whether it reports that it is ready; raises `httpx2.HTTPError` if it does not answer."""
        return self.read_admin("/readyz")[0] == 200

    def stop(self) -> int | None:
        """Stop it; returns its exit status. Safe to call twice."""
        return self.process.stop()

    def read_admin(self, path: str) -> tuple[int, str]:
        """Status and body of its admin interface at `path`; raises `httpx2.HTTPError`."""
        response = HTTP.get(f"http://{self.admin}{path}", timeout=2.0)
        return response.status_code, response.text
