"""`eval intent`: labels, calibration, abstention, and out-of-distribution detection.

Fitted models use the file's train split where it has one, without rows whose text is also evaluated;
otherwise they are cross-fitted in five folds of the evaluated rows. Out-of-distribution rows carry the
`ood` label: they are never fitted on and have no class.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from semroute_lab.common import metrics
from semroute_lab.common.metrics import Booleans, Floats, Integers, Vectors, estimate
from semroute_lab.common.tables import Table, folds, require_rows, text_key
from semroute_lab.evaluate.scoring import Report, Scores, head

COVERAGES = (0.5, 0.8, 0.9)  # Coverages at which the abstention curve is read
CURVE_POINTS = 100  # Points of each abstention curve in the report
REFERENCE = "tfidf + logistic"  # The baseline that every row is compared with, where it exists
SHOWN_FIRST = ("bundle", "logistic", REFERENCE)  # The confusion matrix is of the first that exists
ITERATIONS_MAX = 300  # Bound on the solver's steps; stopping early regularizes slightly
NEAREST = 5  # Nearest rows that vote; their mean cosine is the score for known text
CENTROID_TEMPERATURE = 0.05  # Turns cosines into probabilities; it changes no ranking of classes


@dataclass(frozen=True, slots=True)
class IntentRows:
    """Rows to fit on, rows to evaluate, and rows that are out of distribution."""

    table: Table  # The evaluated rows, known and out of distribution
    texts: list[str]
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
    knownness: Floats | None  # High for known text; None if the model has no such score
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


def _by_probability(name: str, probabilities: Floats) -> Prediction:
    return Prediction(name, probabilities, probabilities.max(axis=1), "highest probability")


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
    near, cosine = _nearest_centroid(fit.neighbors, labels, scores.neighbors, classes)
    votes, closeness = _nearest_rows(fit.neighbors, labels, scores.neighbors, classes)
    vectors = (each.embedding.astype(np.float64) for each in (fit, scores))
    logistic = _logistic(next(vectors), labels, next(vectors), classes)
    return [
        Prediction("centroid", near, cosine, "cosine to the nearest class centroid"),
        Prediction("neighbors", votes, closeness, f"mean cosine of the {NEAREST} nearest rows"),
        _by_probability("logistic", logistic),
    ]


def _nearest_centroid(
    fit: Vectors, labels: Integers, vectors: Vectors, classes: int
) -> tuple[Floats, Floats]:
    """Probabilities by softmax of the cosines to class means, and the highest cosine; (n, classes), (n,)."""
    sums = (labels == np.arange(classes)[:, None]) @ fit.astype(np.float64)
    norms = np.linalg.norm(sums, axis=1, keepdims=True)
    cosine = vectors.astype(np.float64) @ (sums / np.where(norms > 0, norms, 1.0)).T
    scaled = np.exp((cosine - cosine.max(axis=1, keepdims=True)) / CENTROID_TEMPERATURE)
    return scaled / scaled.sum(axis=1, keepdims=True), cosine.max(axis=1)


def _nearest_rows(fit: Vectors, labels: Integers, vectors: Vectors, classes: int) -> tuple[Floats, Floats]:
    """Votes of the `NEAREST` rows and their mean cosine; (n, classes) and (n,)."""
    from sklearn.neighbors import NearestNeighbors

    count = min(NEAREST, len(fit))
    distance, near = NearestNeighbors(n_neighbors=count, metric="cosine").fit(fit).kneighbors(vectors)
    return (labels[near][:, :, None] == np.arange(classes)).mean(axis=1), 1.0 - distance.mean(axis=1)


@dataclass(frozen=True, slots=True)
class _Answers:
    """One model's answers to the known rows; (n,) each."""

    predicted: Integers
    confidence: Floats
    right: Booleans


