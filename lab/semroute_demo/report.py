"""The demo's output: the table, the summary and the commands to try."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from semroute_demo.client import Json, cost
from semroute_extproc.config.models import Config

STRONG_STYLE, WEAK_STYLE, ERROR_STYLE = "magenta", "green", "bold red"

COMMANDS = """
Everything stays up. Try:

  curl -si {url}/v1/chat/completions -H 'content-type: application/json' \\
    -d '{{"model": "auto", "messages": [{{"role": "user", "content": "Where is Lima?"}}]}}'
  curl -sN {url}/v1/chat/completions -H 'content-type: application/json' -H 'x-semroute-quality: 1' \\
    -d '{{"model": "auto", "stream": true, "messages": [{{"role": "user", "content": "Hi!"}}]}}'
  curl -s {url}/v1/models
  curl -s http://{sidecar}/metrics | grep ^semroute
  curl -s 'http://{envoy}/stats?filter=ext_proc'

Envoy's access log is {log}. Ctrl-C stops everything."""
"""Shown while everything stays up."""


def summarise(rows: Sequence[Json], settings: Config, envoy_failures: int) -> Json:
    """The demo in numbers: counts, shares, dollars and milliseconds of `rows`.

    `envoy_failures` counts requests that passed without a decision, and replies Envoy rejected.
    """
    strong = max(settings.pools, key=lambda name: cost(settings, name, 1, 1))  # the most expensive pool
    used = {name: sum(row["answered_by"] == name for row in rows) for name in settings.pools}
    paid = sum(row["cost"] for row in rows)
    always = sum(cost(settings, strong, row["input_tokens"], row["output_tokens"]) for row in rows)
    times = [row["decision_ms"] for row in rows if row["decision_ms"] is not None]
    failed = sum(bool(row["error"]) for row in rows)
    return {
        "requests": len(rows),
        "failed": failed,
        "envoy_failures": envoy_failures,
        "pools": used,
        "strong": strong,
        "strong_share": round(used[strong] / len(rows), 4),
        "cost": paid,
        "cost_always_strong": always,
        "saved_share": round(1 - paid / always, 4) if always else 0.0,
        "decision_ms_median": round(statistics.median(times), 3) if times else 0.0,
        "decision_ms_max": max(times, default=0.0),
        "ok": failed == 0 and envoy_failures == 0 and all(used.values()),
    }


def table(rows: Sequence[Json]) -> Table:
    """One line per request."""
    result = Table("kind", "prompt", "pool", "reason", "difficulty", "domain", "ms", title_justify="left")
    result.title = "Which pool answered, and why"
    for column in result.columns:
        column.no_wrap = column.header != "reason"
        column.max_width = {"prompt": 44, "reason": 40}.get(str(column.header))
        column.justify = "right" if column.header in ("difficulty", "ms") else "left"
    for row in rows:
        error, style = row["error"], STRONG_STYLE if row["pool"] == "large" else WEAK_STYLE
        result.add_row(
            Text(f"{row['kind']} ≈" if row["stream"] else row["kind"]),
            Text(row["prompt"]),
            Text(row["pool"] or "-", ERROR_STYLE if error else style),
            Text(error, ERROR_STYLE) if error else Text(row["reason"]),
            "-" if row["difficulty"] is None else f"{row['difficulty']:.2f}",
            row["domain"] or "-",
            "-" if row["decision_ms"] is None else f"{row['decision_ms']:.1f}",
        )
    return result


def summary_text(summary: Json) -> Text:
    """The summary as a few lines."""
    shares = ", ".join(f"{name} {count}" for name, count in summary["pools"].items())
    text = Text(
        "{requests} requests: {shares}; {strong} answered {strong_share:.0%}.\n"
        "Cost ${cost:.6f} against ${cost_always_strong:.6f} with always {strong}: "
        "{saved_share:.0%} saved, by simulated answers and the prices in the configuration.\n"
        "A decision took {decision_ms_median:.1f} ms (median), "
        "{decision_ms_max:.1f} ms at most. ≈ marks a streamed answer.".format(shares=shares, **summary)
    )
    if not summary["ok"]:
        unused = ", ".join(name for name, count in summary["pools"].items() if not count)
        failures = f"Envoy counted {summary['envoy_failures']} failures of the sidecar"
        failed = f"\nNot good: {summary['failed']} requests failed, {failures}"
        text.append(f"{failed}, unused pools: {unused or 'none'}.", ERROR_STYLE)
    return text
