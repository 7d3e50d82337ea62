"""Metrics of a router over a pool of many models: the deferral curve and the figures read off it.

UniRoute (Jitkrittum et al., arXiv 2502.08773). For a trade-off lambda >= 0 a request goes to
argmin_n error(x, n) + lambda c_n; sweeping lambda draws quality against mean cost. Costs are
divided by the mean cost of the pool's most expensive model, so the axis is 0..1.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from semroute_lab.common.metrics import Floats, Integers
from semroute_lab.common.routing import exact_curve

LAMBDAS = np.concatenate(([0.0], np.logspace(-4, 3, 140)))  # The trade-offs; both ends are saturated


@dataclass(frozen=True, slots=True)
class DeferralCurve:
    """Quality against cost; both of shape (points,), cost ascending and relative."""

    cost: Floats
    quality: Floats

    @classmethod
    def through(cls, cost: Floats, quality: Floats) -> DeferralCurve:
        """The curve through points in any order; of two points at one cost the better one counts."""
        order = np.lexsort((-quality, cost))
        cost, quality = cost[order], quality[order]
        first = np.concatenate(([True], cost[1:] > cost[:-1]))
        return cls(cost[first], quality[first])


def deferral_curve(errors: Floats, prices: Floats, outcome: Floats, cost: Floats) -> DeferralCurve:
    """Sweep lambda over a router's estimates and measure the quality and cost of its choices.
    `errors` (n, models) are the estimates, `prices` (models,) the relative costs it decides by; `outcome`
    and `cost` (n, models) are the truth. Equal objectives go to the cheaper model.
    """
    order = np.argsort(prices, kind="stable")
    estimate, price = errors[:, order], prices[order]
    chosen = (order[np.argmin(estimate + trade * price, axis=1)] for trade in LAMBDAS)
    rows = np.arange(len(errors))
    points = np.asarray([(cost[rows, c].mean(), outcome[rows, c].mean()) for c in chosen])
    return DeferralCurve.through(points[:, 0], points[:, 1])


def hull(prices: Floats, quality: Floats) -> Integers:
    """Models on the non-decreasing convex hull of quality over cost, cheapest first.
    ZeroRouter (Hu et al., RouterBench, arXiv 2403.12031): the best that is possible without reading the
    request, a random mix of two neighbors on the hull.
    """
    kept: list[int] = []
    for model in np.lexsort((-quality, prices)).tolist():
        if kept and quality[model] <= quality[kept[-1]]:
            continue
        while len(kept) > 1:
            # The last point goes if it lies on or under the line from the one before it to the new one.
            (a, b), c = kept[-2:], model
            rise, whole = quality[[b, c]] - quality[a], prices[[b, c]] - prices[a]
            if rise[0] * whole[1] > rise[1] * whole[0]:
                break
            kept.pop()
        kept.append(model)
    return np.asarray(kept, dtype=np.int64)


def fixed_curve(models: Integers, outcome: Floats, cost: Floats) -> DeferralCurve:
    """The curve through single models that answer everything; `outcome` and `cost` are (n, all models)."""
    return DeferralCurve.through(cost[:, models].mean(axis=0), outcome[:, models].mean(axis=0))


def pair_curve(scores: Floats, weak: int, strong: int, outcome: Floats, cost: Floats) -> DeferralCurve:
    """A router between two models of `outcome` and `cost` (n, models), highest scores (n,) to `strong`."""
    cost, quality = (exact_curve(scores, each[:, strong], each[:, weak]).quality for each in (cost, outcome))
    return DeferralCurve.through(cost, quality)


def area(curve: DeferralCurve, budget: float = 1.0) -> float:
    """Area under the curve for relative cost 0..`budget`, constant outside of its points."""
    inside = (curve.cost > 0.0) & (curve.cost < budget)
    x = np.concatenate(([0.0], curve.cost[inside], [budget]))
    return float(np.trapezoid(np.interp(x, curve.cost, curve.quality), x))


def qnc(curve: DeferralCurve, target: float, cost: float) -> float:
    """Quality-neutral cost: the least cost at which the curve reaches `target`, over `cost`, in percent.
    `target` and `cost` are the quality and cost of the pool's most accurate model. Infinite where the curve
    never reaches it.
    """
    reached = np.flatnonzero(curve.quality >= target - 1e-12)
    if reached.size == 0:
        return float("inf")
    i = int(reached[0])
    if i == 0:
        return 100.0 * float(curve.cost[0]) / cost
    before = curve.quality[i - 1]
    part = min((target - before) / (curve.quality[i] - before), 1.0)
    return 100.0 * float(curve.cost[i - 1] + part * (curve.cost[i] - curve.cost[i - 1])) / cost
