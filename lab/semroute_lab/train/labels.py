"""From outcomes to the target of a router: Hybrid LLM's labels and RouteLLM's win probability.

`strong` and `weak` are qualities, [rows] or [rows, samples]; NaN is an answer that is missing. Hybrid LLM
(Ding et al., arXiv 2404.14618) calls the easy requests positive; `r_det`, `r_prob` and `r_trans` are its
labels, and `targets` gives their complements.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from semroute_lab.common.metrics import Floats

KINDS = ("only-strong", "det", "prob", "trans", "win")
"""`only_strong`, the complements of `r_det`, `r_prob` and `r_trans` at t*, and `win_probability`."""

TRANSFORM_GRID = 101  # Candidates of t between 0 and the largest gap; the paper searches a grid as well
PAIRS_MAX = 4_000  # More rows than this are sampled for the search of t
TIE_CREDIT = 0.5  # A tie counts half a win, as in Bradley-Terry ratings; with 0, `win` would equal `prob`


def targets(
    kind: str, strong: npt.ArrayLike, weak: npt.ArrayLike, t: float | None = None
) -> tuple[Floats, dict[str, Any]]:
    """P(the strong model is needed) in 0..1 by one of `KINDS`, [rows], and facts about the labels.
    `trans` uses `t`, or t* of these rows; the facts hold it as "t". Rows without an answer of either model
    are NaN.
    """
    info: dict[str, Any] = {"kind": kind}
    match kind:
        case "only-strong":
            found = only_strong(strong, weak)
        case "det":
            found = 1.0 - r_det(strong, weak)
        case "prob":
            found = 1.0 - r_prob(strong, weak)
        case "trans":
            info["t"] = best_t(strong, weak) if t is None else t
            found = 1.0 - r_trans(strong, weak, info["t"])
        case "win":
            info["tie_credit"], gaps = TIE_CREDIT, _gaps(strong, weak)
            counts = ((gaps < 0).sum(1), (gaps == 0).sum(1), (gaps > 0).sum(1))
            found = win_probability(*counts, TIE_CREDIT)
        case _:
            raise ValueError(f"{kind!r} is none of {', '.join(KINDS)}")
    return found, info | {"mean": float(np.nanmean(found))}


def gain(strong: npt.ArrayLike, weak: npt.ArrayLike) -> Floats:
    """Mean quality of the strong model minus that of the weak one, s - w; [rows]."""
    return _mean(strong) - _mean(weak)


def only_strong(strong: npt.ArrayLike, weak: npt.ArrayLike, least: float = 0.5) -> Floats:
    """P(an answer of strong is good, >= `least`, and one of weak is not), drawn independently; [rows]."""
    s, w = (np.where(np.isnan(x), np.nan, x >= least) for x in map(_samples, (strong, weak)))
    return _mean(s) * (1.0 - _mean(w))


def r_det(strong: npt.ArrayLike, weak: npt.ArrayLike) -> Floats:
    """Deterministic label (Hybrid LLM, equation 1): 1 where weak >= strong in the mean; [rows]."""
    s, w = _mean(strong), _mean(weak)
    return np.where(np.isnan(s + w), np.nan, w >= s)


def r_prob(strong: npt.ArrayLike, weak: npt.ArrayLike) -> Floats:
    """Probabilistic label (section 3.2): Pr[H >= 0], H = q(weak) - q(strong), over all pairs of answers."""
    return r_trans(strong, weak, 0.0)


def r_trans(strong: npt.ArrayLike, weak: npt.ArrayLike, t: float) -> Floats:
    """Relaxed label (section 3.3): Pr[H >= -t], t >= 0; it makes up for a large gap between the models."""
    return _share_above(_gaps(strong, weak), -t)


def best_t(strong: npt.ArrayLike, weak: npt.ArrayLike, seed: int = 0) -> float:
    """t* = argmax over t of (1/N^2) sum_ij |y_i(t) - y_j(t)|, the smallest one (section 3.3)."""
    gaps = _gaps(strong, weak)
    gaps = gaps[~np.isnan(gaps).all(axis=1)]
    if gaps.shape[0] > PAIRS_MAX:
        gaps = gaps[np.random.default_rng(seed).choice(gaps.shape[0], PAIRS_MAX, replace=False)]
    candidates = np.linspace(0.0, max(0.0, float(-np.nanmin(gaps))), TRANSFORM_GRID)
    spread = np.asarray([mean_absolute_difference(_share_above(gaps, -t)) for t in candidates])
    # Differences by rounding alone do not count.
    return float(candidates[int(np.argmax(spread >= spread.max() - 1e-12))])


def mean_absolute_difference(y: Floats) -> float:
    """(1/N^2) sum_ij |y_i - y_j|, from the sorted values in O(N log N)."""
    ordered, n = np.sort(y), y.size
    return float(2.0 * (ordered @ (2.0 * np.arange(1, n + 1) - n - 1)) / n**2)


def win_probability(
    strong_wins: npt.ArrayLike, ties: npt.ArrayLike, weak_wins: npt.ArrayLike, tie_credit: float = 0.0
) -> Floats:
    """P(strong wins) from counts of judgments, (s + credit * t) / (s + t + w); [rows], NaN without any.
    RouteLLM (arXiv 2406.18665, section 3): its classifiers count a tie as no win (`tie_credit` 0), its
    Bradley-Terry ratings as half a win.
    """
    s, t, w = (np.asarray(x, dtype=np.float64) for x in (strong_wins, ties, weak_wins))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray((s + tie_credit * t) / (s + t + w), dtype=np.float64)


def _samples(quality: npt.ArrayLike) -> Floats:
    values = np.asarray(quality, dtype=np.float64)
    return values[:, None] if values.ndim == 1 else values


def _mean(quality: npt.ArrayLike) -> Floats:
    """The mean of the known answers of each row; NaN if there are none."""
    values = _samples(quality)
    with np.errstate(invalid="ignore"):
        return np.asarray(np.nansum(values, axis=1) / (~np.isnan(values)).sum(axis=1), dtype=np.float64)


def _gaps(strong: npt.ArrayLike, weak: npt.ArrayLike) -> Floats:
    """H = q(weak) - q(strong) for every pair of answers; [rows, pairs]."""
    s, w = _samples(strong), _samples(weak)
    return np.asarray((w[:, :, None] - s[:, None, :]).reshape(s.shape[0], -1), dtype=np.float64)


def _share_above(gaps: Floats, least: float) -> Floats:
    """The share of the known gaps of each row that are >= `least`; NaN if there are none."""
    return _mean(np.where(np.isnan(gaps), np.nan, gaps >= least))
