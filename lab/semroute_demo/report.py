"""What the demo prints: the table, the summary and the invitation to try."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Table
from rich.text import Text

from semroute_demo.client import Row, cost
from semroute_demo.envoy import Envoy
from semroute_demo.sidecar import Sidecar
from semroute_extproc.config.models import Config

STRONG_STYLE, WEAK_STYLE, ERROR_STYLE = "magenta", "green", "bold red"


@dataclass(frozen=True, slots=True)
class Summary:
    """The demo in numbers."""

    requests: int
    failed: int
    envoy_failures: int
    """Requests that Envoy let pass without a decision, and replies it did not understand; must be 0."""
    pools: dict[str, int]
    """Pool to requests answered."""
    strong: str
    """The dearest pool."""
    strong_share: float
    cost: float
    cost_always_strong: float
    """Dollars, had the strong pool answered the same tokens."""
    saved_share: float
    decision_ms_median: float
    decision_ms_max: float
    ok: bool

    def as_dict(self) -> dict[str, Any]:
        """Its JSON object."""
        return asdict(self)


def summarise(rows: Sequence[Row], settings: Config, envoy_failures: int) -> Summary:
    """Counts, share and cost of `rows`."""
    strong = max(settings.pools, key=lambda name: cost(settings, name, 1, 1))
    used = {name: sum(row.answered_by == name for row in rows) for name in settings.pools}
    paid = sum(row.cost for row in rows)
    always = sum(cost(settings, strong, row.input_tokens, row.output_tokens) for row in rows)
    times = [row.decision_ms for row in rows if row.decision_ms is not None]
    failed = sum(not row.ok for row in rows)
    return Summary(
        requests=len(rows),
        failed=failed,
        envoy_failures=envoy_failures,
        pools=used,
        strong=strong,
        strong_share=round(used[strong] / len(rows), 4) if rows else 0.0,
        cost=paid,
        cost_always_strong=always,
        saved_share=round(1 - paid / always, 4) if always else 0.0,
        decision_ms_median=round(statistics.median(times), 3) if times else 0.0,
        decision_ms_max=max(times, default=0.0),
        ok=bool(rows) and failed == 0 and envoy_failures == 0 and all(used.values()),
    )


def table(rows: Sequence[Row]) -> Table:
    """One line a request."""
    result = Table(title="Which pool answered, and why", title_justify="left", expand=False)
    result.add_column("kind", no_wrap=True)
    result.add_column("prompt", no_wrap=True, max_width=44, overflow="ellipsis")
    result.add_column("pool", no_wrap=True)
    result.add_column("reason", max_width=40)
    result.add_column("difficulty", justify="right", no_wrap=True)
    result.add_column("domain", no_wrap=True)
    result.add_column("ms", justify="right", no_wrap=True)
    for row in rows:
        kind = f"{row.kind} ≈" if row.stream else row.kind
        style = STRONG_STYLE if row.pool == "large" else WEAK_STYLE
        result.add_row(
            Text(kind),
            Text(row.prompt),
            Text(row.pool or "-", style if row.ok else ERROR_STYLE),
            Text(row.reason) if row.ok else Text(row.error, ERROR_STYLE),
            "-" if row.difficulty is None else f"{row.difficulty:.2f}",
            row.domain or "-",
            "-" if row.decision_ms is None else f"{row.decision_ms:.1f}",
        )
    return result


def summary_text(summary: Summary) -> Text:
    """The summary as a few lines."""
    shares = ", ".join(f"{name} {count}" for name, count in summary.pools.items())
    text = Text()
    text.append(
        f"{summary.requests} requests: {shares}; {summary.strong} answered {summary.strong_share:.0%}.\n"
    )
    text.append(
        f"Cost ${summary.cost:.6f} against ${summary.cost_always_strong:.6f} with always {summary.strong}: "
        f"{summary.saved_share:.0%} saved, by simulated answers and the prices in the configuration.\n"
    )
    text.append(f"A decision took {summary.decision_ms_median:.1f} ms (median), ")
    text.append(f"{summary.decision_ms_max:.1f} ms at most. ≈ marks a streamed answer.")
    if not summary.ok:
        unused = [name for name, count in summary.pools.items() if not count]
        text.append(f"\nNot good: {summary.failed} requests failed", ERROR_STYLE)
        text.append(f", Envoy counted {summary.envoy_failures} failures of the sidecar", ERROR_STYLE)
        text.append(f", unused pools: {', '.join(unused) or 'none'}.", ERROR_STYLE)
    return text


def invitation(envoy: Envoy, sidecar: Sidecar) -> Text:
    """Lines to copy while everything stays up."""
    json_type = "-H 'content-type: application/json'"
    lines = [
        "",
        "Everything stays up. Try:",
        "",
        f"  curl -si {envoy.url}/v1/chat/completions {json_type} \\",
        """    -d '{"model": "auto", "messages": [{"role": "user", "content": "Where is Lima?"}]}'""",
        f"  curl -sN {envoy.url}/v1/chat/completions {json_type} -H 'x-semroute-quality: 1' \\",
        """    -d '{"model": "auto", "stream": true, "messages": [{"role": "user", "content": "Hi!"}]}'""",
        f"  curl -s {envoy.url}/v1/models",
        f"  curl -s http://{sidecar.admin}/metrics | grep ^semroute",
        f"  curl -s 'http://{envoy.admin}/stats?filter=ext_proc'",
        "",
        f"Envoy's access log is {envoy.access_log_path}. Ctrl-C stops everything.",
    ]
    return Text("\n".join(lines))
