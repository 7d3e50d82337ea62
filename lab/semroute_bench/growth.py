"""Whether a worker's memory grows with the requests it has served.

Realistic traffic: most requests name their model; most routed texts repeat and are answered from the
cache; some are new and take a pass. The cache is small and full before the count begins, so it cannot be
the cause of growth.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from time import perf_counter

from semroute_bench import load
from semroute_bench.load import NAMED, PROMPT, ROUTED, Exchange
from semroute_bench.samples import Figures, Say, Size
from semroute_bench.servers import BUSY, UNHURRIED, Measured, Target
from semroute_extproc.encoder.cores import usable_cores

WORKERS_MAX = 2
CACHE_ENTRIES = 256
WARM_UP_MIN, WARM_UP_MAX = 5_000, 50_000  # requests that are not counted: a fourth of the others
CHUNKS = 20  # of the requests; after each the log is emptied
PERIOD = 200  # of so many requests one is routed and new, 19 are routed and repeat, the others name a model
REPEATED = 50  # texts that repeat


def traffic(first: int, count: int) -> Iterator[Exchange]:
    """Requests `first` to `first + count` of an endless sequence; new texts do not repeat."""
    named = load.exchange(load.chat(NAMED))
    repeated = [load.exchange(load.chat(ROUTED, f"{PROMPT} Again {number}.")) for number in range(REPEATED)]
    for number in range(first, first + count):
        if number % PERIOD == 0:
            yield load.exchange(load.chat(ROUTED, f"{PROMPT} {number}"))
        else:
            yield named if number % 10 else repeated[number // 10 % REPEATED]


async def measure(size: Size, folder: Path, say: Say) -> Figures:
    """Resident memory of each worker before and after the requests."""
    requests, workers = size.growth_requests, min(WORKERS_MAX, usable_cores())
    say(f"memory over {requests:,} requests")
    settings = {"server__workers": str(workers), "encoder__cache_entries": str(CACHE_ENTRIES)}
    sidecar = Measured(folder / "growth", **(UNHURRIED | settings))
    async with AsyncExitStack() as exits:
        target = await Target.of(sidecar, exits)
        for number in range(CACHE_ENTRIES):
            await target.send(load.exchange(load.chat(ROUTED, f"{number} {PROMPT}")), workers, 1)
        sent, counts = 0, [min(max(requests // 4, WARM_UP_MIN), WARM_UP_MAX), *[requests // CHUNKS] * CHUNKS]
        for chunk, count in enumerate(counts):
            share = -(-count // workers)
            starts = range(sent, sent + workers * share, share)
            runs = zip(target.clients, starts, strict=True)
            await asyncio.gather(*(client.closed(traffic(start, share), BUSY) for client, start in runs))
            os.truncate(sidecar.process.log_path, 0)  # a line per request would be gigabytes at the end
            sent = starts.stop
            if chunk == 0:
                warm, started = sidecar.resident_mib(), perf_counter()
            say(f"{chunk} of {CHUNKS}")
        figures = {"seconds": perf_counter() - started, "warm MiB": warm, "after MiB": sidecar.resident_mib()}
    return {"growth": {"requests": requests, "workers": workers, **figures}}
