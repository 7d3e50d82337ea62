"""The controllers together: what a request is told of the moment, and what is learned from it."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from builders import PAIR, POOLS, config, controller_state, wrong

from semroute_extproc.config.models import Config
from semroute_extproc.policy.context import Conditions, Decision, Held, RoutingContext
from semroute_extproc.request.view import Api, RequestHead, RequestView, Turn
from semroute_extproc.state.controllers import ControllerState
from semroute_extproc.state.pool_health import NO_METRICS
from semroute_extproc.state.sessions import Keys

METRICS = {name: {**pool, "metrics": f"http://{name}/metrics"} for name, pool in POOLS.items()}
PRICED = {
    "small": {**POOLS["small"], "price": {"input": 1.0, "output": 1.0}},
    "large": {**POOLS["large"], "price": {"input": 10.0, "output": 10.0}},
    "eyes": {**POOLS["eyes"], "price": {"input": 2.0, "output": 2.0}},
}
FULL = {"running": 10.0, "waiting": 100.0}
QUIET = Conditions()
TURNS = (Turn("user", "hi"), Turn("assistant", "hello"), Turn("user", "more"))


def controllers(pools: dict[str, Any] = METRICS, **settings: Any) -> ControllerState:
    return controller_state(settings_of(pools, **settings))


def reload(subject: ControllerState, settings: Config) -> None:
    subject.configure(settings.pools, settings.controllers, settings.strategies)


def settings_of(pools: dict[str, Any] = METRICS, **settings: Any) -> Config:
    return config(pools=pools, controllers=settings)


def facts(turns: tuple[Turn, ...] = TURNS, conditions: Conditions = QUIET, **view: Any) -> RoutingContext:
    return RoutingContext(
        RequestHead("POST", "/v1/chat/completions", {}),
        RequestView(Api.CHAT_COMPLETIONS, "auto", turns, **view),
        "en",
        1_000,
        conditions=conditions,
    )


def decision(pool: str, **more: Any) -> Decision:
    return Decision(pool, "because", strategy="s", **more)


def press(subject: ControllerState, pool: str, until: int = 30) -> None:
    for second in range(until):
        subject.observe(pool, FULL, float(second))


def test_nothing_configured_is_nothing_active() -> None:
    subject = controllers()
    assert not subject.active
    assert subject.conditions(0.0) == QUIET
    assert subject.keys(facts().head, facts().view) == Keys()


def test_only_pools_that_press_are_told() -> None:
    subject = controllers(load={"floor": 0.1, "ceiling": 0.8})
    press(subject, "large")
    conditions = subject.conditions(30.0)
    assert conditions.pressure.keys() == {"large"}
    assert conditions.pressure["large"] > 0.9
    assert (conditions.floor, conditions.ceiling) == (0.1, 0.8)


def test_a_pool_nobody_knows_is_not_observed() -> None:
    controllers(load={}).observe("gone", FULL, 0.0)


def test_the_strong_share_is_what_a_budget_learns_from() -> None:
    subject = controllers(budgets={"s": {"strong_share": 0.3}})
    for second in range(10):
        subject.decided(facts(), decision("large"), "", float(second))
    leaning = subject.conditions(10.0).bias["s"]
    assert leaning == pytest.approx(10 * 12 / 1_000 * (0.3 - 1.0))
    subject.decided(facts(), Decision("large", "a rule"), "", 10.0)
    assert subject.conditions(10.0).bias["s"] == leaning, "another's decisions do not count"


def test_dollars_are_reckoned_from_prices_prompt_and_answer() -> None:
    subject = controllers(PRICED, budgets={"s": {"dollars_per_thousand": 5.0, "output_tokens": 500}})
    subject.decided(facts(max_output_tokens=4_000), decision("large"), "", 0.0)
    assert subject.status()["budgets"]["s"]["realized"] == pytest.approx(10e-6 * 1_500)
    subject.decided(facts(max_output_tokens=100), decision("small"), "", 1.0)
    assert subject.status()["budgets"]["s"]["realized"] == pytest.approx((10e-6 * 1_500 + 1e-6 * 1_100) / 2)


def test_without_a_pair_dollars_lie_between_the_cheapest_and_the_dearest_pool() -> None:
    weighted = {"s": {"kind": "weighted", "weights": {"eyes": 1}}}
    settings = config(
        pools=PRICED, strategies=weighted, controllers={"budgets": {"s": {"dollars_per_thousand": 1.0}}}
    )
    subject = controller_state(settings)
    subject.decided(facts(max_output_tokens=100), decision("eyes"), "", 0.0)
    assert subject.status()["budgets"]["s"]["realized"] == pytest.approx(2e-6 * 1_100)
    # Target minus spent, in units of the spread between 1e-6 and 10e-6 a token.
    wanted = 12 / 1_000 * (1e-3 - 2.2e-3) / (9e-6 * 1_100)
    assert subject.status()["budgets"]["s"]["leaning"] == pytest.approx(wanted)


@pytest.mark.parametrize("pool", ["gone", "unpriced"])
def test_a_pool_whose_cost_is_not_known_teaches_nothing(pool: str) -> None:
    pools = {**PRICED, "unpriced": {"cluster": "u", "model": "m-u"}}
    subject = controllers(pools, budgets={"s": {"dollars_per_thousand": 5.0}})
    subject.decided(facts(), decision(pool), "", 0.0)
    assert subject.status()["budgets"]["s"]["requests"] == 0


def test_a_budget_does_not_work_against_the_load() -> None:
    subject = controllers(load={}, budgets={"s": {"strong_share": 0.3}})
    pressed = Conditions(pressure={"large": 0.8, "small": 0.1})
    subject.decided(facts(conditions=pressed), decision("small"), "", 0.0)
    assert subject.conditions(0.0).bias["s"] == 0.0
    subject.decided(facts(), decision("small"), "", 1.0)
    assert subject.conditions(1.0).bias["s"] > 0.0


class TestSession:
    def test_a_conversation_is_found_again_and_the_result_says_how(self) -> None:
        subject = controllers(session={})
        first = facts(TURNS[:1])
        keys = subject.keys(first.head, first.view)
        assert subject.held(keys.find, "", first.view, 0.0) is None
        assert subject.decided(first, decision("small"), keys.keep, 0.0) == "new"
        later = facts()
        held = subject.held(subject.keys(later.head, later.view).find, "", later.view, 1.0)
        assert held is not None
        assert (held.pool, held.margin) == ("small", 0.3)

    @pytest.mark.parametrize(
        ("decided", "result"),
        [
            (decision("small"), "same"),
            (decision("small", session="kept"), "kept"),
            (decision("small", session="locked"), "locked"),
            (decision("large", session="moved"), "moved"),
            (Decision("large", "a rule"), "moved"),
        ],
    )
    def test_what_the_conversations_pool_meant(self, decided: Decision, result: str) -> None:
        subject = controllers(session={})
        held = RoutingContext(facts().head, facts().view, "en", 10, held=Held("small"))
        assert subject.decided(held, decided, "key", 0.0) == result

    def test_what_should_not_move_and_is_not_remembered_is_lost(self) -> None:
        subject = controllers(session={})
        assert subject.decided(facts(tool_loop=True), decision("small"), "key", 0.0) == "lost"
        assert subject.decided(facts(stateful=True), decision("small"), "", 0.0) == "lost"
        assert subject.decided(facts(()), decision("small"), "", 0.0) == "none"

    def test_a_fallback_is_not_where_a_conversation_lives(self) -> None:
        subject = controllers(session={})
        subject.decided(facts(), decision("large", fallback="deadline"), "key", 0.0)
        assert subject.status()["sessions"] == {"entries": 0}
        known = dataclasses.replace(facts(), held=Held("small"))
        subject.decided(known, decision("large", fallback="deadline"), "key", 1.0)
        held = subject.held("key", "", known.view, 2.0)
        assert held is not None
        assert held.pool == "small", "it goes on where it was before"

    def test_what_the_shared_memory_says_counts_more_than_our_own(self) -> None:
        subject = controllers(session={})
        view = facts().view
        subject.decided(facts(), decision("small"), "key", 0.0)
        shared = subject.held("key", "large", view, 1.0)
        assert shared is not None
        assert shared.pool == "large"
        own = subject.held("key", "", view, 1.0)
        assert own is not None
        assert own.pool == "small", "it was emptied, or out of reach when we wrote"


class TestReload:
    def test_what_did_not_change_goes_on_from_where_it_is(self) -> None:
        settings: dict[str, Any] = {"load": {}, "budgets": {"s": {"strong_share": 0.3}}, "session": {}}
        subject = controllers(**settings)
        press(subject, "large")
        subject.decided(facts(), decision("large"), "key", 0.0)
        before = subject.status()
        reload(subject, settings_of(**settings))
        assert subject.status() == before

    def test_what_changed_begins_anew(self) -> None:
        subject = controllers(load={}, budgets={"s": {"strong_share": 0.3}}, session={})
        press(subject, "large")
        subject.decided(facts(), decision("large"), "key", 0.0)
        changed = settings_of(
            load={"rise_seconds": 9}, budgets={"s": {"strong_share": 0.4}}, session={"ttl_seconds": 9}
        )
        reload(subject, changed)
        status = subject.status()
        assert status["pools"]["large"]["pressure"] == 0.0
        assert status["budgets"]["s"]["requests"] == 0
        assert status["sessions"] == {"entries": 0}

    def test_a_budget_begins_anew_when_its_strategy_changes(self) -> None:
        settings: dict[str, Any] = {"budgets": {"s": {"strong_share": 0.3}}}
        subject = controllers(**settings)
        subject.decided(facts(), decision("large"), "", 0.0)
        reload(subject, config(strategies={"s": {**PAIR, "strong_share": 0.5}}, controllers=settings))
        assert subject.status()["budgets"]["s"]["requests"] == 0

    def test_controllers_may_be_taken_away(self) -> None:
        subject = controllers(load={}, budgets={"s": {"strong_share": 0.3}}, session={})
        reload(subject, settings_of())
        assert not subject.active
        assert subject.conditions(0.0) == QUIET
        assert subject.decided(facts(), decision("large"), "key", 0.0) == ""


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"budgets": {"pear": {"strong_share": 0.3}}}, "there is no strategy 'pear'"),
        ({"budgets": {"other": {"strong_share": 0.3}}}, "no weak and strong pool"),
        ({"budgets": {"other": {"dollars_per_thousand": 3}}}, "ignores cost"),
        ({"budgets": {"s": {"dollars_per_thousand": 3}}}, "pool small has no price"),
        ({"load": {}}, "no pool has metrics"),
        ({"load": {"pools": {"big": {}}}}, "there is no pool 'big'"),
        ({"session": {"strategies": ["pear"]}}, "there is no strategy 'pear'"),
    ],
)
def test_a_controller_that_could_do_nothing_is_a_configuration_error(
    settings: dict[str, Any], message: str
) -> None:
    strategies = {"s": PAIR, "other": {"kind": "weighted", "weights": {"small": 1}}}
    assert any(message in each for each in wrong(strategies=strategies, controllers=settings))


@pytest.mark.parametrize(
    ("weak", "strong", "fine"),
    [
        ({"input": 1, "output": 1}, {"input": 1, "output": 1}, False),
        ({"input": 2, "output": 3}, {"input": 1, "output": 3}, False),
        # Cheaper for some requests.
        ({"input": 2, "output": 3}, {"input": 1, "output": 4}, True),
        ({"input": 1, "output": 3}, {"input": 1, "output": 4}, True),
    ],
)
def test_dollars_need_a_weak_pool_that_is_cheaper_for_some_request(
    weak: dict[str, float], strong: dict[str, float], fine: bool
) -> None:
    pools = {
        **POOLS,
        "small": {**POOLS["small"], "price": weak},
        "large": {**POOLS["large"], "price": strong},
    }
    budgets = {"s": {"dollars_per_thousand": 3}}
    problems = wrong(pools=pools, strategies={"s": PAIR}, controllers={"budgets": budgets})
    assert problems == (
        [] if fine else ["the weak pool small is not cheaper than large, so no share saves money"]
    )


def test_a_strategy_that_weighs_cost_without_a_pair_may_be_held_to_dollars() -> None:
    clusters = {"kind": "clusters", "artifact": "a.npz", "profiles": "profiles"}
    for budget, count in (({"dollars_per_thousand": 3}, 0), ({"strong_share": 0.3}, 1)):
        controllers = {"budgets": {"s": budget}}
        assert len(wrong(strategies={"s": clusters}, controllers=controllers)) == count


def test_secrets_of_the_shared_memory_are_not_shown() -> None:
    store = {"url": "valkey://:hunter2@host/0", "key": "a shared key of ours", "replicas": 1}
    shown = str(config(controllers={"store": store}).model_dump(mode="json"))
    assert "hunter2" not in shown
    assert "a shared key" not in shown


class TestFailover:
    def test_a_pool_that_keeps_failing_is_in_the_conditions_and_the_status(self) -> None:
        subject = controllers(failover={"failures": 2})
        assert subject.active
        subject.failed("small", "500", 0.0)
        assert subject.conditions(0.0).failing == {}
        subject.failed("small", "500", 1.0)
        assert subject.conditions(1.0).failing == subject.failing(1.0) == {"small": "500"}
        status = subject.status()["health"]
        assert status["small"] == {"excluded": True, "why": "500"}
        assert status["large"] == {"excluded": False, "why": ""}

    def test_a_prompt_that_is_too_long_is_not_the_pools_fault(self) -> None:
        subject = controllers(failover={"failures": 1})
        subject.failed("small", "context", 0.0)
        assert subject.failing(0.0) == {}

    def test_a_metrics_page_that_disappears_counts(self) -> None:
        subject = controllers(failover={})
        subject.observe("small", FULL, 0.0)
        for second in range(3):
            subject.observe("small", {}, float(second), failed=True)
        assert subject.failing(2.0) == {"small": NO_METRICS}

    def test_a_reload_forgets_a_pools_failures_only_if_the_pool_or_the_settings_change(self) -> None:
        subject = controllers(failover={"failures": 1})
        subject.failed("small", "500", 0.0)
        reload(subject, settings_of(failover={"failures": 1}, session={}))
        assert subject.failing(0.0) == {"small": "500"}
        reload(subject, settings_of(POOLS, failover={"failures": 1}))
        assert subject.failing(0.0) == {}

    def test_without_failover_nothing_is_recorded(self) -> None:
        subject = controllers(session={})
        subject.sent("small", 0.0)
        subject.failed("small", "500", 0.0)
        subject.observe("small", {}, 0.0, failed=True)
        assert subject.conditions(0.0) == QUIET

    def test_a_request_that_another_pool_failed_counts_for_no_budget_twice(self) -> None:
        subject = controllers(budgets={"s": {"strong_share": 0.3}}, failover={})
        subject.decided(facts(), decision("small"), "", 0.0)
        handed = dataclasses.replace(facts(), tried={"small": "500"})
        subject.decided(handed, decision("large"), "", 0.1)
        assert subject.status()["budgets"]["s"]["requests"] == 1


class TestLimits:
    """The prompt has 1,000 tokens and the answer counts as 400, in dollars per million: 1, 10 and 2."""

    def subject(self) -> tuple[ControllerState, list[str]]:
        limits = {"tenants": {"*": {"dollars": 1.0}}, "strategies": {"s": {"tokens": 10_000}}}
        found, hurried = controllers(PRICED, limits=limits), list[str]()
        found.hurry = lambda: hurried.append("now")
        return found, hurried

    def left(self, subject: ControllerState, tenant: str = "acme") -> dict[str, float]:
        head = RequestHead("POST", "/", {"x-semroute-tenant": tenant})
        return {name: each.left for name, each in subject.conditions(0.0, head).limits.items()}

    def pay(self, subject: ControllerState, pool: str, *others: str) -> None:
        head = RequestHead("POST", "/", {"x-semroute-tenant": "acme"})
        subject.pay(facts(conditions=subject.conditions(0.0, head)), decision(pool, others=others))

    def test_a_request_in_an_expensive_pool_counts_for_its_tenant_and_its_strategy(self) -> None:
        subject, _ = self.subject()
        self.pay(subject, "large", "small")
        assert self.left(subject) == {"": pytest.approx(1.0 - 0.014), "s": 10_000 - 1_400}
        assert self.left(subject, "other") == {"": 1.0, "s": 10_000 - 1_400}

    def test_a_request_in_the_cheapest_pool_that_could_serve_it_counts_nothing(self) -> None:
        subject, _ = self.subject()
        self.pay(subject, "small", "large")
        self.pay(subject, "large")
        assert self.left(subject) == {"": 1.0, "s": 10_000.0}

    def test_a_lease_that_ends_is_asked_for_before_it_is_gone(self) -> None:
        subject, hurried = self.subject()
        for _ in range(5):
            self.pay(subject, "large", "small")
        assert hurried == []
        self.pay(subject, "large", "small")
        assert hurried == ["now"]

    def test_limits_need_prices(self) -> None:
        assert wrong(controllers={"limits": {"tenants": {"*": {"dollars": 1.0}}}}) == [
            "pools without a price: small, large, eyes"
        ]
