"""`eval intent`: labels, calibration, abstention, and out-of-distribution detection.

Models of the report:

    majority            the most frequent class of the rows fitted on
    tfidf + logistic    word uni- and bigrams, no encoder
    bundle              the bundle's own domain head, where the file's labels are its labels
    centroid, neighbours, logistic
                        (fit mode) heads fitted on frozen bundle embeddings

Fitted models use the file's train split where it has one, without rows whose text is also
evaluated; otherwise they are cross-fitted in five folds of the evaluated rows, identical texts in
one fold. Out-of-distribution rows carry the `ood` label: they are never fitted on and have no class.
The score that detects them is the cosine to the nearest centroid (the bundle's own, or the class
centroids in fit mode) and, for the logistic heads, the highest probability.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from semroute_lab.common import metrics
from semroute_lab.common.metrics import Booleans, Floats, Integers, Vectors, estimate
from semroute_lab.common.splits import folds, text_key
from semroute_lab.common.tables import Table, require_rows
from semroute_lab.evaluate.scoring import Scores, head

COVERAGES = (0.5, 0.8, 0.9)  # Coverages at which the abstention curve is read
CURVE_POINTS = 100  # Points of each abstention curve in the report
REFERENCE = "tfidf + logistic"  # The baseline that every row is compared with, where it exists
SHOWN_FIRST = ("bundle", "logistic", REFERENCE)
"""The confusion matrix is that of the first of these that exists."""

ITERATIONS_MAX = 300  # Bound on the solver's steps; a fit that is cut short is slightly more regular
NEAREST = 5  # Rows that vote, and whose mean cosine tells known from unknown text
CENTROID_TEMPERATURE = 0.05
"""Softmax temperature that turns cosines into probabilities; it changes no ranking of classes."""

Report = dict[str, object]


@dataclass(frozen=True, slots=True)
class IntentRows:
    """Rows to fit on, rows to evaluate, and rows that are out of distribution."""

    table: Table  # The evaluated rows, known and out of distribution
    texts: list[str]  # Of `table`
    labels: tuple[str, ...]
    truth: Integers  # Index into `labels`, -1 for out-of-distribution rows; shape (n,)
    fit_texts: list[str]
    fit_truth: Integers  # Empty if models are cross-fitted
    dropped: int  # Rows of the train split left out because their text is evaluated

    @property
    def known(self) -> Booleans:
        """Which rows have a class."""
        return self.truth >= 0


@dataclass(frozen=True, slots=True)
class Prediction:
    """One model's probabilities for the evaluated rows, and its score for known text."""

    name: str
    probabilities: Floats
    knownness: Floats | None  # High for known text; None where the model has no such score
    score: str = ""  # A description of `knownness`


def read_intent(
    evaluated: Table, fit: Table | None, texts: list[str], fit_texts: list[str], label_column: str, ood: str
) -> IntentRows:
    """Sort rows into known and unknown; `DataError` for a single class or for too few rows."""
    require_rows(evaluated)
    names = evaluated.texts(label_column)
    fit_names = [] if fit is None else fit.texts(label_column)
    labels = tuple(sorted({*names, *fit_names} - {ood}))
    if len(labels) < 2:
        there = ", ".join(labels) or "none"
        raise evaluated.error(label_column, f"expected at least two classes, found {there}")
    index = {label: i for i, label in enumerate(labels)}
    shown = {text_key(text) for text in texts}
    known = [(text, index[name]) for text, name in zip(fit_texts, fit_names, strict=True) if name != ood]
    kept = [(text, label) for text, label in known if text_key(text) not in shown]
    truth = np.asarray([index.get(name, -1) for name in names], dtype=np.int64)
    if not (truth >= 0).any():
        raise evaluated.error(label_column, f"expected rows with a class, every row is {ood!r}")
    fit_truth = np.asarray([label for _, label in kept], dtype=np.int64)
    dropped = len(known) - len(kept)
    return IntentRows(evaluated, texts, labels, truth, [text for text, _ in kept], fit_truth, dropped)