def evaluate_intent(
    rows: IntentRows,
    predictions: list[Prediction],
    bundle: Mapping[str, object] | None,
    seed: int,
    replicates: int,
) -> Report:
    """The report of `eval intent`; its shape is documented in `reports.md`."""
    known = rows.known
    truth, answers = rows.truth[known], {}
    for one in predictions:
        p = one.probabilities[known]
        predicted = np.argmax(p, axis=1).astype(np.int64)
        answers[one.name] = _Answers(predicted, p.max(axis=1), predicted == truth)
    base = answers[REFERENCE].right if REFERENCE in answers else None
    shown = next(name for name in SHOWN_FIRST if name in answers)
    curves = {name: _curves(each) for name, each in answers.items() if name != "majority"}
    fit = {"rows": int(rows.fit_truth.size), "dropped": rows.dropped, "cross_fitted": not rows.fit_truth.size}
    return {
        **head("intent", rows.table, bundle, seed),
        "bootstrap": replicates,
        "labels": list(rows.labels),
        "rows": {"known": int(known.sum()), "ood": int((~known).sum())},
        "fit": fit,
        "models": [_row(rows, one, answers[one.name], base, seed, replicates) for one in predictions],
        "confusion": {"model": shown, **_confusion(rows.labels, truth, answers[shown].predicted)},
        "abstention": {name: abstention for name, (abstention, _) in curves.items()},
        "reliability": {name: reliability for name, (_, reliability) in curves.items()},
    }


def _row(
    rows: IntentRows, one: Prediction, answers: _Answers, base: Booleans | None, seed: int, replicates: int
) -> Report:
    truth, predicted, known = rows.truth[rows.known], answers.predicted, rows.known
    n, hits = truth.size, answers.right.astype(np.float64)

    def sampled(value: float, statistic: Callable[[Floats], Floats]) -> metrics.Estimate:
        return estimate(value, metrics.bootstrap(statistic, n, replicates, seed))

    coverage, accuracy = metrics.abstention_curve(answers.confidence, answers.right)
    f1 = float(metrics.macro_f1(truth, predicted)[0])
    found: Report = {
        "name": one.name,
        "accuracy": sampled(float(hits.mean()), lambda counts: counts @ hits / n),
        "macro_f1": sampled(f1, lambda counts: metrics.macro_f1(truth, predicted, counts)),
        "ece": metrics.binary_ece(answers.confidence, hits),
        "ece_if_calibrated": metrics.ece_if_calibrated(answers.confidence, seed),
        "accuracy_at_coverage": {f"{c:g}": float(np.interp(c, coverage, accuracy)) for c in COVERAGES},
        "aurc": float(1.0 - accuracy.mean()),
        "accuracy_minus_tfidf": None,
        "ood": None,
    }
    if base is not None and one.name != REFERENCE:
        gap = hits - base
        found["accuracy_minus_tfidf"] = sampled(float(gap.mean()), lambda counts: counts @ gap / n)
    if one.knownness is not None and not known.all():
        auroc = metrics.auroc_estimate(one.knownness, known, replicates, seed)
        fpr95 = metrics.fpr_at_tpr(one.knownness, known)
        found["ood"] = {"score": one.score, "auroc": auroc, "fpr95": fpr95}
    return found


def _confusion(labels: Sequence[str], truth: Integers, predicted: Integers) -> Report:
    """Counts by label; a last column, if needed, pools answers that are not labels of the file."""
    from sklearn.metrics import confusion_matrix

    count = len(labels)
    matrix = confusion_matrix(truth, np.minimum(predicted, count), labels=range(count + 1))[:count]
    names = [*labels, "no label of the file"]
    if not matrix[:, count].any():
        matrix, names = matrix[:, :count], names[:count]
    return {"labels": names, "counts": matrix.tolist()}


def _curves(answers: _Answers) -> tuple[Report, Report]:
    """Abstention and reliability."""
    coverage, accuracy = metrics.abstention_curve(answers.confidence, answers.right)
    points = np.linspace(1.0 / CURVE_POINTS, 1.0, CURVE_POINTS)
    table = metrics.reliability(answers.confidence, answers.right.astype(np.float64))
    reliability = {name: column.tolist() for name, column in table._asdict().items()}
    abstention = np.interp(points, coverage, accuracy).tolist()
    return {"coverage": points.tolist(), "accuracy": abstention}, reliability
