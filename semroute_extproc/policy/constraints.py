"""Constraints: the pools that can serve a request at all, before rules and strategies choose. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from semroute_extproc.policy.context import Candidates, RoutingContext
from semroute_extproc.settings.pools import Pool


class NoCandidate(Exception):
    """No pool can serve the request; the message says what it needs."""


def candidates(pools: Mapping[str, Pool], default_pool: str, context: RoutingContext) -> Candidates:
    """The pools that can serve the request, the default pool first; raises NoCandidate."""
    lacks = {name: _missing(pools[name], context) for name in dict.fromkeys((default_pool, *pools))}
    kept = {name: pools[name] for name, missing in lacks.items() if not missing}
    if not kept:
        wanted = " and ".join(sorted(set(lacks.values())))
        raise NoCandidate(f"no pool can serve this request: it needs {wanted}")
    return Candidates(kept, {name: missing for name, missing in lacks.items() if missing})


def _missing(pool: Pool, context: RoutingContext) -> str:
    """What the request needs and the pool lacks, in words; empty if nothing is missing."""
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