def baselines(rows: IntentRows, seed: int) -> list[Prediction]:
    """Majority and TF-IDF with logistic regression, fitted or cross-fitted."""
    classes, count = len(rows.labels), len(rows.texts)
    if rows.fit_truth.size:
        words = tfidf_logistic(rows.fit_texts, rows.fit_truth, rows.texts, classes)
        frequent = majority(rows.fit_texts, rows.fit_truth, rows.texts, classes)
        return [Prediction("majority", frequent, None), _by_probability(REFERENCE, words)]
    known = np.flatnonzero(rows.known)
    texts, truth = [rows.texts[i] for i in known], rows.truth[known]
    fold = folds(texts, seed)
    found = []
    for name, fitted in (("majority", majority), (REFERENCE, tfidf_logistic)):
        probabilities = np.full((count, classes), 1.0 / classes)
        for part in np.unique(fold):
            others, inside = np.flatnonzero(fold != part), np.flatnonzero(fold == part)
            fit, apply = ([texts[i] for i in some] for some in (others, inside))
            probabilities[known[inside]] = fitted(fit, truth[others], apply, classes)
        found.append(Prediction(name, probabilities, None))
    return found


def majority(fit: Sequence[str], labels: Integers, texts: Sequence[str], classes: int) -> Floats:
    """The class frequencies, for every row; (n, classes)."""
    return np.tile(np.bincount(labels, minlength=classes) / labels.size, (len(texts), 1))


def tfidf_logistic(fit: Sequence[str], labels: Integers, texts: Sequence[str], classes: int) -> Floats:
    """TF-IDF over word unigrams and bigrams with logistic regression: the words alone; (n, classes)."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    weigh = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, min_df=2 if len(fit) > 2000 else 1)
    return _logistic(weigh.fit_transform(fit), labels, weigh.transform(texts), classes)


def _logistic(fit: Any, labels: Integers, inputs: Any, classes: int) -> Floats:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=10.0, max_iter=ITERATIONS_MAX, tol=1e-3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(fit, labels)
    found = np.zeros((inputs.shape[0], classes))
    found[:, model.classes_] = model.predict_proba(inputs)
    return found


def bundle_prediction(rows: IntentRows, scores: Scores) -> Prediction | None:
    """The bundle's own head, or None if the file has a label that the bundle lacks."""
    if not set(rows.labels) <= set(scores.labels):
        return None
    columns = [scores.labels.index(label) for label in rows.labels]
    # A label of the bundle that the file lacks stays a possible, and then wrong, answer.
    others = [i for i in range(len(scores.labels)) if i not in columns]
    ordered = scores.domain[:, columns + others]
    return Prediction("bundle", ordered, scores.similarity, "cosine to the bundle's nearest centroid")


def fitted_predictions(rows: IntentRows, fit: Scores, scores: Scores) -> list[Prediction]:
    """Heads on frozen embeddings, fitted on the train rows."""
    classes, labels = len(rows.labels), rows.fit_truth
    near, cosine = nearest_centroid(fit.neighbours, labels, scores.neighbours, classes)
    votes, closeness = nearest_rows(fit.neighbours, labels, scores.neighbours, classes)
    vectors = (each.embedding.astype(np.float64) for each in (fit, scores))
    logistic = _logistic(next(vectors), labels, next(vectors), classes)
    return [
        Prediction("centroid", near, cosine, "cosine to the nearest class centroid"),
        Prediction("neighbours", votes, closeness, f"mean cosine of the {NEAREST} nearest rows"),
        _by_probability("logistic", logistic),
    ]


def nearest_centroid(fit: Vectors, labels: Integers, vectors: Vectors, classes: int) -> tuple[Floats, Floats]:
    """Probabilities by softmax of the cosines to class means, and the highest cosine; (n, classes), (n,)."""
    sums = (labels == np.arange(classes)[:, None]) @ fit.astype(np.float64)
    norms = np.linalg.norm(sums, axis=1, keepdims=True)
    cosine = vectors.astype(np.float64) @ (sums / np.where(norms > 0, norms, 1.0)).T
    scaled = np.exp((cosine - cosine.max(axis=1, keepdims=True)) / CENTROID_TEMPERATURE)
    return scaled / scaled.sum(axis=1, keepdims=True), cosine.max(axis=1)


