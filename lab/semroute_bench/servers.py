"""The servers that are measured, as child processes, each with a client per worker."""

import asyncio
import sys
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Self

from semroute_demo.process import Process
from semroute_demo.sidecar import CONFIG_PATH, Sidecar

from semroute_bench.client import Answer, Client, connect
from semroute_bench.load import Exchange
from semroute_bench.measuring import Samples, cpu_seconds

BUSY = 16  # streams at once that keep one server busy
READY_SECONDS_MAX = 30.0

UNHURRIED = {"encoder__cache_entries": "0", "server__deadline_ms": "5000"}
"""Settings for measuring the cost of a decision: no cache, and a deadline that is not reached."""


class DoNothing:
    """A do-nothing server as a child process, serving on a socket in `folder`."""

    def __init__(self, folder: Path, mode: str = "floor") -> None:
        """Start it; `mode` is `floor` or `passes`. Raises `ProcessError`."""
        socket = folder / f"{mode}.sock"
        command = [sys.executable, "-m", "semroute_bench.floor", f"unix:{socket}", mode]
        process = Process(mode, command, folder / f"{mode}.log")
        process.start(socket.exists, READY_SECONDS_MAX)
        self.sockets, self.pids, self.stop = [socket], [process.pid], process.stop


class Measured(Sidecar):
    """A sidecar with the demo's configuration; its decisions are logged to a file as in service."""

    def __init__(self, folder: Path, **settings: str) -> None:
        """Start it. `settings` such as `server__workers="2"` replace those of the configuration."""
        folder.mkdir()
        # The clients have finished before it stops; the demo's configuration has no niceness.
        settings = {"server__drain_seconds": "0", "encoder__niceness": "10", **settings}
        super().__init__(CONFIG_PATH, folder, {f"SEMROUTE__{k.upper()}": v for k, v in settings.items()})
        started = perf_counter()
        self.start()
        self.start_seconds = perf_counter() - started
        parent = self.process.pid
        children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
        self.pids = [parent] if len(self.sockets) == 1 else list(map(int, children))


@dataclass(frozen=True, slots=True)
class Target:
    """A server with a client per worker."""

    clients: Sequence[Client]
    pids: Sequence[int]

    @classmethod
    async def of(cls, server: DoNothing | Measured, exits: AsyncExitStack) -> Self:
        """Connect to `server`; `exits` disconnects and stops it."""
        exits.callback(server.stop)
        clients = [await exits.enter_async_context(connect(socket)) for socket in server.sockets]
        return cls(clients, server.pids)

    async def send(self, request: Exchange, count: int, at_once: int) -> list[Answer]:
        """At least `count` streams, `at_once` per worker at a time."""
        share = -(-count // len(self.clients))
        runs = (client.closed([request] * share, at_once) for client in self.clients)
        return [answer for answers in await asyncio.gather(*runs) for answer in answers]

    async def measure(self, samples: Samples, name: str, request: Exchange, *load: int) -> list[Answer]:
        """Send (`load`: count, at once) and sample CPU milliseconds per stream and streams per second."""
        before, started = cpu_seconds(*self.pids), perf_counter()
        answers = await self.send(request, *load)
        samples[f"{name} a second"].append(len(answers) / (perf_counter() - started))
        samples[f"{name} cpu ms"].append((cpu_seconds(*self.pids) - before) / len(answers) * 1e3)
        return answers
