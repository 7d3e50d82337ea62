"""Constraints: the pools that can serve a request at all, before rules and strategies choose. Pure."""

import dataclasses
from collections.abc import Callable, Mapping

from semroute_extproc.policy.context import Candidates, Lock, RoutingContext
from semroute_extproc.request.handover import CONTEXT
from semroute_extproc.request.view import Api, RequestView
from semroute_extproc.settings.pools import Pool, cost

_OF_EVERY_POOL = (Api.TOKENIZE, Api.OTHER)
_MEDIA = {"images": "image", "audio": "audio", "video": "video", "files": "file"}

ANSWER_TOKENS_MIN = 256  # that a prompt must leave in a pool with `clamp`


class NoCandidate(Exception):
    """No pool can serve the request; the message says what it needs."""


class Denied(NoCandidate):
    """A policy refuses the request; the message is the operator's."""


def candidates(pools: Mapping[str, Pool], default_pool: str, context: RoutingContext) -> Candidates:
    """The pools that can serve the request, the default pool first; raises NoCandidate.

    Pools that failed are left out, and pools that the prompt may not fit, but never all of them.
    """
    too_small = (name for name, why in context.tried.items() if why == CONTEXT and name in pools)
    # A pool refused the prompt as too long, so it is longer than this, whatever the estimate says.
    largest = max((pools[name].context for name in too_small), default=0)
    ordered = {default_pool: pools[default_pool], **pools}
    missing = _needs(context.view)
    lacking = {name: missing(pool) or _too_long(name, pool, context) for name, pool in ordered.items()}
    longer = f"a context of more than {largest} tokens"
    lacking |= {name: longer for name, pool in pools.items() if pool.context < largest}
    possible = tuple(name for name, lacks in lacking.items() if not lacks)
    if not possible:
        wanted = " and ".join(sorted(set(lacking.values())))
        raise NoCandidate(f"no pool can serve this request: it needs {wanted}")
    for name in possible:
        del lacking[name]
    usable, untried = possible, possible
    if failed := {**context.conditions.failing, **context.tried}:
        failed |= {name: CONTEXT for name in possible if pools[name].context <= largest}
        if (held := context.held) is not None and held.lock is Lock.STATEFUL:
            failed.pop(held.pool, None)  # Another pool would not know the conversation.
        untried = tuple(name for name in possible if name not in context.tried) or possible
        output = context.view.max_output_tokens or 1
        working = [name for name in untried if name not in failed] or untried
        usable = tuple(sorted(working, key=lambda name: cost(pools[name], context.prompt_tokens, output)))
        why = {name: f"a working server ({how})" for name, how in failed.items()}
        lacking |= {name: why[name] for name in possible if name in failed and name not in usable}
    unsure = {name: may for name in usable if (may := _too_long(name, pools[name], context, most=True))}
    if len(unsure) == len(usable):
        largest = max(pools[name].context for name in usable)
        unsure = {name: may for name, may in unsure.items() if pools[name].context < largest}
    kept = {name: pools[name] for name in usable if name not in unsure}
    return Candidates(kept, lacking, untried, unsure)


def affordable(found: Candidates, limit: str, context: RoutingContext) -> Candidates:
    """Leave out pools that cost more than what is left of a limit, but not the cheapest pool."""
    ledger, held = context.conditions.limits.get(limit), context.held
    if ledger is None:
        return found
    tokens, output = context.prompt_tokens, context.view.max_output_tokens
    costs = {name: cost(pool, tokens, output or 1) for name, pool in found.pools.items()}
    least, stays = min(costs.values()), held.pool if held and held.lock is Lock.STATEFUL else ""
    without = {
        name: ledger.why
        for name, pool in found.pools.items()
        if costs[name] > least and ledger.cost(pool, tokens, output) > ledger.left and name != stays
    }
    kept = {name: pool for name, pool in found.pools.items() if name not in without}
    return dataclasses.replace(found, pools=kept, excluded={**found.excluded, **without})


def near(name: str, pool: Pool, context: RoutingContext) -> bool:
    """Whether only an exact count can decide if the request fits a pool."""
    fits = not (_needs(context.view)(pool) or _too_long(name, pool, context))
    return fits and bool(_too_long(name, pool, context, most=True))


def clamped(name: str, pool: Pool, context: RoutingContext) -> int | None:
    """The limit of the answer's tokens that a pool with `clamp` gets; None if the client's own fits."""
    asked = context.view.max_output_tokens
    if not pool.clamp or asked is None:
        return None
    left = max(pool.context - context.bounds_in(name)[1], ANSWER_TOKENS_MIN)
    return left if left < asked else None


def _needs(view: RequestView) -> Callable[[Pool], str]:
    """What the request needs besides a context and a pool lacks, in words; empty if nothing is missing."""
    api = Api.MESSAGES if view.api is Api.COUNT_TOKENS else view.api
    flags = {flag: f"{medium} input" for flag, medium in _MEDIA.items() if getattr(view, flag)}
    flags |= {"foreign_history": "a history with tool calls of other models"} if view.foreign else {}
    flags |= {"tools": "tool calls"} if view.tools else {}

    def missing(pool: Pool) -> str:
        if api.value not in pool.apis and api not in _OF_EVERY_POOL:
            return f"the {api} API"
        return next((words for flag, words in flags.items() if not getattr(pool, flag)), "") if flags else ""

    return missing


def _too_long(name: str, pool: Pool, context: RoutingContext, most: bool = False) -> str:
    """The context that a pool lacks if the prompt has the fewest tokens that it can have, or the most."""
    answer = context.view.max_output_tokens or 0
    needed = context.bounds_in(name)[most] + (min(answer, ANSWER_TOKENS_MIN) if pool.clamp else answer)
    # Rounded, because the count is an estimate.
    return f"a context of about {round(needed, -2)} tokens" if needed > pool.context else ""
