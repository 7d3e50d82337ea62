"""Decisions as telemetry sees them."""

from __future__ import annotations

from typing import Any

from builders import config, decided, plans, signals

from semroute_extproc.events import Decided
from semroute_extproc.outcome import Cause, Kind, Outcome, Stage
from semroute_extproc.policy.context import RoutingContext
from semroute_extproc.request.view import Api, RequestHead, RequestView, Turn

SECRET = "the patient's name is Ada"


def context(text: str = SECRET, **changes: Any) -> RoutingContext:
    head = RequestHead("POST", "/v1/chat/completions?key=1", {"x-request-id": "id-1", "x-tier": "free"})
    view = RequestView(Api.CHAT_COMPLETIONS, "auto", (Turn("user", text),), user=text, metadata={"a": text})
    given: dict[str, Any] = {"signals": signals(embedding=None), "bounds": (90, 110), **changes}
    return RoutingContext(head, view, "en", 100, text, **given)


def event(settings: Any = None, request_id: str = "id-1", **changes: Any) -> Decided:
    """A real decision of the pair strategy about the context."""
    given = context(**changes)
    decision = decided(plans(settings or config())["main"], given)
    outcome = Outcome(
        Kind.ROUTED,
        Cause.STRATEGY,
        pool=decision.pool,
        model="m",
        reason=decision.reason,
        decision=decision,
        policy="main",
        view=given.view,
        signals=given.signals,
        context=given,
        text=given.text,
        stages=(Stage("parse", 0.0, 0.1), Stage("encode", 0.1, 4.0)),
        total_ms=4.2,
    )
    return Decided(outcome, request_id, "/v1/chat/completions", (), 1, 2, 3_000_000_000, observed=False)
