"""Constraints: which pools could answer a request at all.

Pure. They come before rules and strategies, so that neither can send a request where it fails.
"""

from __future__ import annotations

from collections.abc import Mapping

from semroute_extproc.policy.context import Candidates, RoutingContext
from semroute_extproc.settings.pools import Pool


class NoCandidate(Exception):
    """No pool could answer; `excluded` says why, pool by pool."""

    def __init__(self, excluded: Mapping[str, str]) -> None:
        self.excluded = excluded
        wanted = sorted(set(excluded.values()))
        super().__init__("no pool can serve this request: it needs " + " and ".join(wanted))


def candidates(pools: Mapping[str, Pool], default_pool: str, facts: RoutingContext) -> Candidates:
    """The pools of `pools` that could answer; raises NoCandidate if there is none."""
    kept: dict[str, Pool] = {}
    excluded: dict[str, str] = {}
    for name in (default_pool, *(name for name in pools if name != default_pool)):
        missing = _missing(pools[name], facts)
        if missing:
            excluded[name] = missing
        else:
            kept[name] = pools[name]
    if not kept:
        raise NoCandidate(excluded)
    return Candidates(kept, excluded)


def _missing(pool: Pool, facts: RoutingContext) -> str:
    """What the request needs and the pool lacks, in words; empty if nothing."""
    view = facts.view
    if view.api not in pool.apis:
        return f"the {view.api} API"
    if view.images and not pool.images:
        return "image input"
    if view.tools and not pool.tools:
        return "tool calls"
    needed = facts.prompt_tokens + (view.max_output_tokens or 0)
    if needed > pool.context:
        # The count is an estimate, so the message rounds it: a precise figure would be a lie.
        return f"a context of about {round(needed, -2)} tokens"
    return ""
