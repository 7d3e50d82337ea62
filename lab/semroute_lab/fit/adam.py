"""Adam (Kingma and Ba, arXiv 1412.6980, algorithm 1) for the few small fits that need it, without torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from semroute_lab.common.metrics import Vectors

FIRST, SECOND, EPSILON = 0.9, 0.999, 1e-8  # Decay of both moments, and what keeps the divisor above zero


def adam(
    parts: Sequence[Vectors],
    gradients: Callable[[Sequence[Vectors]], Sequence[Vectors]],
    steps: int,
    rate: Callable[[int], float],
) -> list[Vectors]:
    """The parameters after `steps` steps, in float32; `rate` is the step size of each step from 1 on."""
    parts = list(parts)
    moments = [(np.zeros_like(part), np.zeros_like(part)) for part in parts]
    for step in range(1, steps + 1):
        found = gradients(parts)
        size = np.float32(rate(step))
        for i, (gradient, (mean, square)) in enumerate(zip(found, moments, strict=True)):
            mean *= FIRST
            mean += (1.0 - FIRST) * gradient
            square *= SECOND
            square += (1.0 - SECOND) * gradient**2
            ahead = mean / np.float32(1.0 - FIRST**step)
            spread = np.sqrt(square / np.float32(1.0 - SECOND**step)) + np.float32(EPSILON)
            parts[i] = np.asarray(parts[i] - size * ahead / spread, dtype=np.float32)
    return parts
