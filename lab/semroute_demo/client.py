"""One request of the demo, sent through Envoy, and what its answer states about the decision."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import Any

import httpx2

from semroute_demo.prompts import Prompt
from semroute_extproc.config.models import Config


@dataclass(frozen=True, slots=True)
class Row:
    """One request and its answer. All facts about the decision come from the response's headers."""

    number: int
    kind: str
    prompt: str
    path: str
    stream: bool
    status: int
    pool: str  # the pool the decision names
    answered_by: str  # the pool that answered, according to itself
    model: str
    reason: str
    rule: str
    difficulty: float | None  # None if the encoder was not asked
    domain: str
    decision_ms: float | None
    seconds: float
    input_tokens: int
    output_tokens: int
    cost: float  # dollars, by the pool's prices
    error: str = ""


async def send(client: httpx2.AsyncClient, number: int, prompt: Prompt, settings: Config) -> Row:
    """Send `prompt` and read its answer to the end; the row states failures."""
    started = time.perf_counter()
    stream = prompt.body.get("stream") is True
    status, content, headers, error = 0, b"", httpx2.Headers(), ""
    try:
        response = await client.post(prompt.path, json=prompt.body, headers=prompt.headers)
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
    return Row(
        number=number,
        kind=prompt.kind,
        prompt=prompt.title,
        path=prompt.path,
        stream=stream,
        status=status,
        pool=pool,
        answered_by=answered_by,
        model=headers.get("x-semroute-model", ""),
        reason=headers.get("x-semroute-reason", ""),
        rule=headers.get("x-semroute-rule", ""),
        difficulty=_number(headers.get("x-semroute-difficulty")),
        domain=headers.get("x-semroute-domain", ""),
        decision_ms=_number(headers.get("x-semroute-decision-ms")),
        seconds=round(seconds, 4),
        input_tokens=given,
        output_tokens=made,
        cost=cost(settings, answered_by, given, made),
        error=error,
    )


def usage(content: bytes, stream: bool) -> tuple[int, int]:
    """Prompt and completion tokens that an answer reports, (0, 0) if it reports none.

    A stream reports them in the last event that carries them; Anthropic's uses two events.
    """
    given = made = 0
    lines = content.splitlines() if stream else [b"data: " + content]
    for line in lines:
        try:
            body = json.loads(line.removeprefix(b"data: "))
        except ValueError:
            continue
        for holder in (body, body.get("response"), body.get("message")) if isinstance(body, dict) else ():
            counts: dict[str, Any] = (holder or {}).get("usage") or {}
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
