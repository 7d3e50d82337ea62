"""`eval intent`: labels, calibration, abstention, and the detection of what is not known.

Models of the report:

    majority            the most frequent class of the rows fitted on
    tfidf + logistic    word uni- and bigrams, no encoder
    bundle              the bundle's own domain head, where the file's labels are its labels
    centroid, logistic  (fit mode) heads fitted on frozen bundle embeddings

What is fitted, is fitted on the file's train split where it has one and without rows whose text is
also evaluated; otherwise in five folds of the evaluated rows, identical texts in one fold.
Out-of-distribution rows carry the `ood` label: they are never fitted on and no class is expected
of them. The score that detects them is the cosine to the nearest centroid (the bundle's own, or
the class centroids in fit mode) and, for the logistic heads, the highest probability.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from semroute_lab.evaluate import heads, metrics
from semroute_lab.evaluate.data import Table, describe, require_rows
from semroute_lab.evaluate.metrics.arrays import Booleans, Floats, Integers
from semroute_lab.evaluate.metrics.classification import weighted_auroc
from semroute_lab.evaluate.metrics.resampling import estimate
from semroute_lab.evaluate.scoring import Scores
from semroute_lab.evaluate.splitting import folds, text_groups

FOLDS = 5
"""Folds of cross-fitted baselines."""

COVERAGES = (0.5, 0.8, 0.9)
"""Coverages at which the abstention curve is read."""

CURVE_POINTS = 100
"""Points of each abstention curve in the report."""

REFERENCE = "tfidf + logistic"
"""The baseline that every row is compared with, where it is there."""

SHOWN_FIRST = ("bundle", "logistic", REFERENCE)
"""The confusion matrix is that of the first of these that is there."""

Report = dict[str, object]


@dataclass(frozen=True, slots=True)
class IntentRows:
    """Rows to fit on, rows to evaluate, and rows that are out of distribution."""

    table: Table
    """The evaluated rows, known and out of distribution."""
    texts: list[str]
    """Of `table`."""
    labels: tuple[str, ...]
    truth: Integers
    """Index into `labels`, -1 for out-of-distribution rows; shape (n,)."""
    fit_texts: list[str]
    fit_truth: Integers
    """Empty where everything fitted is cross-fitted."""
    dropped: int
    """Rows of the train split left out because their text is evaluated."""

    @property
    def known(self) -> Booleans:
        """Which rows have a class."""
        return self.truth >= 0


@dataclass(frozen=True, slots=True)
class Prediction:
    """One model's probabilities for the evaluated rows, and its score for being known."""

    name: str
    probabilities: Floats
    knownness: Floats | None
    """High for known text; None where the model has no such score."""
    score: str = ""
    """What `knownness` is, in words."""


def read_intent(
    evaluated: Table, fit: Table | None, texts: list[str], fit_texts: list[str], label_column: str, ood: str
) -> IntentRows:
    """Sort rows into known and unknown; `DataError` for a single class or for too few rows."""
    require_rows(evaluated)
    names = evaluated.texts(label_column)
    fit_names = [] if fit is None else fit.texts(label_column)
    labels = tuple(sorted({name for name in [*names, *fit_names] if name != ood}))
    if len(labels) < 2:
        raise evaluated.error(
            label_column, f"expected at least two classes, found {', '.join(labels) or 'none'}"
        )
    index = {label: i for i, label in enumerate(labels)}
    shown = set(_keys(texts))
    kept = [
        (text, index[name])
        for text, name, key in zip(fit_texts, fit_names, _keys(fit_texts), strict=True)
        if name != ood and key not in shown
    ]
    truth = np.asarray([index.get(name, -1) for name in names], dtype=np.int64)
    if not (truth >= 0).any():
        raise evaluated.error(label_column, f"expected rows with a class, every row is {ood!r}")
    fit_truth = np.asarray([label for _, label in kept], dtype=np.int64)
    dropped = sum(name != ood for name in fit_names) - len(kept)
    return IntentRows(evaluated, texts, labels, truth, [text for text, _ in kept], fit_truth, dropped)


