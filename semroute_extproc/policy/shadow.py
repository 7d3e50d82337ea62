"""Shadows: policies that decide in addition to the live one and are never acted on.

Pure. A shadow sees the context of the live decision, except for the conversation's pool: the
comparison is about the request alone.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from semroute_extproc.policy.context import Decision


class Agreement(enum.StrEnum):
    """How a shadow's decision compares with the live one; a metric label."""

    AGREE = "agree"
    """The same pool."""
    DIFFER = "differ"
    """Another pool."""
    UNDECIDED = "undecided"
    """It needs signals or a judgement that the live decision did without, or no pool can answer."""
    ERROR = "error"
    """It raised an exception."""


@dataclass(frozen=True, slots=True)
class Shadow:
    """The decision of a shadow."""

    policy: str
    """The live policy."""
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
