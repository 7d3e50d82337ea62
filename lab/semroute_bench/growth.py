"""Whether a worker's memory grows with the requests it has served.

Requests as they come in life: most name their model, of the routed ones most come again and are answered
from the cache, and some are new and take a pass. The cache is small and full before the count begins, so
that what still grows is neither it nor anything else that has a bound.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from time import perf_counter
from typing import Any

from semroute_bench import load
from semroute_bench.direct import BUSY, NAMED, ROUTED, UNHURRIED
from semroute_bench.load import Exchange
from semroute_bench.servers import Measured
from semroute_bench.wire import connect
from semroute_extproc.encoder.cores import usable_cores

WORKERS_MAX = 2
"""Workers that share the requests: more cores are used, and each worker is looked at."""

CACHE_ENTRIES = 256

WARM_UP_SHARE = 4
WARM_UP_MIN, WARM_UP_MAX = 5_000, 50_000
"""Requests that are not counted: a fourth of the others within these bounds."""

CHUNKS = 20
"""Looks at the memory on the way."""

PERIOD = 200
"""Of this many requests one is routed and new, 19 are routed and come again, the others name a model."""

AGAIN = 50
"""Texts that come again."""


def traffic(first: int, count: int) -> Iterator[Exchange]:
    """Requests `first` to `first + count` of an endless row; no new text comes twice."""
    named = load.exchange(load.chat(NAMED))
    again = [load.exchange(load.chat(ROUTED, f"{load.PROMPT} Again {number}.")) for number in range(AGAIN)]
    for number in range(first, first + count):
        if number % PERIOD == 0:
            yield load.exchange(load.chat(ROUTED, f"{load.PROMPT} {number}"))
        elif number % 10 == 0:
            yield again[number // 10 % AGAIN]
        else:
            yield named


async def measure(requests: int, folder: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """Resident memory of each worker before and after `requests`, and of the largest on the way."""
    workers = min(WORKERS_MAX, usable_cores())
    sidecar = Measured(
        folder / "growth",
        server__workers=str(workers),
        server__deadline_ms=UNHURRIED["server__deadline_ms"],
        encoder__cache_entries=str(CACHE_ENTRIES),
    )
    wires = [await connect(socket) for socket in sidecar.sockets]
    sent = 0

    async def send(count: int) -> None:
        """Shared out among the workers; each is kept as busy as a gateway would keep it."""
        nonlocal sent
        share = -(-count // workers)
        await asyncio.gather(
            *(wire.closed(traffic(sent + n * share, share), BUSY) for n, wire in enumerate(wires))
        )
        sent += workers * share
        os.truncate(sidecar.sidecar.process.log_path, 0)  # a line a request: gigabytes, before the end

    try:
        fill = [
            load.exchange(load.chat(ROUTED, f"{number} {load.PROMPT}")) for number in range(CACHE_ENTRIES)
        ]
        await asyncio.gather(*(wire.closed(fill, BUSY) for wire in wires))
        await send(min(max(requests // WARM_UP_SHARE, WARM_UP_MIN), WARM_UP_MAX))
        warm = sidecar.resident_mib_each()
        started, on_the_way = perf_counter(), []
        for chunk in range(CHUNKS):
            await send(requests // CHUNKS)
            on_the_way.append(sidecar.resident_mib())
            passed = perf_counter() - started
            say(f"{chunk + 1} of {CHUNKS}, {passed / (chunk + 1) * (CHUNKS - chunk - 1):.0f} s to go")
        after = sidecar.resident_mib_each()
        return {
            "requests": requests,
            "workers": workers,
            "seconds": perf_counter() - started,
            "warm MiB": warm,
            "after MiB": after,
            "on the way MiB": on_the_way,
        }
    finally:
        for wire in wires:
            wire.close()
        sidecar.stop()
