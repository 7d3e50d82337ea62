"""The recent traffic that the page shows: bounded, and without bodies and prompts."""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping
from typing import Any

import msgspec
import pytest
from builders import BUNDLE, raw

from semroute_extproc.encoder.signals import calibrate
from semroute_extproc.events import CacheLookup, Decided
from semroute_extproc.outcome import Kind, Outcome, Stage
from semroute_extproc.policy.context import Choice, Decision, TraceStep
from semroute_extproc.request.handover import Handover
from semroute_extproc.request.view import Api, RequestView, Turn
from semroute_extproc.telemetry.prom import PrometheusSink
from semroute_extproc.telemetry.recent import COUNTERS, DECISIONS_MAX, MINUTES_MAX, Recent, details

SECRET = "the patient's name is Ada"


def event(request_id: str = "id-1", **changes: Any) -> Decided:
    choice = Choice("small", "why", score=0.5, threshold=0.7, source="the top 30%")
    decision = Decision(
        "small",
        "why",
        strategy="pair",
        choice=choice,
        others=("large",),
        trace=(TraceStep("strategy", "pair", "x"),),
    )
    values: dict[str, Any] = {
        "pool": "small",
        "reason": "why",
        "body": SECRET.encode(),
        "decision": decision,
        "view": RequestView(Api.CHAT_COMPLETIONS, "auto", (Turn("user", SECRET),), max_output_tokens=20),
        "handover": Handover(("small",), {"messages": msgspec.Raw(SECRET.encode())}),
        "signals": calibrate(BUNDLE, raw(), "en"),
        "text": SECRET,
        "prompt_tokens": 12,
        "stages": (Stage("parse", 0.0, 0.1),),
        "total_ms": 4.2,
    }
    outcome = Outcome(Kind.ROUTED, "strategy", **{**values, **changes})
    return Decided(outcome, request_id, "/v1/chat/completions", (), 1, 2, 9_000_000_000, False)


def recent(**options: Any) -> Recent:
    return Recent(dict, **options)


def test_a_decision_is_kept_without_its_body_and_its_prompt() -> None:
    subject = recent()
    subject.handle(event())
    [seen] = subject.seen
    assert SECRET.encode() not in pickle.dumps(seen.outcome.__reduce__()[1])
    assert details(seen)["text"] == ""


def test_the_judged_text_is_kept_if_prompts_may_be_logged_and_is_cut() -> None:
    subject = recent(prompts=True)
    subject.handle(event(text=SECRET + "x" * 10_000))
    text = details(subject.seen[0])["text"]
    assert text.startswith(SECRET)
    assert len(text) == 2_000


def test_the_details_are_json_with_score_threshold_trace_and_stages() -> None:
    subject = recent()
    subject.handle(event())
    found = json.loads(json.dumps(details(subject.seen[0])))
    assert (found["score"], found["threshold"], found["source"]) == (0.5, 0.7, "the top 30%")
    assert found["trace"] == [{"what": "strategy", "name": "pair", "result": "x"}]
    assert (found["others"], found["stages"][0]["name"], found["facts"]["pool"]) == (
        ["large"],
        "parse",
        "small",
    )


def test_a_threshold_that_no_score_reaches_is_one() -> None:
    subject = recent()
    choice = Choice("small", "why", score=0.5, threshold=float("inf"))
    subject.handle(event(decision=Decision("small", "why", choice=choice)))
    assert details(subject.seen[0])["threshold"] == 1.0


def test_what_a_policy_did_not_decide_is_kept_too() -> None:
    subject = recent()
    subject.handle(event(decision=None, signals=None, view=None))
    assert details(subject.seen[0])["trace"] == []


def test_other_events_are_ignored() -> None:
    subject = recent()
    subject.handle(CacheLookup(True))
    assert subject.seen == []


def test_only_so_many_decisions_are_kept_the_newest_first() -> None:
    subject = recent()
    for number in range(DECISIONS_MAX + 3):
        subject.handle(event(f"id-{number}"))
    assert len(subject.seen) == DECISIONS_MAX
    assert subject.seen[0].request_id == f"id-{DECISIONS_MAX + 2}"


def test_a_client_cannot_make_a_decision_large_with_its_request_id() -> None:
    subject = recent()
    subject.handle(event("i" * 60_000))
    assert len(subject.seen[0].request_id) == 256


@pytest.mark.parametrize(("asked", "kept"), [(20, 20), (None, 300), (5_000, 300)])
def test_an_answer_is_taken_as_300_tokens_or_the_client_s_lower_limit(asked: int | None, kept: int) -> None:
    subject = recent()
    subject.handle(event(view=RequestView(Api.CHAT_COMPLETIONS, "auto", max_output_tokens=asked)))
    assert subject.seen[0].answer_tokens == kept


class TestMinutes:
    """Counters become counts by minute."""

    def setup_method(self) -> None:
        self.now, self.counts = 0.0, dict[tuple[str, ...], float]()
        self.subject = Recent(lambda: dict(self.counts), clock=lambda: self.now)

    def at(self, minute: int, value: float) -> list[tuple[int, list[list[Any]]]]:
        self.now, self.counts = minute * 60.0 + 1, {("decisions", "small"): value}
        return self.subject.minutes()

    def test_a_minute_has_what_the_counter_gained_in_it(self) -> None:
        self.at(1, 5)
        assert self.at(1, 7) == [(1, [["decisions", "small", 7]])]
        assert self.at(3, 8) == [(1, [["decisions", "small", 7]]), (3, [["decisions", "small", 1]])]

    def test_what_was_counted_before_the_start_is_not_traffic(self) -> None:
        self.counts = {("decisions", "small"): 3.0}
        subject = Recent(lambda: dict(self.counts), clock=lambda: 0.0)
        assert subject.minutes() == [(0, [])]

    def test_only_so_many_minutes_are_kept(self) -> None:
        for minute in range(MINUTES_MAX + 5):
            self.at(minute, minute)
        assert len(self.subject.minutes()) == MINUTES_MAX


def test_the_counters_are_those_of_the_metrics() -> None:
    metrics = PrometheusSink()
    subject = Recent(lambda: metrics.totals(*COUNTERS))
    metrics.handle(event())
    counts: Mapping[tuple[str, ...], float] = {tuple(row[:-1]): row[-1] for row in subject.minutes()[0][1]}
    decided = {("decisions", "small", "", "pair", "math", "routed"): 1}
    assert counts == {**decided, ("outcomes", "routed", "strategy"): 1}
