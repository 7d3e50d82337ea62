"""Constraints: the pools that can serve a request at all. Pure.

They come before rules and strategies, so neither can send a request where it would fail.
"""

from __future__ import annotations

from collections.abc import Mapping

from semroute_extproc.policy.context import Candidates, RoutingContext
from semroute_extproc.settings.pools import Pool


class NoCandidate(Exception):
    """No pool can serve the request; `excluded` maps each pool to what it lacks."""

    def __init__(self, excluded: Mapping[str, str]) -> None:
        self.excluded = excluded
        wanted = sorted(set(excluded.values()))
        super().__init__("no pool can serve this request: it needs " + " and ".join(wanted))


def candidates(pools: Mapping[str, Pool], default_pool: str, context: RoutingContext) -> Candidates:
    """The pools that can serve the request, the default pool first; raises NoCandidate."""
    kept: dict[str, Pool] = {}
    excluded: dict[str, str] = {}
    for name in (default_pool, *(name for name in pools if name != default_pool)):
        if missing := _missing(pools[name], context):
            excluded[name] = missing
        else:
            kept[name] = pools[name]
    if not kept:
        raise NoCandidate(excluded)
    return Candidates(kept, excluded)


def _missing(pool: Pool, context: RoutingContext) -> str:
    """In words, what the request needs and the pool lacks; empty for nothing."""
    view = context.view
    if view.api not in pool.apis:
        return f"the {view.api} API"
    if view.images and not pool.images:
        return "image input"
    if view.tools and not pool.tools:
        return "tool calls"
    needed = context.prompt_tokens + (view.max_output_tokens or 0)
    # Rounded, because the count is an estimate.
    return f"a context of about {round(needed, -2)} tokens" if needed > pool.context else ""
