"""Splits that identical texts never straddle."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from semroute_lab.evaluate.metrics.arrays import Floats, Integers


def text_key(text: str) -> str:
    """The same for texts that differ only in case and white space."""
    return " ".join(text.split()).casefold()


def text_groups(texts: Sequence[str]) -> Integers:
    """A number for each text, the same for texts that differ only in case and white space; shape (n,)."""
    keys = [text_key(text) for text in texts]
    numbers = {key: i for i, key in enumerate(dict.fromkeys(keys))}
    return np.asarray([numbers[key] for key in keys], dtype=np.int64)


def folds(groups: Integers, count: int, seed: int) -> Integers:
    """A fold 0..count-1 for each row, the same for rows of one group; shape (n,)."""
    distinct = int(groups.max()) + 1
    fold_of_group = np.random.default_rng(seed).permutation(distinct) % count
    return np.asarray(fold_of_group[groups], dtype=np.int64)


def portions(groups: Integers, shares: Sequence[float], seed: int) -> list[Integers]:
    """Row indices of consecutive portions of the shuffled groups; shares add up to 1."""
    distinct = int(groups.max()) + 1
    place = np.random.default_rng(seed).permutation(distinct)[groups]
    edges = np.round(np.cumsum([0.0, *shares]) * distinct)
    spans = itertools.pairwise(edges)
    return [np.flatnonzero((place >= low) & (place < high)).astype(np.int64) for low, high in spans]


def cross_fitted_means(keys: Sequence[str], values: Floats, fold: Integers, weight: float = 5.0) -> Floats:
    """For each row the mean value of its key over the *other* folds, shrunk to their overall mean.

    (sum + weight * mean) / (rows + weight), so a key that the other folds lack gets the mean.
    No row sees its own value, nor a twin's. Shape (n,).
    """
    _, index = np.unique(np.asarray(keys, dtype=str), return_inverse=True)
    index = index.reshape(-1)
    classes = int(index.max()) + 1
    found = np.empty(values.size)
    for part in np.unique(fold):
        inside = fold == part
        overall = float(values[~inside].mean())
        total = np.bincount(index[~inside], values[~inside], minlength=classes)
        rows = np.bincount(index[~inside], minlength=classes)
        found[inside] = ((total + weight * overall) / (rows + weight))[index[inside]]
    return found
