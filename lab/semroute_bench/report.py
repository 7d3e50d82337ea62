"""What a run says: the aims and whether they hold, and the run as tables.

Pure but for the tables' width. An aim is a ratio or a difference within the run; one that could not
be measured here says so and counts neither way.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Table

from semroute_bench.direct import BUSY

GPU_P99_MS = 10.0
DECIDED_MIN = 0.99
"""A rate counts where the tail is this short and nearly everything was decided."""

SLACK_MS = 5.0
"""What the transport may add to the deadline under overload."""

Run = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Aim:
    """One row of what is aimed at."""

    what: str
    aim: str
    value: float | None
    """None where it could not be measured."""
    holds: bool | None
    note: str = ""


def aims(run: Run) -> list[Aim]:
    """Every aim with its figure in this run."""
    return [*_costs(run), *_open(run), *_process(run), *_elsewhere(run)]


def _at_most(what: str, limit: float, value: float | None, unit: str = "", note: str = "") -> Aim:
    return Aim(what, f"<= {limit:g}{unit}", value, None if value is None else value <= limit, note)


def _at_least(what: str, limit: float, value: float | None, note: str = "") -> Aim:
    return Aim(what, f">= {limit:,g}", value, None if value is None else value >= limit, note)


def _costs(run: Run) -> Iterator[Aim]:
    ratios = run["ratios"]
    yield _at_most(
        "CPU a decision at 64 tokens, server driven directly / session alone",
        1.15,
        ratios["server cpu / bare"],
        note=f"one at a time; {ratios['busy server cpu / bare']:.2f} with two a core; over the same pass "
        f"behind a do-nothing server {ratios['server cpu / passes']:.2f} and "
        f"{ratios['busy server cpu / passes']:.2f}",
    )
    envoy = run["gateway"]
    added = None
    if envoy:
        p50 = {name: row["p50"] for name, row in envoy["ms"].items()}
        added = p50["routed model"] - p50["Envoy alone"] - p50["bare session"]
        nothing = p50["do-nothing processor"] - p50["Envoy alone"]
        reading = p50["do-nothing processor with the pass"] - p50["Envoy alone"] - p50["bare session"]
        note = f"a do-nothing grpc.aio processor adds {nothing:.2f} ms, one that runs a pass {reading:.2f}"
    else:
        note = "needs Envoy and aiohttp (extra demo)"
    yield _at_most("added median latency through Envoy, minus session alone", 1.0, added, " ms", note)
    yield _at_least(
        "saturated decisions a second / session's on the same cores",
        0.85,
        ratios["server rate / bare"],
        f"over a do-nothing server with the same pass {ratios['server rate / passes']:.2f}",
    )
    yield _at_least(
        "streams a second without the encoder / do-nothing grpc.aio server",
        0.80,
        ratios["named rate / floor"],
        f"in CPU a stream {1 / ratios['named cpu / floor']:.2f}",
    )
    fp32 = ratios.get("int8 / fp32")
    yield _at_most(
        "session at 64 tokens, shipped bundle / float32", 0.45, fp32, note="" if fp32 else "no onnx"
    )
    yield _at_most("CPU a stream without the encoder, two workers / one", 1.1, ratios["two workers / one"])


def _open(run: Run) -> Iterator[Aim]:
    over = run["open loop"]["rates"][-1]
    deadline = run["open loop"]["deadline ms"]
    yield _at_least("three times the knee: share answered", 1.0, over["answered"])
    yield _at_most(
        "three times the knee: p99 of the decision",
        deadline + SLACK_MS,
        over["ms"]["p99"],
        " ms",
        f"{over['decided']:.0%} decided, {over['fallen back']:.0%} fallen back",
    )
    after = run["open loop"]["after overload"]
    yield _at_least("half the knee right after it: share decided", 0.99, after["decided"])


def _process(run: Run) -> Iterator[Aim]:
    yield _at_most("start to SERVING", 2.0, run["start seconds"], " s")
    growth = run["growth"]
    yield _at_most("resident memory of a worker", 300, max(growth["after MiB"]), " MiB")
    yield _at_most(
        "growth after warm-up",
        1.0,
        max(after - warm for warm, after in zip(growth["warm MiB"], growth["after MiB"], strict=True)),
        " MiB",
        f"over {growth['requests']:,} requests, workers: {growth['workers']}",
    )


def _elsewhere(run: Run) -> Iterator[Aim]:
    """What needs a machine that is not always at hand."""
    rows = run["workers"].get("rows")
    value = rows[-1]["a second"] / rows[0]["a second"] if rows else None
    note = "a lane each" if rows else run["workers"]["left out"]
    yield _at_least("decisions a second, 8 workers / 1", 6, value, note)
    yield from _gpu(run["gpu"])


def _gpu(gpu: Mapping[str, Any]) -> Iterator[Aim]:
    rows, best, single, note = gpu.get("rows"), None, None, f"needs an H200: {gpu.get('left out')}"
    if rows:
        note = gpu["device"]
        single = next(row["ms"]["p50"] for row in rows if row["workers"] == row["at once"] == 1)
        held = [row for row in rows if row["ms"]["p99"] <= GPU_P99_MS and row["decided"] >= DECIDED_MIN]
        fastest = max(held, key=lambda row: row["a second"], default=None)
        best = fastest["a second"] if fastest else 0.0
        if fastest:
            note += f", {fastest['workers']} workers, {fastest['at once']} at once"
    yield _at_least(f"GPU: decisions a second at p99 <= {GPU_P99_MS:g} ms", 10_000, best, note)
    yield _at_most("GPU: single decision p50", 3.0, single, " ms", note if single is None else gpu["device"])


def as_json(run: Run) -> dict[str, Any]:
    """The run with its aims, as it is written to the file."""
    return {**run, "aims": [asdict(aim) for aim in aims(run)]}


def tables(run: Run) -> Iterator[Table]:
    """The run for people."""
    table = Table(title="Aims", title_justify="left")
    for column in ("", "aim", "here", "holds", ""):
        table.add_column(column, overflow="fold")
    for aim in aims(run):
        value = "" if aim.value is None else f"{aim.value:.2f}"
        holds = "" if aim.holds is None else "yes" if aim.holds else "NO"
        table.add_row(aim.what, aim.aim, value, holds, aim.note)
    yield table
    yield _table("CPU ms at 64 tokens, medians", ("", "ms"), run["medians"].items())
    rows = ((r["tokens"], r["read"], r["bare"], r["pipeline"], r["server"]) for r in run["lengths"])
    yield _table("CPU ms by length", ("tokens", "read", "session", "pipeline", "server"), rows)
    bodies = ((r["body"], r["model"], r["cpu ms"], r["p50 ms"]) for r in run["bodies"])
    yield _table("Server by body", ("body", "model", "CPU ms", "p50 ms"), bodies)
    yield _table(
        "A stream to servers that do nothing", FLOOR_COLUMNS, map(floor_row, run["floors"]["servers"])
    )
    for title, part in (("GPU", run["gpu"]), ("Workers", run["workers"])):
        if part.get("rows"):
            yield _table(title, SCALING_COLUMNS, map(scaling_row, part["rows"]))
    yield _table(
        f"Open loop, knee {run['open loop']['knee a second']:.0f}/s, deadline "
        f"{run['open loop']['deadline ms']:g} ms",
        ("of knee", "sent", "answered", "decided", "fallen back", "p50 ms", "p90", "p99", "p99.9"),
        (
            (r["share of knee"], r["sent"], r["answered"], r["decided"], r["fallen back"], *r["ms"].values())
            for r in run["open loop"]["rates"]
        ),
    )
    if run["gateway"]:
        paths = ((name, *row.values()) for name, row in run["gateway"]["ms"].items())
        yield _table("Through Envoy, one at a time", ("path", "p50 ms", "p90", "p99", "p99.9"), paths)


TEXT_COLUMNS = ("", "path", "body", "model", "server")
FLOOR_COLUMNS = ("server", f"CPU ms, {BUSY} at once", "a second", "CPU ms, one at a time", "a second")
SCALING_COLUMNS = ("workers", "at once", "a second", "decided", "p50 ms", "p90", "p99", "p99.9")


def floor_row(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """A do-nothing server's cells, in the order of `FLOOR_COLUMNS`."""
    return (row["server"], *(row[f"x{n} {what}"] for n in (BUSY, 1) for what in ("cpu ms", "a second")))


def scaling_row(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """A row of workers and requests at once, in the order of `SCALING_COLUMNS`."""
    return (row["workers"], row["at once"], row["a second"], row["decided"], *row["ms"].values())


def _table(title: str, columns: tuple[str, ...], rows: Any) -> Table:
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, justify="left" if column in TEXT_COLUMNS else "right")
    for row in rows:
        table.add_row(*(f"{cell:.2f}" if isinstance(cell, float) else str(cell) for cell in row))
    return table
