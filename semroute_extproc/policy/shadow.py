"""Shadows: policies that decide beside the live one, and are never acted on.

Pure. A shadow sees the facts that the live decision was made of, but for the conversation's pool:
what is compared is what each policy thinks of the request. It costs its own rules and strategy; it
never causes an encoder pass, and whatever goes wrong in it is its own business.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable
from dataclasses import dataclass

from semroute_extproc.policy.constraints import NoCandidate
from semroute_extproc.policy.context import Decision, RoutingContext


class Agreement(enum.StrEnum):
    """How a shadow's decision compares with the live one; a metric label."""

    AGREE = "agree"
    """The same pool."""
    DIFFER = "differ"
    """Another pool."""
    UNDECIDED = "undecided"
    """It would have needed signals that the live decision did without, or no pool could answer."""
    ERROR = "error"
    """It raised an exception."""


@dataclass(frozen=True, slots=True)
class Shadow:
    """What a shadow would have done."""

    policy: str
    """The live policy."""
    shadow: str
    agreement: Agreement
    pool: str = ""
    reason: str = ""


def compare(
    policy: str,
    shadow: str,
    decide: Callable[[RoutingContext], object],
    facts: RoutingContext,
    live: Decision,
    on_error: Callable[[], None],
) -> Shadow:
    """Ask a shadow; never raises. `on_error` is called while an exception of its own is handled."""
    try:
        decision: object = decide(dataclasses.replace(facts, held=None))
    except NoCandidate:
        decision = None
    except Exception:
        on_error()
        return Shadow(policy, shadow, Agreement.ERROR)
    if not isinstance(decision, Decision):
        return Shadow(policy, shadow, Agreement.UNDECIDED)
    agreement = Agreement.AGREE if decision.pool == live.pool else Agreement.DIFFER
    return Shadow(policy, shadow, agreement, decision.pool, decision.reason)
