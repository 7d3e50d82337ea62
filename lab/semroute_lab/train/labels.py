"""From outcomes to the target of a router.

Hybrid LLM (Ding et al., arXiv 2404.14618) calls the easy requests positive: its labels are those
on which the weak model is as good. `difficulty` in this package is their complement, so that a
high score means the strong model is needed.

Shapes: `strong` and `weak` are qualities, [rows] or [rows, samples] with several answers a model.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

TRANSFORM_GRID = 101
"""Candidates of t between 0 and the largest gap; the paper searches a grid as well."""

PAIRS_MAX = 4_000
"""Rows beyond this are sampled for the search of t: only the spread of the labels matters."""


TIE_CREDIT = 0.5
"""Credit of a tie in the label `win`."""


def targets(kind: str, strong: npt.ArrayLike, weak: npt.ArrayLike) -> tuple[Floats, dict[str, Any]]:
    """P(the strong model is needed) in 0..1 by a label `det`, `prob`, `trans` or `win`, [rows], and facts."""
    info: dict[str, Any] = {"kind": kind}
    if kind == "det":
        return 1.0 - r_det(strong, weak), info
    if kind == "win":
        gaps = _gaps(strong, weak)
        counts = ((gaps < 0).sum(1), (gaps == 0).sum(1), (gaps > 0).sum(1))
        return win_probability(*counts, TIE_CREDIT), info
    if kind not in ("prob", "trans"):
        raise ValueError(f"{kind!r} is none of det, prob, trans, win")
    info["t"] = best_t(strong, weak) if kind == "trans" else None
    return 1.0 - r_trans(strong, weak, info["t"] or 0.0), info


def gain(strong: npt.ArrayLike, weak: npt.ArrayLike) -> Floats:
    """Mean quality of the strong model over that of the weak one, s - w; [rows]."""
    return _mean(strong) - _mean(weak)


def only_strong(strong: npt.ArrayLike, weak: npt.ArrayLike, least: float = 0.5) -> Floats:
    """Share of the pairs of answers in which the strong one is good (>= `least`) and the weak one not.

    With one answer each: 1 where the strong model is right and the weak one wrong, else 0. With
    several, the two models' shares multiply, for their answers are drawn independently; [rows].
    """
    s = (_samples(strong) >= least).mean(axis=1)
    w = (_samples(weak) >= least).mean(axis=1)
    return np.asarray(s * (1.0 - w), dtype=np.float64)


def r_det(strong: npt.ArrayLike, weak: npt.ArrayLike) -> Floats:
    """Deterministic label, Hybrid LLM equation 1 for one answer each: 1 where weak >= strong; [rows]."""
    return (_mean(weak) >= _mean(strong)).astype(np.float64)


def r_prob(strong: npt.ArrayLike, weak: npt.ArrayLike) -> Floats:
    """Probabilistic label, Hybrid LLM section 3.2: Pr[H(x) >= 0] with H = q(weak) - q(strong).

    Estimated over all pairs of one answer of each model; [rows].
    """
    return r_trans(strong, weak, 0.0)


def r_trans(strong: npt.ArrayLike, weak: npt.ArrayLike, t: float) -> Floats:
    """Relaxed label, Hybrid LLM section 3.3: Pr[H(x) >= -t], t >= 0 in units of quality; [rows].

    For a large gap between the models r_prob is almost always 0 and teaches nothing; t makes up
    for the gap.
    """
    gaps = _gaps(strong, weak)
    return np.asarray((gaps >= -t).mean(axis=1), dtype=np.float64)


def best_t(strong: npt.ArrayLike, weak: npt.ArrayLike, seed: int = 0) -> float:
    """The t that spreads the labels most: argmax over t of (1/N^2) sum_ij |y_i(t) - y_j(t)|.

    Hybrid LLM, section 3.3. The smallest of equally good candidates is returned.
    """
    gaps = _gaps(strong, weak)
    if gaps.shape[0] > PAIRS_MAX:
        gaps = gaps[np.random.default_rng(seed).choice(gaps.shape[0], PAIRS_MAX, replace=False)]
    candidates = np.linspace(0.0, max(0.0, float(-gaps.min())), TRANSFORM_GRID)
    spread = [mean_absolute_difference((gaps >= -t).mean(axis=1)) for t in candidates]
    # Sums of many terms: what differs by rounding only is the same.
    return float(candidates[int(np.argmax(np.asarray(spread) >= max(spread) - 1e-12))])


def mean_absolute_difference(y: Floats) -> float:
    """(1/N^2) sum_ij |y_i - y_j|, from the sorted values in O(N log N)."""
    ordered = np.sort(y)
    n = ordered.size
    return float(2.0 * (ordered @ (2.0 * np.arange(1, n + 1) - n - 1)) / n**2)


def win_probability(
    strong_wins: npt.ArrayLike, ties: npt.ArrayLike, weak_wins: npt.ArrayLike, tie_credit: float = 0.0
) -> Floats:
    """P(strong wins) from counts of judgements: (s + credit * t) / (s + t + w); [rows].

    RouteLLM (arXiv 2406.18665, section 3) labels a comparison win, tie or loss of the strong model.
    Its classifiers give P(win) and so count a tie as no reason to pay for the strong model
    (`tie_credit` 0, the default); ratings of the Bradley-Terry kind count it half (0.5). Rows
    without judgements are NaN.
    """
    s, t, w = (np.asarray(x, dtype=np.float64) for x in (strong_wins, ties, weak_wins))
    total = s + t + w
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray((s + tie_credit * t) / total, dtype=np.float64)


def _samples(quality: npt.ArrayLike) -> Floats:
    values = np.asarray(quality, dtype=np.float64)
    return values[:, None] if values.ndim == 1 else values


def _mean(quality: npt.ArrayLike) -> Floats:
    return np.asarray(_samples(quality).mean(axis=1), dtype=np.float64)


def _gaps(strong: npt.ArrayLike, weak: npt.ArrayLike) -> Floats:
    """H = q(weak) - q(strong) for every pair of answers; [rows, pairs]."""
    s, w = _samples(strong), _samples(weak)
    return np.asarray((w[:, :, None] - s[:, None, :]).reshape(s.shape[0], -1), dtype=np.float64)
