"""Write the generated parts of docs/ (settings, facts, metrics, commands, figures, schemas), and envoy/.

A generated part stands between `<!-- begin NAME -->` and `<!-- end NAME -->` in a page that is
otherwise written by hand. With --check nothing is written and a stale page fails.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

import click
import msgspec
from pydantic import BaseModel
from pydantic_core import PydanticUndefined, to_jsonable_python
from ruamel.yaml import YAML
from semroute_bench import report as bench_report

from semroute_extproc import cli
from semroute_extproc.cli import envoy_file
from semroute_extproc.config import source
from semroute_extproc.config.models import Config
from semroute_extproc.encoder import bundle
from semroute_extproc.policy.rules import REQUEST_FACTS, SIGNAL_FACTS, WORK_FACTS
from semroute_extproc.request import reasoning
from semroute_extproc.request.apis import TEXT_APIS
from semroute_extproc.request.paths import PATHS
from semroute_extproc.request.view import Api
from semroute_extproc.settings import controllers, policies, pools, process
from semroute_extproc.settings.text import Envelopes
from semroute_extproc.strategies.registry import IDEAS
from semroute_extproc.telemetry.prom import PrometheusSink

DOCS = Path(__file__).resolve().parent.parent / "docs"
COLUMNS = DOCS.parent / "semroute_extproc" / "telemetry" / "columns.toml"
CHART_VALUES = Path(__file__).with_name("chart_values.yaml")
SIZING = {"n": 0.4, "c": 0.4, "m": 0.2, "u": 0.7, "in": 128, "out": 200, "d": 0.04, "g": 2.50}
SIZING_DATE = "2026-11-30"
"""The assumptions of docs/scale.md#sizing by symbol, and the date of its prices."""
_A = {"decision": "a decision", "outcome": "an outcome", "usage": "an answer's usage"}


def settings() -> str:
    """One table a section of the configuration."""
    sections: list[tuple[str, type[BaseModel]]] = [
        ("server", process.Server),
        ("encoder", process.Encoder),
        ("encoder.remote", process.RemoteEncoding),
        ("admin", process.Admin),
        ("telemetry", process.Telemetry),
        ("telemetry.decision_log", process.DecisionLog),
        ("accounting", process.Accounting),
        ("text.envelopes", Envelopes),
        ("pools.NAME", pools.Pool),
        ("pools.NAME.price", pools.Price),
        ("models.NAME", pools.VirtualModel),
        ("reasoning_families.NAME", pools.ReasoningFamily),
        ("policies.NAME", policies.Policy),
        ("policies.NAME.rules[]", policies.Rule),
        ("policies.NAME.otherwise", policies.Target),
        ("reasoning of a rule or target", policies.Reasoning),
        ("reasoning.bands[]", policies.Band),
        *(
            (f"strategies.NAME (kind: {get_args(idea.model_fields['kind'].annotation)[0]})", idea)
            for idea in IDEAS
        ),
        ("controllers", controllers.Controllers),
        ("controllers.load", controllers.LoadController),
        ("controllers.load.ramps.MEASURE", controllers.Ramp),
        ("controllers.budgets.STRATEGY", controllers.Budget),
        ("controllers.limits", controllers.Limits),
        ("controllers.limits.tenants.NAME and controllers.limits.strategies.STRATEGY", controllers.Limit),
        ("controllers.store", controllers.SharedStore),
        ("controllers.failover", controllers.Failover),
        ("controllers.session", controllers.SessionController),
    ]
    return "\n".join(part for title, model in sections for part in _section(title, model))


def _section(title: str, model: type[BaseModel]) -> Iterator[str]:
    yield f"### `{title}`\n"
    yield f"{(model.__doc__ or '').strip().splitlines()[0]}\n"
    yield "| setting | default | meaning |\n|---|---|---|"
    for name, field in model.model_fields.items():
        if name == "kind":
            continue
        default = (
            "required"
            if field.default is PydanticUndefined and not field.default_factory
            else _default(field)
        )
        meaning = (field.description or _one_line(field.annotation)).replace("|", "\\|")
        yield f"| `{name}` | {default} | {meaning} |"
    yield ""


