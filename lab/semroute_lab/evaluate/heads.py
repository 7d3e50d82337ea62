"""Classifiers fitted during an evaluation: baselines on text, and light heads on frozen embeddings.

Each maps texts or embeddings to class probabilities of shape (n, classes). Logistic regression is
scikit-learn's (extra `train`); the rest is numpy.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from semroute_lab.evaluate.metrics.arrays import Floats, Integers

Vectors = npt.NDArray[np.float32]

ITERATIONS_MAX = 300
"""Bound on the solver's steps; a fit that is cut short is a slightly more regular one."""

NEAREST = 5
"""Rows that vote, and whose mean cosine tells known from unknown text."""

CENTROID_TEMPERATURE = 0.05
"""Softmax temperature over cosines: turns them into probabilities, changes no ranking of classes."""


def majority(fit_labels: Integers, classes: int, rows: int) -> Floats:
    """The class frequencies, for every row."""
    frequency = np.bincount(fit_labels, minlength=classes) / fit_labels.size
    return np.tile(frequency, (rows, 1))


def tfidf_logistic(
    fit_texts: Sequence[str], fit_labels: Integers, texts: Sequence[str], classes: int
) -> Floats:
    """TF-IDF over word unigrams and bigrams with logistic regression: what the words alone say."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    weigh = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, min_df=2 if len(fit_texts) > 2000 else 1)
    return _logistic(weigh.fit_transform(fit_texts), fit_labels, weigh.transform(texts), classes, 10.0)


def embedding_logistic(fit: Vectors, fit_labels: Integers, vectors: Vectors, classes: int) -> Floats:
    """Logistic regression on frozen embeddings (C = 10)."""
    return _logistic(fit.astype(np.float64), fit_labels, vectors.astype(np.float64), classes, 10.0)


def _logistic(fit: Any, labels: Integers, inputs: Any, classes: int, c: float) -> Floats:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=c, max_iter=ITERATIONS_MAX, tol=1e-3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(fit, labels)
    found = np.zeros((inputs.shape[0], classes))
    found[:, model.classes_] = model.predict_proba(inputs)
    return found


def class_centroids(fit: Vectors, fit_labels: Integers, classes: int) -> Floats:
    """Mean embedding of each class, scaled to length 1; zeros for a class without rows."""
    sums = np.zeros((classes, fit.shape[1]))
    np.add.at(sums, fit_labels, fit.astype(np.float64))
    norms = np.linalg.norm(sums, axis=1, keepdims=True)
    return sums / np.where(norms > 0, norms, 1.0)


def nearest_centroid(centroids: Floats, vectors: Vectors) -> tuple[Floats, Floats]:
    """Probabilities by softmax of the cosines, and the highest cosine; (n, classes) and (n,)."""
    cosine = vectors.astype(np.float64) @ centroids.T
    scaled = np.exp((cosine - cosine.max(axis=1, keepdims=True)) / CENTROID_TEMPERATURE)
    return scaled / scaled.sum(axis=1, keepdims=True), cosine.max(axis=1)


def nearest_rows(fit: Vectors, fit_labels: Integers, vectors: Vectors, classes: int) -> tuple[Floats, Floats]:
    """Votes of the `NEAREST` rows and their mean cosine; (n, classes) and (n,)."""
    votes, closeness = np.zeros((len(vectors), classes)), np.zeros(len(vectors))
    for row in range(len(vectors)):
        cosine = fit @ vectors[row]
        near = np.argpartition(-cosine, min(NEAREST, len(fit)) - 1)[:NEAREST]
        np.add.at(votes[row], fit_labels[near], 1.0 / len(near))
        closeness[row] = float(cosine[near].mean())
    return votes, closeness


def cross_fitted(fit_predict: Callable[[Integers, Integers], Floats], fold: Integers, classes: int) -> Floats:
    """Probabilities for every row from a fit on the other folds; `fit_predict(fit_rows, rows)`."""
    found = np.zeros((fold.size, classes))
    for part in np.unique(fold):
        rows = np.flatnonzero(fold == part).astype(np.int64)
        found[rows] = fit_predict(np.flatnonzero(fold != part).astype(np.int64), rows)
    return found
