"""Decisions per second by workers and by requests at once: on a GPU that workers share, and on cores."""

from __future__ import annotations

import asyncio
import multiprocessing
import shutil
import subprocess
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from threading import Barrier
from time import perf_counter
from typing import Any

from semroute_bench import load
from semroute_bench.client import connect
from semroute_bench.samples import Figures, Say, Size, quantiles
from semroute_bench.sidecar import UNHURRIED, Measured
from semroute_extproc.encoder import bundle
from semroute_extproc.encoder.cores import usable_cores
from semroute_extproc.encoder.cuda import CudaModel
from semroute_extproc.errors import BundleError, ConfigError
from semroute_extproc.serve.app import loop_factory

AT_ONCE = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
"""Requests under way at a time, in all."""

GPU_WORKERS = (1, 2, 4, 8)
"""Workers that share the GPU, as far as there are two cores for each: one for it, one for its client."""

CPU_WORKERS = (1, 8)
CPU_CORES_MIN = 16

TAIL_REQUESTS = 100
"""Requests of a row per request that is under way at a time, for a visible tail."""

QUEUE_MAX = "1024"
"""Texts that may wait, so that the requests of a row are not refused."""

ROW_SECONDS_MAX = 300.0


async def on_gpu(size: Size, folder: Path, say: Say) -> Figures:
    """A row for each of `GPU_WORKERS` and `AT_ONCE`; or `left out`, and why."""
    try:
        CudaModel(bundle.load(bundle.default_bundle(), ("cuda",))).close()
    except (ConfigError, BundleError) as error:  # no device, or an image without its graph
        say(f"not measured: GPU: {error}")
        return {"gpu": {"left out": "no CUDA device"}}
    say("GPU, by workers and by requests at once")
    workers = [number for number in GPU_WORKERS if 2 * number <= usable_cores()] or [1]
    rows = await measure(workers, AT_ONCE, size.scaling_requests, folder, encoder__device="cuda")
    return {"gpu": {"device": _device(), "rows": rows}}


async def on_cpu(size: Size, folder: Path, say: Say) -> Figures:
    """One worker and eight, one thread and two requests each; or `left out`, and why."""
    cores = usable_cores()
    if cores < CPU_CORES_MIN:
        say(f"not measured: eight workers need {CPU_CORES_MIN} cores, here are {cores}")
        return {"workers": {"left out": f"needs {CPU_CORES_MIN} cores, here are {cores}"}}
    say("one worker and eight")
    rows = []
    for workers in CPU_WORKERS:
        rows += await measure([workers], [2 * workers], size.scaling_requests, folder, encoder__lanes="1")
    return {"workers": {"rows": rows}}


async def measure(
    workers: Iterable[int], at_once: Iterable[int], requests: int, folder: Path, **settings: str
) -> list[dict[str, Any]]:
    """Rows: `workers`, `at once`, `a second`, the share `decided`, and quantiles of the `ms` of one."""
    rows: list[dict[str, Any]] = []
    for number in workers:
        # With a cache, only the first request would take a pass.
        own = {"server__workers": str(number), "encoder__queue_max": QUEUE_MAX, **settings}
        sidecar = Measured(folder / f"scaling-{number}", **UNHURRIED, **own)
        try:
            rows += [
                await _row(sidecar.sockets, each, min(requests, TAIL_REQUESTS * max(each, 10)))
                for each in at_once
                if each >= number
            ]
        finally:
            sidecar.stop()
    return rows


async def _row(sockets: list[Path], at_once: int, requests: int) -> dict[str, Any]:
    """One row; a client process per worker, so that clients use several cores, all starting together."""
    number, loop, context = len(sockets), asyncio.get_running_loop(), multiprocessing.get_context("spawn")
    share = (-(-requests // number), at_once // number)
    with ProcessPoolExecutor(number, context, _prepare, (context.Barrier(number),)) as clients:
        drives = [loop.run_in_executor(clients, _drive, socket, *share) for socket in sockets]
        results = await asyncio.wait_for(asyncio.gather(*drives), ROW_SECONDS_MAX)
    ms = [value for _, values, _ in results for value in values]
    return {
        "workers": number,
        "at once": at_once,
        "a second": len(ms) / max(seconds for seconds, _, _ in results),
        "decided": sum(decided for _, _, decided in results) / len(ms),
        "ms": quantiles(ms),
    }


def _prepare(start: Barrier) -> None:
    global _start
    _start = start


_start: Barrier
"""In a client's process: where clients wait for each other."""


def _drive(socket: Path, count: int, at_once: int) -> tuple[float, list[float], int]:
    """In a client's process: seconds, milliseconds of each request, and how many were decided."""

    async def drive() -> tuple[float, list[float], int]:
        request = load.exchange(load.chat(load.ROUTED))
        async with connect(socket) as client:
            await client.closed([request] * at_once, at_once)
            await asyncio.to_thread(_start.wait, ROW_SECONDS_MAX)
            started = perf_counter()
            answers = await client.closed([request] * count, at_once)
            seconds = perf_counter() - started
        decided = sum(answer.outcome == "routed" for answer in answers)
        return seconds, [answer.ms for answer in answers], decided

    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        return runner.run(drive())


def _device() -> str:
    """The GPU's name according to its driver's tool."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return "unknown"
    query = [tool, "--query-gpu=name", "--format=csv,noheader"]
    done = subprocess.run(query, capture_output=True, text=True, check=False, timeout=30)
    return (done.stdout.strip().splitlines() or ["unknown"])[0]
