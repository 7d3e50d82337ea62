"""The arithmetic of calibration."""

from __future__ import annotations

import numpy as np
import pytest

from semroute_extproc.encoder.signals import entropy, sigmoid, softmax


@pytest.mark.parametrize(
    ("probabilities", "expected"),
    [([1.0, 0.0], 0.0), ([0.25] * 4, 1.0), ([0.5, 0.5, 0.0, 0.0], 0.5), ([1.0], 0.0), ([], 0.0)],
)
def test_entropy_is_a_share_of_its_maximum(probabilities: list[float], expected: float) -> None:
    assert entropy(probabilities) == pytest.approx(expected)


@pytest.mark.parametrize(("x", "expected"), [(0.0, 0.5), (1_000.0, 1.0), (-1_000.0, 0.0)])
def test_the_logistic_function_does_not_overflow(x: float, expected: float) -> None:
    assert sigmoid(x) == pytest.approx(expected)


def test_a_temperature_flattens_the_distribution() -> None:
    logits = np.array([0.0, 2.0], dtype=np.float32)
    assert softmax(logits, 2.0)[1] == pytest.approx(sigmoid(1.0))
    assert sum(softmax(logits + 1_000)) == pytest.approx(1.0)
