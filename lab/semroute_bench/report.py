"""The aims and whether they hold, a comparison with recorded ratios, and the run as tables. Pure."""

import statistics
from collections.abc import Iterable, Iterator, Mapping
from math import sqrt
from typing import Any

from rich.table import Table

SLACK_MS = 5.0  # the transport may add this to the deadline under overload

Run = Mapping[str, Any]

ANYWHERE = ("own cpu / yardstick", "own named cpu / yardstick")
"""Ratios that are compared on every machine: a decision in this process, with signals from the cache or
without any, over fixed work in Python."""

WATCHED = (*ANYWHERE, "server cpu / bare", "busy server cpu / bare", "pipeline cpu / bare")
"""Ratios that are compared on a machine like the recorded one: next to a faster pass, for example with
VNNI, the same decision would seem more expensive. More is worse in all of them."""

ERRORS = 3.0  # standard errors that count as noise: about one check in two hundred exceeds them
MEDIAN_ERROR = 1.2533  # standard error of a median over a mean's, sqrt(pi / 2), of a normal distribution
DRIFT_SHARE = 0.05  # share of the ratio by which two runs of the same code also differ: neighbors, placement
OTHER_MACHINE_SHARE = 0.25  # the same between two machines: their caches and their kernels


def aims(run: Run) -> Iterator[dict[str, Any]]:
    """Every aim and its figure; one without a `value` was not measured here, and its `note` states why."""

    def aim(what: str, sign: str, limit: float, value: float | None, unit: str = "", note: str = "") -> Any:
        holds = None if value is None else value <= limit if sign == "<=" else value >= limit
        return {"what": what, "aim": f"{sign} {limit:,g}{unit}", "value": value, "holds": holds, "note": note}

    ratios, growth, gpu = run["ratios"], run["growth"], run["gpu"]
    note = f"one at a time; {ratios['busy server cpu / bare']:.2f} with two per core; over the same pass "
    pair = f"{ratios['server cpu / passes']:.2f} and {ratios['busy server cpu / passes']:.2f}"
    note += f"behind a do-nothing server {pair}"
    what = "CPU per decision at 64 tokens, server driven directly / session alone"
    yield aim(what, "<=", 1.15, ratios["server cpu / bare"], note=note)
    added, note = None, run["gateway"].get("left out", "")
    if not note:
        p50 = {name: row["p50"] for name, row in run["gateway"]["ms"].items()}
        alone, with_pass = p50["Envoy alone"], p50["Envoy alone"] + p50["bare session"]
        nothing, passes = p50["do-nothing processor"], p50["do-nothing processor with the pass"]
        added = p50["routed model"] - with_pass
        adds = f"adds {nothing - alone:.2f} ms, one that runs a pass {passes - with_pass:.2f}"
        note = f"a do-nothing grpc.aio processor {adds}"
    yield aim("added median latency through Envoy, minus session alone", "<=", 1.0, added, " ms", note)
    what = "saturated decisions per second / session's on the same cores"
    note = f"over a do-nothing server with the same pass {ratios['server rate / passes']:.2f}"
    yield aim(what, ">=", 0.85, ratios["server rate / bare"], note=note)
    what = "streams per second without the encoder / do-nothing grpc.aio server"
    note = f"in CPU per stream {1 / ratios['named cpu / floor']:.2f}"
    yield aim(what, ">=", 0.8, ratios["named rate / floor"], note=note)
    what = "CPU per stream without the encoder, two workers / one"
    yield aim(what, "<=", 1.1, ratios["two workers / one"])
    over, limit = run["open loop"]["rates"][-1], run["open loop"]["deadline ms"] + SLACK_MS
    yield aim("three times saturation: share answered", ">=", 1.0, over["answered"])
    note = f"{over['decided']:.0%} decided, {over['fallen back']:.0%} fallen back"
    yield aim("three times saturation: p99 of the decision", "<=", limit, over["ms"]["p99"], " ms", note)
    decided = run["open loop"]["after overload"]["decided"]
    yield aim("half of saturation right after it: share decided", ">=", 0.99, decided)
    yield aim("start to SERVING", "<=", 2.0, run["start seconds"], " s")
    yield aim("resident memory of a worker", "<=", 300, max(growth["after MiB"]), " MiB")
    grown = max(after - warm for warm, after in zip(growth["warm MiB"], growth["after MiB"], strict=True))
    note = f"over {growth['requests']:,} requests, workers: {growth['workers']}"
    yield aim("growth after warm-up", "<=", 1.0, grown, " MiB", note)
    rate, times, note = gpu.get("a second"), gpu.get("ms", {}), gpu.get("left out", "")
    note = note or f"{gpu['at once']} at once, {gpu['decided']:.0%} decided, p50 {times['p50']:.2f} ms"
    yield aim("GPU: decisions per second", ">=", 10_000, rate, note=note)
    yield aim("GPU: p99 of a decision", "<=", 10.0, times.get("p99"), " ms", note)


