"""Write the generated parts of docs/: settings, facts, reasoning families, metrics, commands, schema.

A generated part stands between `<!-- begin NAME -->` and `<!-- end NAME -->` in a page that is
otherwise written by hand. With --check nothing is written and a stale page fails.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import click
from pydantic import BaseModel
from pydantic_core import PydanticUndefined, to_jsonable_python

from semroute_extproc import cli, config, reasoning
from semroute_extproc.policy.rules import REQUEST_FACTS, SIGNAL_FACTS
from semroute_extproc.telemetry.prom import PrometheusSink

DOCS = Path(__file__).resolve().parent.parent / "docs"


def settings() -> str:
    """One table a section of the configuration."""
    sections: list[tuple[str, type[BaseModel]]] = [
        ("server", config.Server),
        ("encoder", config.Encoder),
        ("admin", config.Admin),
        ("telemetry", config.Telemetry),
        ("pools.NAME", config.Pool),
        ("pools.NAME.price", config.Price),
        ("models.NAME", config.VirtualModel),
        ("policies.NAME", config.Policy),
        ("policies.NAME.rules[]", config.Rule),
        ("policies.NAME.otherwise", config.Target),
        ("reasoning of a rule or target", config.Reasoning),
        ("reasoning.bands[]", config.Band),
        ("strategies.NAME (kind: threshold)", config.ThresholdStrategy),
        ("strategies.NAME (kind: similarity)", config.SimilarityStrategy),
        ("strategies.NAME (kind: factorization)", config.FactorizationStrategy),
        ("strategies.NAME (kind: judge)", config.JudgeStrategy),
        ("strategies.NAME (kind: clusters)", config.ClustersStrategy),
        ("strategies.NAME (kind: intent)", config.IntentStrategy),
        ("strategies.NAME (kind: fixed)", config.FixedStrategy),
        ("strategies.NAME (kind: weighted)", config.WeightedStrategy),
        ("controllers", config.Controllers),
        ("controllers.load", config.LoadController),
        ("controllers.load.ramps.MEASURE", config.Ramp),
        ("controllers.budgets.STRATEGY", config.Budget),
        ("controllers.session", config.SessionController),
        ("controllers.session.remote", config.RemoteSessions),
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
    rows = [f"| `{name}` | request | {meaning} |" for name, (meaning, _) in REQUEST_FACTS.items()]
    rows += [f"| `{name}` | encoder | {meaning} |" for name, (meaning, _) in SIGNAL_FACTS.items()]
    return "\n".join(["| fact | from | meaning |", "|---|---|---|", *rows])


def families() -> str:
    """The reasoning families a pool may name."""
    return "\n".join(["| family |", "|---|", *(f"| `{family}` |" for family in reasoning.FAMILIES)])


def metrics() -> str:
    """Every metric, its kind and its labels."""
    rows = ["| metric | kind | labels | meaning |", "|---|---|---|---|"]
    for collector in PrometheusSink().registry._collector_to_names:
        name, kind = collector._name, collector._type
        suffix = "_total" if kind == "counter" else ""
        labels = ", ".join(f"`{label}`" for label in collector._labelnames) or "–"
        rows.append(f"| `{name}{suffix}` | {kind} | {labels} | {collector._documentation} |")
    return "\n".join(rows)


def commands() -> str:
    """The help of every command."""
    parts: list[str] = []

    def add(command: click.Command, path: str, parent: click.Context | None) -> None:
        context = click.Context(
            command, info_name=path.rpartition(" ")[2], parent=parent, max_content_width=100
        )
        parts.append(f"## `{path}`\n\n```text\n{command.get_help(context).rstrip()}\n```\n")
        if isinstance(command, click.Group):
            for name in command.list_commands(context):
                child = command.get_command(context, name)
                assert child is not None
                add(child, f"{path} {name}", context)

    add(cli.main, "semroute", None)
    return "\n".join(parts)


def overhead() -> str:
    """The recorded run of benchmarks/overhead.py."""
    report = json.loads((DOCS.parent / "benchmarks" / "results" / "overhead.json").read_text())
    machine = report["machine"]
    base = report["milliseconds"]["Envoy alone"]
    lines = [
        f"{machine['cpu']}, {machine['cores']} cores, Python {machine['python']}, ONNX Runtime "
        f"{machine['onnxruntime']}; {report['tokens']} tokens, {report['rounds']} requests on each path.",
        "",
        "| path | p50 ms | p90 ms | p99 ms | p50 over Envoy alone | p99 over Envoy alone | sidecar CPU ms |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, row in report["milliseconds"].items():
        through = name.endswith("model")
        added = [f"{row[p] - base[p]:+.2f}" if through else "" for p in ("p50", "p99")]
        cpu = f"{report['cpu_ms'][name]:.2f}" if name in report["cpu_ms"] else ""
        cells = [name, *(f"{row[p]:.2f}" for p in ("p50", "p90", "p99")), *added, cpu]
        lines.append("| " + " | ".join(cells) + " |")
    lines += [
        "",
        f"Start to ready {report['start_seconds']:.2f} s, resident {report['resident_mib']:.0f} MiB, "
        f"failures counted by Envoy {report['envoy_errors']}.",
    ]
    return "\n".join(lines)


def strategy_costs() -> str:
    """The recorded run of benchmarks/strategies.py."""
    report = json.loads((DOCS.parent / "benchmarks" / "results" / "strategies.json").read_text())
    machine = report["machine"]
    rows = [f"| {name} | {row['p50']:.0f} | {row['p90']:.0f} |" for name, row in report["cpu_us"].items()]
    return "\n".join(
        [
            f"{machine['cpu']}, {machine['cores']} cores, Python {machine['python']}; {report['dimensions']} "
            f"dimensions, one BLAS thread, {report['rounds']} choices of each.",
            "",
            "| strategy | p50 µs of CPU | p90 |",
            "|---|---|---|",
            *rows,
        ]
    )


def load_simulation() -> str:
    """The recorded run of benchmarks/load_simulation.py: the burst, with and without."""
    report = json.loads((DOCS.parent / "benchmarks" / "results" / "load_simulation.json").read_text())
    columns = ("p50_seconds", "p95_seconds", "p99_seconds", "quality", "strong_share", "return_seconds")
    rows = [
        "| during the burst | controller | p50 s | p95 s | p99 s | quality | strong share | back after s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for scenario in report["scenarios"]:
        for name in ("without", "with"):
            figures = scenario[name]["burst"]
            rate = f"{scenario['name']}, {scenario['burst']:g} requests a second"
            rows.append(f"| {rate} | {name} | " + " | ".join(f"{figures[key]:g}" for key in columns) + " |")
    return "\n".join(rows)


PARTS: dict[str, Callable[[], str]] = {
    "settings": settings,
    "facts": facts,
    "families": families,
    "metrics": metrics,
    "commands": commands,
    "overhead": overhead,
    "strategy-costs": strategy_costs,
    "load-simulation": load_simulation,
}


def schema() -> str:
    """The configuration's JSON Schema."""
    document = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **config.Config.model_json_schema(),
    }
    return json.dumps(document, indent=2) + "\n"


def pages() -> Iterator[tuple[Path, str]]:
    """Every page with a generated part, and what it should be."""
    yield DOCS / "semroute.schema.json", schema()
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
