"""Array types and the few numerical helpers that several metrics share."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Floats: TypeAlias = npt.NDArray[np.float64]
Integers: TypeAlias = npt.NDArray[np.int64]
Booleans: TypeAlias = npt.NDArray[np.bool_]


def floats(values: npt.ArrayLike) -> Floats:
    """One-dimensional float64 copy-free view of `values`; refuses NaN, infinities and emptiness."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or array.size == 0:
        raise ValueError(f"expected a non-empty vector, got shape {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError("expected finite numbers")
    return array


def trapezoid(y: Floats, x: Floats) -> float:
    """Area under the polygon through (x, y); `numpy.trapezoid` exists only since numpy 2."""
    return float(np.sum((x[1:] - x[:-1]) * (y[1:] + y[:-1]) / 2.0))


def descending_groups(scores: Floats) -> tuple[Integers, Integers]:
    """Order of the scores from high to low, and where each group of equal scores starts in it.

    Shapes (n,) and (groups,); `numpy.add.reduceat(values[order], starts)` sums by group.
    """
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    starts = np.flatnonzero(np.concatenate(([True], ranked[1:] != ranked[:-1])))
    return order.astype(np.int64), starts.astype(np.int64)


def tied_means(scores: Floats, values: Floats) -> Floats:
    """`values` from the highest score to the lowest, each replaced by the mean of its tie group.

    A cumulative sum of the result is the expectation over all ways to break ties, so a router
    that knows nothing (one score for everything) draws the diagonal and not a lucky order.
    """
    order, starts = descending_groups(scores)
    sizes = np.diff(np.append(starts, scores.size))
    sums = np.add.reduceat(values[order], starts)
    return np.repeat(sums / sizes, sizes)


def mid_ranks(values: Floats) -> Floats:
    """Ranks 1..n of the values, equal values sharing the mean of their ranks; shape (n,)."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return np.asarray((last - (counts - 1) / 2.0)[inverse.reshape(-1)], dtype=np.float64)
