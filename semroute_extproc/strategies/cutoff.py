"""Weak or strong by one score and one threshold: what all strategies of a pair share.

Pure. Hybrid LLM (arXiv 2404.14618) section 3 and RouteLLM (arXiv 2406.18665) section 3: a router
gives each query one score, the strong model has those from a threshold on, and moving the
threshold at test time trades cost for quality. The trade-off is kept as the strong *share*; the
score's quantiles on reference traffic turn it into a threshold.

Controllers act on the share, s, in this order. A budget's leaning l adds to its log-odds:
logit s' = logit s + l. Then pressure: with d = pressure(strong) − pressure(weak),

    d > 0:  s'' = s' − d · (s' − floor)        but never up: nothing if s' is below the floor
    d < 0:  s'' = s' + |d| · (ceiling − s')    only if there is a ceiling; never down

so pressure on the strong pool takes its easiest requests first, and where both are pressed alike
there is nowhere better to go and nothing moves. s'' falls with pressure(strong), without a jump.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from semroute_extproc.policy.context import Choice, RoutingContext

Quantiles = Sequence[float] | npt.NDArray[np.float64]
"""A score at 0, 1, … 100 % of the reference traffic, ascending."""


def threshold_for_share(quantiles: Quantiles, share: float) -> float:
    """The score, a probability, from which on a share (0..1) of the reference traffic lies.

    `quantiles` are the score at 0, 1, … 100 % of that traffic, ascending.
    """
    if share <= 0.0:
        return float("inf")
    if share >= 1.0:
        return 0.0
    return float(np.interp(100.0 * (1.0 - share), np.arange(len(quantiles)), quantiles))


def share_for_threshold(quantiles: Quantiles, threshold: float) -> float:
    """The share of the reference traffic whose score is at least `threshold`; the inverse of the above."""
    # Just below it: of scores that are equal to it, which may be many, all count.
    below = np.interp(np.nextafter(threshold, -1.0), quantiles, np.arange(len(quantiles)), 0.0, 100.0)
    return float(1.0 - below / 100.0)


NO_SHARE = 1e-9
"""A share below this is rounding: a score that only the highest of the traffic reaches."""


def rise_above(quantiles: Quantiles, threshold: float, score: float) -> float:
    """The part (0..1) of the reference traffic above `threshold` that lies below `score`.

    0 at the threshold, 1 from the highest score of that traffic on: a distance in requests, which is
    the same thing for scores that fill 0..1 and for scores that lie within a few hundredths.
    """
    above = share_for_threshold(quantiles, threshold)
    return 1.0 - share_for_threshold(quantiles, score) / above if above > NO_SHARE else 1.0


SHARE_MIN = 0.005
"""A leaning counts a share as this far from 0 and 1 at least: the log-odds of the ends are infinite."""


def leaned(share: float, leaning: float) -> float:
    """The share (0..1) whose log-odds are `leaning` more."""
    inside = min(max(share, SHARE_MIN), 1.0 - SHARE_MIN)
    return 1.0 / (1.0 + (1.0 - inside) / inside * math.exp(-leaning))


def pressed(share: float, weak: float, strong: float, floor: float, ceiling: float | None) -> float:
    """The share (0..1) that is left to the strong pool under pressures `weak` and `strong` (0..1)."""
    net = strong - weak
    if net > 0.0:
        return share - net * max(share - floor, 0.0)
    if ceiling is not None:
        return share - net * max(ceiling - share, 0.0)
    return share


class Cutoff:
    """Picks the strong pool from a score on."""

    def __init__(
        self,
        weak: str,
        strong: str,
        quantiles: Sequence[float],
        *,
        share: float | None = None,
        threshold: float | None = None,
        what: str = "difficulty",
        digits: int = 2,
    ) -> None:
        """`quantiles` of the score on reference traffic; exactly one of `share` and `threshold`.

        `what` names the score in the reason, where it has so many `digits`.
        """
        assert (share is None) != (threshold is None)
        self.weak, self.strong = weak, strong
        # An array, which NumPy need not make of it anew at every choice.
        self._quantiles = np.asarray(quantiles, dtype=np.float64)
        self._what, self._digits = what, digits
        if threshold is None:
            assert share is not None
            threshold = threshold_for_share(quantiles, share)
        else:
            share = share_for_threshold(quantiles, threshold)
        self.threshold, self.share = threshold, share

    def choose(self, score: float, facts: RoutingContext) -> Choice:
        """The pool for a score; a quality asked for per request replaces the share for that request."""
        threshold, share = self.threshold, self.share
        moved: tuple[tuple[str, str], ...] = ()
        if facts.quality is not None:
            threshold, share = threshold_for_share(self._quantiles, facts.quality), facts.quality
            if facts.hard_preference:
                # Both ends are promises: every request, whatever its score.
                wanted, other = (self.strong, self.weak) if facts.quality else (self.weak, self.strong)
                return Choice(wanted, f"quality {facts.quality:g} was asked for", (other,), score, threshold)
        if facts.bias or facts.conditions.pressure:
            new, moved = self._moved(share, facts)
            if new != share:
                threshold, share = threshold_for_share(self._quantiles, new), new
        strong = score >= threshold
        wanted, other = (self.strong, self.weak) if strong else (self.weak, self.strong)
        sign = ">=" if strong else "<"
        return Choice(
            wanted,
            f"{self._what} {score:.{self._digits}f} {sign} {threshold:.{self._digits}f}",
            (other,),
            score,
            threshold,
            share=share if moved else None,
            rise=rise_above(self._quantiles, threshold, score) if strong else None,
            moved=moved,
        )

    def _moved(self, share: float, facts: RoutingContext) -> tuple[float, tuple[tuple[str, str], ...]]:
        """The share that the controllers leave, and what each did."""
        moved: list[tuple[str, str]] = []
        if facts.bias:
            share = leaned(share, facts.bias)
            moved.append(("budget", f"{facts.bias:+.2f}"))
        conditions = facts.conditions
        weak, strong = (conditions.pressure.get(pool, 0.0) for pool in (self.weak, self.strong))
        left = pressed(share, weak, strong, conditions.floor, conditions.ceiling)
        if left != share:
            moved.append(("load", f"share {share:.2f} to {left:.2f}"))
        return left, tuple(moved)
