"""Spending limits: what one process may spend of them, with a store, without one, and while it is away."""

from __future__ import annotations

import math
from typing import Any

import pytest

from semroute_extproc.settings.controllers import Limit, Limits
from semroute_extproc.settings.pools import Pool
from semroute_extproc.state.ledger import (
    BUSY_SECONDS,
    CONTACT_SECONDS,
    LEDGERS_MAX,
    REPORT_SECONDS,
    STARTER,
    Ledger,
    Ledgers,
)

WINDOW = 100.0
NOW = 1_000.0


class Clock:
    """A wall clock that a test sets."""

    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> float:
        return self.now


def ledgers(processes: int = 4, clock: Clock | None = None, **tenants: Any) -> Ledgers:
    found = Ledgers(clock or Clock())
    limits = {name: Limit(window_seconds=WINDOW, **each) for name, each in tenants.items()}
    found.configure(Limits(tenants=limits or {"*": Limit(dollars=8, window_seconds=WINDOW)}), processes)
    return found


def only(subject: Ledgers, tenant: str = "acme") -> Ledger:
    return subject.of(tenant)[""]


def report(ledger: Ledger, grant: tuple[float, float, float], now: float = NOW) -> tuple[float, ...]:
    """Exchange with a store that answers `grant`."""
    sent = ledger.report(now)
    ledger.granted(grant, ledger.window)
    return sent


class TestAllowance:
    def test_without_a_store_a_process_has_the_whole_limit(self) -> None:
        ledger = only(ledgers(processes=0))
        assert ledger.left == 8.0
        ledger.spend(3.0, 3.0, NOW)
        assert ledger.left == 5.0
        assert ledger.why == "budget: the tenant's 8 dollars per 100 s are spent"

    def test_a_window_that_began_without_the_store_has_an_equal_share(self) -> None:
        ledger = only(ledgers())
        assert ledger.left == 2.0
        assert ledger.why == "budget (the store does not answer): the tenant's 8 dollars per 100 s are spent"

    @pytest.mark.parametrize(
        ("contact", "left"),
        [
            (NOW, 2.0 * STARTER),
            (NOW - CONTACT_SECONDS + 0.1, 2.0 * STARTER),
            (NOW - CONTACT_SECONDS - 0.1, 2.0),
        ],
    )
    def test_a_process_that_may_count_as_present_has_only_the_starter(
        self, contact: float, left: float
    ) -> None:
        subject = ledgers()
        subject.contact = contact
        assert only(subject).left == pytest.approx(left)

    def test_a_new_window_begins_afresh_and_a_clock_that_is_set_back_begins_none(self) -> None:
        clock = Clock()
        subject = ledgers(clock=clock)
        only(subject).spend(2.0, 2.0, NOW)
        assert only(subject).left == 0.0
        clock.now -= WINDOW
        assert only(subject).left == 0.0
        clock.now += 2 * WINDOW
        assert only(subject).left == 2.0

    def test_a_grant_of_an_earlier_window_is_ignored(self) -> None:
        ledger = only(ledgers())
        ledger.granted((7.0, 7.0, 1.0), ledger.window - 1)
        assert ledger.left == 2.0

    def test_a_request_that_must_exceed_it_is_in_the_next_report(self) -> None:
        ledger = only(ledgers())
        ledger.spend(3.0, 3.0, NOW)
        assert ledger.left == 0.0
        assert report(ledger, (3.0, 3.0, 5.0))[:2] == (3.0, 3.0)


