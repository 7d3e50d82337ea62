"""A conversation keeps its pool.

Pure. What a strategy chose is held against the pool the conversation is in: its prefix cache is
there, within a tool loop its work is, and with `previous_response_id` its memory. A rule that names
a pool is the operator's word and is never held against; nor is a promise (quality 0 or 1), but by
state on the server, without which the request would only fail.
"""

from __future__ import annotations

from semroute_extproc.policy.context import Candidates, Choice, Held, Lock, RoutingContext


def holding(facts: RoutingContext, strategy: str, canary: str, candidates: Candidates) -> Held | None:
    """The pool that a choice of `strategy` is held against; None if it is free to go anywhere.

    `canary` is what drew the strategy, empty if nothing did; it is held if either is named.
    """
    held = facts.held
    if held is None or held.pool not in candidates.pools:
        return None
    if held.strategies is not None and not {strategy, canary} & set(held.strategies):
        return None
    if facts.hard_preference and held.lock is not Lock.STATEFUL:
        return None
    return held


def keeps(held: Held, choice: Choice) -> bool:
    """Whether the conversation stays although the strategy chose another pool.

    It moves only where the need clearly rises: the score calls for the strong pool and is beyond the
    margin, a part of the reference traffic that would go there.
    It never moves down, and a strategy that knows no such score never moves it.
    """
    return choice.rise is None or choice.rise < held.margin
