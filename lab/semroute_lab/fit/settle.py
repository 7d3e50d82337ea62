"""From scores on the operator's own prompts to a threshold, with intervals."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from semroute_extproc.strategies.calibration import Calibration
from semroute_extproc.strategies.cutoff import threshold_for_share
from semroute_lab.common.metrics import Estimate, Floats, bootstrap, estimate
from semroute_lab.common.routing import exact_curve
from semroute_lab.profile.tally import interval


def wilson(hits: int, rows: int) -> Estimate:
    """A share with its 95 % interval (Wilson 1927), which also holds for few rows and near 0 and 1."""
    return Estimate(hits / rows, *interval(hits, rows))


def quality_by_share(scores: Floats, strong: Floats, weak: Floats) -> tuple[float, ...]:
    """Mean outcome with 0, 1, … 100 % at the strong model, the highest scores first."""
    curve = exact_curve(scores, strong, weak)
    return tuple(np.interp(np.arange(101) / 100.0, curve.share, curve.quality).tolist())


@dataclass(frozen=True, slots=True)
class Setting:
    """A chosen trade-off and its result on the prompts it was chosen on."""

    threshold: float
    wanted_share: float
    realised: Estimate  # Strong share of these prompts
    quality: Estimate | None  # Mean outcome of the mix; None without outcomes
    drop: Estimate | None  # Part of always-strong's quality that is lost


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

    def means(counts: Floats) -> Floats:
        """Quality and drop of each replicate; (replicates, 2)."""
        quality, whole = counts @ mixed / scores.size, counts @ strong / scores.size
        lost = np.divide(whole - quality, np.abs(whole), out=np.zeros_like(whole), where=whole != 0)
        return np.stack([quality, lost], axis=1)

    quality, drop = means(np.ones((1, scores.size)))[0].tolist()
    samples = bootstrap(means, scores.size, replicates, seed).reshape(-1, 2)
    return Setting(
        threshold, share, realised, estimate(quality, samples[:, 0]), estimate(drop, samples[:, 1])
    )
