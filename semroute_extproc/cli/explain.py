"""Print an explanation for people."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from semroute_extproc.request.text import clip
from semroute_extproc.serve.explain import TOLD

SHOWN_MAX = 600  # Characters of the judged text in the table; the JSON report has all of it


def print_report(report: Mapping[str, Any]) -> None:
    """The report for people."""
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold cyan", no_wrap=True)
    table.add_column(overflow="fold")
    for row in _rows(report):
        table.add_row(*row)
    # Escape client and model names so that rich does not read them as markup.
    Console(markup=False).print(table)


def _rows(report: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield from ((key, str(report[key])) for key in TOLD if report[key] and key not in ("cause", "policy"))
    if report["others"]:
        yield "others", ", ".join(report["others"])
    for shadow in report["shadows"]:
        yield "shadow", f"{shadow['shadow']}: {shadow['pool'] or shadow['agreement']}"
    if signals := report["signals"]:
        top = sorted(signals["domain"]["probs"].items(), key=lambda item: -item[1])[:3]
        yield "domain", ", ".join(f"{label} {p:.2f}" for label, p in top)
        if signals["task"]:
            yield "task", signals["task"]["label"]
        yield "difficulty", f"{signals['difficulty']:.3f}"
        cut, unknown = (f", {name}" if signals[name] else "" for name in ("truncated", "unknown"))
        yield "text", f"{signals['tokens']} tokens{cut}, {signals['language']}{unknown}"
    if report["text"]:
        yield "judged", clip(report["text"], SHOWN_MAX)
    edits, left_out = report["edits"], report["left_out"]
    yield from (("left out", f"{each['kind']}: {each['characters']} characters") for each in left_out)
    yield from ((step["what"], f"{step['name']}: {step['result']}") for step in report["trace"])
    yield from (("set header", f"{key}: {value}") for key, value in edits["headers"]["set"].items())
    yield from (("remove header", key) for key in edits["headers"]["remove"])
    changed = edits["body"]["changed"] if edits["body"] else {}
    yield from (("set in body", f"{key}: {json.dumps(value)}") for key, value in changed.items())
    if answer := edits.get("answer"):
        yield "answer", f"{answer['status']} {json.dumps(answer['body'])}"
    stages = ", ".join(f"{name} {ms:.2f}" for name, ms in report["stages_ms"].items())
    yield "time", f"{report['total_ms']:.2f} ms" + (f" ({stages})" if stages else "")
