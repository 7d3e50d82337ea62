"""Strategies that read nothing of the request: always the same pool, or shares by weight.

Pure. Shares are drawn from the request id, so that a retry goes where the first try went. Without
an id (Envoy sends one unless it is told not to) they are drawn from the conversation's last words:
the same request still goes to the same place, and different ones are still spread out.
"""

from __future__ import annotations

from semroute_extproc.config.models import FixedStrategy, WeightedStrategy
from semroute_extproc.policy.context import Candidates, Choice, RoutingContext, Strategy
from semroute_extproc.policy.draw import draw_id, drawn


class Fixed(Strategy):
    """Always the same pool."""

    needs_signals = False
    hard_preferences = False

    def __init__(self, settings: FixedStrategy) -> None:
        self._pool = settings.pool

    def choose(self, facts: RoutingContext, candidates: Candidates) -> Choice:
        """The pool."""
        return Choice(self._pool, f"always {self._pool}")


class Weighted(Strategy):
    """A pool by weight, deterministic by request id and strategy name."""

    needs_signals = False
    hard_preferences = False

    def __init__(self, name: str, settings: WeightedStrategy) -> None:
        self._name = name
        self._weights = settings.weights or {}

    def choose(self, facts: RoutingContext, candidates: Candidates) -> Choice:
        """Weights are shared out anew among the pools that could answer.

        The strategy's name goes into the hash so that two canaries do not hit the same requests.
        """
        weights = {pool: weight for pool, weight in self._weights.items() if pool in candidates.pools}
        total = sum(weights.values())
        if total <= 0:
            return Choice(candidates.first_of(), "no weighted pool could answer")
        chosen = drawn(weights, self._name, draw_id(facts))
        return Choice(chosen, f"weight {weights[chosen] / total:.2f}")
