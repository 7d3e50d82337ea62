"""Weak or strong by one score and one threshold, for every strategy of a pair. Pure.

Hybrid LLM (arXiv 2404.14618) section 3 and RouteLLM (arXiv 2406.18665) section 3: a router
gives each query one score, the strong model has those from a threshold on, and moving the
threshold at test time trades cost for quality. The trade-off is kept as the strong *share*; the
score's quantiles on reference traffic turn it into a threshold.

Controllers act on the share, s, in this order. A budget's bias b adds to its log-odds:
logit s' = logit s + b. Then pressure: with d = pressure(strong) − pressure(weak),

    d > 0:  s'' = s' − d · (s' − floor)        but never up: nothing if s' is below the floor
    d < 0:  s'' = s' + |d| · (ceiling − s')    only if there is a ceiling; never down

so pressure on the strong pool takes its easiest requests first, and equal pressure on both moves
nothing. s'' falls continuously with pressure(strong).
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
    """The score from which on a share (0..1) of the reference traffic lies; inf for a share of 0."""
    if share <= 0.0:
        return float("inf")
    if share >= 1.0:
        return 0.0
    return float(np.interp(100.0 * (1.0 - share), np.arange(len(quantiles)), quantiles))


def share_for_threshold(quantiles: Quantiles, threshold: float) -> float:
    """The share of the reference traffic whose score is at least `threshold`."""
    # Just below it: all scores equal to it count, and they may be many.
    below = np.interp(np.nextafter(threshold, -1.0), quantiles, np.arange(len(quantiles)), 0.0, 100.0)
    return float(1.0 - below / 100.0)


NO_SHARE = 1e-9
"""A share below this is rounding."""


def rise_above(quantiles: Quantiles, threshold: float, score: float) -> float:
    """The part (0..1) of the reference traffic above `threshold` that lies below `score`.

    0 at the threshold, 1 from the highest score on: a distance in requests, so that it means the same
    for scores that fill 0..1 and for scores within a few hundredths.
    """
    above = share_for_threshold(quantiles, threshold)
    return 1.0 - share_for_threshold(quantiles, score) / above if above > NO_SHARE else 1.0


SHARE_MIN = 0.005
"""A bias counts a share as this far from 0 and 1 at least: the log-odds of the ends are infinite."""


def biased(share: float, bias: float) -> float:
    """The share (0..1) whose log-odds are `bias` more."""
    inside = min(max(share, SHARE_MIN), 1.0 - SHARE_MIN)
    return 1.0 / (1.0 + (1.0 - inside) / inside * math.exp(-bias))


def pressed(share: float, weak: float, strong: float, floor: float, ceiling: float | None) -> float:
    """The share (0..1) that pressures `weak` and `strong` (0..1) leave to the strong pool."""
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
        # As an array, so that NumPy does not convert it for every choice.
        self._quantiles = np.asarray(quantiles, dtype=np.float64)
        self._what, self._digits = what, digits
        if threshold is None:
            assert share is not None
            threshold = threshold_for_share(quantiles, share)
        else:
            share = share_for_threshold(quantiles, threshold)
        self.threshold, self.share = threshold, share

    def choose(self, score: float, context: RoutingContext) -> Choice:
        """The pool for a score; a quality asked for per request replaces the share for that request."""
        threshold, share = self.threshold, self.share
        moved: tuple[tuple[str, str], ...] = ()
        if context.quality is not None:
            threshold, share = threshold_for_share(self._quantiles, context.quality), context.quality
            if context.hard_preference:
                # A hard preference: whatever the score.
                wanted, other = (self.strong, self.weak) if context.quality else (self.weak, self.strong)
                return Choice(
                    wanted, f"quality {context.quality:g} was asked for", (other,), score, threshold
                )
        if context.bias or context.conditions.pressure:
            new, moved = self._moved(share, context)
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

    def _moved(self, share: float, context: RoutingContext) -> tuple[float, tuple[tuple[str, str], ...]]:
        """The share that the controllers leave, and the effect of each."""
        moved: list[tuple[str, str]] = []
        if context.bias:
            share = biased(share, context.bias)
            moved.append(("budget", f"{context.bias:+.2f}"))
        conditions = context.conditions
        weak, strong = (conditions.pressure.get(pool, 0.0) for pool in (self.weak, self.strong))
        left = pressed(share, weak, strong, conditions.floor, conditions.ceiling)
        if left != share:
            moved.append(("load", f"share {share:.2f} to {left:.2f}"))
        return left, tuple(moved)
