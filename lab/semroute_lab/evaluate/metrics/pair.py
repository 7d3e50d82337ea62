"""Metrics of a router between a weak and a strong model.

Every request has an outcome under each model (1/0 for right and wrong, or any graded quality)
and a score; the router sends the highest scores to the strong model. Quality A(x) at a strong
share x is the mean outcome of the chosen models.

Two versions live side by side. `decile_curve` with `apgr` and `cpt` does what RouteLLM's code
does (Ong et al., arXiv 2406.18665; evals/benchmarks.py and evaluate.py), so figures compare with
its tables. `exact_curve` with `apgr` and `cpt_exact` uses all n+1 budgets and the first crossing,
which stays well defined with ties and where quality is not monotone. They agree within about .01
for learned routers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from semroute_lab.evaluate.metrics.arrays import Floats, floats, mid_ranks, tied_means, trapezoid

BUDGETS = 10
"""RouteLLM evaluates at this many equal steps of the strong share."""


@dataclass(frozen=True, slots=True)
class Curve:
    """Quality against the share of requests that the strong model answers."""

    share: Floats
    """Strong share, 0..1, ascending; shape (points,)."""
    quality: Floats
    """Mean outcome of the chosen models at that share; shape (points,)."""

    def at(self, share: float) -> float:
        """Quality at a share between points, by linear interpolation (randomising between both)."""
        return float(np.interp(share, self.share, self.quality))


def pgr(quality: float, strong: float, weak: float) -> float:
    """Performance gap recovered, (A - A_w) / (A_s - A_w): 0 is always-weak, 1 always-strong.

    RouteLLM, section 3 (PGR). Raises `ValueError` where the two models are equally good.
    """
    if strong == weak:
        raise ValueError("the gap is not defined: both models have the same mean quality")
    return (quality - weak) / (strong - weak)


def decile_edges(scores: Floats) -> Floats:
    """The 11 edges `pandas.qcut(scores, 10, retbins=True)` returns, without pandas; ascending.

    Like pandas, the probabilities k/10 that are not representable are rounded up by one unit in
    the last place, so that an edge on a data point does not fall just below it.
    """
    steps = np.arange(BUDGETS + 1)
    probabilities = np.linspace(0.0, 1.0, BUDGETS + 1)
    inexact = BUDGETS * probabilities != steps
    probabilities[inexact] = np.nextafter(probabilities[inexact], 1.0)
    return np.percentile(scores, probabilities * 100.0).astype(np.float64)


def decile_curve(scores: Floats, strong: Floats, weak: Floats, seed: int = 0) -> Curve:
    """RouteLLM's curve: 11 points, strong iff score >= edge (> at the last edge).

    qcut refuses scores so tied that two edges coincide; then ties are broken at random from
    `seed`, which is what adding a vanishing jitter to the scores does.
    """
    scores, strong, weak = floats(scores), floats(strong), floats(weak)
    edges = decile_edges(scores)
    if (edges[1:] <= edges[:-1]).any():
        shuffled = np.random.default_rng(seed).permutation(scores.size)
        ranks = np.empty(scores.size)
        ranks[np.lexsort((shuffled, scores))] = np.arange(scores.size)
        scores, edges = ranks, decile_edges(ranks)
    chosen = scores >= edges[:, None]
    chosen[-1] = scores > edges[-1]
    quality = np.where(chosen, strong, weak).mean(axis=1)
    return Curve(chosen.mean(axis=1)[::-1], quality[::-1])


def exact_curve(scores: Floats, strong: Floats, weak: Floats) -> Curve:
    """The curve at all n+1 budgets, A_k = A_w + (1/n) sum of the gains of the top k; ties in expectation."""
    scores, strong, weak = floats(scores), floats(strong), floats(weak)
    gains = tied_means(scores, strong - weak)
    quality = weak.mean() + np.concatenate(([0.0], np.cumsum(gains))) / scores.size
    return Curve(np.arange(scores.size + 1) / scores.size, quality)


def oracle_score(strong: Floats, weak: Floats) -> Floats:
    """The score of a router that knows both outcomes: the gain s - w."""
    return floats(strong) - floats(weak)


def oracle_curve(strong: Floats, weak: Floats) -> Curve:
    """The best quality at *up to* a strong share: the running maximum of the oracle's exact curve.

    For 0/1 outcomes it is RouteLLM's `get_optimal_accuracy(x)`, (n_weak_right + min(xn, n_strong_only)) / n.
    """
    curve = exact_curve(oracle_score(strong, weak), strong, weak)
    return Curve(curve.share, np.maximum.accumulate(curve.quality))


def apgr(curve: Curve, strong: float, weak: float) -> float:
    """Average PGR: (AUC - A_w dx) / ((A_s - A_w) dx), AUC by the trapezoid over the curve's points.

    RouteLLM's code and tables. (Its text sums PGR over ten budgets, which would score a random
    router .55; the tables say .500, which is the trapezoid.) `strong` and `weak` are mean outcomes.
    """
    width = float(curve.share[-1] - curve.share[0])
    return pgr(trapezoid(curve.quality, curve.share) / width, strong, weak)


def cpt(curve: Curve, q: float, strong: float, weak: float) -> float:
    """Call-performance threshold: the strong share in percent at which PGR reaches `q` (0..1).

    RouteLLM's code: `numpy.interp(q (A_s - A_w) + A_w, A, x)`, which presumes that quality rises
    with the share; on other curves the value is whatever the interpolation finds, as in its tables.
    """
    return 100.0 * float(np.interp(q * (strong - weak) + weak, curve.quality, curve.share))


def cpt_exact(curve: Curve, q: float, strong: float, weak: float) -> float:
    """The smallest strong share in percent at which PGR reaches `q`: the first crossing of the curve.

    Linear within the step that crosses (randomising between both budgets); NaN if there is none.
    """
    target = q * (strong - weak) + weak
    # Quality is a sum of n terms: a shortfall of rounding size is not a shortfall.
    reached = np.flatnonzero(curve.quality >= target - 1e-12 * max(1.0, abs(target)))
    if reached.size == 0:
        return float("nan")
    i = int(reached[0])
    if i == 0 or curve.quality[i] <= target:
        return 100.0 * float(curve.share[i])
    part = (target - curve.quality[i - 1]) / (curve.quality[i] - curve.quality[i - 1])
    return 100.0 * float(curve.share[i - 1] + part * (curve.share[i] - curve.share[i - 1]))


def quality_drop(curve: Curve, advantage: float) -> float:
    """Quality lost against always-strong, in percent of it, at a cost advantage (weak share, 0..1).

    Hybrid LLM (Ding et al., arXiv 2404.14618, Table 1): 100 (A_s - A(1 - advantage)) / |A_s|.
    Negative where the mix beats the strong model.
    """
    strong = float(curve.quality[-1])
    return 100.0 * (strong - curve.at(1.0 - advantage)) / abs(strong)


def within_groups(scores: Floats, groups: Sequence[str], other: Floats | None = None) -> Floats:
    """The part of a score that its group (subject) does not explain: z-scores within each group.

    With `other` (length, say), the least-squares projection on the other variable's own z-scores
    is taken out as well. A router that only knows the subject, or only the length, keeps nothing;
    a group without variation gets zeros. Shape (n,).
    """
    residual = _z_within(floats(scores), groups)
    if other is None:
        return residual
    known = _z_within(mid_ranks(floats(other)), groups)
    energy = float(known @ known)
    return residual - (float(residual @ known) / energy) * known if energy > 0 else residual


def _z_within(values: Floats, groups: Sequence[str]) -> Floats:
    _, index = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
    index = index.reshape(-1)
    size = np.bincount(index)
    centred = values - (np.bincount(index, values) / size)[index]
    spread = np.sqrt(np.bincount(index, centred**2) / size)[index]
    # A spread of rounding size is no variation.
    flat = spread <= 1e-12 * np.maximum(1.0, np.abs(values).max())
    return np.where(flat, 0.0, centred / np.where(flat, 1.0, spread))
