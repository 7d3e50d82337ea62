"""A policy in addition to the live one."""

from __future__ import annotations

from semroute_extproc.outcome import Cause, Kind, Outcome, facts
from semroute_extproc.policy.context import Agreement, Decision, Shadow


def test_what_shadows_would_have_done_is_a_few_words() -> None:
    shadows = (
        Shadow("main", "a", Agreement.DIFFER, "large", "why"),
        Shadow("main", "b", Agreement.UNDECIDED),
    )
    decided = Outcome(Kind.ROUTED, Cause.POOL, decision=Decision("small", "why"), shadows=shadows)
    assert facts(decided)["shadow"] == "a=large b=undecided"
