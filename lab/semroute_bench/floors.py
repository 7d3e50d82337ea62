"""What a stream costs servers that do nothing, on grpc.aio, on grpc's threads and in C++, and the sidecar.

The least that a processor in each of them can cost, and so what is left to gain there. The client is
`wire`, whose own cost does not cap the rates.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

from semroute_demo.process import Process

from semroute_bench import load, native
from semroute_bench.direct import BUSY, NAMED, UNHURRIED, Samples
from semroute_bench.floor import REPLIES
from semroute_bench.machine import cpu_seconds
from semroute_bench.servers import READY_SECONDS_MAX, Measured
from semroute_bench.wire import Wire, connect

AIO, THREADS, NATIVE = "grpc.aio", "grpc, threads", "gRPC in C++"
SIDECAR = "the sidecar, pool named"

BUILD = Path("build") / "floor"
"""Where the server in C++ is built, below the checkout."""

Command = Callable[[str], list[str]]
"""A server's address to what starts it."""


async def measure(rounds: int, streams: int, folder: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """CPU milliseconds a stream and streams a second of each server, `BUSY` at once and one at a time.

    Medians of `rounds` in turn, each of `streams` streams. `left out` says which server there is not
    here, and why.
    """
    commands, left_out = _commands(say)
    processes: dict[str, Process] = {}
    sidecar = Measured(folder / "floors", **UNHURRIED)
    request = load.exchange(load.chat(NAMED))
    samples = Samples()
    try:
        sockets = {SIDECAR: sidecar.sockets[0]}
        for number, (name, command) in enumerate(commands.items()):
            socket = folder / f"floor-{number}.sock"
            processes[name] = Process(name, command(f"unix:{socket}"), folder / "floors.log")
            processes[name].start(socket.exists, READY_SECONDS_MAX)
            sockets[name] = str(socket)
        pids = {name: process.pid for name, process in processes.items()} | {SIDECAR: sidecar.pids[0]}
        wires: dict[str, Wire] = {name: await connect(socket) for name, socket in sockets.items()}
        for wire in wires.values():
            await wire.closed([request] * (20 * BUSY), BUSY)
        for _ in range(rounds):
            for at_once, count in ((BUSY, streams), (1, streams // 4)):
                for name, wire in wires.items():
                    before, started = cpu_seconds(pids[name]), perf_counter()
                    await wire.closed([request] * count, at_once)
                    samples.add(f"{name} x{at_once} a second", count / (perf_counter() - started))
                    cpu = (cpu_seconds(pids[name]) - before) / count * 1e3
                    samples.add(f"{name} x{at_once} cpu ms", cpu)
        for wire in wires.values():
            wire.close()
    finally:
        sidecar.stop()
        for process in processes.values():
            process.stop()
    return {"servers": [_row(name, samples) for name in wires], "left out": left_out}


def _row(name: str, samples: Samples) -> dict[str, Any]:
    row: dict[str, Any] = {"server": name}
    for at_once in (BUSY, 1):
        for what in ("cpu ms", "a second"):
            row[f"x{at_once} {what}"] = samples.median(f"{name} x{at_once} {what}")
    return row


def _commands(say: Callable[[str], None]) -> tuple[dict[str, Command], dict[str, str]]:
    """The servers' commands, and which there is not, and why."""
    python = [sys.executable, "-m", "semroute_bench.floor"]
    commands: dict[str, Command] = {
        AIO: lambda address: [*python, address],
        THREADS: lambda address: [*python, address, "threads"],
    }
    try:
        binary = native.build(native.CHECKOUT / BUILD)
    except native.NotBuilt as error:
        say(f"not measured: {NATIVE}: {error}")
        return commands, {NATIVE: str(error)}
    commands[NATIVE] = lambda address: [str(binary), address, *(reply.hex() for reply in REPLIES)]
    return commands, {}
