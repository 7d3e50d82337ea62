"""Decisions per second by workers and by requests at once: on a GPU that workers share, and on cores."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterable
from contextlib import AsyncExitStack
from pathlib import Path
from time import perf_counter
from typing import Any

from semroute_bench import load
from semroute_bench.samples import Figures, Say, Size, quantiles
from semroute_bench.servers import UNHURRIED, Measured, Target
from semroute_bench.sidecar import gpu_missing
from semroute_extproc.encoder.cores import usable_cores

AT_ONCE = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)  # requests under way at a time, in all
GPU_WORKERS = (1, 2, 4, 8)  # as far as there are two cores for each
CPU_WORKERS = (1, 8)
CPU_CORES_MIN = 16
TAIL_REQUESTS = 100  # requests of a row per request that is under way at a time, for a visible tail
QUEUE_MAX = "1024"  # texts that may wait, so that the requests of a row are not refused


async def on_gpu(size: Size, folder: Path, say: Say) -> Figures:
    """A row for each of `GPU_WORKERS` and `AT_ONCE`; or `left out`, and why."""
    if why := gpu_missing():
        say(f"not measured: GPU: {why}")
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
    request = load.exchange(load.chat(load.ROUTED))
    for number in workers:
        # With a cache, only the first request would take a pass.
        own = {**UNHURRIED, "server__workers": str(number), "encoder__queue_max": QUEUE_MAX, **settings}
        async with AsyncExitStack() as exits:
            target = await Target.of(Measured(folder / f"scaling-{number}", **own), exits)
            for each in (each for each in at_once if each >= number):
                await target.send(request, each, each // number)
                started = perf_counter()
                count = min(requests, TAIL_REQUESTS * max(each, 10))
                answers = await target.send(request, count, each // number)
                seconds = perf_counter() - started
                rows.append(
                    {
                        "workers": number,
                        "at once": each,
                        "a second": len(answers) / seconds,
                        "decided": sum(answer.outcome == "routed" for answer in answers) / len(answers),
                        "ms": quantiles([answer.ms for answer in answers]),
                    }
                )
    return rows


def _device() -> str:
    """The GPU's name according to its driver's tool."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return "unknown"
    query = [tool, "--query-gpu=name", "--format=csv,noheader"]
    done = subprocess.run(query, capture_output=True, text=True, check=False, timeout=30)
    return (done.stdout.strip().splitlines() or ["unknown"])[0]