def compare(recorded: Run, now: Mapping[str, list[float]], here: Run) -> dict[str, bool]:
    """One line per ratio, and whether its median on the machine `here` is clearly above the recorded one.

    "Clearly" means by three standard errors of the difference of the two medians, each from its own
    run's spread, plus a small share for differences between runs. ValueError if `recorded` has no spreads.
    """
    if "spreads" not in recorded:
        raise ValueError("the recorded run has no spreads of its rounds: record it again with semroute bench")
    same_machine = all(recorded["machine"][key] == here[key] for key in ("cpu", "instructions"))
    lines = {}
    for name in WATCHED if same_machine else ANYWHERE:
        value, there, own = recorded["ratios"][name], recorded["spreads"][name], statistics.stdev(now[name])
        error = MEDIAN_ERROR * sqrt(there**2 / recorded["rounds"] + own**2 / len(now[name]))
        drift = DRIFT_SHARE if same_machine else OTHER_MACHINE_SHARE
        limit, median = value * (1 + drift) + ERRORS * error, statistics.median(now[name])
        lines[f"{name}: {median:.2f}, recorded {value:.2f}, allowed {limit:.2f}"] = median > limit
    return lines


def tables(run: Run) -> Iterator[Table]:
    """The run for people."""
    over = run["open loop"]
    saturation = f"saturation {over['knee a second']:.0f}/s, deadline {over['deadline ms']:g} ms"
    paths = run["gateway"].get("ms", {}).items()
    yield _table("Aims", aims(run))
    yield _table("At 64 tokens", [{"path": name, "median": value} for name, value in run["medians"].items()])
    yield _table("CPU ms by length", run["lengths"])
    yield _table("Server by body", run["bodies"])
    yield _table(f"Open loop, {saturation}", over["rates"])
    yield _table("Through Envoy, one at a time, ms", [{"path": name, **times} for name, times in paths])


def device_tables(run: Run) -> Iterator[Table]:
    """The figures of `semroute_bench.gpu` for people."""
    yield _table(f"Signals of {run['provider']} against the CPU's", [run["agreement"]])
    yield _table("Passes by shape, ms", run["passes"])
    yield _table("Decisions by requests under way, ms", run["rates"])


def _table(title: str, rows: Iterable[Run]) -> Table:
    table = Table(title=title, title_justify="left")
    for number, row in enumerate(rows):
        cells = {key: cell for key, cell in {**row, **row.get("ms", {})}.items() if key != "ms"}
        for key in () if number else cells:
            table.add_column(key.replace("a second", "per second"))
        table.add_row(*map(_shown, cells.values()))
    return table


def _shown(cell: Any) -> str:
    if cell is None or isinstance(cell, bool):
        return {None: "", True: "yes", False: "NO"}[cell]
    return f"{cell:.2f}" if isinstance(cell, float) else str(cell)
