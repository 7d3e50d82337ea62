"""A conversation keeps its pool. Pure.

The conversation's pool has its prefix cache, within a tool loop its work, and with
`previous_response_id` its memory, so it may overrule a strategy's choice. It never overrules a rule
that names a pool, and it overrules a hard preference (quality 0 or 1) only for state on the server,
because the request would fail elsewhere.
"""

from __future__ import annotations

from semroute_extproc.policy.context import Candidates, Choice, Held, Lock, RoutingContext


def holding(context: RoutingContext, strategy: str, candidates: Candidates) -> Held | None:
    """The pool that may overrule a choice of `strategy`; None if the choice is free."""
    held = context.held
    if held is None or held.pool not in candidates.pools:
        return None
    if held.strategies is not None and strategy not in held.strategies:
        return None
    return None if context.hard_preference and held.lock is not Lock.STATEFUL else held


def keeps(held: Held, choice: Choice) -> bool:
    """Whether the conversation stays although the strategy chose another pool.

    It moves only if the need clearly rises: the score calls for the strong pool and exceeds the
    threshold by the margin, in parts of the reference traffic. It never moves down, and a strategy
    without such a score never moves it.
    """
    return choice.rise is None or choice.rise < held.margin
