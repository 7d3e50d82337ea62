"""Arrivals at fixed rates: what becomes of requests below, near and far above what the machine can do.

Open loop: a request is sent when its time has come, whatever became of the earlier ones, so that
waiting is measured and not avoided.
"""

from __future__ import annotations

import statistics
from pathlib import Path
from time import perf_counter
from typing import Any

from semroute_bench import load
from semroute_bench.load import Answer
from semroute_bench.servers import DEADLINE_MS, Measured
from semroute_bench.wire import connect

SHARES = (0.25, 0.5, 0.75, 0.9, 3.0)
"""Arrival rates over the knee."""

RECOVERY_SECONDS = 2.0


async def measure(lanes: int, seconds: float, folder: Path) -> dict[str, Any]:
    """The knee, then each rate on the same server; half the knee once more after the overload."""
    sidecar = Measured(folder / "open", encoder__cache_entries="0", server__deadline_ms=f"{DEADLINE_MS}")
    request = load.exchange(load.chat("auto"))
    try:
        wire = await connect(sidecar.sockets[0])
        await wire.closed([request] * 8 * lanes, 2 * lanes)
        rates = []
        for _ in range(3):
            started = perf_counter()
            # One a lane would leave it idle between two passes: that is not all there is.
            await wire.closed([request] * 50 * lanes, 2 * lanes)
            rates.append(50 * lanes / (perf_counter() - started))
        knee = statistics.median(rates)
        rows = []
        for share in SHARES:
            before = sidecar.resident_mib()
            answers = await wire.open(request, share * knee, seconds)
            rows.append(row(share, knee, answers) | {"grown MiB": sidecar.resident_mib() - before})
        # Right behind three times the knee, without a pause.
        after = row(0.5, knee, await wire.open(request, 0.5 * knee, RECOVERY_SECONDS))
        wire.close()
        return {"deadline ms": DEADLINE_MS, "knee a second": knee, "rates": rows, "after overload": after}
    finally:
        sidecar.stop()


def row(share: float, knee: float, answers: list[Answer]) -> dict[str, Any]:
    """What became of the arrivals at one rate."""
    count = len(answers)
    came = [answer for answer in answers if answer.outcome]
    return {
        "share of knee": share,
        "a second": share * knee,
        "sent": count,
        "answered": len(came) / count,
        "decided": sum(answer.outcome == "routed" for answer in came) / count,
        "fallen back": sum(answer.outcome == "fallback" for answer in came) / count,
        "ms": load.quantiles([answer.ms for answer in came]),
    }
