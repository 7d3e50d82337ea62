"""The demo's requests, from prompts.yaml, and what each answer states about its decision."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx2
from ruamel.yaml import YAML

from semroute_extproc.config.models import Config

TITLE_CHARACTERS_MAX = 58  # how much of a prompt the table shows

Json = dict[str, Any]
"""A JSON object: a request's body, or the row of a request and its answer."""


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
    """The row of `prompt`, whose answer is read to the end; it states failures.

    All facts about the decision come from the response's headers.
    """
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
        "difficulty": _number(headers.get("x-semroute-difficulty")),  # None if the encoder was not asked
        "domain": headers.get("x-semroute-domain", ""),
        "decision_ms": _number(headers.get("x-semroute-decision-ms")),
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
    """Dollars for so many tokens at `pool`; 0 if the pool has no price."""
    price = settings.pools[pool].price if pool in settings.pools else None
    return 0.0 if price is None else (given * price.input + made * price.output) / 1_000_000


def _number(text: str | None) -> float | None:
    try:
        return None if text is None else float(text)
    except ValueError:
        return None
