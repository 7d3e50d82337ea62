"""Metrics of labels, of calibrated confidence and of detection."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from semroute_lab.evaluate.metrics.arrays import (
    Booleans,
    Floats,
    Integers,
    descending_groups,
    floats,
    mid_ranks,
    tied_means,
)

BINS = 15
"""Bins of the calibration error, as in Guo et al., 2017."""


CHANCE_DRAWS = 200
"""Draws behind the calibration error that chance alone gives."""


class Reliability(NamedTuple):
    """Calibration by bin; each field has shape (bins,), empty bins hold NaN and a share of 0."""

    confidence: Floats
    observed: Floats
    share: Floats


def accuracy(truth: Integers, predicted: Integers) -> float:
    """Share of rows whose predicted class is the true one."""
    return float(np.mean(truth == predicted))


def confusion_matrix(
    truth: Integers, predicted: Integers, classes: int, weights: Floats | None = None
) -> Floats:
    """Rows of class i that were called j; shape (classes, classes), counts or sums of weights."""
    cells = np.bincount(truth * classes + predicted, weights, minlength=classes * classes)
    return cells.reshape(classes, classes).astype(np.float64)


def macro_f1(matrix: Floats) -> float:
    """Unweighted mean of F1 = 2 TP / (2 TP + FP + FN) over classes that are true or predicted anywhere."""
    hits = np.diag(matrix)
    total = matrix.sum(axis=0) + matrix.sum(axis=1)
    seen = total > 0
    return float(np.mean(2.0 * hits[seen] / total[seen]))


def reliability(confidence: Floats, outcome: Floats, bins: int = BINS) -> Reliability:
    """Mean confidence, mean outcome and share of rows by equal-width bins ((m-1)/M, m/M]."""
    confidence, outcome = floats(confidence), floats(outcome)
    index = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
    size = np.bincount(index, minlength=bins).astype(np.float64)
    divisor = np.where(size > 0, size, np.nan)
    return Reliability(
        np.bincount(index, confidence, minlength=bins) / divisor,
        np.bincount(index, outcome, minlength=bins) / divisor,
        size / confidence.size,
    )


def ece(confidence: Floats, correct: Booleans, bins: int = BINS) -> float:
    """Expected calibration error, sum_m (|B_m| / n) |acc(B_m) - conf(B_m)| (Guo et al., 2017, eq. 3)."""
    return binary_ece(confidence, correct.astype(np.float64), bins)


def binary_ece(probability: Floats, event: Floats, bins: int = BINS) -> float:
    """The same for the probability of one event: mean probability against the event's frequency."""
    table = reliability(probability, event, bins)
    filled = table.share > 0
    return float(np.sum(table.share[filled] * np.abs(table.observed - table.confidence)[filled]))


def ece_if_calibrated(probability: Floats, seed: int, bins: int = BINS) -> float:
    """The mean ECE that these probabilities would show by chance if they were exactly right.

    With few rows the error of a perfect model is not 0 (Kumar et al. 2019, section 4); outcomes are
    drawn from the probabilities themselves, `CHANCE_DRAWS` times.
    """
    rng = np.random.default_rng(seed)
    draws = rng.random((CHANCE_DRAWS, probability.size)) < probability
    return float(np.mean([binary_ece(probability, draw.astype(np.float64), bins) for draw in draws]))


def abstention_curve(confidence: Floats, correct: Booleans) -> tuple[Floats, Floats]:
    """Accuracy on the most confident rows against coverage k/n, k = 1..n; both of shape (n,).

    The risk-coverage curve of El-Yaniv and Wiener, 2010, as accuracy; ties in expectation.
    Its mean over coverage is 1 - AURC.
    """
    right = tied_means(floats(confidence), correct.astype(np.float64))
    kept = np.arange(1, right.size + 1)
    return kept / right.size, np.cumsum(right) / kept


def auroc(scores: Floats, positive: Booleans) -> float:
    """Area under the ROC curve = P(positive outscores negative) + P(tie) / 2 (Mann-Whitney U / n+ n-)."""
    scores = floats(scores)
    positives = int(positive.sum())
    negatives = scores.size - positives
    if positives == 0 or negatives == 0:
        raise ValueError("AUROC needs both positives and negatives")
    u = float(mid_ranks(scores)[positive].sum()) - positives * (positives + 1) / 2.0
    return u / (positives * negatives)


def weighted_auroc(scores: Floats, positive: Booleans, counts: Floats) -> Floats:
    """AUROC of several weighted copies of the rows at once; counts (replicates, n) to (replicates,)."""
    order, starts = descending_groups(floats(scores))
    ranked = counts[:, order]
    hit = np.add.reduceat(ranked * positive[order], starts, axis=1)
    miss = np.add.reduceat(ranked * ~positive[order], starts, axis=1)
    above = np.cumsum(hit, axis=1) - hit / 2.0
    with np.errstate(invalid="ignore", divide="ignore"):
        area: Floats = (miss * above).sum(axis=1) / (hit.sum(axis=1) * miss.sum(axis=1))
    return area


def fpr_at_tpr(scores: Floats, positive: Booleans, tpr: float = 0.95) -> float:
    """Share of negatives accepted at the highest threshold that accepts at least `tpr` of the positives.

    For out-of-distribution detection the positives are the known rows (Hendrycks and Gimpel, 2017,
    and what followed): FPR95 is the share of unknown rows that pass when 95 % of known ones do.
    """
    scores = floats(scores)
    known = np.sort(scores[positive])[::-1]
    if known.size == 0 or known.size == scores.size:
        raise ValueError("FPR at TPR needs both positives and negatives")
    threshold = known[int(np.ceil(tpr * known.size - 1e-9)) - 1]
    return float(np.mean(scores[~positive] >= threshold))


def spearman(a: Floats, b: Floats) -> float:
    """Rank correlation: Pearson's of the mid-ranks; 0 where one side does not vary."""
    x, y = mid_ranks(floats(a)), mid_ranks(floats(b))
    x, y = x - x.mean(), y - y.mean()
    norm = float(np.sqrt((x @ x) * (y @ y)))
    return float(x @ y) / norm if norm > 0 else 0.0