def _default(field: Any) -> str:
    value = field.get_default(call_default_factory=True)
    if value is None:
        return "none"
    if isinstance(value, tuple):
        return ", ".join(f"`{item}`" for item in value) or "none"
    if isinstance(value, dict):
        value = to_jsonable_python(value)
    return f"`{json.dumps(value) if not isinstance(value, str) else value}`"


def _one_line(annotation: Any) -> str:
    for candidate in (annotation, *get_args(annotation)):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return (candidate.__doc__ or "").strip().splitlines()[0]
    return ""


def facts() -> str:
    """What a rule's condition may name."""
    request = {**REQUEST_FACTS, "api": REQUEST_FACTS["api"].format(apis=", ".join(Api))}
    rows = [f"| `{name}` | request | {meaning} |" for name, meaning in request.items()]
    rows += [f"| `request.{name}` | request | {meaning} |" for name, meaning in WORK_FACTS.items()]
    rows += [f"| `{name}` | encoder | {meaning} |" for name, meaning in SIGNAL_FACTS.items()]
    return "\n".join(["| fact | from | meaning |", "|---|---|---|", *rows])


def families() -> str:
    """The reasoning families a pool may name, and what is written into a chat completion for each."""
    rows = ["| family | models | reasons by default | `off` | `high` |", "|---|---|---|---|---|"]
    for name, family in reasoning.FAMILIES.items():
        off, high = _written(name, "none"), _written(name, "high")
        rows.append(f"| `{name}` | {family.models} | {family.thinks} | {off} | {high} |")
    return "\n".join(rows)


def _written(family: str, effort: str) -> str:
    members = reasoning.switch(reasoning.FAMILIES[family], Api.CHAT_COMPLETIONS, effort)
    return ", ".join(f"`{'.'.join(path)}: {json.dumps(value)}`" for path, value in members.items()) or "–"


def labels() -> str:
    """The labels of the shipped bundle's heads."""
    manifest = bundle.read_manifest(bundle.default_bundle())
    assert manifest.task is not None
    heads = {"domain": manifest.domain.labels, "task": manifest.task.labels}
    rows = (f"| `{head}` | {', '.join(f'`{label}`' for label in known)} |" for head, known in heads.items())
    return "\n".join(["| fact | labels of the shipped bundle |", "|---|---|", *rows])


def metrics() -> str:
    """Every metric, its kind and its labels."""
    rows = ["| metric | kind | labels | meaning |", "|---|---|---|---|"]
    for collector in PrometheusSink().registry._collector_to_names:
        name, kind = collector._name, collector._type
        suffix = "_total" if kind == "counter" else ""
        labels = ", ".join(f"`{label}`" for label in collector._labelnames) or "–"
        rows.append(f"| `{name}{suffix}` | {kind} | {labels} | {collector._documentation} |")
    return "\n".join(rows)


def columns() -> str:
    """Every column of the decision log's records."""
    tables = []
    for kind, rows in msgspec.toml.decode(COLUMNS.read_bytes()).items():
        lines = [f"| `{name}` | {of} | {meaning} |" for name, (of, meaning) in rows.items()]
        tables.append(
            "\n".join([f"| column of a record of {_A[kind]} | type | meaning |", "|---|---|---|", *lines])
        )
    return "\n\n".join(tables)


def commands() -> str:
    """The help of every command."""
    parts: list[str] = []

    def add(command: click.Command, path: str, parent: click.Context | None) -> None:
        context = click.Context(
            command, info_name=path.rpartition(" ")[2], parent=parent, max_content_width=80
        )
        parts.append(f"## `{path}`\n\n```text\n{command.get_help(context).rstrip()}\n```\n")
        if isinstance(command, click.Group):
            for name in command.list_commands(context):
                child = command.get_command(context, name)
                assert child is not None
                add(child, f"{path} {name}", context)

    add(cli.main, "semroute", None)
    return "\n".join(parts)


def _result(name: str) -> dict[str, Any]:
    """A recorded run, from benchmarks/results."""
    report: dict[str, Any] = json.loads((DOCS.parent / f"benchmarks/results/{name}.json").read_text())
    return report


