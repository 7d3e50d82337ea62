"""Metrics of a router between a weak and a strong model.

Quality A(x) at a strong share x is the mean outcome when the requests with the highest scores go to the
strong model. `decile_curve` with `apgr` and `cpt` follows RouteLLM's code (Ong et al., arXiv 2406.18665;
evals/benchmarks.py and evaluate.py), so figures compare with its tables. The metrics `*_exact` use all n+1
budgets and the first crossing, which are well defined with ties and where quality is not monotone.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from semroute_lab.common.metrics import Floats, descending_groups, floats, resamples, tied_means

BUDGETS = 10  # RouteLLM evaluates at this many equal steps of the strong share
ADVANTAGES = (0.1, 0.2, 0.4)  # Cost advantages at which the quality drop is reported (Hybrid LLM, Table 1)
TARGETS = (0.2, 0.5, 0.8)  # Shares of the gap at which the call-performance threshold is reported (RouteLLM)


@dataclass(frozen=True, slots=True)
class Curve:
    """Quality against the share of requests that the strong model answers."""

    share: Floats  # Strong share, 0..1, ascending; shape (points,)
    quality: Floats  # Mean outcome of the chosen models at that share; shape (points,)


def pgr(quality: float, strong: float, weak: float) -> float:
    """Performance gap recovered, (A - A_w) / (A_s - A_w) (RouteLLM, section 3); ValueError without a gap."""
    if strong == weak:
        raise ValueError("the gap is not defined: both models have the same mean quality")
    return (quality - weak) / (strong - weak)


def decile_edges(scores: Floats) -> Floats:
    """The 11 edges that `pandas.qcut(scores, 10, retbins=True)` returns, ascending.
    Like pandas, probabilities k/10 that are not representable are rounded up by one unit in the last place.
    """
    probabilities = np.linspace(0.0, 1.0, BUDGETS + 1)
    inexact = BUDGETS * probabilities != np.arange(BUDGETS + 1)
    probabilities[inexact] = np.nextafter(probabilities[inexact], 1.0)
    return np.percentile(scores, probabilities * 100.0).astype(np.float64)


def decile_curve(scores: Floats, strong: Floats, weak: Floats, seed: int = 0) -> Curve:
    """RouteLLM's curve: 11 points, strong iff score >= edge (> at the last one); `seed` breaks ties."""
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


def apgr(curve: Curve, strong: float, weak: float) -> float:
    """Average PGR: (AUC - A_w dx) / ((A_s - A_w) dx), AUC by the trapezoid over the curve's points.
    As in RouteLLM's code and tables. (The paper's text sums PGR over ten budgets: .55 for a random router.)
    """
    width = float(curve.share[-1] - curve.share[0])
    return pgr(float(np.trapezoid(curve.quality, curve.share)) / width, strong, weak)


def cpt(curve: Curve, q: float, strong: float, weak: float) -> float:
    """Call-performance threshold: the strong share in percent at which PGR reaches `q` (0..1).
    As in RouteLLM's code, `numpy.interp(q (A_s - A_w) + A_w, A, x)`, even where quality is not monotone.
    """
    return 100.0 * float(np.interp(q * (strong - weak) + weak, curve.quality, curve.share))


def point_metrics(scores: Floats, strong: Floats, weak: Floats, seed: int) -> dict[str, float]:
    """All metrics of a router by name, in the order of reports; `bootstrap_pair` uses the same names."""
    s, w = float(strong.mean()), float(weak.mean())
    coarse, exact = decile_curve(scores, strong, weak, seed), exact_curve(scores, strong, weak)
    found = _pair_metrics(exact.share[None], exact.quality[None] - w, np.asarray([w]))
    as_routellm = {f"cpt{q * 100:.0f}": cpt(coarse, q, s, w) for q in TARGETS}
    exactly = {name: float(values[0]) for name, values in found.items()}
    return exactly | as_routellm | {"apgr": apgr(coarse, s, w)}


def within_groups(scores: Floats, groups: Sequence[str], other: Floats | None = None) -> Floats:
    """The part of a score that its group (subject) does not explain: z-scores within each group.
    With `other` (length, say), the least-squares projection on its z-scores is taken out as well; (n,).
    """
    residual = _z_within(floats(scores), groups)
    if other is None:
        return residual
    from scipy.stats import rankdata

    known = _z_within(rankdata(floats(other)), groups)
    energy = float(known @ known)
    return residual - (float(residual @ known) / energy) * known if energy > 0 else residual


def _z_within(values: Floats, groups: Sequence[str]) -> Floats:
    _, index = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
    size = np.bincount(index)
    centered = values - (np.bincount(index, values) / size)[index]
    spread = np.sqrt(np.bincount(index, centered**2) / size)[index]
    # A spread no larger than rounding errors counts as zero.
    flat = spread <= 1e-12 * np.maximum(1.0, np.abs(values).max())
    return np.where(flat, 0.0, centered / np.where(flat, 1.0, spread))


