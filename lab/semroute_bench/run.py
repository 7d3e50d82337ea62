"""One run, in parts that can also be measured alone, and the ratios that are judged."""

from __future__ import annotations

import os
import statistics
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

from semroute_demo.process import ProcessError

from semroute_bench import direct, floors, growth, machine, overload, scaling
from semroute_bench.direct import Plan, Samples
from semroute_extproc import __version__
from semroute_extproc.encoder.cores import usable_cores

SCHEMA = 5


@dataclass(frozen=True, slots=True)
class Size:
    """How much a run measures."""

    plan: Plan = field(default_factory=Plan)
    passes_a_length: int = 30
    requests_a_body: int = 10
    seconds_a_rate: float = 20.0
    gateway_requests: int = 500
    growth_requests: int = 100_000
    floor_streams: int = 3_000
    scaling_requests: int = 10_000


QUICK = Size(
    Plan(rounds=3, passes=20, streams=480),
    passes_a_length=8,
    requests_a_body=3,
    seconds_a_rate=4.0,
    gateway_requests=50,
    growth_requests=5_000,
    floor_streams=480,
    scaling_requests=1_000,
)
"""A minute or two: to see that it runs, not to report."""

Say = Callable[[str], None]
Figures = dict[str, Any]


async def _costs(size: Size, folder: Path, say: Say) -> Figures:
    say("session, pipeline, server, do-nothing server and two workers, in turn")
    lanes = usable_cores()
    samples, more = await direct.rounds(size.plan, folder, lanes)
    rounds = ratios(samples, lanes)
    return {
        **more,
        "rounds": size.plan.rounds,
        "ratios": medians(rounds),
        "spreads": spreads(rounds),
        "medians": samples.medians(),
    }


async def _lengths(size: Size, folder: Path, say: Say) -> Figures:
    say("lengths")
    return {"lengths": await direct.lengths(size.passes_a_length, folder)}


async def _bodies(size: Size, folder: Path, say: Say) -> Figures:
    say("bodies")
    return {"bodies": await direct.bodies(size.requests_a_body, folder)}


async def _load(size: Size, folder: Path, say: Say) -> Figures:
    say("arrivals at fixed rates")
    lanes = usable_cores()
    return {"open loop": await overload.measure(lanes, size.seconds_a_rate, folder)}


async def _gateway(size: Size, folder: Path, say: Say) -> Figures:
    """Through Envoy; None, and why, where there is none."""
    say("through Envoy")
    try:
        from semroute_bench import gateway

        return {"gateway": await gateway.measure(size.gateway_requests, folder)}
    except ModuleNotFoundError as error:
        say(f"not measured: the Python package {error.name!r} is missing (extra demo)")
    except ProcessError as error:
        say(f"not measured: {error}")
    return {"gateway": None}


async def _floors(size: Size, folder: Path, say: Say) -> Figures:
    say("servers that do nothing")
    return {"floors": await floors.measure(size.plan.rounds, size.floor_streams, folder, say)}


async def _growth(size: Size, folder: Path, say: Say) -> Figures:
    say(f"memory over {size.growth_requests:,} requests")
    return {"growth": await growth.measure(size.growth_requests, folder, say)}


async def _workers(size: Size, folder: Path, say: Say) -> Figures:
    return {"workers": await scaling.on_cpu(size.scaling_requests, folder, say)}


async def _gpu(size: Size, folder: Path, say: Say) -> Figures:
    return {"gpu": await scaling.on_gpu(size.scaling_requests, folder, say)}


PARTS: Mapping[str, Callable[[Size, Path, Say], Awaitable[Figures]]] = {
    "costs": _costs,
    "lengths": _lengths,
    "bodies": _bodies,
    "load": _load,
    "gateway": _gateway,
    "floors": _floors,
    "growth": _growth,
    "workers": _workers,
    "gpu": _gpu,
}
"""Every part, in the order in which it is measured."""

SAME_MACHINE = ("cpu", "instructions", "cores")
"""What must agree for a part to join a recorded run."""


async def measure(
    size: Size, folder: Path, say: Say, parts: Collection[str] = tuple(PARTS), recorded: Figures | None = None
) -> Figures:
    """Measure `parts` on this machine; the others are those of the `recorded` run.

    `measured` says of each part when it was: the version, the machine's load before it, its seconds.
    Raises ValueError if the recorded run is another machine's or another schema's.
    """
    here = machine.describe()
    run: Figures = dict(recorded or {"measured": {}})
    if recorded is not None:
        _check_same(recorded, here)
    run |= {"schema": SCHEMA, "version": __version__}
    if recorded is None:
        run["machine"] = here
    for name, part in PARTS.items():
        if name in parts:
            load, started = round(os.getloadavg()[0], 2), perf_counter()
            run |= await part(size, folder, say)
            figures = {"version": __version__, "load_before": load, "seconds": perf_counter() - started}
            run["measured"] = {**run["measured"], name: figures}
    return run


def _check_same(recorded: Figures, here: Mapping[str, object]) -> None:
    if recorded.get("schema") != SCHEMA:
        raise ValueError(f"the recorded run has schema {recorded.get('schema')}, not {SCHEMA}: run all parts")
    for key in SAME_MACHINE:
        if recorded["machine"][key] != here[key]:
            raise ValueError(
                f"the recorded run is another machine's: {key} is {recorded['machine'][key]} there"
            )


def ratios(samples: Samples, lanes: int) -> dict[str, list[float]]:
    """What is judged: ratios within a round, one a round."""
    busy = f"server x{2 * lanes}"
    found = {
        "server cpu / bare": samples.ratios("server x1 cpu ms", "bare cpu ms"),
        "busy server cpu / bare": samples.ratios(f"{busy} cpu ms", "bare cpu ms"),
        "server cpu / passes": samples.ratios("server x1 cpu ms", "passes x1 cpu ms"),
        "busy server cpu / passes": samples.ratios(f"{busy} cpu ms", f"passes x{2 * lanes} cpu ms"),
        "server rate / passes": samples.ratios(f"{busy} a second", f"passes x{2 * lanes} a second"),
        "pipeline cpu / bare": samples.ratios("pipeline cpu ms", "bare cpu ms"),
        "server rate / bare": samples.ratios(f"{busy} a second", "bare a second"),
        "own cpu / floor": samples.ratios("own cpu ms", "floor cpu ms"),
        "named rate / floor": samples.ratios("named a second", "floor a second"),
        "named cpu / floor": samples.ratios("named cpu ms", "floor cpu ms"),
    }
    if "fp32 cpu ms" in samples.values:
        found["int8 / fp32"] = samples.ratios("bare cpu ms", "fp32 cpu ms")
    if "two workers named cpu ms" in samples.values:
        found["two workers / one"] = samples.ratios("two workers named cpu ms", "named cpu ms")
    return found


def medians(rounds: Mapping[str, list[float]]) -> dict[str, float]:
    """The middle round of each ratio."""
    return {name: statistics.median(values) for name, values in rounds.items()}


def spreads(rounds: Mapping[str, list[float]]) -> dict[str, float]:
    """How far the rounds of each ratio lie apart: their standard deviation."""
    return {name: statistics.stdev(values) for name, values in rounds.items()}
