"""The aims and whether they hold, and the run as tables.

Pure. An aim is a ratio or a difference within the run; one that could not be measured here states why and
counts neither way.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Table

GPU_P99_MS, DECIDED_MIN = 10.0, 0.99  # a rate counts if its tail is short and nearly all was decided
SLACK_MS = 5.0  # the transport may add this to the deadline under overload

Run = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Aim:
    """One aim and its figure in a run."""

    what: str
    aim: str
    value: float | None  # None if it could not be measured
    holds: bool | None
    note: str = ""


def aims(run: Run) -> list[Aim]:
    """Every aim with its figure in this run."""
    return [*_costs(run), *_overload(run), *_process(run), *_elsewhere(run)]


def _at_most(what: str, limit: float, value: float | None, unit: str = "", note: str = "") -> Aim:
    return Aim(what, f"<= {limit:g}{unit}", value, None if value is None else value <= limit, note)


def _at_least(what: str, limit: float, value: float | None, note: str = "") -> Aim:
    return Aim(what, f">= {limit:,g}", value, None if value is None else value >= limit, note)


def _costs(run: Run) -> Iterator[Aim]:
    ratios = run["ratios"]
    yield _at_most(
        "CPU per decision at 64 tokens, server driven directly / session alone",
        1.15,
        ratios["server cpu / bare"],
        note=f"one at a time; {ratios['busy server cpu / bare']:.2f} with two per core; over the same pass "
        f"behind a do-nothing server {ratios['server cpu / passes']:.2f} and "
        f"{ratios['busy server cpu / passes']:.2f}",
    )
    added, note = None, "needs Envoy and aiohttp (extra demo)"
    if run["gateway"]:
        p50 = {name: row["p50"] for name, row in run["gateway"]["ms"].items()}
        added = p50["routed model"] - p50["Envoy alone"] - p50["bare session"]
        nothing = p50["do-nothing processor"] - p50["Envoy alone"]
        passes = p50["do-nothing processor with the pass"] - p50["Envoy alone"] - p50["bare session"]
        note = f"a do-nothing grpc.aio processor adds {nothing:.2f} ms, one that runs a pass {passes:.2f}"
    yield _at_most("added median latency through Envoy, minus session alone", 1.0, added, " ms", note)
    yield _at_least(
        "saturated decisions per second / session's on the same cores",
        0.85,
        ratios["server rate / bare"],
        f"over a do-nothing server with the same pass {ratios['server rate / passes']:.2f}",
    )
    yield _at_least(
        "streams per second without the encoder / do-nothing grpc.aio server",
        0.80,
        ratios["named rate / floor"],
        f"in CPU per stream {1 / ratios['named cpu / floor']:.2f}",
    )
    fp32 = ratios.get("int8 / fp32")
    yield _at_most(
        "session at 64 tokens, shipped bundle / float32", 0.45, fp32, note="" if fp32 else "no onnx"
    )
    yield _at_most("CPU per stream without the encoder, two workers / one", 1.1, ratios["two workers / one"])


def _overload(run: Run) -> Iterator[Aim]:
    over, deadline = run["open loop"]["rates"][-1], run["open loop"]["deadline ms"]
    yield _at_least("three times saturation: share answered", 1.0, over["answered"])
    yield _at_most(
        "three times saturation: p99 of the decision",
        deadline + SLACK_MS,
        over["ms"]["p99"],
        " ms",
        f"{over['decided']:.0%} decided, {over['fallen back']:.0%} fallen back",
    )
    after = run["open loop"]["after overload"]
    yield _at_least("half of saturation right after it: share decided", 0.99, after["decided"])


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
    """Aims that need a machine that is not always available."""
    rows = run["workers"].get("rows")
    value = rows[-1]["a second"] / rows[0]["a second"] if rows else None
    note = "a worker thread each" if rows else run["workers"]["left out"]
    yield _at_least("decisions per second, 8 workers / 1", 6, value, note)
    gpu = run["gpu"]
    best, single, note = None, None, f"needs an H200: {gpu.get('left out')}"
    if rows := gpu.get("rows"):
        note = gpu["device"]
        single = next(row["ms"]["p50"] for row in rows if row["workers"] == row["at once"] == 1)
        held = [row for row in rows if row["ms"]["p99"] <= GPU_P99_MS and row["decided"] >= DECIDED_MIN]
        fastest = max(held, key=lambda row: row["a second"], default=None)
        best = fastest["a second"] if fastest else 0.0
        if fastest:
            note += f", {fastest['workers']} workers, {fastest['at once']} at once"
    yield _at_least(f"GPU: decisions per second at p99 <= {GPU_P99_MS:g} ms", 10_000, best, note)
    yield _at_most("GPU: single decision p50", 3.0, single, " ms", note if single is None else gpu["device"])


def as_json(run: Run) -> dict[str, Any]:
    """The run with its aims, as it is written to the file."""
    return {**run, "aims": [asdict(aim) for aim in aims(run)]}


def tables(run: Run) -> Iterator[Table]:
    """The run for people."""
    marks = {None: "", True: "yes", False: "NO"}
    found = ((a.what, a.aim, "" if a.value is None else a.value, marks[a.holds], a.note) for a in aims(run))
    yield table_of("Aims", ("", "aim", "here", "holds", ""), found)
    medians = ((name.replace("a second", "per second"), value) for name, value in run["medians"].items())
    yield table_of("At 64 tokens, medians", ("", ""), medians)
    over, gateway = run["open loop"], run["gateway"] or {"ms": {}}
    saturation = f"saturation {over['knee a second']:.0f}/s, deadline {over['deadline ms']:g} ms"
    shown = ("sent", "answered", "decided", "fallen back", "ms")
    arrivals = [
        {"of saturation": row["share of knee"], **{key: row[key] for key in shown}} for row in over["rates"]
    ]
    for title, rows in (
        ("CPU ms by length", run["lengths"]),
        ("Server by body", run["bodies"]),
        ("GPU", run["gpu"].get("rows")),
        ("Workers", run["workers"].get("rows")),
        (f"Open loop, {saturation}", arrivals),
        ("Through Envoy, one at a time, ms", [{"path": name} | row for name, row in gateway["ms"].items()]),
    ):
        if rows:
            flat = [{**row, **row.get("ms", {})} for row in rows]
            columns = [name for name in flat[0] if name != "ms"]
            yield table_of(title, columns, ([row[name] for name in columns] for row in flat))


def table_of(title: str, columns: Sequence[str], rows: Iterable[Iterable[Any]]) -> Table:
    """A table with two digits after the point."""
    table = Table(*(name.replace("a second", "per second") for name in columns), title=title)
    table.title_justify = "left"
    for row in rows:
        table.add_row(*(f"{cell:.2f}" if isinstance(cell, float) else str(cell) for cell in row))
    return table
