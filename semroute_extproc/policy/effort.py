"""Reasoning effort by difficulty. Pure.

The vLLM Semantic Router (arXiv 2510.08731) switches reasoning on by domain; here the effort
follows the calibrated difficulty, band by band.
"""

from __future__ import annotations

from semroute_extproc.policy.context import RoutingContext
from semroute_extproc.settings.base import Effort
from semroute_extproc.settings.policies import Reasoning


def needs_signals(reasoning: Reasoning | None) -> bool:
    """The effort depends on the difficulty."""
    return reasoning is not None and reasoning.bands is not None


def effort_of(reasoning: Reasoning, context: RoutingContext) -> tuple[Effort | None, str]:
    """The effort to ask for, and why, in words.

    A text that the bundle does not know counts as the hardest. Without signals, bands give None: the
    model's own default is better than a guess.
    """
    if reasoning.bands is None:
        return reasoning.effort, "as configured"
    signals = context.signals
    if signals is None:
        return None, "no signals, no effort"
    if signals.unknown:
        return reasoning.bands[-1].effort, "text is out of distribution"
    for band in reasoning.bands:
        if band.below is not None and signals.difficulty < band.below:
            return band.effort, f"difficulty {signals.difficulty:.2f} < {band.below:.2f}"
    return reasoning.bands[-1].effort, f"difficulty {signals.difficulty:.2f} is in the last band"
