"""Metrics of a router over a pool of many models: the deferral curve and what is read off it.

UniRoute (Jitkrittum et al., arXiv 2502.08773). For a trade-off lambda >= 0 a request goes to
argmin_n error(x, n) + lambda c_n; sweeping lambda draws quality against mean cost. Costs are
divided by the mean cost of the pool's dearest model, so the axis is 0..1.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from semroute_lab.evaluate.metrics.arrays import Floats, Integers, trapezoid
from semroute_lab.evaluate.metrics.pair import exact_curve

LAMBDAS = np.concatenate(([0.0], np.logspace(-4, 3, 140)))
"""The trade-offs swept: error is 0..1 and the dearest model costs 1, so both ends are saturated."""


@dataclass(frozen=True, slots=True)
class DeferralCurve:
    """Quality against cost; both of shape (points,), cost ascending and in units of the dearest model."""

    cost: Floats
    quality: Floats

    def at(self, cost: float) -> float:
        """Quality at a budget: linear between points, flat outside them."""
        return float(np.interp(cost, self.cost, self.quality))


def deferral_curve(errors: Floats, prices: Floats, outcome: Floats, cost: Floats) -> DeferralCurve:
    """Sweep lambda over a router's estimates and measure what it would have got and paid.

    `errors` (n, models) are the estimates, `prices` (models,) the costs it decides by (already
    relative); `outcome` and `cost` (n, models) are the truth. Equal objectives go to the cheaper model.
    """
    order = np.argsort(prices, kind="stable")
    estimate, price = errors[:, order], prices[order]
    rows = np.arange(len(errors))
    points = np.empty((LAMBDAS.size, 2))
    for i, trade in enumerate(LAMBDAS):
        chosen = order[np.argmin(estimate + trade * price, axis=1)]
        points[i] = cost[rows, chosen].mean(), outcome[rows, chosen].mean()
    return _curve(points)


def hull(prices: Floats, quality: Floats) -> Integers:
    """Models on the non-decreasing convex hull of quality over cost, cheapest first.

    ZeroRouter (Hu et al., RouterBench, arXiv 2403.12031): the best that can be had without
    reading the request, by randomising between two neighbours of the hull.
    """
    kept: list[int] = []
    for model in np.lexsort((-quality, prices)):
        if kept and quality[model] <= quality[kept[-1]]:
            continue
        while len(kept) > 1 and _below(prices, quality, kept[-2], kept[-1], int(model)):
            kept.pop()
        kept.append(int(model))
    return np.asarray(kept, dtype=np.int64)


def _below(x: Floats, y: Floats, a: int, b: int, c: int) -> bool:
    """Whether point b lies on or under the line from a to c."""
    return bool((y[b] - y[a]) * (x[c] - x[a]) <= (y[c] - y[a]) * (x[b] - x[a]))


def fixed_curve(models: Integers, outcome: Floats, cost: Floats) -> DeferralCurve:
    """The curve through single models, each asked everything; `outcome` and `cost` are (n, all models)."""
    return _curve(np.stack([cost[:, models].mean(axis=0), outcome[:, models].mean(axis=0)], axis=1))


def pair_curve(scores: Floats, weak: int, strong: int, outcome: Floats, cost: Floats) -> DeferralCurve:
    """A router between two of the pool's models: from none to all requests at `strong`, highest scores first.

    `scores` (n,); `outcome` and `cost` (n, models) are the truth; ties in expectation.
    """
    quality = exact_curve(scores, outcome[:, strong], outcome[:, weak]).quality
    paid = exact_curve(scores, cost[:, strong], cost[:, weak]).quality
    return _curve(np.stack([paid, quality], axis=1))


def _curve(points: Floats) -> DeferralCurve:
    # Distinct budgets only; of two points at one cost the better one stands.
    points = points[np.lexsort((-points[:, 1], points[:, 0]))]
    first = np.concatenate(([True], points[1:, 0] > points[:-1, 0]))
    return DeferralCurve(points[first, 0], points[first, 1])


def area(curve: DeferralCurve, budget: float = 1.0) -> float:
    """Area under the curve for relative cost 0..`budget`; with budget 1 it is a mean quality.

    Below the cheapest point the cheapest model answers, beyond the dearest point quality stays.
    """
    inside = (curve.cost > 0.0) & (curve.cost < budget)
    x = np.concatenate(([0.0], curve.cost[inside], [budget]))
    y = np.concatenate(([curve.at(0.0)], curve.quality[inside], [curve.at(budget)]))
    return trapezoid(y, x)


def qnc(curve: DeferralCurve, target: float, cost: float) -> float:
    """Quality-neutral cost: the least cost at which the curve reaches `target`, over `cost`, in percent.

    `target` and `cost` are the quality and cost of the pool's most accurate model. Infinite where
    the curve never gets there.
    """
    reached = np.flatnonzero(curve.quality >= target - 1e-12)
    if reached.size == 0:
        return float("inf")
    i = int(reached[0])
    if i == 0:
        return 100.0 * float(curve.cost[0]) / cost
    rise = curve.quality[i] - curve.quality[i - 1]
    part = (target - curve.quality[i - 1]) / rise
    return 100.0 * float(curve.cost[i - 1] + min(part, 1.0) * (curve.cost[i] - curve.cost[i - 1])) / cost


def peak(curve: DeferralCurve) -> float:
    """The highest quality on the curve, at any cost."""
    return float(curve.quality.max())
