"""A policy beside the live one."""

from __future__ import annotations

from semroute_extproc.outcome import shadow_summary
from semroute_extproc.policy.constraints import NoCandidate
from semroute_extproc.policy.context import Decision, Held, RoutingContext
from semroute_extproc.policy.shadow import Agreement, Shadow, compare
from semroute_extproc.request.view import Api, RequestHead, RequestView

FACTS = RoutingContext(
    RequestHead("POST", "/"), RequestView(Api.CHAT_COMPLETIONS, "auto"), "en", 10, held=Held("small")
)
LIVE = Decision("small", "live")


def never() -> None:
    raise AssertionError("nothing failed")


def test_the_pools_are_compared() -> None:
    for pool, agreement in (("small", Agreement.AGREE), ("large", Agreement.DIFFER)):
        found = compare("main", "other", lambda _, to=pool: Decision(to, "why"), FACTS, LIVE, never)
        assert found == Shadow("main", "other", agreement, pool, "why")


def test_a_shadow_does_not_know_which_pool_the_live_conversation_is_in() -> None:
    def decide(facts: RoutingContext) -> Decision:
        assert facts.held is None
        return Decision("small", "why")

    assert compare("main", "other", decide, FACTS, LIVE, never).agreement is Agreement.AGREE


def test_what_it_cannot_decide_is_undecided() -> None:
    def refuse(_: RoutingContext) -> Decision:
        raise NoCandidate({})

    for decide in (lambda _: None, refuse):
        assert compare("main", "other", decide, FACTS, LIVE, never).agreement is Agreement.UNDECIDED


def test_what_it_raises_is_told_and_goes_no_further() -> None:
    told: list[str] = []

    def fail(_: RoutingContext) -> Decision:
        raise ZeroDivisionError

    found = compare("main", "other", fail, FACTS, LIVE, lambda: told.append("failed"))
    assert found == Shadow("main", "other", Agreement.ERROR)
    assert told == ["failed"]


def test_a_summary_is_a_few_words() -> None:
    shadows = (
        Shadow("main", "a", Agreement.DIFFER, "large", "why"),
        Shadow("main", "b", Agreement.UNDECIDED),
    )
    assert shadow_summary(shadows) == "a=large b=undecided"
