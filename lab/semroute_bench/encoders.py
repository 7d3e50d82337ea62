"""An encoder in each sidecar, against one on a server that they share: `python -m semroute_bench.encoders`.

Prints the run as JSON. SEMROUTE_TRITON and SEMROUTE_MLSERVER name the environments of `make test-remote`.
Each round measures every arrangement in turn, so that other load on the machine reaches all of them.
"""

import asyncio
import json
import os
import subprocess
import sys
import tempfile
from contextlib import AsyncExitStack
from pathlib import Path
from statistics import median
from typing import Any

import click
import uvloop

from semroute_bench import load
from semroute_bench.client import connect
from semroute_bench.measuring import Figures, Samples, cpu_seconds, describe, quantiles, resident_mib
from semroute_bench.model_servers import ModelServer
from semroute_bench.servers import UNHURRIED, Measured, Target
from semroute_extproc.encoder.bundle import default_bundle

ROUNDS, ALONE, BUSY, AT_ONCE = 9, 40, 160, 8  # per round: requests one at a time, and `AT_ONCE` at once
MANY = 4  # sidecars that share a server
KINDS = ("triton", "mlserver")
LOCAL = {**UNHURRIED, "encoder__by_language": "{}"}


def remote(server: ModelServer) -> dict[str, str]:
    """The settings of a sidecar without a graph of its own."""
    own = {"url": server.url, "deadline_ms": "4000", "fallback": "policy"}
    return {**LOCAL, **{f"encoder__remote__{key}": value for key, value in own.items()}}


def serving(kind: str, folder: Path) -> ModelServer:
    """A running server of the shipped bundle, as exported."""
    repository, environment = folder / f"{kind}-repository", Path(os.environ[f"SEMROUTE_{kind.upper()}"])
    export = ["bundle", "export", str(default_bundle()), str(repository), "--for", kind]
    subprocess.run([sys.executable, "-m", "semroute_extproc", *export], check=True, stdout=sys.stderr)
    server = ModelServer(kind, environment, repository, folder / kind)
    server.start()
    return server


def family(pid: int) -> list[int]:
    """A process and all its descendants."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(each for child in children for each in family(int(child)))]


async def measure(folder: Path) -> list[Figures]:
    """A row for each arrangement: name, sidecars, milliseconds, decisions per second, CPU and memory."""
    samples, times = Samples(), Samples()
    request = load.exchange(load.chat(load.ROUTED))
    async with AsyncExitStack() as exits:
        servers = {kind: serving(kind, folder) for kind in KINDS}
        for each in servers.values():
            exits.callback(each.process.stop)
        arrangements: dict[tuple[str, int], Target] = {}
        for count in (1, MANY):
            for name in ("local", *KINDS):
                settings = remote(servers[name]) if name in servers else LOCAL
                sidecars = [Measured(folder / f"{name}-{count}-{n}", **settings) for n in range(count)]
                for sidecar in sidecars:
                    exits.callback(sidecar.stop)
                clients = [await exits.enter_async_context(connect(each.socket)) for each in sidecars]
                pids = [pid for each in sidecars for pid in each.pids]
                arrangements[name, count] = Target(clients, pids)
        for target in arrangements.values():
            await target.send(request, BUSY, AT_ONCE)
        for _ in range(ROUNDS):
            for (name, count), target in arrangements.items():
                key, shared = f"{name} {count}", family(servers[name].process.pid) if name in servers else []
                if count == 1:
                    answers = await target.send(request, ALONE, 1)
                    times[f"{key} alone"] += [answer.ms for answer in answers]
                before = cpu_seconds(*shared)
                answers = await target.measure(samples, key, request, BUSY, AT_ONCE // count)
                samples[f"{key} server cpu ms"].append((cpu_seconds(*shared) - before) / len(answers) * 1e3)
                times[key] += [answer.ms for answer in answers]
                assert all(answer.outcome == "routed" for answer in answers), key
        rows = []
        for (name, count), target in arrangements.items():
            key, shared = f"{name} {count}", family(servers[name].process.pid) if name in servers else []
            row: dict[str, Any] = {"name": name, "sidecars": count, "busy ms": quantiles(times[key])}
            if count == 1:
                row["alone ms"] = quantiles(times[f"{key} alone"])
            for figure in ("a second", "cpu ms", "server cpu ms"):
                row[figure] = median(samples[f"{key} {figure}"])
            row["a second, rounds"] = samples[f"{key} a second"]
            row |= {"sidecar MiB": sum(resident_mib(*target.pids)), "server MiB": sum(resident_mib(*shared))}
            rows.append(row)
        return rows


if __name__ == "__main__":
    run = {"schema": 1, "machine": describe(), "rounds": ROUNDS, "at once": AT_ONCE}
    with (
        tempfile.TemporaryDirectory(prefix="semroute-encoders-") as place,
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        run["arrangements"] = runner.run(measure(Path(place)))
    click.echo(json.dumps(run, indent=2))
