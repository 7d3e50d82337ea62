"""Honest clients next to hostile ones, reloads and restarts of pools, for a long time.

The ordinary run takes some seconds. `make soak` takes half an hour and writes a row per minute.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from faults import pool_killed
from hostile import attack, attacks
from semroute_bench.measuring import resident_mib
from traffic import Answer, Traffic
from world import World, descriptors, start_world

FILE, SECONDS = os.environ.get("SEMROUTE_SOAK"), float(os.environ.get("SEMROUTE_SOAK_SECONDS", "15"))
PERIODS = 30 if SECONDS >= 600 else 3  # rows
LOAD = 0.8  # of the rate at which the machine is saturated
ATTACKS_PER_SECOND = 2.0
RELOAD_SECONDS, RESTART_SECONDS = 5.0, 10.0
GROWTH_MIB_MAX, DESCRIPTORS_MAX = 64.0, 64
"""More than in the second period, at the end."""


async def saturation(world: World) -> float:
    """Honest requests per second that the whole system answers within a second, by halving the interval."""
    low, high = 5.0, 200.0
    for _ in range(5):
        middle = (low * high) ** 0.5
        async with Traffic(lambda: world.gateway.url, middle) as traffic:
            await asyncio.sleep(3.0)
            answers = await traffic.stop()
        late = [answer for answer in answers if answer.seconds > 1.0 or answer.lost or answer.undecided]
        low, high = (low, middle) if len(late) > 0.01 * len(answers) else (middle, high)
    return low


async def disturb(world: World) -> None:
    """Attacks, reloads and restarts, until cancelled."""

    async def attacking() -> None:
        tasks: set[asyncio.Task[None]] = set()
        for request in attacks():
            task = asyncio.create_task(attack(world.gateway.envoy.port, request))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
            await asyncio.sleep(1.0 / ATTACKS_PER_SECOND)

    async def reloading() -> None:
        for share in itertools.cycle(range(1, 10)):
            await asyncio.sleep(RELOAD_SECONDS)
            world.write(lambda document, at=share: document["strategies"]["pair"].update(threshold=at / 10))

    async def restarting() -> None:
        while True:
            await asyncio.sleep(RESTART_SECONDS)
            await pool_killed(world)

    async with asyncio.TaskGroup() as group:
        for run in (attacking, reloading, restarting):
            group.create_task(run())


def row(world: World, answers: Sequence[Answer], begin: float, end: float) -> dict[str, Any]:
    """What honest clients saw in a period, and the sidecar's memory and descriptors at its end."""
    within = [answer for answer in answers if begin <= answer.sent < end]
    cuts = statistics.quantiles([answer.seconds for answer in within], n=100)
    pid = world.sidecar.process.pid
    return {
        "requests": len(within),
        "lost": sum(answer.lost for answer in within),
        "undecided": sum(answer.undecided for answer in within),
        "p50 ms": round(cuts[49] * 1e3, 1),
        "p99 ms": round(cuts[98] * 1e3, 1),
        "MiB": round(resident_mib(pid)[0], 1),
        "descriptors": descriptors(pid),
    }


def record(rows: Sequence[dict[str, Any]], rate: float) -> None:
    """Write the rows, if a file was asked for."""
    about = {"at": time.strftime("%Y-%m-%d"), "seconds": SECONDS, "per second": round(rate, 1)}
    if FILE:
        Path(FILE).write_text("".join(json.dumps({**about, **each}) + "\n" for each in rows))


@pytest.mark.e2e
@pytest.mark.timeout(SECONDS + 150)
async def test_honest_clients_are_answered_among_hostile_ones_and_nothing_grows() -> None:
    world = await asyncio.to_thread(start_world)
    rows: list[dict[str, Any]] = []
    try:
        rate = LOAD * await saturation(world)
        disturbing = asyncio.create_task(disturb(world))
        async with Traffic(lambda: world.gateway.url, rate) as traffic:
            for number in range(PERIODS):
                await asyncio.sleep(SECONDS / PERIODS)
                period = (number * SECONDS / PERIODS, (number + 1) * SECONDS / PERIODS)
                rows.append(row(world, traffic.answers, *period))
            disturbing.cancel()
            await asyncio.wait([disturbing])
            answers = await traffic.stop()
    finally:
        await asyncio.to_thread(world.close)
    record(rows, rate)
    assert [answer for answer in answers if answer.lost] == []
    assert rows[-1]["MiB"] <= rows[1]["MiB"] + GROWTH_MIB_MAX
    assert rows[-1]["descriptors"] <= rows[1]["descriptors"] + DESCRIPTORS_MAX
    assert disturbing.cancelled(), disturbing.exception()