def _keys(texts: list[str]) -> list[str]:
    return [" ".join(text.split()).casefold() for text in texts]


def baselines(rows: IntentRows, seed: int) -> list[Prediction]:
    """Majority and TF-IDF with logistic regression, fitted or cross-fitted."""
    classes, count = len(rows.labels), len(rows.texts)
    if rows.fit_truth.size:
        words = heads.tfidf_logistic(rows.fit_texts, rows.fit_truth, rows.texts, classes)
        most = heads.majority(rows.fit_truth, classes, count)
        return [Prediction("majority", most, None), _by_probability(REFERENCE, words)]
    known = np.flatnonzero(rows.known).astype(np.int64)
    texts, truth = [rows.texts[i] for i in known], rows.truth[known]
    fold = folds(text_groups(texts), FOLDS, seed)

    def words_of(fit: Integers, apply: Integers) -> Floats:
        return heads.tfidf_logistic([texts[i] for i in fit], truth[fit], [texts[i] for i in apply], classes)

    def most_of(fit: Integers, apply: Integers) -> Floats:
        return heads.majority(truth[fit], classes, apply.size)

    found = []
    for name, fit_predict in (("majority", most_of), (REFERENCE, words_of)):
        probabilities = np.full((count, classes), 1.0 / classes)
        probabilities[known] = heads.cross_fitted(fit_predict, fold, classes)
        found.append(Prediction(name, probabilities, None))
    return found


def bundle_prediction(rows: IntentRows, scores: Scores) -> Prediction | None:
    """The bundle's own head, or None if the file has a label the bundle does not."""
    if not set(rows.labels) <= set(scores.labels):
        return None
    columns = [scores.labels.index(label) for label in rows.labels]
    # A label of the bundle that the file lacks stays a possible, and then wrong, answer.
    others = [i for i in range(len(scores.labels)) if i not in columns]
    ordered = scores.domain[:, columns + others]
    return Prediction("bundle", ordered, scores.similarity, "cosine to the bundle's nearest centroid")


def fitted_predictions(rows: IntentRows, fit: Scores, scores: Scores) -> list[Prediction]:
    """Heads on frozen embeddings, fitted on the train rows."""
    classes = len(rows.labels)
    centroids = heads.class_centroids(fit.neighbours, rows.fit_truth, classes)
    near, cosine = heads.nearest_centroid(centroids, scores.neighbours)
    votes, closeness = heads.nearest_rows(fit.neighbours, rows.fit_truth, scores.neighbours, classes)
    logistic = heads.embedding_logistic(fit.embedding, rows.fit_truth, scores.embedding, classes)
    return [
        Prediction("centroid", near, cosine, "cosine to the nearest class centroid"),
        Prediction("neighbours", votes, closeness, f"mean cosine of the {heads.NEAREST} nearest rows"),
        _by_probability("logistic", logistic),
    ]


def _by_probability(name: str, probabilities: Floats) -> Prediction:
    return Prediction(name, probabilities, probabilities.max(axis=1), "highest probability")


def evaluate_intent(
    rows: IntentRows,
    predictions: list[Prediction],
    bundle: dict[str, object] | None,
    *,
    seed: int,
    replicates: int,
) -> Report:
    """The report of `eval intent`; its shape is documented in `reports`."""
    known = rows.known
    truth = rows.truth[known]
    named = {one.name: one for one in predictions}
    reference = named.get(REFERENCE)
    base = None if reference is None else np.argmax(reference.probabilities[known], axis=1) == truth
    shown = next(named[name] for name in SHOWN_FIRST if name in named)
    return {
        "schema": 1,
        "kind": "intent",
        "data": describe(rows.table),
        "bundle": bundle,
        "seed": seed,
        "bootstrap": replicates,
        "labels": list(rows.labels),
        "rows": {"known": int(known.sum()), "ood": int((~known).sum())},
        "fit": {
            "rows": int(rows.fit_truth.size),
            "dropped": rows.dropped,
            "cross_fitted": not rows.fit_truth.size,
        },
        "models": [_row(rows, one, base, seed, replicates) for one in predictions],
        "confusion": _confusion(rows, shown),
        "abstention": {one.name: _abstention(rows, one) for one in predictions if one.name != "majority"},
        "reliability": {one.name: _reliability(rows, one) for one in predictions if one.name != "majority"},
    }


