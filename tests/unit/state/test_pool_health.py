"""When a pool is left out after failures, on a clock of the test's own."""

from __future__ import annotations

from typing import Any

from semroute_extproc.request.handover import UNREACHABLE
from semroute_extproc.settings.controllers import Failover
from semroute_extproc.state.pool_health import CLIENTS_MAX, NO_METRICS, SCRAPES_MAX, TEST_SECONDS, PoolHealth


def health(**settings: Any) -> PoolHealth:
    return PoolHealth(Failover(**{"failures": 3, "exclude_seconds": 10.0, **settings}))


def fail(subject: PoolHealth, times: int, now: float = 0.0) -> None:
    for _ in range(times):
        subject.sent(now)
        subject.failed("500", now)


def test_enough_failures_exclude_it_for_a_time() -> None:
    subject = health()
    fail(subject, 2)
    assert subject.excluded(0.0) == ""
    fail(subject, 1)
    assert subject.excluded(0.0) == subject.excluded(9.9) == subject.why == "500"
    assert subject.excluded(10.0) == ""


def test_failures_among_many_answers_exclude_nothing() -> None:
    subject = health()
    for _ in range(20):
        subject.sent(0.0)
    fail(subject, 19)
    assert subject.excluded(0.0) == ""
    subject.failed("500", 0.0)
    assert subject.excluded(0.0) == "500", "half of all"


def test_errors_that_one_of_several_clients_meets_exclude_nothing() -> None:
    subject = health()
    for client in "abc":
        subject.sent(0.0, client)
    for _ in range(100):
        subject.sent(0.0, "a")
        subject.failed("500", 0.0, "a")
    assert subject.excluded(0.0) == ""
    subject.failed("500", 0.0, "b")
    assert subject.excluded(0.0) == "500", "two of three clients"


def test_the_clients_of_the_window_before_count_too() -> None:
    subject = health()
    for client in "bcd":
        subject.sent(0.0, client)
    for _ in range(5):
        subject.sent(11.0, "a")
        subject.failed("500", 11.0, "a")
    assert subject.excluded(11.0) == ""


def test_a_connection_that_fails_is_no_clients_fault() -> None:
    subject = health()
    for client in "abcd":
        subject.sent(0.0, client)
    for _ in range(4):
        subject.failed(UNREACHABLE, 0.0, "a")
    assert subject.excluded(0.0) == UNREACHABLE


def test_a_client_whose_requests_failed_does_not_test_the_pool_if_there_are_others() -> None:
    subject = health()
    subject.sent(0.0, "c")
    for client in "aab":
        subject.sent(0.0, client)
        subject.failed("500", 0.0, client)
    subject.sent(10.0, "a")
    subject.failed("500", 10.1, "a")
    assert subject.excluded(10.1) == "", "not extended"
    subject.sent(10.2, "c")
    assert subject.excluded(10.2) == "500", "c's request is the test"
    assert subject.excluded(10.2 + TEST_SECONDS) == ""


def test_clients_are_told_apart_up_to_a_bound() -> None:
    subject = health()
    for number in range(3 * CLIENTS_MAX):
        subject.sent(0.0, str(number))
        subject.failed("500", 0.0, str(number))
    assert subject.excluded(0.0) == "500"


def test_failures_far_apart_exclude_nothing() -> None:
    subject = health()
    for minute in range(10):
        fail(subject, 1, 60.0 * minute)
    assert subject.excluded(540.0) == ""


def test_after_the_pause_one_request_tests_it_and_the_others_stay_away() -> None:
    subject = health()
    fail(subject, 3)
    assert subject.excluded(10.0) == ""
    subject.sent(10.0)
    assert subject.excluded(10.0) == "500"
    assert subject.excluded(10.0 + TEST_SECONDS - 0.1) == "500"


def test_a_test_without_a_failure_ends_the_exclusion_and_forgets_the_failures() -> None:
    subject = health()
    fail(subject, 3)
    subject.sent(10.0)
    assert subject.excluded(10.0 + TEST_SECONDS) == subject.why == ""
    fail(subject, 2, 16.0)
    assert subject.excluded(16.0) == ""


def test_a_test_that_fails_excludes_it_again() -> None:
    subject = health()
    fail(subject, 3)
    subject.sent(10.0)
    subject.failed("503", 10.1)
    assert subject.excluded(10.1) == subject.excluded(20.0) == "503"
    assert subject.excluded(20.2) == ""


def test_a_request_during_the_pause_is_no_test() -> None:
    """It happens when every pool is excluded."""
    subject = health()
    fail(subject, 3)
    subject.sent(1.0)
    assert subject.excluded(1.0 + TEST_SECONDS) == "500"


def test_a_metrics_page_that_disappears_excludes_it_until_the_page_is_back() -> None:
    subject = health()
    subject.scraped(True, 0.0)
    for _ in range(SCRAPES_MAX - 1):
        subject.scraped(False, 1.0)
    assert subject.excluded(1.0) == ""
    subject.scraped(False, 1.0)
    assert subject.excluded(1.0) == NO_METRICS
    subject.scraped(True, 2.0)
    assert subject.excluded(2.0) == ""


def test_a_metrics_page_that_never_was_there_means_nothing() -> None:
    subject = health()
    for _ in range(10 * SCRAPES_MAX):
        subject.scraped(False, 0.0)
    assert subject.excluded(0.0) == ""


def test_a_page_that_stays_away_while_requests_are_answered_excludes_it_once() -> None:
    subject = health()
    subject.scraped(True, 0.0)
    for _ in range(SCRAPES_MAX):
        subject.scraped(False, 0.0)
    subject.sent(10.0)
    assert subject.excluded(10.0 + TEST_SECONDS) == ""
    for _ in range(10 * SCRAPES_MAX):
        subject.scraped(False, 20.0)
    assert subject.excluded(20.0) == ""


def test_a_readable_page_does_not_excuse_failed_requests() -> None:
    subject = health()
    fail(subject, 3)
    subject.scraped(True, 1.0)
    assert subject.excluded(1.0) == "500"
