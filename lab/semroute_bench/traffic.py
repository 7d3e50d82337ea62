"""A server under load: arrivals at fixed rates up to far above the saturation point, and memory over time."""

import asyncio
import os
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from statistics import median
from typing import Any

from semroute_bench import load
from semroute_bench.client import Answer
from semroute_bench.load import NAMED, PROMPT, ROUTED, Exchange
from semroute_bench.measuring import Figures, Samples, Size, quantiles, resident_mib
from semroute_bench.servers import BUSY, UNHURRIED, Measured, Target
from semroute_extproc.io.cores import usable_cores

DEADLINE_MS = 100.0  # the shipped default; the demo's own is longer
SHARES = (0.25, 0.5, 0.75, 0.9, 2.0, 3.0)  # arrival rates over the saturation point
CACHE_ENTRIES = 256
WARM_UP_MIN = 5_000  # fewest warm-up requests; otherwise a fourth of the counted ones
CHUNKS = 20  # of the requests; after each the log is emptied
PERIOD = 200  # of this many requests 1 has a new text, 19 repeat a text, and the others name a model
REPEATED = 50  # texts that repeat


async def rates(size: Size, folder: Path) -> Figures:
    """The saturation point, then each rate on the same server, and half of it right after the overload.

    Open loop: a request is sent at its time, independent of earlier answers, so waiting is measured and not
    avoided. The saturation point is the rate of decisions with two requests per worker thread under way.
    """
    request, at_once, samples = load.exchange(load.chat(ROUTED)), 2 * usable_cores(), Samples()
    sidecar = Measured(folder / "open", encoder__cache_entries="0", server__deadline_ms=f"{DEADLINE_MS}")
    async with AsyncExitStack() as exits:
        target = await Target.of(sidecar, exits)
        await target.send(request, 4 * at_once, at_once)
        for _ in range(3):
            await target.measure(samples, "routed", request, 25 * at_once, at_once)
        saturation = median(samples["routed a second"])

        async def arrivals(share: float, seconds: float) -> dict[str, Any]:
            return row(share, saturation, await target.clients[0].open(request, share * saturation, seconds))

        rows = [await arrivals(share, size.seconds_a_rate) for share in SHARES]
        after = await arrivals(0.5, 2.0)  # without a pause after the overload
    figures = {"deadline ms": DEADLINE_MS, "knee a second": saturation}
    return {"open loop": {**figures, "rates": rows, "after overload": after}}


def row(share: float, saturation: float, answers: Sequence[Answer]) -> dict[str, Any]:
    """The outcomes of the arrivals at one rate."""
    count, outcomes = len(answers), [answer.outcome for answer in answers]
    return {
        "share of knee": share,
        "a second": share * saturation,
        "sent": count,
        "answered": 1 - outcomes.count("") / count,
        "decided": outcomes.count("routed") / count,
        "fallen back": outcomes.count("fallback") / count,
        "ms": quantiles([answer.ms for answer in answers if answer.outcome]),
    }


def mixed(first: int, count: int) -> Iterator[Exchange]:
    """Requests `first` to `first + count` of endless realistic traffic; new texts do not repeat.

    Most requests name their model; most routed texts repeat and are answered from the cache.
    """
    named = load.exchange(load.chat(NAMED))
    for number in range(first, first + count):
        which = f"Again {number // 10 % REPEATED}." if number % PERIOD else str(number)
        yield named if number % 10 else load.exchange(load.chat(ROUTED, f"{PROMPT} {which}"))


async def growth(size: Size, folder: Path) -> Figures:
    """Resident memory of each worker before and after the requests.

    The cache is small and full before the count begins, so it cannot be the cause of growth.
    """
    requests, workers = size.growth_requests, min(2, usable_cores())
    settings = {"server__workers": str(workers), "encoder__cache_entries": str(CACHE_ENTRIES)}
    sidecar = Measured(folder / "growth", **(UNHURRIED | settings))
    async with AsyncExitStack() as exits:
        target = await Target.of(sidecar, exits)
        for number in range(CACHE_ENTRIES):
            await target.send(load.exchange(load.chat(ROUTED, f"{number} {PROMPT}")), workers, 1)
        sent, memory, warm_up = 0, [], max(requests // 4, WARM_UP_MIN)
        for count in (warm_up, *[requests // CHUNKS] * CHUNKS):
            share = -(-count // workers)
            starts = range(sent, sent + workers * share, share)
            runs = zip(target.clients, starts, strict=True)
            await asyncio.gather(*(client.closed(mixed(start, share), BUSY) for client, start in runs))
            os.truncate(sidecar.process.log_path, 0)  # a line per request would be gigabytes at the end
            memory.append(resident_mib(*target.pids))
            sent = starts.stop
    figures = {"warm MiB": memory[0], "after MiB": memory[-1]}
    return {"growth": {"requests": requests, "workers": workers, **figures}}
