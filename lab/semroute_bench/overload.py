"""Arrivals at fixed rates below, near and far above the saturation point.

Open loop: a request is sent at its time, independent of earlier answers, so waiting is measured and not
avoided. The saturation point is the rate of decisions with two requests per worker thread under way.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from statistics import median
from typing import Any

from semroute_bench import load
from semroute_bench.client import Answer
from semroute_bench.samples import Figures, Samples, Say, Size, quantiles
from semroute_bench.servers import Measured, Target
from semroute_extproc.encoder.cores import usable_cores

DEADLINE_MS = 100.0  # the shipped default; the demo's own is longer
SHARES = (0.25, 0.5, 0.75, 0.9, 3.0)  # arrival rates over the saturation point
RECOVERY_SECONDS = 2.0


async def measure(size: Size, folder: Path, say: Say) -> Figures:
    """The saturation point, then each rate on the same server, and half of it right after the overload."""
    say("arrivals at fixed rates")
    request, at_once, samples = load.exchange(load.chat(load.ROUTED)), 2 * usable_cores(), Samples()
    sidecar = Measured(folder / "open", encoder__cache_entries="0", server__deadline_ms=f"{DEADLINE_MS}")
    async with AsyncExitStack() as exits:
        target = await Target.of(sidecar, exits)
        await target.send(request, 4 * at_once, at_once)
        for _ in range(3):
            await target.measure(samples, "routed", request, 25 * at_once, at_once)
        saturation = median(samples["routed a second"])

        async def arrivals(share: float, seconds: float) -> dict[str, Any]:
            answers = await target.clients[0].open(request, share * saturation, seconds)
            return row(share, saturation, answers)

        rows = [await arrivals(share, size.seconds_a_rate) for share in SHARES]
        after = await arrivals(0.5, RECOVERY_SECONDS)  # without a pause after the overload
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
