"""Constraints: the pools that can serve a request at all, before rules and strategies choose. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from semroute_extproc.policy.context import Candidates, RoutingContext
from semroute_extproc.settings.pools import Pool

ANSWER_TOKENS_MIN = 256  # that a prompt must leave in a pool with `clamp`


class NoCandidate(Exception):
    """No pool can serve the request; the message says what it needs."""


def candidates(pools: Mapping[str, Pool], default_pool: str, context: RoutingContext) -> Candidates:
    """The pools that can serve the request, the default pool first; raises NoCandidate."""
    lacks = {name: _missing(name, pools[name], context) for name in dict.fromkeys((default_pool, *pools))}
    possible = [name for name, missing in lacks.items() if not missing]
    if not possible:
        wanted = " and ".join(sorted(set(lacks.values())))
        raise NoCandidate(f"no pool can serve this request: it needs {wanted}")
    unsure = {name: may for name in possible if (may := _missing(name, pools[name], context, most=True))}
    if len(unsure) == len(possible):
        largest = max(pools[name].context for name in possible)
        unsure = {name: may for name, may in unsure.items() if pools[name].context < largest}
    kept = {name: pools[name] for name in possible if name not in unsure}
    return Candidates(kept, {name: missing for name, missing in lacks.items() if missing}, unsure)


def near(name: str, pool: Pool, context: RoutingContext) -> bool:
    """Whether only an exact number of tokens says if the request fits a pool."""
    return not _missing(name, pool, context) and bool(_missing(name, pool, context, most=True))


def clamped(name: str, pool: Pool, context: RoutingContext) -> int | None:
    """The limit of the answer's tokens that a pool with `clamp` gets; None if the client's own fits."""
    asked = context.view.max_output_tokens
    if not pool.clamp or asked is None:
        return None
    left = max(pool.context - context.bounds_in(name)[1], ANSWER_TOKENS_MIN)
    return left if left < asked else None


def _missing(name: str, pool: Pool, context: RoutingContext, most: bool = False) -> str:
    """What the request needs and the pool lacks, in words; empty if nothing is missing.

    The prompt has the fewest tokens that it can have, or the most.
    """
    view = context.view
    if view.api not in pool.apis:
        return f"the {view.api} API"
    if view.images and not pool.images:
        return "image input"
    if view.tools and not pool.tools:
        return "tool calls"
    answer = view.max_output_tokens or 0
    needed = context.bounds_in(name)[most] + (min(answer, ANSWER_TOKENS_MIN) if pool.clamp else answer)
    # Rounded, because the count is an estimate.
    return f"a context of about {round(needed, -2)} tokens" if needed > pool.context else ""
