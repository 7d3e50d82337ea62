"""Strategies that read nothing of the request: always the same pool, or shares by weight.

Pure. Shares are drawn from the request id, so that a retry goes where the first try went. Without
an id (Envoy sends one unless it is told not to) they are drawn from the conversation's last words:
the same request still goes to the same place, and different ones are still spread out.
"""

from __future__ import annotations

import bisect
import hashlib
import itertools
from collections.abc import Mapping

from semroute_extproc.config.models import FixedStrategy, WeightedStrategy
from semroute_extproc.policy.context import Candidates, Choice, Facts

DRAWN_CHARACTERS_MAX = 4_096
"""Characters of the last turn that a draw without a request id depends on."""


class Fixed:
    """Always the same pool."""

    needs_signals = False
    promises = False

    def __init__(self, settings: FixedStrategy) -> None:
        self._pool = settings.pool

    def choose(self, facts: Facts, candidates: Candidates) -> Choice:
        """The pool."""
        return Choice(self._pool, f"always {self._pool}")


class Weighted:
    """A pool by weight, deterministic by request id and strategy name."""

    needs_signals = False
    promises = False

    def __init__(self, name: str, settings: WeightedStrategy) -> None:
        self._name = name
        self._weights = settings.weights or {}

    def choose(self, facts: Facts, candidates: Candidates) -> Choice:
        """Weights are shared out anew among the pools that could answer.

        The strategy's name goes into the hash so that two canaries do not hit the same requests.
        """
        weights = {pool: weight for pool, weight in self._weights.items() if pool in candidates.pools}
        total = sum(weights.values())
        if total <= 0:
            return Choice(candidates.first_of(), "no weighted pool could answer")
        chosen = drawn(weights, self._name, draw_id(facts))
        return Choice(chosen, f"weight {weights[chosen] / total:.2f}")


class Canary:
    """A strategy by weight, deterministic by request id and by the canary's own name."""

    def __init__(self, name: str, weights: Mapping[str, float]) -> None:
        """`weights` is strategy to weight, one of them positive."""
        self._name = name
        self._weights = weights

    def draw(self, facts: Facts) -> str:
        """The strategy that decides."""
        return drawn(self._weights, self._name, draw_id(facts))


def drawn(weights: Mapping[str, float], name: str, request: str) -> str:
    """One of the names in `weights` by weight; one of them must be positive."""
    bounds = list(itertools.accumulate(weights.values()))
    point = unit_interval(name, request) * bounds[-1]
    return list(weights)[min(bisect.bisect_right(bounds, point), len(bounds) - 1)]


def draw_id(facts: Facts) -> str:
    """What stands for a request in a draw: its id, or else a hash of its last turn."""
    if given := facts.head.request_id:
        return given
    view = facts.view
    last = view.turns[-1].text if view.turns else ""
    half = DRAWN_CHARACTERS_MAX // 2
    parts = (last[:half], last[-half:], str(view.characters), str(len(view.turns)))
    return hashlib.blake2b("\x00".join(parts).encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


def unit_interval(*parts: str) -> float:
    """A number in [0, 1) that depends on `parts` alone and is uniform over them."""
    digest = hashlib.blake2b("\x00".join(parts).encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return (int.from_bytes(digest) >> 11) / (1 << 53)