class TestReports:
    def test_what_was_spent_is_due_until_the_store_has_answered(self) -> None:
        ledger = only(ledgers())
        assert not ledger.due(NOW)
        ledger.spend(0.1, 0.1, NOW)
        ledger.report(NOW)
        assert ledger.due(NOW), "no answer came"
        report(ledger, (1.0, 1.0, 7.0))
        assert not ledger.due(NOW)

    def test_what_is_spent_during_an_exchange_is_due_after_it(self) -> None:
        ledger = only(ledgers())
        ledger.spend(0.1, 0.1, NOW)
        ledger.report(NOW)
        ledger.spend(0.2, 0.1, NOW)
        ledger.granted((1.0, 1.0, 7.0), ledger.window)
        assert ledger.left == pytest.approx(0.7)
        assert ledger.due(NOW)

    def test_a_lease_that_is_not_used_is_returned(self) -> None:
        ledger = only(ledgers())
        ledger.spend(0.1, 0.1, NOW)
        report(ledger, (1.1, 1.1, 6.9))
        later = NOW + BUSY_SECONDS + REPORT_SECONDS
        assert ledger.due(later)
        allowance, spent, *_ = report(ledger, (0.3, 0.3, 7.7), later)
        assert (spent, allowance) == (0.1, pytest.approx(0.1 + 2 * 0.1))

    def test_a_lease_that_shrinks_to_the_last_requests_asks_for_more_at_once(self) -> None:
        ledger = only(ledgers())
        report(ledger, (2.0, 2.0, 6.0))
        ledger.spend(0.5, 0.5, NOW)
        assert not ledger.low
        ledger.spend(0.6, 0.5, NOW)
        assert ledger.low
        report(ledger, (2.0, 8.0, 0.0))
        ledger.spend(0.1, 0.5, NOW)
        assert not ledger.low, "there is no more"

    def test_all_is_reported_again_to_a_store_that_lost_its_data(self) -> None:
        subject = ledgers()
        ledger = only(subject)
        ledger.spend(0.1, 0.1, NOW)
        report(ledger, (1.0, 1.0, 7.0))
        assert list(subject.due(NOW)) == []
        subject.forget()
        assert list(subject.due(NOW)) == [ledger]


class TestLedgers:
    def test_a_listed_tenant_has_its_own_limit_and_the_others_one_each(self) -> None:
        subject = ledgers(0, acme={"dollars": 3}, **{"*": {"dollars": 1}})
        only(subject, "a").spend(1.0, 1.0, NOW)
        assert [only(subject, name).left for name in ("acme", "a", "b")] == [3.0, 0.0, 1.0]

    def test_a_tenant_without_a_limit_has_none(self) -> None:
        assert ledgers(acme={"dollars": 3}).of("other") == {}

    def test_a_reload_keeps_what_was_spent(self) -> None:
        subject = ledgers(0)
        only(subject).spend(3.0, 3.0, NOW)
        subject.configure(Limits(tenants={"*": Limit(dollars=8, window_seconds=WINDOW)}), 0)
        assert only(subject).left == 5.0
        subject.configure(None, 0)
        assert subject.of("acme") == {}

    def test_their_number_is_bounded_and_the_past_is_dropped(self) -> None:
        clock = Clock()
        subject = ledgers(0, clock)
        for number in range(LEDGERS_MAX):
            subject.of(f"tenant {number}")
        only(subject, "one too many").spend(1.0, 1.0, NOW)
        assert only(subject, "another").left == 7.0, "they share one"
        clock.now += 3 * WINDOW
        assert list(subject.due(clock.now)) == []
        assert only(subject, "another").left == 8.0


def test_dollars_are_of_the_pool_and_tokens_of_the_request() -> None:
    pool = Pool.model_validate(
        {"cluster": "c", "model": "m", "price": {"input": 1, "output": 10}, "context": 9}
    )
    dollars, tokens = Limit(dollars=1, output_tokens=100), Limit(tokens=1, output_tokens=100)
    assert Ledger("tenant:a", dollars, 0).cost(pool, 1_000, None) == pytest.approx(0.002)
    assert Ledger("tenant:a", dollars, 0).cost(pool, 1_000, 10) == pytest.approx(0.0011)
    assert Ledger("tenant:a", tokens, 0).cost(pool, 1_000, 500) == 1_100.0


@pytest.mark.parametrize("settings", [{}, {"dollars": 1, "tokens": 1}, {"dollars": math.inf}, {"tokens": 0}])
def test_a_limit_has_one_positive_finite_amount(settings: Any) -> None:
    with pytest.raises(ValueError):
        Limit(**settings)
