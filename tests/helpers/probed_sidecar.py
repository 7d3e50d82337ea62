"""`semroute serve` with a probe on its event loop, as a script: probed_sidecar.py PROBE_SOCKET CONFIG.

Every connection to the probe's socket gets one line of JSON about the time since the connection before: the
longest time that the loop was held, in milliseconds of this process's CPU time (so that a busy machine does
not count), and the most resident memory, in bytes.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

from semroute_extproc.cli import main
from semroute_extproc.serve import app

TICK_SECONDS = 0.001
MEMORY = Path("/proc/self/status")
RESET_PEAK = Path("/proc/self/clear_refs")


class Probe:
    """Watches the loop that it runs on."""

    def __init__(self) -> None:
        self._longest = 0.0

    async def run(self) -> None:
        while True:
            wall, cpu = perf_counter(), process_time()
            await asyncio.sleep(TICK_SECONDS)
            held = min(perf_counter() - wall - TICK_SECONDS, process_time() - cpu)
            self._longest = max(self._longest, held)

    async def answer(self, _: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(2 * TICK_SECONDS)  # the tick that is going on counts too
        writer.write(self.read())
        writer.close()

    def read(self) -> bytes:
        lines = dict(line.split(":", 1) for line in MEMORY.read_text().splitlines())
        kib = {name: int(lines[name].split()[0]) for name in ("VmHWM", "VmRSS")}
        found = {"held_ms": self._longest * 1e3, "peak": kib["VmHWM"] * 1024, "now": kib["VmRSS"] * 1024}
        RESET_PEAK.write_text("5")
        self._longest = 0.0
        return json.dumps(found).encode()


def probed(run: Any, socket: str) -> Any:
    """The sidecar's coroutine function, with a probe next to it."""

    async def wrapped(*args: Any, **kwargs: Any) -> Any:
        probe = Probe()
        async with await asyncio.start_unix_server(probe.answer, socket):
            watching = asyncio.create_task(probe.run())
            try:
                return await run(*args, **kwargs)
            finally:
                watching.cancel()

    return wrapped


if __name__ == "__main__":
    app.run = probed(app.run, sys.argv[1])
    sys.argv[1:] = ["serve", "--config", sys.argv[2]]
    main()
