"""A circuit breaker, on a clock of the test's own."""

from __future__ import annotations

from semroute_extproc.io.breaker import Breaker


def test_it_opens_after_failures_in_a_row_and_lets_one_probe_through() -> None:
    subject = Breaker(2, 10.0)
    subject.failed(0.0)
    subject.succeeded()
    subject.failed(1.0)
    assert subject.allows(1.0)
    subject.failed(2.0)
    assert subject.is_open
    assert not subject.allows(11.9)
    assert subject.allows(12.0)
    assert not subject.allows(12.0), "one probe at a time"


def test_a_probe_closes_it_or_opens_it_again() -> None:
    subject = Breaker(1, 10.0)
    subject.failed(0.0)
    assert subject.allows(10.0)
    subject.failed(10.0)
    assert not subject.allows(19.0)
    assert subject.allows(20.0)
    subject.gave_up()
    assert subject.allows(20.0), "the last one said nothing"
    subject.succeeded()
    assert not subject.is_open
    assert subject.allows(20.0)
