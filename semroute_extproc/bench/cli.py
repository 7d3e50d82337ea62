"""`semroute bench`."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from semroute_extproc.app import loop_factory
from semroute_extproc.bench import check as checking
from semroute_extproc.bench import direct, report
from semroute_extproc.bench.direct import Plan
from semroute_extproc.bench.run import QUICK, Size, everything, ratios

RESULT = "bench.json"

CHECK_PLAN = Plan(rounds=5, passes=24, streams=640)
"""Of `--check`: half a minute."""


@click.command()
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="Folder for JSON and plots.")
@click.option("--quick", is_flag=True, help="A minute or two: to see that it runs, not to report.")
@click.option(
    "--requests", type=click.IntRange(min=1_000), help="Requests of the memory test; default: 100,000."
)
@click.option(
    "--check",
    "recorded",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Compare CPU ratios of a short run with those in this JSON; exit status 1 on a clear loss.",
)
def bench(out: Path | None, quick: bool, requests: int | None, recorded: Path | None) -> None:
    """Measure what a decision costs on this machine.

    Compares the server with the bare ONNX Runtime session, with a do-nothing processor and, where
    the extra `demo` is installed, Envoy with it and Envoy alone; then loads it up to three times
    what it can do. Takes about ten minutes and wants the machine for itself.
    """
    console = Console(stderr=True, highlight=False)
    if recorded is not None:
        sys.exit(_check(json.loads(recorded.read_text()), console))
    size = QUICK if quick else Size()
    if requests is not None:
        size = Size(size.plan, size.passes_a_length, size.requests_a_body, size.seconds_a_rate,
                    size.gateway_requests, requests)  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="semroute-bench-") as folder:
        run = _run(everything(size, Path(folder), lambda line: console.print(line, style="dim")))
    shown = Console()
    for table in report.tables(run):
        shown.print(table)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / RESULT).write_text(json.dumps(report.as_json(run), indent=2) + "\n")
        try:
            from semroute_extproc.bench import plots

            plots.draw(run, out)
        except ImportError:
            console.print("no plots: matplotlib is missing")


def _check(recorded: dict[str, Any], console: Console) -> int:
    lanes = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory(prefix="semroute-bench-") as folder:
        samples, _ = _run(direct.rounds(CHECK_PLAN, Path(folder), lanes, full=False))
    now = ratios(samples, lanes)
    for name, limit in checking.limits(recorded["ratios"]).items():
        console.print(f"{name}: {checking.watched(now)[name]:.2f}, allowed {limit:.2f}")
    found = list(checking.losses(recorded["ratios"], now))
    for line in found:
        console.print(f"dearer than recorded: {line}", style="red")
    return 1 if found else 0


def _run(coroutine: Any) -> Any:
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        return runner.run(coroutine)
