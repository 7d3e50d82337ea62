"""Strategies that read nothing of the request: always the same pool, or shares by weight.

Pure. Shares are drawn from the request id, so that a retry goes where the first try went.
"""

from __future__ import annotations

import bisect
import hashlib
import itertools

from semroute_extproc.config import FixedStrategy, WeightedStrategy
from semroute_extproc.policy.decision import Candidates, Choice, Facts


class Fixed:
    """Always the same pool."""

    needs_signals = False

    def __init__(self, settings: FixedStrategy) -> None:
        self._pool = settings.pool

    def choose(self, facts: Facts, candidates: Candidates) -> Choice:
        """The pool."""
        return Choice(self._pool, f"always {self._pool}")


class Weighted:
    """A pool by weight, deterministic by request id and strategy name."""

    needs_signals = False

    def __init__(self, name: str, settings: WeightedStrategy) -> None:
        self._name = name
        self._weights = settings.weights

    def choose(self, facts: Facts, candidates: Candidates) -> Choice:
        """Weights are shared out anew among the pools that could answer.

        The strategy's name goes into the hash so that two canaries do not hit the same requests.
        """
        weights = {pool: weight for pool, weight in self._weights.items() if pool in candidates.pools}
        total = sum(weights.values())
        if total <= 0:
            return Choice(candidates.first_of(), "no weighted pool could answer")
        point = unit_interval(self._name, facts.head.request_id) * total
        bounds = list(itertools.accumulate(weights.values()))
        chosen = list(weights)[min(bisect.bisect_right(bounds, point), len(bounds) - 1)]
        return Choice(chosen, f"weight {weights[chosen] / total:.2f}")


def unit_interval(*parts: str) -> float:
    """A number in [0, 1) that depends on `parts` alone and is uniform over them."""
    digest = hashlib.blake2b("\x00".join(parts).encode(), digest_size=8).digest()
    return (int.from_bytes(digest) >> 11) / (1 << 53)