def bench_aims() -> str:
    """The aims, and the figures of the recorded run of `make bench`."""
    run = _result("bench")
    machine = run["machine"]
    instructions = ", ".join(machine["instructions"])
    lines = [
        f"{machine['cpu']} ({instructions}), {machine['cores']} cores; "
        f"Python {machine['python']}, ONNX Runtime {machine['onnxruntime']}, gRPC {machine['grpc']}; "
        f"medians of {run['rounds']} rounds, {run['tokens']} tokens.",
        "",
        "Load of the machine before each part: "
        + ", ".join(f"{part} {each['load_before']}" for part, each in run["measured"].items())
        + ".",
        "",
        "| what | aim | here | holds | |",
        "|---|---|---|---|---|",
    ]
    for aim in run["aims"]:
        value = "not measured" if aim["value"] is None else f"{aim['value']:,.2f}"
        holds = {None: "–", True: "yes", False: "**no**"}[aim["holds"]]
        lines.append(f"| {aim['what']} | {aim['aim']} | {value} | {holds} | {aim['note']} |")
    return "\n".join(lines)


def bench_costs() -> str:
    """CPU time by path, by length and by body of the recorded run."""
    run = _result("bench")
    names = {
        "bare": "session alone",
        "pipeline": "pipeline in process",
        "server x1": "server driven directly, one at a time",
        f"server x{2 * run['machine']['cores']}": "server driven directly, two per core at once",
        "floor": "do-nothing server, 16 at once",
        "named": "server, pool named: no encoder, 16 at once",
        "two workers named": "the same, two workers",
    }
    lines = ["| path | CPU ms |", "|---|---|"]
    lines += [f"| {said} | {run['medians'][f'{name} cpu ms']:.2f} |" for name, said in names.items()]
    lines += ["", "| tokens | read | session | pipeline | server |", "|---|---|---|---|---|"]
    for row in run["lengths"]:
        costs = " | ".join(f"{row[path]:.2f}" for path in ("bare", "pipeline", "server"))
        lines.append(f"| {row['tokens']} | {row['read']} | {costs} |")
    lines += ["", "| body | model | bytes | CPU ms | p50 ms |", "|---|---|---|---|---|"]
    lines += [
        f"| {row['body']} | {row['model']} | {row['bytes']:,} | {row['cpu ms']:.2f} | {row['p50 ms']:.2f} |"
        for row in run["bodies"]
    ]
    return "\n".join(lines)


def bench_spreads() -> str:
    """Each ratio that `--check` compares, and the standard deviation of its rounds."""
    run = _result("bench")
    rows = ((name, run["ratios"][name], run["spreads"][name]) for name in bench_report.WATCHED)
    return "\n".join(_markdown(("ratio", "median of the rounds", "their standard deviation"), rows))


