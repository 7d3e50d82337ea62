"""From scores on the operator's own prompts to a threshold, and how sure it is."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from semroute_extproc.strategies.calibration import Calibration
from semroute_extproc.strategies.cutoff import threshold_for_share
from semroute_lab.evaluate import metrics
from semroute_lab.evaluate.metrics.arrays import Floats
from semroute_lab.evaluate.metrics.resampling import Estimate, estimate, resamples

WILSON_Z = 1.959964
"""Standard normal quantile of a 95 % interval."""


def wilson(hits: int, rows: int) -> Estimate:
    """A share with its 95 % interval (Wilson 1927), which holds for few rows and near 0 and 1 as well."""
    z2 = WILSON_Z**2
    p = hits / rows
    centre = (p + z2 / (2 * rows)) / (1 + z2 / rows)
    half = WILSON_Z * float(np.sqrt(p * (1 - p) / rows + z2 / (4 * rows**2))) / (1 + z2 / rows)
    return Estimate(p, max(0.0, centre - half), min(1.0, centre + half))


def score_quantiles(scores: Floats) -> tuple[float, ...]:
    """The scores at 0, 1, … 100 % of the prompts."""
    return tuple(np.percentile(scores, np.arange(101)).tolist())


def quality_by_share(scores: Floats, strong: Floats, weak: Floats) -> tuple[float, ...]:
    """Mean outcome with 0, 1, … 100 % at the strong model, the highest scores first."""
    curve = metrics.exact_curve(scores, strong, weak)
    return tuple(np.interp(np.arange(101) / 100.0, curve.share, curve.quality).tolist())


@dataclass(frozen=True, slots=True)
class Setting:
    """A chosen trade-off and what it comes to on the prompts it was chosen on."""

    threshold: float
    wanted_share: float
    realised: Estimate
    """Strong share of these prompts."""
    quality: Estimate | None
    """Mean outcome of the mix; None without outcomes."""
    drop: Estimate | None
    """Part of always-strong's quality that is lost."""


def settle(
    calibration: Calibration,
    scores: Floats,
    outcomes: tuple[Floats, Floats] | None,
    *,
    strong_share: float | None,
    max_quality_drop: float | None,
    replicates: int,
    seed: int,
) -> Setting:
    """The threshold for a wanted share or quality drop; intervals are over prompts, the threshold fixed.

    Exactly one of `strong_share` and `max_quality_drop`; the latter needs `outcomes`, (strong, weak).
    """
    share = strong_share
    if share is None:
        assert max_quality_drop is not None
        share = calibration.share_for_drop(max_quality_drop)
    threshold = threshold_for_share(calibration.quantiles, share)
    chosen = scores >= threshold
    realised = wilson(int(chosen.sum()), scores.size)
    if outcomes is None:
        return Setting(threshold, share, realised, None, None)
    strong, weak = outcomes
    mixed = np.where(chosen, strong, weak)
    qualities: list[Floats] = []
    drops: list[Floats] = []
    for counts in resamples(scores.size, replicates, seed):
        quality, whole = counts @ mixed / scores.size, counts @ strong / scores.size
        qualities.append(quality)
        with np.errstate(invalid="ignore", divide="ignore"):
            drops.append((whole - quality) / np.abs(whole))
    best = float(strong.mean())
    drop = (best - float(mixed.mean())) / abs(best) if best else 0.0
    return Setting(
        threshold,
        share,
        realised,
        estimate(float(mixed.mean()), np.concatenate(qualities) if qualities else None),
        estimate(drop, np.concatenate(drops) if drops else None),
    )
