"""Constraints: the pools that can serve a request at all, before rules and strategies choose. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from semroute_extproc.policy.context import Candidates, Lock, RoutingContext
from semroute_extproc.request.handover import CONTEXT
from semroute_extproc.request.view import Api
from semroute_extproc.settings.pools import Pool, cost

_OF_EVERY_POOL = (Api.TOKENIZE, Api.OTHER)
_MEDIA = {"images": "image", "audio": "audio", "video": "video", "files": "file"}


class NoCandidate(Exception):
    """No pool can serve the request; the message says what it needs."""


class Denied(NoCandidate):
    """A policy refuses the request; the message is the operator's."""


def candidates(pools: Mapping[str, Pool], default_pool: str, context: RoutingContext) -> Candidates:
    """The pools that can serve the request, the default pool first; raises NoCandidate.

    Pools that failed are left out, but never all of them.
    """
    lacks = {name: _missing(pools[name], context) for name in dict.fromkeys((default_pool, *pools))}
    kept = {name: pools[name] for name, missing in lacks.items() if not missing}
    if not kept:
        wanted = " and ".join(sorted(set(lacks.values())))
        raise NoCandidate(f"no pool can serve this request: it needs {wanted}")
    lacking = {name: missing for name, missing in lacks.items() if missing}
    failed = {**context.conditions.failing, **context.tried}
    if not failed:
        return Candidates(kept, lacking, tuple(kept))
    refused = (pools[name].context for name, why in context.tried.items() if why == CONTEXT and name in pools)
    largest = max(refused, default=0)  # The prompt is longer, whatever we estimate.
    failed |= {name: CONTEXT for name in kept if pools[name].context <= largest}
    if (held := context.held) is not None and held.lock is Lock.STATEFUL:
        failed.pop(held.pool, None)  # Another pool would not know the conversation.
    untried = tuple(name for name in kept if name not in context.tried) or tuple(kept)
    working = [name for name in untried if name not in failed] or untried
    output = context.view.max_output_tokens or 1
    working = sorted(working, key=lambda name: cost(pools[name], context.prompt_tokens, output))
    lacking |= {name: f"a working server ({why})" for name, why in failed.items() if name in kept}
    usable = {name: kept[name] for name in working}
    return Candidates(usable, {name: why for name, why in lacking.items() if name not in usable}, untried)


def _missing(pool: Pool, context: RoutingContext) -> str:
    """What the request needs and the pool lacks, in words; empty if nothing is missing."""
    view = context.view
    api = Api.MESSAGES if view.api is Api.COUNT_TOKENS else view.api
    if api.value not in pool.apis and api not in _OF_EVERY_POOL:
        return f"the {api} API"
    for flag, medium in _MEDIA.items():
        if getattr(view, flag) and not getattr(pool, flag):
            return f"{medium} input"
    if view.foreign and not pool.foreign_history:
        return "a history with tool calls of other models"
    if view.tools and not pool.tools:
        return "tool calls"
    needed = context.prompt_tokens + (view.max_output_tokens or 0)
    # Rounded, because the count is an estimate.
    return f"a context of about {round(needed, -2)} tokens" if needed > pool.context else ""
