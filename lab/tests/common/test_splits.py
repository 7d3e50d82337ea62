"""Splits: no text on two sides, and cross-fitted tables that never see a row's own value."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from semroute_lab.common.tables import folds, portions, text_groups
from semroute_lab.evaluate.pair import cross_fitted_means

texts_with_twins = st.lists(st.sampled_from([f"text {i}" for i in range(15)]), min_size=10, max_size=60)


def test_texts_that_differ_in_case_and_blanks_are_one_group() -> None:
    assert text_groups(["What is  it?", "other", "what is it?\n"]).tolist() == [0, 1, 0]


@given(texts_with_twins, st.integers(0, 5))
def test_identical_texts_are_in_one_portion_and_every_row_is_in_exactly_one(
    texts: list[str], seed: int
) -> None:
    parts = portions(text_groups(texts), (0.6, 0.1, 0.3), seed)
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(texts)))
    sides = [text for part in parts for text in {texts[row] for row in part}]
    assert len(sides) == len(set(texts))


@given(texts_with_twins, st.integers(0, 5))
def test_identical_texts_are_in_one_fold(texts: list[str], seed: int) -> None:
    fold = folds(texts, seed)
    for text in set(texts):
        assert len({fold[i] for i, other in enumerate(texts) if other == text}) == 1


def test_cross_fitted_means_are_those_of_the_other_folds_shrunk_to_their_mean() -> None:
    """Fold 0 sees only fold 1: a has mean 1 there, b has none, and the overall mean is 1/2."""
    keys = ["a", "b", "a", "c"]
    values = np.asarray([0.0, 0.0, 1.0, 0.0])
    found = cross_fitted_means(keys, values, np.asarray([0, 0, 1, 1]), weight=1.0)
    assert found.tolist() == pytest.approx([(1.0 + 0.5) / 2.0, 0.5, 0.0, 0.0])


def test_changing_a_rows_value_never_changes_its_own_score() -> None:
    rng = np.random.default_rng(0)
    keys = [str(k) for k in rng.integers(0, 3, 40)]
    values, fold = rng.random(40), rng.integers(0, 5, 40)
    before = cross_fitted_means(keys, values, fold)
    for row in range(40):
        changed = values.copy()
        changed[row] = 99.0
        assert cross_fitted_means(keys, changed, fold)[row] == before[row]
