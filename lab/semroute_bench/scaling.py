"""Decisions a second by workers and by how many are asked for at once: on a GPU they share, and on cores."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from semroute_bench import load
from semroute_bench.direct import UNHURRIED
from semroute_bench.servers import Measured
from semroute_extproc.encoder import bundle
from semroute_extproc.encoder.cores import usable_cores
from semroute_extproc.encoder.cuda import CudaModel
from semroute_extproc.errors import BundleError, ConfigError

AT_ONCE = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
"""Requests under way at a time, in all."""

GPU_WORKERS = (1, 2, 4, 8)
"""Workers that share the GPU, as far as there are two cores for each: one for it, one for its client."""

CPU_WORKERS = (1, 8)
CPU_CORES_MIN = 16

TAIL_REQUESTS = 100
"""Requests of a row for each that is under way at a time, for a tail that can be seen."""

QUEUE_MAX = "1024"
"""Texts that may wait, so that what is asked for at once is not refused."""

ROW_SECONDS_MAX = 300.0


async def on_gpu(requests: int, folder: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """A row for each of `GPU_WORKERS` and `AT_ONCE`, of at most `requests`; or `left out`, and why."""
    try:
        CudaModel(bundle.load(bundle.default_bundle(), ("cuda",)))
    except (ConfigError, BundleError) as error:  # no device, or an image without its graph
        say(f"not measured: GPU: {error}")
        return {"left out": "no CUDA device"}
    say("GPU, by workers and by requests at once")
    workers = [number for number in GPU_WORKERS if 2 * number <= usable_cores()]
    rows = await measure(workers or [1], AT_ONCE, requests, folder, encoder__device="cuda")
    return {"device": _device(), "rows": rows}


async def on_cpu(requests: int, folder: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """One worker and eight, a lane each and two requests a lane; or `left out`, and why."""
    cores = usable_cores()
    if cores < CPU_CORES_MIN:
        say(f"not measured: eight workers need {CPU_CORES_MIN} cores, here are {cores}")
        return {"left out": f"needs {CPU_CORES_MIN} cores, here are {cores}"}
    say("one worker and eight")
    rows = []
    for workers in CPU_WORKERS:
        rows += await measure([workers], [2 * workers], requests, folder, encoder__threads="1")
    return {"rows": rows}


async def measure(
    workers: Iterable[int], at_once: Iterable[int], requests: int, folder: Path, **settings: str
) -> list[dict[str, Any]]:
    """Rows: `workers`, `at once`, `a second`, the share `decided`, and quantiles of the `ms` of one."""
    rows: list[dict[str, Any]] = []
    for number in workers:
        # The cache would answer all but the first.
        sidecar = Measured(
            folder / f"scaling-{number}",
            **UNHURRIED,
            server__workers=str(number),
            encoder__queue_max=QUEUE_MAX,
            **settings,
        )
        try:
            rows += [
                await _row(sidecar.sockets, each, min(requests, TAIL_REQUESTS * max(each, 10)))
                for each in at_once
                if each >= number
            ]
        finally:
            sidecar.stop()
    return rows


async def _row(sockets: list[str], at_once: int, requests: int) -> dict[str, Any]:
    count, each = -(-requests // len(sockets)), at_once // len(sockets)
    results = await asyncio.wait_for(_drive(sockets, count, each), ROW_SECONDS_MAX)
    ms = [value for result in results for value in result["ms"]]
    return {
        "workers": len(sockets),
        "at once": at_once,
        "a second": len(ms) / max(result["seconds"] for result in results),
        "decided": sum(result["decided"] for result in results) / len(ms),
        "ms": load.quantiles(ms),
    }


async def _drive(sockets: list[str], count: int, each: int) -> list[dict[str, Any]]:
    """A client a socket, all started at the same moment."""
    pipe = asyncio.subprocess.PIPE
    clients = [
        await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "semroute_bench.drive", socket, str(count), str(each)),
            stdin=pipe,
            stdout=pipe,
            limit=2**26,
        )
        for socket in sockets
    ]
    try:
        for client in clients:
            assert client.stdout is not None
            if (await client.stdout.readline()).strip() != b"ready":
                raise RuntimeError("a client could not reach its server")
        pages = await asyncio.gather(*(client.communicate(b"\n") for client in clients))
    finally:
        for client in clients:
            if client.returncode is None:
                client.kill()
                await client.wait()
    return [json.loads(page) for page, _ in pages]


def _device() -> str:
    """The GPU's name, as its driver's tool says it."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return "unknown"
    done = subprocess.run(
        [tool, "--query-gpu=name", "--format=csv,noheader"],
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    return done.stdout.strip().splitlines()[0] if done.stdout.strip() else "unknown"
