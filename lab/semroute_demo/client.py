"""The demo's requests, from prompts.yaml, what each answer states about its decision, and the output."""

from __future__ import annotations

import contextlib
import json
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx2
from rich.table import Table
from rich.text import Text
from ruamel.yaml import YAML

from semroute_extproc.config.models import Config

TITLE_CHARACTERS_MAX = 58  # how much of a prompt the table shows

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

Json = dict[str, Any]
"""A JSON object: a request, the row of a request and its answer, or the summary."""


def prompts() -> list[Json]:
    """The requests in the order in which they are sent: `kind`, `title`, `path`, `headers` and `body`."""
    entries = YAML(typ="safe", pure=True).load(Path(__file__).with_name("prompts.yaml").read_text())
    return [_prompt(**entry) for entry in entries]


def _prompt(
    kind: str, text: str = "", title: str = "", path: str = "/v1/chat/completions", **body: Any
) -> Json:
    headers = body.pop("headers", {})
    if text:
        body = {"messages": [{"role": "user", "content": text}], **body}
    title = title or " ".join(text.split())
    if len(title) > TITLE_CHARACTERS_MAX:
        title = title[: TITLE_CHARACTERS_MAX - 1] + "…"
    return {"kind": kind, "title": title, "path": path, "headers": headers, "body": {"model": "auto", **body}}


async def send(client: httpx2.AsyncClient, number: int, prompt: Mapping[str, Any], settings: Config) -> Json:
    """The row of `prompt` and its answer; what it says about the decision comes from response headers."""
    started = time.perf_counter()
    stream = prompt["body"].get("stream") is True
    status, content, headers, error = 0, b"", httpx2.Headers(), ""
    try:
        response = await client.post(prompt["path"], json=prompt["body"], headers=prompt["headers"])
        status, content, headers = response.status_code, response.content, response.headers
    except httpx2.HTTPError as failure:
        error = str(failure) or type(failure).__name__
    seconds = time.perf_counter() - started
    given, made = usage(content, stream) if status == 200 else (0, 0)
    pool, answered_by = headers.get("x-semroute-pool", ""), headers.get("x-sim-pool", "")
    if status and status != 200:
        error = f"HTTP {status}: {content[:200].decode('utf-8', 'replace')}"
    elif not pool:
        error = error or "the response states no decision"
    elif pool != answered_by:
        error = f"decided for {pool}, answered by {answered_by or 'no pool'}"
    elif not made:
        error = "the answer reports no tokens"

    def number_in(key: str) -> float | None:
        with contextlib.suppress(ValueError):
            return float(headers.get(f"x-semroute-{key}", ""))
        return None

    return {
        "number": number,
        "kind": prompt["kind"],
        "prompt": prompt["title"],
        "path": prompt["path"],
        "stream": stream,
        "status": status,
        "pool": pool,  # the pool the decision names
        "answered_by": answered_by,  # the pool that answered, according to itself
        **{key: headers.get(f"x-semroute-{key}", "") for key in ("model", "reason", "rule")},
        "difficulty": number_in("difficulty"),  # None if the encoder was not asked
        "domain": headers.get("x-semroute-domain", ""),
        "decision_ms": number_in("decision-ms"),
        "seconds": round(seconds, 4),
        "input_tokens": given,
        "output_tokens": made,
        "cost": cost(settings, answered_by, given, made),
        "error": error,
    }


def usage(content: bytes, stream: bool) -> tuple[int, int]:
    """Prompt and completion tokens that an answer reports, (0, 0) if it reports none.

    A stream reports them in the last event that carries them; Anthropic's uses two events.
    """
    given = made = 0
    for line in content.splitlines() if stream else [b"data: " + content]:
        try:
            body = json.loads(line.removeprefix(b"data: "))
        except ValueError:
            continue
        for holder in (body, body.get("response"), body.get("message")) if isinstance(body, dict) else ():
            counts: dict[str, int] = (holder or {}).get("usage") or {}
            given = counts.get("prompt_tokens", counts.get("input_tokens", given))
            made = counts.get("completion_tokens", counts.get("output_tokens", made))
    return given, made


def cost(settings: Config, pool: str, given: int, made: int) -> float:
    """Dollars for these token counts at `pool`; 0 if the pool has no price."""
    price = settings.pools[pool].price if pool in settings.pools else None
    return 0.0 if price is None else (given * price.input + made * price.output) / 1_000_000


def summarise(rows: Sequence[Json], settings: Config, envoy_failures: int) -> Json:
    """The demo in numbers; `envoy_failures`: requests without a decision, and replies Envoy rejected."""
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
