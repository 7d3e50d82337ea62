"""One request of the demo, sent through Envoy, and what its answer says of the decision."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from typing import Any

import aiohttp

from semroute_demo.prompts import Prompt
from semroute_extproc.config.models import Config

REQUEST_SECONDS_MAX = 60.0
"""How long one request may take."""

TOKENS_A_PRICE = 1_000_000
"""Prices are in dollars per so many tokens."""


@dataclass(frozen=True, slots=True)
class Row:
    """One request and what became of it. Everything about the decision comes from the response's headers."""

    number: int
    kind: str
    prompt: str
    path: str
    stream: bool
    status: int
    pool: str
    """The pool the decision names."""
    answered_by: str
    """The pool that answered, by its own word."""
    model: str
    reason: str
    rule: str
    difficulty: float | None
    """None if the encoder was not asked."""
    domain: str
    decision_ms: float | None
    seconds: float
    input_tokens: int
    output_tokens: int
    cost: float
    """Dollars, by the pool's prices."""
    error: str = ""

    @property
    def ok(self) -> bool:
        """It was answered, by the pool it was meant for, with a count of its tokens."""
        return not self.error

    def as_dict(self) -> dict[str, Any]:
        """Its JSON object."""
        return asdict(self)


async def send(session: aiohttp.ClientSession, number: int, prompt: Prompt, settings: Config) -> Row:
    """Send `prompt` and read its answer to the end; failures are told in the row."""
    started = time.perf_counter()
    status, content, headers, error = 0, b"", {}, ""
    try:
        timeout = aiohttp.ClientTimeout(total=REQUEST_SECONDS_MAX)
        request = session.post(prompt.path, json=prompt.body, headers=prompt.headers, timeout=timeout)
        async with request as response:
            status, headers = response.status, dict(response.headers)
            content = await response.read()
    except (aiohttp.ClientError, TimeoutError) as failure:
        error = str(failure) or type(failure).__name__
    seconds = time.perf_counter() - started
    given, made = usage(content, prompt.stream) if status == 200 else (0, 0)
    facts = {key.lower().removeprefix("x-semroute-"): value for key, value in headers.items()}
    pool, answered_by = facts.get("pool", ""), facts.get("x-sim-pool", "")
    return Row(
        number=number,
        kind=prompt.kind,
        prompt=prompt.title,
        path=prompt.path,
        stream=prompt.stream,
        status=status,
        pool=pool,
        answered_by=answered_by,
        model=facts.get("model", ""),
        reason=facts.get("reason", ""),
        rule=facts.get("rule", ""),
        difficulty=_number(facts.get("difficulty")),
        domain=facts.get("domain", ""),
        decision_ms=_number(facts.get("decision-ms")),
        seconds=round(seconds, 4),
        input_tokens=given,
        output_tokens=made,
        cost=cost(settings, answered_by, given, made),
        error=error or _wrong(status, content, pool, answered_by, made),
    )


def usage(content: bytes, stream: bool) -> tuple[int, int]:
    """Prompt and completion tokens an answer reports, (0, 0) if it reports none.

    In a stream they come in the last event that carries them; Anthropic's come in two events.
    """
    given = made = 0
    for data in _events(content) if stream else [content]:
        try:
            body = json.loads(data)
        except ValueError:
            continue
        for holder in (body, body.get("response"), body.get("message")):
            counts = holder.get("usage") if isinstance(holder, dict) else None
            if isinstance(counts, dict):
                given = _first(counts, "prompt_tokens", "input_tokens", otherwise=given)
                made = _first(counts, "completion_tokens", "output_tokens", otherwise=made)
    return given, made


def cost(settings: Config, pool: str, given: int, made: int) -> float:
    """Dollars for so many tokens at `pool`; 0 if the pool has no price."""
    price = settings.pools[pool].price if pool in settings.pools else None
    return 0.0 if price is None else (given * price.input + made * price.output) / TOKENS_A_PRICE


def _events(content: bytes) -> list[bytes]:
    lines = content.splitlines()
    return [line.removeprefix(b"data: ") for line in lines if line.startswith(b"data: {")]


def _first(counts: dict[str, Any], *names: str, otherwise: int) -> int:
    return next((int(counts[name]) for name in names if name in counts), otherwise)


def _number(text: str | None) -> float | None:
    try:
        return None if text is None else float(text)
    except ValueError:
        return None


def _wrong(status: int, content: bytes, pool: str, answered_by: str, made: int) -> str:
    if status != 200:
        return f"HTTP {status}: {content[:200].decode('utf-8', 'replace')}"
    if not pool:
        return "the response tells of no decision"
    if pool != answered_by:
        return f"decided for {pool}, answered by {answered_by or 'nobody'}"
    return "" if made else "the answer reports no tokens"