def faults() -> str:
    """The last run of every fault."""
    lines = (DOCS.parent / "benchmarks/results/faults.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    names = {"fault": "fault", "requests": "requests", "lost": "lost", "undecided": "undecided"}
    names |= {"counted": "counted by Envoy", "recovery": "recovered after s", "p50": "p50 s", "p99": "p99 s"}
    table = _markdown(list(names.values()), [[str(row[key]) for key in names] for row in rows])
    return "\n".join([f"Run on {max(row['at'] for row in rows)}.", "", *table])


def soak() -> str:
    """The recorded run of `make soak`: its second row, where memory is warm, and every fifth after it."""
    lines = (DOCS.parent / "benchmarks/results/soak.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    minutes = rows[0]["seconds"] / len(rows) / 60
    names = ("requests", "lost", "undecided", "p50 ms", "p99 ms", "MiB", "descriptors")
    shown = [(number, row) for number, row in enumerate(rows, 1) if number == 2 or number % 5 == 0]
    table = [[f"{number * minutes:g}", *(str(row[name]) for name in names)] for number, row in shown]
    total = {name: sum(row[name] for row in rows) for name in names[:3]}
    said = f"{total['requests']:,} normal requests, {total['lost']} lost, {total['undecided']} undecided"
    head = f"Run on {rows[0]['at']}, {rows[0]['per second']:g} normal requests per second. In total: {said}."
    return "\n".join([head, "", *_markdown(["minute", *names], table)])


def shared_state() -> str:
    """The recorded run of tools/measure_state.py: wait and CPU with and without the shared store."""
    run = _result("state")
    machine = run["machine"]
    columns = ("shared", "wait p50 ms", "p99", "answer p50 ms", "p99", "CPU ms", "idle CPU %")
    rows = []
    for name, row in run["rows"].items():
        times = (f"{row[kind][cut]:.3f}" for kind in ("wait_ms", "answer_ms") for cut in ("p50", "p99"))
        rows.append((name, *times, f"{row['cpu_ms']:.2f}", f"{row['idle_percent']:.1f}"))
    said = (
        f"`python tools/measure_state.py`: {run['requests']:,} requests each, {run['at_once']} at once, "
        f"in turns; {machine['cpu']}, {machine['cores']} cores, load {machine['load_before']} before."
    )
    return "\n".join([said, "", *_markdown(columns, rows)])


def _markdown(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> list[str]:
    """A table; fractions with two digits, rates without."""
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for row in rows:
        cells = (
            f"{cell:,.{0 if cell >= 100 else 2}f}" if isinstance(cell, float) else str(cell) for cell in row
        )
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def strategy_costs() -> str:
    """The recorded run of semroute_bench.strategies."""
    report = _result("strategies")
    machine = report["machine"]
    rows = [f"| {name} | {row['p50']:.0f} | {row['p90']:.0f} |" for name, row in report["cpu_us"].items()]
    return "\n".join(
        [
            f"{machine['cpu']}, {machine['cores']} cores, load {machine['load_before']:g} before; Python "
            f"{machine['python']}; {report['dimensions']} dimensions, one BLAS thread, {report['rounds']} "
            "choices of each.",
            "",
            "| strategy | p50 µs of CPU | p90 |",
            "|---|---|---|",
            *rows,
        ]
    )


def shared_encoder() -> str:
    """The recorded run of semroute_bench.encoders."""
    run = _result("shared_encoder")
    machine, names = run["machine"], {"local": "in each sidecar", "triton": "Triton", "mlserver": "MLServer"}
    columns = ("encoder", "sidecars", "alone p50 ms", "p99", "busy per second", "p50 ms", "p99")
    columns += ("CPU ms per decision: sidecar", "server", "MiB: sidecars", "server")
    rows = []
    for row in run["arrangements"]:
        alone, busy = row.get("alone ms", {}), row["busy ms"]
        times = (alone.get("p50", "–"), alone.get("p99", "–"), row["a second"], busy["p50"], busy["p99"])
        costs = (row["cpu ms"], row["server cpu ms"], row["sidecar MiB"], row["server MiB"])
        rows.append((names[row["name"]], row["sidecars"], *times, *costs))
    where = f"{machine['cpu']}, {machine['cores']} cores, load {machine['load_before']:g} before; Python "
    where += f"{machine['python']}; {run['rounds']} rounds; busy: {run['at once']} requests at once in all."
    return "\n".join([where, "", *_markdown(columns, rows)])


def _measured_on(report: dict[str, Any]) -> str:
    """The rows and the bundle of an evaluation."""
    data, bundle = report["data"], report["bundle"]
    return f"{data['file']}, {data['rows']:,} rows; {bundle['name']} {bundle['revision']}."


def _short(value: float, digits: int = 3, sign: bool = False) -> str:
    """`.652` for .652, as in the papers."""
    return f"{value:{'+' if sign else ''}.{digits}f}".replace("0.", ".", 1).replace("-", "−")


def strategies_pair() -> str:
    """The recorded run of `semroute eval pair`: a row for each strategy, and its baselines."""
    report = _result("eval_pair")
    lines = [_measured_on(report), "", "| | strategy | APGR | CPT50 % | CPT80 % |", "|---|---|---|---|---|"]
    for row in report["routers"]:
        if "apgr" not in row:
            continue
        figure = row["apgr"]
        apgr = f"{_short(figure['value'])} [{_short(figure['low'])}, {_short(figure['high'])}]"
        kind = f"`{row['strategy']}`" if row["strategy"] else ""
        cpt = " | ".join(f"{row[name]['value']:.1f}" for name in ("cpt50", "cpt80"))
        name = "difficulty" if row["name"] == "ours" else row["name"]
        lines.append(f"| {name} | {kind} | {apgr} | {cpt} |")
    return "\n".join(lines)


def strategies_pool() -> str:
    """The recorded runs of `semroute eval pool`: gain in area over the best fixed mix."""
    reports = [_result(name) for name in ("eval_pool", "eval_pool_dollars")]
    found = [report["settings"]["random models"] for report in reports]
    heads = [
        f"{report['data']['file'].partition('.')[0]}, {len(report['models'])} models, "
        f"{report['trials']} trials"
        for report in reports
    ]
    lines = [f"| | strategy | {' | '.join(heads)} |", "|---|---|---|---|"]
    for index, row in enumerate(found[0]["routers"]):
        if "area_minus_zero" not in row:
            continue
        cells = []
        for setting in found:
            gap = setting["routers"][index]["area_minus_zero"]
            cells.append(f"{_short(gap['value'], 4, True)} ± {_short(gap['se'], 4)}, {gap['wins']}")
        kind = f"`{row['strategy']}`" if row["strategy"] else ""
        lines.append(f"| {row['name']} | {kind} | {' | '.join(cells)} |")
    return "\n".join(lines)


def load_simulation() -> str:
    """The recorded run of semroute_bench.load_simulation: the burst, with and without the controller."""
    report = _result("load_simulation")
    columns = ("p50_seconds", "p95_seconds", "p99_seconds", "quality", "strong_share", "return_seconds")
    rows = [
        "| during the burst | controller | p50 s | p95 s | p99 s | quality | strong share | back after s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for scenario in report["scenarios"]:
        for name in ("without", "with"):
            figures = scenario[name]["burst"]
            rate = f"{scenario['name']}, {scenario['burst']:g} requests per second"
            rows.append(f"| {rate} | {name} | " + " | ".join(f"{figures[key]:g}" for key in columns) + " |")
    return "\n".join(rows)


def bench_load() -> str:
    """Arrivals at fixed rates, and the path through Envoy."""
    run = _result("bench")
    over = run["open loop"]
    lines = [
        f"Saturation point {over['knee a second']:.0f} decisions per second, "
        f"deadline {over['deadline ms']:g} ms.",
        "",
        "| of saturation | sent | answered | decided | fallen back | p50 ms | p90 | p99 | p99.9 |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in over["rates"]:
        shares = " | ".join(f"{row[name]:.1%}" for name in ("answered", "decided", "fallen back"))
        times = " | ".join(f"{value:.1f}" for value in row["ms"].values())
        lines.append(f"| {row['share of knee']:g} | {row['sent']} | {shares} | {times} |")
    if "ms" in run["gateway"]:
        base = run["gateway"]["ms"]["Envoy alone"]["p50"]
        lines += [
            "",
            "| one at a time | p50 ms | p90 | p99 | p99.9 | p50 over Envoy alone |",
            "|---|---|---|---|---|---|",
        ]
        for name, row in run["gateway"]["ms"].items():
            added = f"{row['p50'] - base:+.2f}" if name.endswith("model") else ""
            lines.append(
                f"| {name} | " + " | ".join(f"{value:.2f}" for value in row.values()) + f" | {added} |"
            )
    return "\n".join(lines)


def paths() -> str:
    """Every known path, its API, and what its routed requests are routed by."""
    own = {name: f"`{name}`" for name in get_args(pools.ApiName)} | {Api.COUNT_TOKENS.value: "`messages`"}
    rows = ["| path | API | routed by |", "|---|---|---|"]
    for path, api in PATHS.items():
        facts = "text and facts" if api in TEXT_APIS else "rules without text, or a fixed pool"
        rows.append(f"| `{path}` | {own.get(api.value, '')} | {facts} |")
    return "\n".join(rows)


def alerts() -> str:
    """The alerts of the chart."""
    path = DOCS.parent / "charts" / "semroute" / "alerts.yaml"
    [group] = YAML(typ="safe", pure=True).load(path.read_text())["groups"]
    rows = [
        f"| `{rule['alert']}` | {rule['labels']['severity']} | {rule['annotations']['summary']} |"
        for rule in group["rules"]
    ]
    return "\n".join(["| alert | severity | what it says |", "|---|---|---|", *rows])


def fuzzing() -> str:
    """The recorded run of `make fuzz`."""
    run = _result("fuzz")
    rows = [
        (
            *(f"`{row['target']}`", row["seconds"], f"{row['executions']:,}"),
            *(f"{row['edges_at_start']:,}", f"{row['edges']:,}", len(row["crashes"])),
        )
        for row in run["targets"]
    ]
    columns = ("target", "seconds", "executions", "edges of the corpus", "edges at the end", "crashes")
    return "\n".join([f"atheris {run['atheris']}, Python {run['python']}.", "", *_markdown(columns, rows)])


def logs() -> str:
    """What a decision of a log costs each command, and a billion of them."""
    run = _result("logs")
    rows = [
        (
            each["operation"],
            *(f"{each['us']:,.0f}", f"{1e6 / each['us']:,.0f}"),
            *(f"{each['us'] / 3.6:,.0f}", f"{each['us'] / 3.6 / 64:,.1f}", each["mib"], each["few_mib"]),
        )
        for each in run["operations"]
    ]
    columns = (
        *("command", "µs per decision", "decisions per second and core", "core hours of a billion"),
        *("hours on 64 cores", "MiB at most", "of these with 600 decisions"),
    )
    log = f"{run['decisions']:,} decisions, {run['bytes'] / 1e6:,.0f} MB as JSON Lines"
    size = f"{run['parquet_bytes'] / 1e6:,.0f} MB as Parquet; `--memory {run['memory_mib']}`."
    return "\n".join([f"{log}, {size}", "", *_markdown(columns, rows)])


def sizing() -> str:
    """The figures of docs/scale.md#sizing, and what its formulas give at each rate of requests."""
    run, log, known = _result("bench"), _result("logs"), SIZING
    cpu, [length] = run["medians"], [row for row in run["lengths"] if row["tokens"] == known["in"]]
    remote = next(row for row in _result("shared_encoder")["arrangements"] if row["name"] == "triton")
    shared = _result("state")["rows"]
    demo = YAML(typ="safe", pure=True).load((DOCS.parent / "lab/semroute_demo/semroute.yaml").read_text())
    pair = demo["strategies"]["pair"]
    weak, strong = (
        (known["in"] * price["input"] + known["out"] * price["output"])
        for price in (demo["pools"][pair[end]]["price"] for end in ("weak", "strong"))
    )
    cached = cpu["named cpu ms"] + cpu["own cpu ms"] - cpu["own named cpu ms"]
    guess, day = f"assumed, {SIZING_DATE}", 86_400
    figures = {
        "P": (length["server"], f"ms of CPU for a new text of {known['in']} tokens", "measured"),
        "E": (length["bare"], "of these, the pass of the encoder", "measured"),
        "C": (cached, "ms of CPU for a cached text: N plus the policy in the process", "computed"),
        "N": (cpu["named cpu ms"], "ms of CPU for a named model", "measured"),
        "K": (
            remote["cpu ms"],
            "ms of the sidecar's CPU for a new text, if Triton runs the pass",
            "measured",
        ),
        "V": (
            shared["conversations as well"]["cpu_ms"] - shared["off"]["cpu_ms"],
            "additional ms for a request if replicas share conversations, limits and live scores",
            "measured",
        ),
        "G": ("–", "new texts per second of a GPU", "**not measured**"),
        "M": (max(run["growth"]["after MiB"]), "MiB of a worker", "measured"),
        "B": (log["bytes"] / log["decisions"], "bytes of a log record with prompt and embedding", "measured"),
        "n": (known["n"], "share of requests with a new text", "assumed"),
        "c": (known["c"], "share with a cached text", "assumed"),
        "m": (known["m"], "share that names a model", "assumed"),
        "u": (known["u"], "utilization of the cores", "assumed"),
        "d": (known["d"], "dollars per hour of a core", guess),
        "g": (known["g"], "dollars per hour of a GPU", guess),
        "s": (float(pair["strong_share"]), "share of the strong pool", "the demo's"),
        "L": (strong, f"dollars of 1,000,000 requests in the strong pool, {known['out']} tokens out", guess),
        "S": (weak, "the same in the weak pool", guess),
    }
    v = {name: value for name, (value, *_) in figures.items()}

    def cores(new: float) -> float:
        """Per request per second; a new text takes `new` ms of CPU."""
        return (v["n"] * new + v["c"] * v["C"] + v["m"] * v["N"]) / 1e3 / v["u"]

    whole, python = cores(v["P"]), cores(v["P"] - v["E"])
    cost, saved = whole * v["d"] / 3600, (1 - v["m"]) * (1 - v["s"]) * (v["L"] - v["S"]) / 1e6
    rows = []
    for rate in (10**power for power in range(1, 7)):
        workers = math.ceil(rate * python)
        sizes = (rate * whole, f"{workers:,}", workers * v["M"] / 1024, rate * cores(v["K"]))
        money = (rate * v["B"] * day / 1e9, rate * cost * day, f"{rate * saved * day:,.0f}")
        rows.append((f"{rate:,}", f"{rate * v['n']:,.0f}", *sizes, *money))
    columns = ("requests per second", "new texts per second", "cores", "workers", "memory GiB")
    columns += (
        "cores, passes elsewhere",
        "log: GB per day",
        "cores: dollars per day",
        "saved: dollars per day",
    )
    inputs = ((name, *figure) for name, figure in figures.items())
    break_even = v["g"] / v["d"] / (v["P"] - v["K"]) * 1e3
    said = f"A worker handles {1 / python:,.0f} requests per second of this mix. 1,000 requests cost "
    said += f"${1e3 * cost:.5f} for cores and save ${1e3 * saved:.2f}, {saved / cost:,.0f} times as much. "
    said += f"Above {break_even:,.0f} new texts per second, a GPU is cheaper than the cores that it replaces."
    first, second = (_markdown(*each) for each in ((("", "value", "what", "kind"), inputs), (columns, rows)))
    return "\n".join([*first, "", "This table is computed from these values:", "", *second, "", said])


PARTS: dict[str, Callable[[], str]] = {
    "settings": settings,
    "facts": facts,
    "families": families,
    "paths": paths,
    "labels": labels,
    "metrics": metrics,
    "alerts": alerts,
    "fuzzing": fuzzing,
    "columns": columns,
    "logs": logs,
    "sizing": sizing,
    "commands": commands,
    "strategy-costs": strategy_costs,
    "strategies-pair": strategies_pair,
    "strategies-pool": strategies_pool,
    "load-simulation": load_simulation,
    "faults": faults,
    "soak": soak,
    "shared-encoder": shared_encoder,
    "shared-state": shared_state,
    "bench aims": bench_aims,
    "bench costs": bench_costs,
    "bench load": bench_load,
    "bench spreads": bench_spreads,
}


def schema() -> str:
    """The configuration's JSON Schema."""
    document = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **Config.model_json_schema(),
    }
    return json.dumps(document, indent=2) + "\n"


def chart_schema() -> str:
    """The schema of the chart's values, which holds that of the configuration."""
    document = YAML(typ="safe", pure=True).load(CHART_VALUES.read_text())
    config = Config.model_json_schema()
    document["$defs"] |= {**config.pop("$defs"), "Config": config}
    return json.dumps(document, indent=1) + "\n"


def envoy_files() -> Iterator[tuple[Path, str]]:
    """The files of envoy/: those of the example configuration, within what the gateways can do."""
    example = Path(cli.__file__).with_name("example.yaml")
    limits = {
        f"SEMROUTE__SERVER__{name}": str(most)
        for name, most in envoy_file.ENVOY_HEADERS["envoy-gateway"].items()
    }
    gateway = {**limits, "SEMROUTE__CONTROLLERS__FAILOVER": "null"}
    services = {name: [f"vllm-{name}.models.svc.cluster.local:8000"] for name in ("small", "large")}
    for target, file in envoy_file.FILES.items():
        loaded = source.load(example, {} if target == "envoy" else gateway)
        text = envoy_file.render(loaded, target, services if target == "istio" else {})
        yield DOCS.parent / "envoy" / file, text


def pages() -> Iterator[tuple[Path, str]]:
    """Every file with a generated part, and what it should be."""
    yield DOCS / "semroute.schema.json", schema()
    yield DOCS.parent / "charts" / "semroute" / "values.schema.json", chart_schema()
    yield from envoy_files()
    for page in sorted(DOCS.glob("*.md")):
        text = page.read_text()
        for name, make in PARTS.items():
            begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
            if begin in text:
                block = f"{begin}\n{make()}\n{end}"
                text = re.sub(
                    re.escape(begin) + ".*?" + re.escape(end), lambda _, b=block: b, text, flags=re.S
                )
        yield page, text


def main() -> int:
    """Write the pages, or with --check name the stale ones and fail."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    stale = [(page, text) for page, text in pages() if not page.exists() or page.read_text() != text]
    for page, text in stale:
        if check:
            print(f"{page.relative_to(DOCS.parent)} is stale: run make docs")  # noqa: T201
        else:
            page.write_text(text)
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
