"""The demo's requests, from prompts.yaml, what each answer states about its decision, and the output."""

import itertools
import json
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx2
from rich import box
from rich.table import Table
from rich.text import Text
from ruamel.yaml import YAML

from semroute_extproc.config.models import Config

TEXTS = ("rule", "domain", "language", "unknown", "housekeeping", "session")
NUMBERS = ("difficulty", "left_out", "decision_ms")
RESPONSE_HEADERS = {f"x-semroute-{key.replace('_', '-')}": key for key in (*TEXTS, *NUMBERS)}
"""Response headers of this Envoy in addition to the shipped ones, each with its metadata key."""

WIDE = {"asked": 40, "sent by": 14, "pool": 7, "why": 42, "domain": 16, "left out": 8, "ms": 6}
NARROW = {"asked": 27, "pool": 7, "why": 36, "ms": 5}
"""Columns of the table to their widest text; the narrow table fits 80 columns."""

STRONG_STYLE, WEAK_STYLE, ERROR_STYLE = "magenta", "green", "bold red"

COMMANDS = """
Everything stays up. Try:

  curl -si {url}/v1/chat/completions -H 'content-type: application/json' \\
    -d '{{"model": "auto", "messages":
         [{{"role": "user", "content": "Where is Lima?"}}]}}'
  curl -sN {url}/v1/chat/completions -H 'content-type: application/json' \\
    -H 'x-semroute-quality: 1' -d '{{"model": "auto", "stream": true,
         "messages": [{{"role": "user", "content": "Hi!"}}]}}'
  curl -s {url}/v1/models
  curl -s http://{sidecar}/metrics | grep ^semroute
  curl -s 'http://{envoy}/stats?filter=ext_proc'

Envoy's access log is {log}. Ctrl-C stops everything."""

Json = dict[str, Any]
"""A JSON object: a request, the row of a request and its answer, or the summary."""


def prompts() -> list[Json]:
    """The requests in the order in which they are sent, see `_prompt` and the head of prompts.yaml."""
    groups = YAML(typ="safe", pure=True).load(Path(__file__).with_name("prompts.yaml").read_text())
    entries = [(group, entry) for group, entries in groups.items() for entry in entries]
    pools = ("small", "large")
    return [_prompt(group, pool, **entry) for group, entry in entries for pool in pools if pool in entry]


def _prompt(group: str, pool: str, sender: str = "user", title: str = "", **entry: Any) -> Json:
    asks = {each: entry.pop(each, "") for each in ("small", "large")}
    path, headers = entry.pop("path", "/v1/chat/completions"), entry.pop("headers", {})
    if entry.keys().isdisjoint({"messages", "prompt", "input"}):
        entry["messages"] = [{"role": "user", "content": "{{ask}}"}]
    body = json.dumps({"model": "auto", **entry}).replace("{{ask}}", json.dumps(asks[pool])[1:-1])
    title = " ".join((title or asks[pool]).split())
    labels = {"group": group, "sender": sender, "prompt": title, "expected": pool}
    return {"labels": labels, "path": path, "headers": headers, "body": json.loads(body)}


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

    stated = {key: headers.get(name, "") for name, key in RESPONSE_HEADERS.items()}
    return {
        "number": number,
        **prompt["labels"],
        "path": prompt["path"],
        "stream": stream,
        "status": status,
        "pool": pool,  # the pool the decision names
        "answered_by": answered_by,  # the pool that answered, according to itself
        **{key: headers.get(f"x-semroute-{key}", "") for key in ("model", "reason")},
        **stated,  # texts are empty without a value
        **{key: float(stated[key]) if stated[key] else None for key in NUMBERS},
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


def summarize(rows: Sequence[Json], settings: Config, envoy_failures: int) -> Json:
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
        "as_expected": sum(row["pool"] == row["expected"] for row in rows),
        "cost": paid,
        "cost_always_strong": always,
        "saved_share": round(1 - paid / always, 4) if always else 0.0,
        "decision_ms_median": round(statistics.median(times), 3) if times else 0.0,
        "decision_ms_max": max(times, default=0.0),
        "ok": failed == 0 and envoy_failures == 0 and all(used.values()),
    }


def table(rows: Sequence[Json], width: int) -> Table:
    """One line per request, by group; on a terminal of less than 150 columns the narrow table."""
    columns = WIDE if width >= 150 else NARROW
    result = Table(title="Which pool answered, and why", box=box.SIMPLE_HEAD, pad_edge=False)
    result.title_justify, result.collapse_padding = "left", True
    for name, most in columns.items():
        right = name in ("left out", "ms")
        result.add_column(name, max_width=most, no_wrap=name != "why", justify="right" if right else "left")
    for group, members in itertools.groupby(rows, lambda row: row["group"]):
        result.add_section()
        result.add_row(Text(group.upper(), "bold"))
        for row in members:
            why = ": ".join(filter(None, (row["reason"], row["housekeeping"])))
            pool = (row["pool"] or "-") + " ≠" * (row["pool"] != row["expected"])
            error, style = row["error"], STRONG_STYLE if row["pool"] == "large" else WEAK_STYLE
            cells = {
                "asked": Text(row["prompt"]),
                "sent by": Text(row["sender"]),
                "pool": Text(pool, ERROR_STYLE if error else style),
                "why": Text(error or why, ERROR_STYLE if error else ""),
                "domain": "-" if row["unknown"] == "true" else row["domain"] or "-",
                "left out": "-" if row["left_out"] is None else f"{row['left_out']:.0f}",
                "ms": "-" if row["decision_ms"] is None else f"{row['decision_ms']:.1f}",
            }
            result.add_row(*(cells[name] for name in columns))
    return result


def summary_text(summary: Json) -> Text:
    """The summary as a few lines."""
    shares = ", ".join(f"{name} {count}" for name, count in summary["pools"].items())
    text = Text(
        "{requests} requests: {shares}; {strong} answered {strong_share:.0%}. "
        "{as_expected} went to the pool that we expect; ≠ marks the others.\n"
        "Cost ${cost:.6f} against ${cost_always_strong:.6f} with always {strong}: "
        "{saved_share:.0%} saved, by simulated answers and the prices in the configuration.\n"
        "A decision took {decision_ms_median:.1f} ms (median), "
        "{decision_ms_max:.1f} ms at most.".format(shares=shares, **summary)
    )
    if not summary["ok"]:
        unused = ", ".join(name for name, count in summary["pools"].items() if not count)
        failures = f"Envoy counted {summary['envoy_failures']} failures of the sidecar"
        failed = f"\nNot good: {summary['failed']} requests failed, {failures}"
        text.append(f"{failed}, unused pools: {unused or 'none'}.", ERROR_STYLE)
    return text
