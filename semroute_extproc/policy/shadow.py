"""Shadows: policies that decide in addition to the live one and are never acted on. Pure."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from semroute_extproc.policy.context import Decision


class Agreement(enum.StrEnum):
    """How a shadow's decision compares with the live one; a metric label."""

    AGREE = "agree"
    DIFFER = "differ"
    UNDECIDED = "undecided"  # It needs signals or a judgement that are not there, or no pool can answer.
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class Shadow:
    """The decision of the policy `shadow` next to the live one of `policy`."""

    policy: str
    shadow: str
    agreement: Agreement
    pool: str = ""
    reason: str = ""


def compare(policy: str, shadow: str, decision: Decision | None, live: Decision) -> Shadow:
    """Compare a shadow's decision, None if it has none, with the live one."""
    if decision is None:
        return Shadow(policy, shadow, Agreement.UNDECIDED)
    agreement = Agreement.AGREE if decision.pool == live.pool else Agreement.DIFFER
    return Shadow(policy, shadow, agreement, decision.pool, decision.reason)
