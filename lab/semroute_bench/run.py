"""One run, in parts that can also be measured alone."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping
from pathlib import Path
from time import perf_counter

from semroute_demo.process import ProcessError

from semroute_bench import direct, growth, machine, overload, scaling
from semroute_bench.samples import Figures, Say, Size
from semroute_extproc import __version__

SCHEMA = 5


async def _gateway(size: Size, folder: Path, say: Say) -> Figures:
    """Through Envoy; None, and a line with the reason, where there is no Envoy."""
    say("through Envoy")
    try:
        from semroute_bench import gateway

        return {"gateway": await gateway.measure(size, folder)}
    except ModuleNotFoundError as error:
        say(f"not measured: the Python package {error.name!r} is missing (extra demo)")
    except ProcessError as error:
        say(f"not measured: {error}")
    return {"gateway": None}


PARTS: Mapping[str, Callable[[Size, Path, Say], Awaitable[Figures]]] = {
    "costs": direct.costs,
    "lengths": direct.lengths,
    "bodies": direct.bodies,
    "load": overload.measure,
    "gateway": _gateway,
    "growth": growth.measure,
    "workers": scaling.on_cpu,
    "gpu": scaling.on_gpu,
}
"""Every part, in the order of measurement."""

SAME_MACHINE = ("cpu", "instructions", "cores")
"""Properties that must agree for a part to join a recorded run."""


async def measure(
    size: Size, folder: Path, say: Say, parts: Collection[str] = tuple(PARTS), recorded: Figures | None = None
) -> Figures:
    """Measure `parts` on this machine; the others are those of the `recorded` run.

    `measured` states for each part the version, the machine's load before it, and its seconds.
    Raises ValueError if the recorded run is of another machine or another schema.
    """
    here = machine.describe()
    if recorded is not None:
        _check_same(recorded, here)
    run: Figures = {"measured": {}, "machine": here, **(recorded or {})}
    run |= {"schema": SCHEMA, "version": __version__}
    for name in PARTS:
        if name in parts:
            load, started = machine.load(), perf_counter()
            run |= await PARTS[name](size, folder, say)
            figures = {"version": __version__, "load_before": load, "seconds": perf_counter() - started}
            run["measured"] = {**run["measured"], name: figures}
    return run


def _check_same(recorded: Figures, here: Mapping[str, object]) -> None:
    if recorded.get("schema") != SCHEMA:
        raise ValueError(f"the recorded run has schema {recorded.get('schema')}, not {SCHEMA}: run all parts")
    for key in SAME_MACHINE:
        there = recorded["machine"][key]
        if there != here[key]:
            raise ValueError(f"the recorded run is another machine's: {key} is {there} there")