def _row(rows: IntentRows, one: Prediction, base: Booleans | None, seed: int, replicates: int) -> Report:
    truth, p = rows.truth[rows.known], one.probabilities[rows.known]
    predicted, confidence = np.argmax(p, axis=1).astype(np.int64), p.max(axis=1)
    correct, classes, n = predicted == truth, p.shape[1], truth.size

    def rates(hits: Floats) -> Floats:
        return metrics.bootstrap(lambda counts: counts @ hits / n, n, replicates, seed)

    def f1s(counts: Floats) -> Floats:
        matrices = (metrics.confusion_matrix(truth, predicted, classes, row) for row in counts)
        return np.asarray([metrics.macro_f1(matrix) for matrix in matrices])

    matrix = metrics.confusion_matrix(truth, predicted, classes)
    hits = correct.astype(np.float64)
    coverage, accuracy = metrics.abstention_curve(confidence, correct)
    found: Report = {
        "name": one.name,
        "accuracy": estimate(metrics.accuracy(truth, predicted), rates(hits)),
        "macro_f1": estimate(metrics.macro_f1(matrix), metrics.bootstrap(f1s, n, replicates, seed)),
        "ece": metrics.ece(confidence, correct),
        "ece_if_calibrated": metrics.ece_if_calibrated(confidence, seed),
        "accuracy_at_coverage": {f"{c:g}": float(np.interp(c, coverage, accuracy)) for c in COVERAGES},
        "aurc": float(1.0 - accuracy.mean()),
        "accuracy_minus_tfidf": None,
        "ood": None,
    }
    if base is not None and one.name != REFERENCE:
        difference = hits - base
        found["accuracy_minus_tfidf"] = estimate(float(difference.mean()), rates(difference))
    if one.knownness is not None and not rows.known.all():
        found["ood"] = _detection(rows, one.knownness, one.score, seed, replicates)
    return found


def _detection(rows: IntentRows, knownness: Floats, score: str, seed: int, replicates: int) -> Report:
    known = rows.known
    samples = metrics.bootstrap(
        lambda counts: weighted_auroc(knownness, known, counts), known.size, replicates, seed
    )
    value = metrics.auroc(knownness, known)
    return {"score": score, "auroc": estimate(value, samples), "fpr95": metrics.fpr_at_tpr(knownness, known)}


def _confusion(rows: IntentRows, one: Prediction) -> Report:
    """Counts of the file's labels; a last column pools answers that are no label of the file, if any."""
    p, count = one.probabilities[rows.known], len(rows.labels)
    predicted = np.minimum(np.argmax(p, axis=1), count)
    matrix = metrics.confusion_matrix(rows.truth[rows.known], predicted, count + 1)[:count]
    names = [*rows.labels, "no label of the file"]
    if not matrix[:, count].any():
        matrix, names = matrix[:, :count], names[:count]
    return {"model": one.name, "labels": names, "counts": matrix.astype(int).tolist()}


def _abstention(rows: IntentRows, one: Prediction) -> Report:
    p = one.probabilities[rows.known]
    correct = np.argmax(p, axis=1) == rows.truth[rows.known]
    coverage, accuracy = metrics.abstention_curve(p.max(axis=1), correct)
    points = np.linspace(1.0 / CURVE_POINTS, 1.0, CURVE_POINTS)
    return {"coverage": points.tolist(), "accuracy": np.interp(points, coverage, accuracy).tolist()}


def _reliability(rows: IntentRows, one: Prediction) -> Report:
    p = one.probabilities[rows.known]
    correct = np.argmax(p, axis=1) == rows.truth[rows.known]
    table = metrics.reliability(p.max(axis=1), correct.astype(np.float64))
    filled = table.share > 0
    names = ("confidence", "observed", "share")
    return {name: column[filled].tolist() for name, column in zip(names, table, strict=True)}
