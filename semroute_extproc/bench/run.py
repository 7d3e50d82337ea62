"""One run of everything, and the ratios that are judged."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from semroute_extproc import __version__
from semroute_extproc.bench import direct, machine, overload
from semroute_extproc.bench.direct import Plan, Samples
from semroute_extproc.demo.process import ProcessError

SCHEMA = 2


@dataclass(frozen=True, slots=True)
class Size:
    """How much a run measures."""

    plan: Plan = field(default_factory=Plan)
    passes_a_length: int = 30
    requests_a_body: int = 10
    seconds_a_rate: float = 20.0
    gateway_requests: int = 500
    growth_requests: int = 100_000


QUICK = Size(
    Plan(rounds=3, passes=20, streams=480),
    passes_a_length=8,
    requests_a_body=3,
    seconds_a_rate=4.0,
    gateway_requests=50,
    growth_requests=5_000,
)
"""A minute or two: to see that it runs, not to report."""


async def everything(size: Size, folder: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """Measure all there is to measure on this machine."""
    lanes = len(os.sched_getaffinity(0))
    here = machine.describe()
    say("session, pipeline, server, do-nothing server and two workers, in turn")
    samples, more = await direct.rounds(size.plan, folder, lanes)
    say("lengths")
    lengths = await direct.lengths(size.passes_a_length, folder)
    say("bodies")
    bodies = await direct.bodies(size.requests_a_body, folder)
    say("arrivals at fixed rates")
    rates = await overload.measure(lanes, size.seconds_a_rate, folder)
    say("through Envoy")
    gateway = await _gateway(size.gateway_requests, folder, say)
    say(f"memory over {size.growth_requests:,} requests")
    growth = await direct.growth(size.growth_requests, folder)
    return {
        "schema": SCHEMA,
        "version": __version__,
        "machine": here,
        **more,
        "rounds": size.plan.rounds,
        "ratios": ratios(samples, lanes),
        "medians": samples.medians(),
        "lengths": lengths,
        "bodies": bodies,
        "open loop": rates,
        "gateway": gateway,
        "growth": growth,
    }


def ratios(samples: Samples, lanes: int) -> dict[str, float]:
    """What is judged: medians over the rounds of ratios within a round."""
    busy = f"server x{2 * lanes}"
    found = {
        "server cpu / bare": samples.ratio("server x1 cpu ms", "bare cpu ms"),
        "busy server cpu / bare": samples.ratio(f"{busy} cpu ms", "bare cpu ms"),
        "pipeline cpu / bare": samples.ratio("pipeline cpu ms", "bare cpu ms"),
        "server rate / bare": samples.ratio(f"{busy} a second", "bare a second"),
        "named rate / floor": samples.ratio("named a second", "floor a second"),
        "floor cpu / named": samples.ratio("floor cpu ms", "named cpu ms"),
    }
    if "fp32 cpu ms" in samples.values:
        found["int8 / fp32"] = samples.ratio("bare cpu ms", "fp32 cpu ms")
    if "two workers named cpu ms" in samples.values:
        found["two workers / one"] = samples.ratio("two workers named cpu ms", "named cpu ms")
    return found


async def _gateway(requests: int, folder: Path, say: Callable[[str], None]) -> dict[str, Any] | None:
    """Through Envoy; None, and why, where there is none."""
    try:
        from semroute_extproc.bench import gateway

        return await gateway.measure(requests, folder)
    except ModuleNotFoundError as error:
        say(f"not measured: the Python package {error.name!r} is missing (extra demo)")
    except ProcessError as error:
        say(f"not measured: {error}")
    return None
