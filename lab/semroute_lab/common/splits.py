"""Splits in which identical texts are always on one side."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from semroute_lab.common.metrics import Integers

FOLDS = 5  # Folds of everything that is cross-fitted


def text_key(text: str) -> str:
    """A key that ignores case and white space."""
    return " ".join(text.split()).casefold()


def text_groups(texts: Sequence[str]) -> Integers:
    """A number for each text, equal for texts with one `text_key`; shape (n,)."""
    keys = [text_key(text) for text in texts]
    numbers = {key: i for i, key in enumerate(dict.fromkeys(keys))}
    return np.asarray([numbers[key] for key in keys], dtype=np.int64)


def folds(texts: Sequence[str], seed: int) -> Integers:
    """A fold 0..FOLDS-1 for each row, one for identical texts; shape (n,)."""
    groups = text_groups(texts)
    fold_of_group = np.random.default_rng(seed).permutation(int(groups.max()) + 1) % FOLDS
    return np.asarray(fold_of_group[groups], dtype=np.int64)


def portions(groups: Integers, shares: Sequence[float], seed: int) -> list[Integers]:
    """Row indices of consecutive portions of the shuffled groups; shares add up to 1."""
    distinct = int(groups.max()) + 1
    place = np.random.default_rng(seed).permutation(distinct)[groups]
    edges = np.round(np.cumsum([0.0, *shares]) * distinct)
    return [np.flatnonzero((place >= a) & (place < b)) for a, b in itertools.pairwise(edges)]
