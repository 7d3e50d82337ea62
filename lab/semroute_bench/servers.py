"""The servers that are measured, as child processes."""

from __future__ import annotations

import sys
from pathlib import Path
from time import perf_counter

from semroute_demo.process import Process
from semroute_demo.sidecar import Sidecar

from semroute_bench.machine import children, cpu_seconds, resident_mib

CONFIG = Path(__file__).resolve().parent.parent / "semroute_demo" / "semroute.yaml"
"""The demo's configuration: two pools, two rules and a strategy."""

DEADLINE_MS = 100.0
"""The shipped default; the demo's own is longer."""

READY_SECONDS_MAX = 30.0


def floor(folder: Path, mode: str = "") -> Process:
    """A do-nothing processor, serving on `floor.sock` in `folder`, or on `MODE.sock`; see `floor`'s modes."""
    name = mode or "floor"
    address = folder / f"{name}.sock"
    command = [sys.executable, "-m", "semroute_bench.floor", f"unix:{address}", *mode.split()]
    process = Process(name, command, folder / f"{name}.log")
    process.start(address.exists, READY_SECONDS_MAX)
    return process


class Measured:
    """A sidecar with the demo's configuration, decisions logged to a file as in service."""

    def __init__(self, folder: Path, **settings: str) -> None:
        """`settings` as `server__workers="2"`, over those of the configuration."""
        folder.mkdir()
        self._sidecar = Sidecar(
            CONFIG, folder, {f"SEMROUTE__{key.upper()}": value for key, value in settings.items()}
        )
        started = perf_counter()
        self._sidecar.start()
        self.start_seconds = perf_counter() - started
        self.sockets = [str(socket) for socket in self._sidecar.sockets]
        pid = self._sidecar.process.pid
        self.pids = [pid] if len(self.sockets) == 1 else children(pid)

    @property
    def sidecar(self) -> Sidecar:
        """The process and its sockets."""
        return self._sidecar

    def cpu_seconds(self) -> float:
        """CPU time of all its workers so far."""
        return sum(map(cpu_seconds, self.pids))

    def resident_mib(self) -> float:
        """Resident memory of its largest worker."""
        return max(self.resident_mib_each())

    def resident_mib_each(self) -> list[float]:
        """Resident memory of every worker."""
        return list(map(resident_mib, self.pids))

    def stop(self) -> None:
        """End it, without the drain that nobody waits for."""
        self._sidecar.stop()
