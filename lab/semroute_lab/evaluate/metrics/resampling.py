"""Bootstrap intervals: seeded, vectorised, and paired, since all routers see the same resamples.

Efron's percentile bootstrap over requests. A resample is a vector of counts (how often each row
was drawn), so no router is sorted twice: its order is fixed and only the weights change.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from semroute_lab.evaluate.metrics.arrays import Floats, descending_groups, floats
from semroute_lab.evaluate.metrics.pair import BUDGETS

LEVEL = 0.95
"""Coverage of every interval."""

CHUNK_CELLS = 2_000_000
"""Bound on replicates x rows held in memory at once."""

ADVANTAGES = (0.1, 0.2, 0.4)
"""Cost advantages at which the quality drop is reported (Hybrid LLM, Table 1)."""

TARGETS = (0.2, 0.5, 0.8)
"""Shares of the gap at which the call-performance threshold is reported (RouteLLM)."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure with its 95 % interval; the bounds are None where nothing was resampled."""

    value: float
    low: float | None = None
    high: float | None = None


def estimate(value: float, samples: Floats | None) -> Estimate:
    """`value` with the percentile interval of its bootstrap samples; undefined samples are left out."""
    if samples is None or not np.isfinite(samples).any():
        return Estimate(value)
    kept = samples[np.isfinite(samples)]
    low, high = np.percentile(kept, [50 * (1 - LEVEL), 50 * (1 + LEVEL)])
    return Estimate(value, float(low), float(high))


def resamples(rows: int, replicates: int, seed: int) -> Iterator[Floats]:
    """Counts of `replicates` draws of `rows` from `rows` with replacement, in chunks (chunk, rows).

    The same seed gives the same draws: differences between routers are paired.
    """
    rng = np.random.default_rng(seed)
    chunk = max(1, CHUNK_CELLS // rows)
    for start in range(0, replicates, chunk):
        size = min(chunk, replicates - start)
        draws = rng.integers(0, rows, (size, rows)) + np.arange(size)[:, None] * rows
        yield np.bincount(draws.reshape(-1), minlength=size * rows).reshape(size, rows).astype(np.float64)


def bootstrap(statistic: Callable[[Floats], Floats], rows: int, replicates: int, seed: int) -> Floats:
    """Samples of a statistic of weighted rows, which maps counts (chunk, rows) to (chunk,)."""
    parts = [statistic(counts) for counts in resamples(rows, replicates, seed)]
    return np.concatenate(parts) if parts else np.empty(0)


def bootstrap_pair(
    routers: Mapping[str, Floats], strong: Floats, weak: Floats, replicates: int, seed: int
) -> dict[str, dict[str, Floats]]:
    """Samples of every pair metric for every router, by router and metric name; each (replicates,).

    Metrics: `apgr`, `cpt20|50|80` with the strong share at exact tenths (what qcut gives without
    ties), the same with `_exact` over all budgets, and `drop10|20|40`.
    """
    strong, weak = floats(strong), floats(weak)
    samples: dict[str, dict[str, list[Floats]]] = {name: {} for name in routers}
    orders = {name: descending_groups(floats(scores)) for name, scores in routers.items()}
    for counts in resamples(strong.size, replicates, seed):
        base = counts @ weak / strong.size
        for name, (order, starts) in orders.items():
            ranked = counts[:, order]
            share = _cumulated(np.add.reduceat(ranked, starts, axis=1) / strong.size)
            gain = _cumulated(np.add.reduceat(ranked * (strong - weak)[order], starts, axis=1) / strong.size)
            for metric, values in _pair_metrics(share, gain, base).items():
                samples[name].setdefault(metric, []).append(values)
    return {
        name: {metric: np.concatenate(parts) for metric, parts in found.items()}
        for name, found in samples.items()
    }


def bootstrap_lift(
    scores: Floats, strong: Floats, weak: Floats, grid: Floats, replicates: int, seed: int
) -> Floats:
    """Samples of PGR(x) - x, what a router recovers beyond a random one, at the shares of `grid`.

    Shape (replicates, points).
    """
    strong, weak = floats(strong), floats(weak)
    order, starts = descending_groups(floats(scores))
    parts = []
    for counts in resamples(strong.size, replicates, seed):
        ranked = counts[:, order]
        share = _cumulated(np.add.reduceat(ranked, starts, axis=1) / strong.size)
        gain = _cumulated(np.add.reduceat(ranked * (strong - weak)[order], starts, axis=1) / strong.size)
        total = np.where(gain[:, -1] > 0, gain[:, -1], np.nan)
        at = np.stack([np.interp(grid, x, y) for x, y in zip(share, gain, strict=True)])
        parts.append(at / total[:, None] - grid)
    return np.concatenate(parts) if parts else np.empty((0, grid.size))


def _cumulated(steps: Floats) -> Floats:
    """Running sums of each row with a leading zero; (replicates, groups) to (replicates, groups + 1)."""
    return np.concatenate((np.zeros((len(steps), 1)), np.cumsum(steps, axis=1)), axis=1)


def _pair_metrics(share: Floats, gain: Floats, base: Floats) -> dict[str, Floats]:
    """Metrics of curves base + gain over share; share and gain (replicates, points), base (replicates,)."""
    total = gain[:, -1].copy()
    total[total <= 0] = np.nan
    found = {"apgr_exact": np.sum(np.diff(share) * (gain[:, 1:] + gain[:, :-1]) / 2.0, axis=1) / total}
    tenths = np.linspace(0.0, 1.0, BUDGETS + 1)
    coarse = np.stack([np.interp(tenths, x, y) for x, y in zip(share, gain, strict=True)])
    found["apgr"] = (coarse.sum(axis=1) - (coarse[:, 0] + coarse[:, -1]) / 2.0) / BUDGETS / total
    for q in TARGETS:
        name = f"cpt{q * 100:.0f}"
        found[name] = 100.0 * np.asarray([np.interp(q * y[-1], y, tenths) for y in coarse])
        found[name + "_exact"] = 100.0 * _first_crossing(share, gain, q * total)
    for advantage in ADVANTAGES:
        kept = np.asarray([np.interp(1.0 - advantage, x, y) for x, y in zip(share, gain, strict=True)])
        best = base + gain[:, -1]
        found[f"drop{advantage * 100:.0f}"] = 100.0 * (gain[:, -1] - kept) / np.abs(best)
    return found


def _first_crossing(share: Floats, gain: Floats, target: Floats) -> Floats:
    """Share at which each curve first reaches its target, linear within the step; NaN if it has none."""
    reached = gain >= target[:, None] - 1e-12
    last = np.argmax(reached, axis=1)
    rows = np.arange(len(gain))
    before = np.maximum(last - 1, 0)
    rise = gain[rows, last] - gain[rows, before]
    with np.errstate(invalid="ignore", divide="ignore"):
        part = np.where(rise > 0, np.clip((target - gain[rows, before]) / rise, 0.0, 1.0), 0.0)
    found: Floats = share[rows, before] + part * (share[rows, last] - share[rows, before])
    return np.where(reached.any(axis=1) & np.isfinite(target), found, np.nan)
