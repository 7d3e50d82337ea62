"""Arrivals at fixed rates below, near and far above the saturation point.

Open loop: a request is sent at its time, independent of earlier answers, so waiting is measured and not
avoided. The saturation point is the rate of decisions with two requests per worker thread under way.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

from semroute_bench import load
from semroute_bench.client import Answer, connect
from semroute_bench.samples import Figures, Say, Size, quantiles
from semroute_bench.servers import Measured
from semroute_extproc.encoder.cores import usable_cores

DEADLINE_MS = 100.0  # the shipped default; the demo's own is longer
SHARES = (0.25, 0.5, 0.75, 0.9, 3.0)  # arrival rates over the saturation point
RECOVERY_SECONDS = 2.0


async def measure(size: Size, folder: Path, say: Say) -> Figures:
    """The saturation point, then each rate on the same server, and half of it right after the overload."""
    say("arrivals at fixed rates")
    request, at_once = load.exchange(load.chat(load.ROUTED)), 2 * usable_cores()
    sidecar = Measured(folder / "open", encoder__cache_entries="0", server__deadline_ms=f"{DEADLINE_MS}")
    try:
        async with connect(sidecar.socket) as client:
            await client.closed([request] * 4 * at_once, at_once)
            rates = []
            for _ in range(3):
                started = perf_counter()
                await client.closed([request] * 25 * at_once, at_once)
                rates.append(25 * at_once / (perf_counter() - started))
            saturation = statistics.median(rates)
            rows = []
            for share in SHARES:
                before = sidecar.resident_mib()[0]
                answers = await client.open(request, share * saturation, size.seconds_a_rate)
                grown = sidecar.resident_mib()[0] - before
                rows.append(row(share, saturation, answers) | {"grown MiB": grown})
            # Without a pause after the overload.
            after = row(0.5, saturation, await client.open(request, 0.5 * saturation, RECOVERY_SECONDS))
    finally:
        sidecar.stop()
    figures = {
        "deadline ms": DEADLINE_MS,
        "knee a second": saturation,
        "rates": rows,
        "after overload": after,
    }
    return {"open loop": figures}


def row(share: float, saturation: float, answers: Sequence[Answer]) -> dict[str, Any]:
    """The outcomes of the arrivals at one rate."""
    count = len(answers)
    outcomes = [answer.outcome for answer in answers]
    return {
        "share of knee": share,
        "a second": share * saturation,
        "sent": count,
        "answered": 1 - outcomes.count("") / count,
        "decided": outcomes.count("routed") / count,
        "fallen back": outcomes.count("fallback") / count,
        "ms": quantiles([answer.ms for answer in answers if answer.outcome]),
    }
