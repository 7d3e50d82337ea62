"""Metrics of labels, calibration and detection, and bootstrap intervals; each with its formula and source.

scikit-learn and scipy are used where they have the metric. Functions that take `counts` compute all
replicates of a bootstrap at once: a resample is a vector of counts (how often each row was drawn).
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

Floats: TypeAlias = npt.NDArray[np.float64]
Integers: TypeAlias = npt.NDArray[np.int64]
Booleans: TypeAlias = npt.NDArray[np.bool_]
Vectors: TypeAlias = npt.NDArray[np.float32]

LEVEL = 0.95  # Coverage of every interval
CHUNK_CELLS = 2_000_000  # Replicates x rows that are in memory at once
BINS = 15  # Bins of the calibration error (Guo et al., 2017)
CHANCE_DRAWS = 200  # Draws for the calibration error of calibrated probabilities


def floats(values: npt.ArrayLike) -> Floats:
    """`values` as a non-empty vector of finite float64; ValueError otherwise."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or array.size == 0:
        raise ValueError(f"expected a non-empty vector, got shape {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError("expected finite numbers")
    return array


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure with its 95 % interval; the bounds are None without a bootstrap."""

    value: float
    low: float | None = None
    high: float | None = None


def estimate(value: float, samples: Floats | None) -> Estimate:
    """`value` with the percentile interval of its bootstrap samples; undefined samples are left out."""
    if samples is None or not np.isfinite(samples).any():
        return Estimate(value)
    low, high = np.percentile(samples[np.isfinite(samples)], [50 * (1 - LEVEL), 50 * (1 + LEVEL)])
    return Estimate(value, float(low), float(high))


def resamples(rows: int, replicates: int, seed: int) -> Iterator[Floats]:
    """Chunks (chunk, rows) of how often each resample draws each row; the seed alone fixes the draws."""
    rng = np.random.default_rng(seed)
    chunk = max(1, CHUNK_CELLS // rows)
    for start in range(0, replicates, chunk):
        size = min(chunk, replicates - start)
        draws = rng.integers(0, rows, (size, rows)) + np.arange(size)[:, None] * rows
        yield np.bincount(draws.reshape(-1), minlength=size * rows).reshape(size, rows).astype(np.float64)


def bootstrap(statistic: Callable[[Floats], Floats], rows: int, replicates: int, seed: int) -> Floats:
    """Samples of a statistic of weighted rows, which maps counts (chunk, rows) to (chunk, ...)."""
    parts = [statistic(counts) for counts in resamples(rows, replicates, seed)]
    return np.concatenate(parts) if parts else np.empty(0)


def ratios(parts: Floats, wholes: Floats, replicates: int, seed: int) -> list[Estimate | None]:
    """Sum of each column of `parts` over that of `wholes`, both (n, k); None where a whole is not above 0."""

    def of(counts: Floats) -> Floats:
        whole = counts @ wholes
        return np.divide(counts @ parts, whole, out=np.full_like(whole, np.nan), where=whole > 0)

    values = of(np.ones((1, len(parts))))[0]
    samples = bootstrap(of, len(parts), replicates, seed).reshape(-1, values.size)
    rows = zip(values.tolist(), samples.T, strict=True)
    return [estimate(value, drawn) if np.isfinite(value) else None for value, drawn in rows]


def means(figures: Mapping[str, Any], replicates: int, seed: int) -> dict[str, Estimate | None]:
    """Mean of each figure (n,) over the rows where it is not NaN, with its interval; None without rows."""
    columns = np.stack([np.asarray(each, dtype=np.float64) for each in figures.values()], axis=1)
    known = np.isfinite(columns)
    found = ratios(np.where(known, columns, 0.0), known.astype(np.float64), replicates, seed)
    return dict(zip(figures, found, strict=True))


def macro_f1(truth: Integers, predicted: Integers, counts: Floats | None = None) -> Floats:
    """Mean of F1 = 2 TP / (true + predicted) over the classes that occur; by replicate of `counts`."""
    counts = np.ones((1, truth.size)) if counts is None else counts
    classes = np.arange(max(truth.max(), predicted.max()) + 1)
    true, said = (counts @ (labels[:, None] == classes) for labels in (truth, predicted))
    hits = counts @ ((truth[:, None] == classes) & (truth == predicted)[:, None])
    occurs = true + said > 0
    f1 = np.divide(2.0 * hits, true + said, out=np.zeros_like(hits), where=occurs)
    return np.asarray(f1.sum(axis=1) / occurs.sum(axis=1), dtype=np.float64)


class Reliability(NamedTuple):
    """Calibration by bin, of the bins that are not empty; each field has shape (bins,)."""

    confidence: Floats
    observed: Floats
    share: Floats


def reliability(confidence: Floats, outcome: Floats, bins: int = BINS) -> Reliability:
    """Mean confidence, mean outcome and share of rows by equal-width bins ((m-1)/M, m/M]."""
    confidence, outcome = floats(confidence), floats(outcome)
    index = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
    size = np.bincount(index, minlength=bins)
    filled = size > 0
    sums = (np.bincount(index, each, minlength=bins)[filled] for each in (confidence, outcome))
    mean, observed = (each / size[filled] for each in sums)
    return Reliability(mean, observed, size[filled] / confidence.size)


def binary_ece(probability: Floats, event: Floats, bins: int = BINS) -> float:
    """Expected calibration error, sum_m (|B_m| / n) |observed - mean p| (Guo et al., equation 3)."""
    table = reliability(probability, event, bins)
    return float(table.share @ np.abs(table.observed - table.confidence))


def ece_if_calibrated(probability: Floats, seed: int, bins: int = BINS) -> float:
    """Mean ECE if the probabilities were right: outcomes are drawn from them (Kumar et al. 2019)."""
    rng = np.random.default_rng(seed)
    draws = rng.random((CHANCE_DRAWS, probability.size)) < probability
    return float(np.mean([binary_ece(probability, draw.astype(np.float64), bins) for draw in draws]))


def descending_groups(scores: Floats) -> tuple[Integers, Integers]:
    """Order of the scores from high to low, (n,), and where each group of equal ones starts, (groups,)."""
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    starts = np.flatnonzero(np.concatenate(([True], ranked[1:] != ranked[:-1])))
    return order.astype(np.int64), starts.astype(np.int64)


def tied_means(scores: Floats, values: Floats) -> Floats:
    """Values by descending score, each the mean of its ties: sums average over random tie breaks."""
    order, starts = descending_groups(scores)
    sizes = np.diff(np.append(starts, scores.size))
    return np.repeat(np.add.reduceat(values[order], starts) / sizes, sizes)


def abstention_curve(confidence: Floats, correct: Booleans) -> tuple[Floats, Floats]:
    """Accuracy on the k most confident rows by coverage k/n (El-Yaniv and Wiener, 2010)."""
    right = tied_means(floats(confidence), correct.astype(np.float64))
    kept = np.arange(1, right.size + 1)
    return kept / right.size, np.cumsum(right) / kept


def weighted_auroc(scores: Floats, positive: Booleans, counts: Floats) -> Floats:
    """AUROC, P(positive outscores negative) + P(tie) / 2, of each replicate; NaN without both classes."""
    order, starts = descending_groups(floats(scores))
    ranked = counts[:, order]
    hit = np.add.reduceat(ranked * positive[order], starts, axis=1)
    miss = np.add.reduceat(ranked * ~positive[order], starts, axis=1)
    above = np.cumsum(hit, axis=1) - hit / 2.0
    with np.errstate(invalid="ignore", divide="ignore"):
        area: Floats = (miss * above).sum(axis=1) / (hit.sum(axis=1) * miss.sum(axis=1))
    return area


def auroc(scores: Floats, positive: Booleans) -> float:
    """Area under the ROC curve; ValueError without positives or negatives."""
    from sklearn.metrics import roc_auc_score

    if positive.all() or not positive.any():
        raise ValueError("AUROC needs both positives and negatives")
    return float(roc_auc_score(positive, scores))


def auroc_estimate(scores: Floats, positive: Booleans, replicates: int, seed: int) -> Estimate | None:
    """AUROC with its interval; None without positives or negatives."""
    if positive.all() or not positive.any():
        return None
    n = len(scores)
    samples = bootstrap(lambda counts: weighted_auroc(scores, positive, counts), n, replicates, seed)
    return estimate(auroc(scores, positive), samples)


def fpr_at_tpr(scores: Floats, positive: Booleans, tpr: float = 0.95) -> float:
    """FPR95 (Hendrycks and Gimpel, 2017): the false positive rate where the true positive rate is `tpr`."""
    from sklearn.metrics import roc_curve

    accepted, passed, _ = roc_curve(positive, scores, drop_intermediate=False)
    return float(accepted[np.argmax(passed >= tpr - 1e-9)])


def spearman(a: Floats, b: Floats) -> float:
    """Rank correlation; 0 where one side is constant."""
    from scipy.stats import spearmanr

    return float(spearmanr(a, b).statistic) if np.ptp(a) > 0 and np.ptp(b) > 0 else 0.0


def spearman_estimate(a: Floats, b: Floats, replicates: int, seed: int) -> Estimate:
    """Rank correlation with its interval; the ranks are those of all rows."""
    from scipy.stats import rankdata

    x, y = rankdata(a), rankdata(b)

    def of(counts: Floats) -> Floats:
        """Weighted correlation of the ranks, (chunk,)."""
        n = counts.sum(axis=1)
        mean_x, mean_y = counts @ x / n, counts @ y / n
        spread = (counts @ x**2 / n - mean_x**2) * (counts @ y**2 / n - mean_y**2)
        found: Floats = (counts @ (x * y) / n - mean_x * mean_y) / np.sqrt(spread)
        return found

    return estimate(spearman(a, b), bootstrap(of, len(x), replicates, seed) if spearman(a, b) else None)
