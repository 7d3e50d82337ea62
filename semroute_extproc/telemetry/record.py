"""A decision as one record of the decision log. Pure; columns.toml describes the columns."""

import base64
import hashlib
from collections.abc import Callable
from typing import Any

from semroute_extproc.events import Accounted, Decided, OutcomeReported
from semroute_extproc.outcome import Outcome, header_safe
from semroute_extproc.policy.context import Decision, RoutingContext
from semroute_extproc.policy.rules import READ, WORK_FACTS
from semroute_extproc.settings.process import DecisionLog

REQUEST_ID_CHARACTERS_MAX = 128
CHARACTERS_MAX = 512  # of any other string that the client chose, except the judged text
METADATA_MAX = 16  # entries
TURNS_MAX = 1_000  # of a conversation whose state is logged; it takes time in proportion to the turns
UNREACHABLE = 2.0  # Stands for an infinite threshold, which JSON lacks.
HASH_BYTES = 16

FACTS: dict[str, Callable[[RoutingContext], Any]] = {
    name: read
    for name, read in READ.items()
    if name not in ("request", "text", "user", "metadata", "tenant", "language", "prompt_tokens", "quality")
}
FACTS["foreign"] = lambda context: context.view.foreign
"""Facts of the map `facts`; those of rules that are missing are columns, headers, or text."""

CONTEXT = ("quality", "unread", "prompt_tokens", "bounds", "counted", "language")
SIGNALS = (
    *("revision", "domain", "domain_probs", "domain_entropy", "task", "task_probs", "difficulty", "unknown"),
    *("tokens", "truncated", "similarity"),
)


def of_decision(event: Decided, config: str, settings: DecisionLog, key: bytes) -> dict[str, Any]:
    """The record of a decision under the configuration with the digest `config`."""
    outcome = event.outcome
    found: dict[str, Any] = {
        "record": "decision",
        "time": event.ended_ns / 1e9,
        "request_id": event.request_id[:REQUEST_ID_CHARACTERS_MAX],
        "config": config[:12],
        "path": _cut(event.path),
        "observed": event.observed,
        "kind": outcome.kind.value,
        "cause": outcome.cause,
        "pool": outcome.pool,
        "model": outcome.model,
        "reason": header_safe(outcome.reason),
        "decision_ms": round(outcome.total_ms, 3),
        "stages_ms": {name: round(ms, 3) for name, ms in outcome.milliseconds().items()},
    }
    if (decision := outcome.decision) is not None:
        found |= _of_policy(outcome, decision)
    if (context := outcome.context) is not None:
        found |= _of_context(context, settings, key)
    return {name: value for name, value in found.items() if value or type(value) in (int, float)}


def _of_policy(outcome: Outcome, decision: Decision) -> dict[str, Any]:
    found: dict[str, Any] = {
        "policy": outcome.policy,
        "canary": decision.canary,
        "policy_propensity": decision.propensity,
        **{name: getattr(decision, name) for name in ("rule", "strategy", "judge")},
        "session": outcome.session,
        "pools": [decision.pool, *decision.others],
        "shadow": {each.shadow: each.pool for each in outcome.shadows if each.pool},
    }
    if (choice := decision.choice) is not None:
        found |= {name: getattr(choice, name) for name in ("score", "share", "rise", "propensity")}
        if choice.threshold is not None:
            found["threshold"] = min(choice.threshold, UNREACHABLE)
    return found


def _of_context(context: RoutingContext, settings: DecisionLog, key: bytes) -> dict[str, Any]:
    state, held, headers = context.conditions, context.held, context.head.headers
    skipped = WORK_FACTS if len(context.view.turns) > TURNS_MAX else ()
    found: dict[str, Any] = {
        "method": context.head.method,
        "failed_pools": context.tried,
        **{name: getattr(state, name) for name in ("failing", "pressure", "bias")},
        "held": held and {"pool": held.pool, "lock": held.lock},
        **{name: getattr(context, name) for name in CONTEXT},
        "facts": {name: _cut(read(context)) for name, read in FACTS.items() if name not in skipped},
        "headers": {name: _cut(headers.get(name)) for name in settings.headers},
    }
    if (signals := context.signals) is not None:
        found |= {name: getattr(signals, name) for name in SIGNALS}
        if settings.embedding and signals.neighbors is not None:
            found["embedding"] = base64.b64encode(signals.neighbors.astype("<f2").tobytes()).decode()
    if context.text:
        text = context.text.encode("utf-8", "surrogatepass")
        found["prompt_hash"] = hashlib.blake2b(text, digest_size=HASH_BYTES, key=key).hexdigest()
    if settings.prompts:
        metadata = list(context.view.metadata.items())[:METADATA_MAX]
        found |= {"prompt": context.text, "user": _cut(context.view.user)}
        found["metadata"] = {_cut(name): _cut(value) for name, value in metadata}
    return found


def _cut(value: Any) -> Any:
    return value[:CHARACTERS_MAX] if isinstance(value, str) else value


def of_usage(event: Accounted) -> dict[str, Any]:
    """The record of an answer's usage."""
    usage, first = event.usage, event.first_token_seconds
    found = {
        "record": "usage",
        "time": event.ended_ns / 1e9,
        "request_id": event.request_id[:REQUEST_ID_CHARACTERS_MAX],
        "input_tokens": usage.input,
        "output_tokens": usage.output,
        "cached_tokens": usage.cached,
        "estimated": usage.estimated,
        "dollars": event.dollars,
        "finish": _cut(event.finish),
        "first_token_ms": first and round(first * 1e3, 3),
        "duration_ms": round((event.ended_ns - event.started_ns) / 1e6, 3),
    }
    return {name: value for name, value in found.items() if value}


def of_outcome(event: OutcomeReported, time: float) -> dict[str, Any]:
    """The record of an outcome."""
    label = {"label": event.label} if event.label else {}
    found = {"record": "outcome", "time": time, "request_id": event.request_id, "outcome": event.outcome}
    return {**found, **label, "source": event.source}
