"""A policy in addition to the live one."""

from __future__ import annotations

from semroute_extproc.outcome import shadow_summary
from semroute_extproc.policy.context import Decision
from semroute_extproc.policy.shadow import Agreement, Shadow, compare

LIVE = Decision("small", "live")


def test_the_pools_are_compared() -> None:
    for pool, agreement in (("small", Agreement.AGREE), ("large", Agreement.DIFFER)):
        found = compare("main", "other", Decision(pool, "why"), LIVE)
        assert found == Shadow("main", "other", agreement, pool, "why")


def test_what_it_cannot_decide_is_undecided() -> None:
    assert compare("main", "other", None, LIVE) == Shadow("main", "other", Agreement.UNDECIDED)


def test_a_summary_is_a_few_words() -> None:
    shadows = (
        Shadow("main", "a", Agreement.DIFFER, "large", "why"),
        Shadow("main", "b", Agreement.UNDECIDED),
    )
    assert shadow_summary(shadows) == "a=large b=undecided"
