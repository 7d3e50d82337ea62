"""Rounding weights for their products: on the grid, none saturates, better than the nearest value."""

from __future__ import annotations

import numpy as np
import pytest
from semroute_lab.train.graphs import CLIPS, STEPS, rounded

RNG = np.random.default_rng(1)
INPUTS = RNG.normal(size=(400, 6)) @ RNG.normal(size=(6, 24)) + 0.2 * RNG.normal(size=(400, 24))
"""Inputs that go together, as the channels of a transformer do."""
CORRELATIONS = INPUTS.T @ INPUTS
WEIGHT = RNG.normal(size=(10, 24)).astype(np.float32)


def lost(weight):
    """Squared error of the products."""
    return float(((INPUTS @ (weight - WEIGHT).T) ** 2).sum())


def nearest(weight):
    scale = np.abs(weight).max(1, keepdims=True) / STEPS
    return np.rint(weight / scale) * scale


def test_the_products_keep_their_values_better_than_with_the_nearest_weights():
    assert lost(rounded(WEIGHT, CORRELATIONS)) < lost(nearest(WEIGHT)) / 2


def test_who_quantizes_by_the_largest_weight_finds_the_same_grid():
    result = rounded(WEIGHT, CORRELATIONS).astype(np.float64)
    steps = result / (np.abs(result).max(1, keepdims=True) / STEPS)
    assert np.allclose(steps, np.rint(steps), atol=1e-4)
    assert np.abs(steps).max() == pytest.approx(STEPS)


def test_two_products_of_a_byte_and_a_weight_fit_sixteen_bits():
    assert 2 * 255 * STEPS < 2**15


def test_no_weight_moves_further_than_its_row_allows():
    result = rounded(WEIGHT, CORRELATIONS)
    ends = np.abs(result).max(1)
    assert np.all(ends <= np.abs(WEIGHT).max(1) * 1.0001)
    assert np.all(ends >= np.abs(WEIGHT).max(1) * min(CLIPS) * 0.999)


@pytest.mark.parametrize("dead", [0, 5])
def test_an_input_that_never_comes_harms_nothing(dead):
    silent = INPUTS.copy()
    silent[:, dead] = 0.0
    result = rounded(WEIGHT, silent.T @ silent)
    assert np.isfinite(result).all()
    assert np.abs(silent @ (result - WEIGHT).T).max() < np.abs(silent @ (nearest(WEIGHT) - WEIGHT).T).max()


def test_a_row_of_zeros_stays_one():
    weight = WEIGHT.copy()
    weight[3] = 0.0
    assert not rounded(weight, CORRELATIONS)[3].any()
    assert np.isfinite(rounded(weight, np.zeros_like(CORRELATIONS))).all()