def nearest_rows(fit: Vectors, labels: Integers, vectors: Vectors, classes: int) -> tuple[Floats, Floats]:
    """Votes of the `NEAREST` rows and their mean cosine; (n, classes) and (n,)."""
    from sklearn.neighbors import NearestNeighbors

    count = min(NEAREST, len(fit))
    distance, near = NearestNeighbors(n_neighbors=count, metric="cosine").fit(fit).kneighbors(vectors)
    votes = (labels[near][:, :, None] == np.arange(classes)).mean(axis=1)
    return votes, 1.0 - distance.mean(axis=1)


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
    """The report of `eval intent`; its shape is documented in `reports.md`."""
    known = rows.known
    truth = rows.truth[known]
    named = {one.name: one for one in predictions}
    reference = named.get(REFERENCE)
    base = None if reference is None else np.argmax(reference.probabilities[known], axis=1) == truth
    shown = next(named[name] for name in SHOWN_FIRST if name in named)
    curves = [one for one in predictions if one.name != "majority"]
    return {
        **head("intent", rows.table, bundle, seed),
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
        "abstention": {one.name: _abstention(rows, one) for one in curves},
        "reliability": {one.name: _reliability(rows, one) for one in curves},
    }


def _answers(rows: IntentRows, one: Prediction) -> tuple[Integers, Floats, Booleans]:
    """Predicted class, its probability, and whether it is right, for the known rows; (n,) each."""
    p = one.probabilities[rows.known]
    predicted = np.argmax(p, axis=1).astype(np.int64)
    return predicted, p.max(axis=1), predicted == rows.truth[rows.known]


def _row(rows: IntentRows, one: Prediction, base: Booleans | None, seed: int, replicates: int) -> Report:
    truth = rows.truth[rows.known]
    predicted, confidence, correct = _answers(rows, one)
    n, hits = truth.size, correct.astype(np.float64)

    def sampled(statistic: Callable[[Floats], Floats]) -> Floats:
        return metrics.bootstrap(statistic, n, replicates, seed)

    coverage, accuracy = metrics.abstention_curve(confidence, correct)
    f1 = float(metrics.macro_f1(truth, predicted)[0])
    found: Report = {
        "name": one.name,
        "accuracy": estimate(float(hits.mean()), sampled(lambda counts: counts @ hits / n)),
        "macro_f1": estimate(f1, sampled(lambda counts: metrics.macro_f1(truth, predicted, counts))),
        "ece": metrics.binary_ece(confidence, hits),
        "ece_if_calibrated": metrics.ece_if_calibrated(confidence, seed),
        "accuracy_at_coverage": {f"{c:g}": float(np.interp(c, coverage, accuracy)) for c in COVERAGES},
        "aurc": float(1.0 - accuracy.mean()),
        "accuracy_minus_tfidf": None,
        "ood": None,
    }
    if base is not None and one.name != REFERENCE:
        gap = hits - base
        found["accuracy_minus_tfidf"] = estimate(float(gap.mean()), sampled(lambda counts: counts @ gap / n))
    if one.knownness is not None and not rows.known.all():
        found["ood"] = _detection(rows.known, one.knownness, one.score, seed, replicates)
    return found


def _detection(known: Booleans, score: Floats, about: str, seed: int, replicates: int) -> Report:
    samples = metrics.bootstrap(
        lambda counts: metrics.weighted_auroc(score, known, counts), known.size, replicates, seed
    )
    value = estimate(metrics.auroc(score, known), samples)
    return {"score": about, "auroc": value, "fpr95": metrics.fpr_at_tpr(score, known)}


def _confusion(rows: IntentRows, one: Prediction) -> Report:
    """Counts of the file's labels; a last column pools answers that are no label of the file, if any."""
    from sklearn.metrics import confusion_matrix

    count = len(rows.labels)
    predicted = np.minimum(_answers(rows, one)[0], count)
    matrix = confusion_matrix(rows.truth[rows.known], predicted, labels=range(count + 1))[:count]
    names = [*rows.labels, "no label of the file"]
    if not matrix[:, count].any():
        matrix, names = matrix[:, :count], names[:count]
    return {"model": one.name, "labels": names, "counts": matrix.tolist()}


def _abstention(rows: IntentRows, one: Prediction) -> Report:
    coverage, accuracy = metrics.abstention_curve(*_answers(rows, one)[1:])
    points = np.linspace(1.0 / CURVE_POINTS, 1.0, CURVE_POINTS)
    return {"coverage": points.tolist(), "accuracy": np.interp(points, coverage, accuracy).tolist()}


def _reliability(rows: IntentRows, one: Prediction) -> Report:
    _, confidence, correct = _answers(rows, one)
    return {
        name: column.tolist()
        for name, column in metrics.reliability(confidence, correct.astype(np.float64))._asdict().items()
    }
