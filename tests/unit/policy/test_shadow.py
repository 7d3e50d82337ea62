"""A policy in addition to the live one."""

from __future__ import annotations

from semroute_extproc.outcome import shadow_summary
from semroute_extproc.policy.context import Agreement, Shadow


def test_a_summary_is_a_few_words() -> None:
    shadows = (
        Shadow("main", "a", Agreement.DIFFER, "large", "why"),
        Shadow("main", "b", Agreement.UNDECIDED),
    )
    assert shadow_summary(shadows) == "a=large b=undecided"
