"""A toy strategy, as a file of `semroute_extproc/strategies` would have it: always the longest context."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from semroute_extproc.policy.context import Candidates, Choice, RoutingContext, Strategy
from semroute_extproc.settings.base import PoolName
from semroute_extproc.strategies.idea import Site, StrategySettings


class LongestContextSettings(StrategySettings):
    """The pool with the longest context window."""

    kind: Literal["longest-context"]
    pools: tuple[PoolName, ...] = Field(min_length=1, description="Pools to choose from.")

    def compile(self, site: Site) -> LongestContext:
        """Needs no file."""
        return LongestContext(sorted(self.pools, key=lambda name: -site.pools[name].context))


class LongestContext(Strategy):
    """The pool with the longest context window, else the next."""

    needs_signals = False
    hard_preferences = False

    def __init__(self, pools: list[str]) -> None:
        self._pools = pools

    def choose(self, context: RoutingContext, candidates: Candidates) -> Choice:
        """The reason names the length."""
        best, *others = self._pools
        return Choice(best, "longest context", tuple(others))
