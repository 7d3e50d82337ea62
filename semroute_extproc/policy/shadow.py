"""Shadows: policies whose decisions are recorded next to the live one and never applied. Pure."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Agreement(enum.StrEnum):
    """How a shadow's decision compares with the live one; a metric label."""

    AGREE = "agree"
    DIFFER = "differ"
    UNDECIDED = "undecided"  # Signals or a judgement are missing, or no pool can answer.
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class Shadow:
    """The decision of the policy `shadow` next to the live one of `policy`."""

    policy: str
    shadow: str
    agreement: Agreement
    pool: str = ""
    reason: str = ""
