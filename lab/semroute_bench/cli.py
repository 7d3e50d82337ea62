"""`semroute bench`."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import sys
import tempfile
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

import click
from rich.console import Console

from semroute_bench import check as checking
from semroute_bench import direct, machine, report
from semroute_bench.run import PARTS, measure
from semroute_bench.samples import CHECK, QUICK, Figures, Size
from semroute_extproc.encoder.cores import usable_cores
from semroute_extproc.serve.app import loop_factory

RESULT = "bench.json"

T = TypeVar("T")


@click.command()
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="Folder for JSON and plots.")
@click.option("--quick", is_flag=True, help="A minute or two: to see that it runs, not to report.")
@click.option(
    "--only",
    "parts",
    type=click.Choice(list(PARTS)),
    multiple=True,
    help="Measure this part alone and write it into the run that is recorded in --out; may be repeated.",
)
@click.option(
    "--requests", type=click.IntRange(min=1_000), help="Requests of the memory test; default: 100,000."
)
@click.option(
    "--check",
    "recorded",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Compare CPU ratios of a short run with those in this JSON; exit status 1 on a clear loss.",
)
def bench(
    out: Path | None, quick: bool, parts: tuple[str, ...], requests: int | None, recorded: Path | None
) -> None:
    """Measure what a decision costs on this machine.

    Compares the server with the bare ONNX Runtime session, with do-nothing processors and, where
    the extra `demo` is installed, Envoy with it and Envoy alone; then loads it up to three times
    what it can do. On a machine with a GPU it measures that too. Takes about eight minutes
    and wants the machine for itself.
    """
    console = Console(stderr=True, highlight=False)
    with tempfile.TemporaryDirectory(prefix="semroute-bench-") as name:
        folder = Path(name)
        try:
            if recorded is not None:
                sys.exit(_check(json.loads(recorded.read_text()), folder, console))
            size = QUICK if quick else Size()
            if requests is not None:
                size = dataclasses.replace(size, growth_requests=requests)
            before = _recorded(out) if parts else None
            run = _run(
                measure(
                    size,
                    folder,
                    lambda line: console.print(line, style="dim"),
                    parts or tuple(PARTS),
                    before,
                )
            )
        except ValueError as error:
            raise click.UsageError(str(error)) from None
    shown = Console()
    for table in report.tables(run):
        shown.print(table)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / RESULT).write_text(json.dumps(report.as_json(run), indent=2) + "\n")
        try:
            from semroute_bench import plots

            plots.draw(run, out)
        except ImportError:
            console.print("no plots: matplotlib is missing")


def _recorded(out: Path | None) -> Figures:
    """The run that parts are to join."""
    if out is None:
        raise click.UsageError("--only writes into a recorded run: say where it is with --out")
    try:
        run: Figures = json.loads((out / RESULT).read_text())
    except FileNotFoundError:
        raise click.UsageError(f"--only writes into a recorded run, and there is no {out / RESULT}") from None
    return run


def _check(recorded: Figures, folder: Path, console: Console) -> int:
    cores = usable_cores()
    samples, _ = _run(direct.rounds(CHECK, folder, cores, full=False))
    lines = checking.compare(recorded, direct.ratios(samples, cores), machine.describe())
    for line, lost in lines.items():
        prefix, style = ("more expensive than recorded: ", "red") if lost else ("", None)
        console.print(prefix + line, style=style)
    return int(any(lines.values()))


def _run(coroutine: Coroutine[Any, Any, T]) -> T:
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        return runner.run(coroutine)
