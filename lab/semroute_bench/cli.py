"""`semroute bench`: one run, in parts that can also be measured alone."""

import asyncio
import json
import sys
import tempfile
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from time import perf_counter
from typing import TextIO

import click
import uvloop
from rich.console import Console
from semroute_demo.process import ProcessError

from semroute_bench import direct, gpu, measuring, report, traffic
from semroute_bench.measuring import CHECK, QUICK, Figures, Size
from semroute_extproc import __version__
from semroute_extproc.io.cores import usable_cores

SCHEMA = 6
RESULT = "bench.json"
ONLY = "Measure only this part and update the run recorded in --out; repeatable."
AGAINST = "Compare the CPU ratios of a short run with this file; exit status 1 if they are clearly worse."


async def _gateway(size: Size, folder: Path) -> Figures:
    from semroute_bench import gateway  # needs the extra demo

    return await gateway.measure(size, folder)


PARTS: Mapping[str, Callable[[Size, Path], Awaitable[Figures]]] = {
    "costs": direct.costs,
    "lengths": direct.lengths,
    "bodies": direct.bodies,
    "load": traffic.rates,
    "gateway": _gateway,
    "growth": traffic.growth,
    "gpu": gpu.measure,
}
"""Every part, in the order of measurement."""

OPTIONAL = ("gateway", "gpu")  # parts that are left out where something is missing


@click.command()
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help=f"Folder for {RESULT}.")
@click.option("--quick", is_flag=True, help="Run for one or two minutes; the figures are less accurate.")
@click.option("--only", type=click.Choice(list(PARTS)), multiple=True, help=ONLY)
@click.option("--check", "recorded", type=click.File(), metavar="FILE", help=AGAINST)
def bench(out: Path | None, quick: bool, only: Sequence[str], recorded: TextIO | None) -> None:
    """Measure what a decision costs on this machine.

    Compares the server with the bare ONNX Runtime session and with do-nothing processors. With the
    extra `demo`, also compares Envoy with and without the server. Then loads the server up to three
    times its saturation point. Measures the GPU if there is one. Takes about eight minutes; run it
    on a machine without other load.
    """
    console, size = Console(stderr=True, highlight=False), QUICK if quick else Size()
    with (
        tempfile.TemporaryDirectory(prefix="semroute-bench-") as folder,
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        try:
            if recorded is not None:
                sys.exit(runner.run(_check(json.load(recorded), Path(folder), console)))
            run = _recorded(out) if only else {"measured": {}, "machine": measuring.describe()}
            runner.run(_measure(run, size, Path(folder), console, only or tuple(PARTS)))
        except ValueError as error:
            raise click.UsageError(str(error)) from None
    Console().print(*report.tables(run), sep="\n")
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / RESULT).write_text(json.dumps({**run, "aims": list(report.aims(run))}, indent=2) + "\n")


async def _measure(run: Figures, size: Size, folder: Path, console: Console, parts: Sequence[str]) -> None:
    """Measure `parts` on this machine, into `run`; `measured` states the circumstances of each."""
    run |= {"schema": SCHEMA, "version": __version__}
    for name in PARTS:
        if name in parts:
            console.print(f"measuring {name}", style="dim")
            load, started = measuring.describe()["load_before"], perf_counter()
            try:
                run |= await PARTS[name](size, folder)
            except (ModuleNotFoundError, ProcessError) as error:
                if name not in OPTIONAL:
                    raise
                run[name] = {"left out": str(error).splitlines()[-1]}
                console.print(f"{name} is not measured: {error}")
            figures = {"version": __version__, "load_before": load, "seconds": perf_counter() - started}
            run["measured"][name] = figures


def _recorded(out: Path | None) -> Figures:
    """The recorded run to update; ValueError if it has another machine or schema."""
    if out is None:
        raise ValueError("--only writes into a recorded run: say where it is with --out")
    try:
        run: Figures = json.loads((out / RESULT).read_text())
    except FileNotFoundError:
        raise ValueError(f"--only updates a recorded run, but there is no {out / RESULT}") from None
    if run.get("schema") != SCHEMA:
        raise ValueError(f"the recorded run has schema {run.get('schema')}, not {SCHEMA}: run all parts")
    for key in ("cpu", "instructions", "cores"):
        if (there := run["machine"][key]) != measuring.describe()[key]:
            raise ValueError(f"the recorded run is from another machine: its {key} is {there}")
    return run


async def _check(recorded: Figures, folder: Path, console: Console) -> int:
    """The exit status."""
    cores = usable_cores()
    samples, _ = await direct.rounds(CHECK, folder, cores)
    lines = report.compare(recorded, direct.ratios(samples, cores), measuring.describe())
    for line, lost in lines.items():
        console.print(f"more expensive than recorded: {line}" if lost else line, style="red" * lost)
    return int(any(lines.values()))