Resampled = tuple[Floats, Floats]  # Share and gain over always-weak of resampled curves; (chunk, points)


def _resampled(
    routers: Mapping[str, Floats], strong: Floats, weak: Floats, replicates: int, seed: int
) -> Iterator[tuple[Floats, Iterator[tuple[str, Resampled]]]]:
    """For each chunk of resamples the weak model's mean (chunk,) and every router's curve."""
    n = floats(strong).size
    orders = {name: descending_groups(floats(scores)) for name, scores in routers.items()}

    def curves(counts: Floats) -> Iterator[tuple[str, Resampled]]:
        for name, (order, starts) in orders.items():
            ranked = counts[:, order]
            weights = (ranked, ranked * (strong - weak)[order])
            steps = (np.add.reduceat(each, starts, axis=1) / n for each in weights)
            share, gain = (np.pad(np.cumsum(step, axis=1), ((0, 0), (1, 0))) for step in steps)
            yield name, (share, gain)

    for counts in resamples(n, replicates, seed):
        yield counts @ weak / n, curves(counts)


def bootstrap_pair(
    routers: Mapping[str, Floats], strong: Floats, weak: Floats, replicates: int, seed: int
) -> dict[str, dict[str, Floats]]:
    """Samples (replicates,) of `point_metrics` by router and metric; APGR and CPT read exact tenths."""
    samples: dict[str, dict[str, list[Floats]]] = {name: {} for name in routers}
    for base, curves in _resampled(routers, strong, weak, replicates, seed):
        for name, (share, gain) in curves:
            for metric, values in _pair_metrics(share, gain, base).items():
                samples[name].setdefault(metric, []).append(values)
    return {
        name: {metric: np.concatenate(parts) for metric, parts in found.items()}
        for name, found in samples.items()
    }


def bootstrap_lift(
    scores: Floats, strong: Floats, weak: Floats, grid: Floats, replicates: int, seed: int
) -> Floats:
    """Samples of PGR(x) - x, the gain over a random router, at the shares of `grid`; (replicates, points)."""
    parts = [np.empty((0, grid.size))]
    for _, curves in _resampled({"": scores}, strong, weak, replicates, seed):
        for _, (share, gain) in curves:
            total = np.where(gain[:, -1] > 0, gain[:, -1], np.nan)
            parts.append(_at(grid, share, gain) / total[:, None] - grid)
    return np.concatenate(parts)


def _at(grid: Floats, x: Floats, y: Floats) -> Floats:
    """Each curve y over x, (curves, points), read at `grid`; (curves, grid)."""
    return np.stack([np.interp(grid, one, other) for one, other in zip(x, y, strict=True)])


def _pair_metrics(share: Floats, gain: Floats, base: Floats) -> dict[str, Floats]:
    """Metrics of curves base + gain over share; share and gain (replicates, points), base (replicates,).
    An exact CPT is the first crossing of the curve. A drop is 100 (A_s - A(1 - advantage)) / |A_s| (Hybrid
    LLM, Table 1), negative where the mix beats the strong model.
    """
    last = gain[:, -1]
    total = np.where(last > 0, last, np.nan)
    tenths = np.linspace(0.0, 1.0, BUDGETS + 1)
    coarse = _at(tenths, share, gain)
    found = {
        "apgr": np.trapezoid(coarse, tenths, axis=1) / total,
        "apgr_exact": np.trapezoid(gain, share, axis=1) / total,
    }
    for q in TARGETS:
        name = f"cpt{q * 100:.0f}"
        found[name] = 100.0 * np.asarray([np.interp(q * y[-1], y, tenths) for y in coarse])
        found[name + "_exact"] = 100.0 * _first_crossing(share, gain, q * total)
    for advantage in ADVANTAGES:
        kept = _at(np.asarray([1.0 - advantage]), share, gain)[:, 0]
        found[f"drop{advantage * 100:.0f}"] = 100.0 * (last - kept) / np.abs(base + last)
    return found


def _first_crossing(share: Floats, gain: Floats, target: Floats) -> Floats:
    """Share at which each curve first reaches its target, linear within the step; NaN if it never does."""
    # Values are sums of n terms, so a shortfall within rounding error counts as reached.
    reached = gain >= (target - 1e-12 * np.maximum(1.0, np.abs(target)))[:, None]
    last = np.argmax(reached, axis=1)
    rows = np.arange(len(gain))
    before = np.maximum(last - 1, 0)
    rise = gain[rows, last] - gain[rows, before]
    with np.errstate(invalid="ignore", divide="ignore"):
        part = np.where(rise > 0, np.clip((target - gain[rows, before]) / rise, 0.0, 1.0), 0.0)
    found: Floats = share[rows, before] + part * (share[rows, last] - share[rows, before])
    return np.where(reached.any(axis=1) & np.isfinite(target), found, np.nan)
