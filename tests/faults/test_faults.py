"""Faults under load behind a real Envoy: no request is lost, every undecided one is counted, and it ends.

The ordinary run takes the faults marked `short`. `make faults` takes all and writes docs/reliability.md.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest
from faults import FAULTS, Fault, missing
from traffic import Answer, Traffic
from world import World, find_valkey, start_world

ALL = "SEMROUTE_FAULTS"  # a file for the results of all faults
BEFORE_SECONDS = 1.0
P99_SECONDS_MAX = 6.0
"""Of an honest request: Envoy waits up to 3 s for a sidecar that does not answer."""

BUSY_SECONDS = 0.5
"""Of a median answer: a machine that takes longer is too busy to tell what the fault did."""

CHOSEN = [fault for fault in FAULTS if fault.short or ALL in os.environ]


@dataclass(frozen=True)
class Result:
    """A row of the table."""

    fault: str
    requests: int
    lost: int
    undecided: int
    counted: int  # by Envoy
    recovery: float  # seconds from the repair until all requests were decided again
    p50: float  # seconds of an answer
    p99: float


def _counted(world: World) -> int:
    """Requests that Envoy let pass because the sidecar failed."""
    return sum(gateway.counter("failure_mode_allowed") for gateway in world.gateways)


async def run(world: World, fault: Fault) -> tuple[Result, Sequence[Answer]]:
    """Break it under load, and watch until it has recovered."""
    before = _counted(world)
    async with Traffic(lambda: world.gateway.url) as traffic:
        await asyncio.sleep(BEFORE_SECONDS)
        await fault.inject(world)
        repaired = traffic.now
        await asyncio.sleep(fault.recovery + 1.0)
        answers = await traffic.stop()
    counted = _counted(world) - before
    bad = [answer.sent for answer in answers if answer.lost or answer.undecided]
    seconds = [answer.seconds for answer in answers]
    p99 = statistics.quantiles(seconds, n=100)[98]
    recovery = max(0.0, max(bad, default=0.0) - repaired)
    undecided = sum(answer.undecided for answer in answers)
    lost = sum(answer.lost for answer in answers)
    times = (round(recovery, 1), round(statistics.median(seconds), 3), round(p99, 2))
    return Result(fault.name, len(answers), lost, undecided, counted, *times), answers


@pytest.mark.e2e
@pytest.mark.parametrize("fault", CHOSEN, ids=[fault.name for fault in CHOSEN])
def test_no_request_is_lost_and_every_undecided_one_is_counted(fault: Fault) -> None:
    if lacking := missing(fault, find_valkey()):
        pytest.skip(f"this machine lacks {lacking}")
    world = start_world(**fault.world)
    try:
        result, answers = asyncio.run(run(world, fault))
    finally:
        world.close()
    if file := os.environ.get(ALL):
        with Path(file).open("a") as lines:
            lines.write(json.dumps({"at": time.strftime("%Y-%m-%d"), **asdict(result)}) + "\n")
    assert [answer for answer in answers if answer.lost] == []
    assert result.undecided <= result.counted, "a request went undecided, and nothing counted it"
    if result.p50 < BUSY_SECONDS:
        assert fault.undecided or result.undecided == 0
    assert result.recovery <= fault.recovery
    assert result.p99 <= P99_SECONDS_MAX
