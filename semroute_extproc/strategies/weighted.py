"""Weighted: draws a pool by weight, however difficult the request is (`policy.draw`)."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from semroute_extproc.policy.context import Candidates, Choice, RoutingContext, Strategy
from semroute_extproc.policy.draw import draw_id, drawn
from semroute_extproc.settings.base import PoolName
from semroute_extproc.strategies.idea import Site, StrategySettings


class WeightedSettings(StrategySettings):
    """Selects a pool at random by weight; the same pool for a repeated request."""

    kind: Literal["weighted"]
    weights: dict[PoolName, Annotated[float, Field(ge=0)]] = Field(min_length=1, description="Pool weights.")

    @model_validator(mode="after")
    def _positive(self) -> Self:
        if sum(self.weights.values()) <= 0:
            raise ValueError("at least one weight must be positive")
        return self

    def compile(self, site: Site) -> Strategy:
        """Compile; no file is needed."""
        return Weighted(site.name, self.weights)


class Weighted(Strategy):
    """Draws a pool by weight; the same for a repeated request and a strategy name."""

    needs_signals = hard_preferences = False

    def __init__(self, name: str, weights: dict[str, float]) -> None:
        self._name, self._weights = name, weights

    def choose(self, context: RoutingContext, candidates: Candidates) -> Choice:
        """Draw among the candidates; the hash includes the strategy's name, so draws are independent."""
        weights = {pool: weight for pool, weight in self._weights.items() if pool in candidates.pools}
        total = sum(weights.values())
        if total <= 0:
            return Choice(candidates.first_of(), "no weighted pool could answer")
        chosen = drawn(weights, self._name, draw_id(context))
        propensity = weights[chosen] / total
        return Choice(chosen, f"weight {propensity:.2f}", propensity=propensity)
