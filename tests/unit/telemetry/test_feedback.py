"""Outcomes that come back: what is accepted, what is refused and where, and how they are counted."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from semroute_extproc.events import Event, OutcomeReported
from semroute_extproc.telemetry import feedback
from semroute_extproc.telemetry.feedback import Feedback
from semroute_extproc.telemetry.prom import SOURCES_MAX, PrometheusSink

POOLS = {"id-1": "small", "id-2": "large"}


class Alone:
    """What other processes know, without a shared store."""

    def pools_of(self, _: Sequence[str]) -> dict[str, str]:
        return {}

    def first(self, reports: Sequence[str]) -> list[bool]:
        return [True] * len(reports)


class Received:
    """A receiver of outcomes with a clock, and the events that it emits."""

    def __init__(self) -> None:
        self.now, self.events = 0.0, list[Event]()
        known = (lambda id_: POOLS.get(id_, "")), self.events.append, Alone()
        self.feedback = Feedback(*known, lambda: self.now)  # type: ignore[arg-type]

    def post(self, body: str | bytes) -> tuple[int, str]:
        page = self.feedback.post(body.encode() if isinstance(body, str) else body)
        return page.status, page.body.decode()


@pytest.fixture
def received() -> Received:
    return Received()


def test_one_object_is_one_outcome(received: Received) -> None:
    status, body = received.post('{"request_id": "id-1", "score": 0.25, "source": "grader"}')
    assert (status, json.loads(body)) == (200, {"accepted": 1})
    assert received.events == [OutcomeReported("id-1", 0.25, "grader", "", "small")]


def test_an_object_may_have_several_lines(received: Received) -> None:
    body = json.dumps({"request_id": "id-1", "score": 1, "source": "user"}, indent=2)
    assert received.post(body)[0] == 200
    assert received.events == [OutcomeReported("id-1", 1.0, "user", "", "small")]


def test_json_lines_are_several_and_a_label_is_a_score(received: Received) -> None:
    good, bad = '{"request_id": "id-2", "label": "good"}', '{"request_id": "new", "label": "bad"}'
    assert received.post(f"{good}\r\n\n{bad}\n")[0] == 200
    assert received.events == [
        OutcomeReported("id-2", 1.0, "user", "good", "large"),
        OutcomeReported("new", 0.0, "user", "bad", ""),
    ]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('{"request_id": "id", "score": 2}', "line 2: expected `float` <= 1.0 - at `$.score`"),
        ('{"request_id": "id", "score": NaN}', "line 2: JSON is malformed"),
        ('{"request_id": "id", "label": "fine"}', "line 2: invalid enum value 'fine' - at `$.label`"),
        ('{"request_id": "id"}', "line 2: give exactly one of score and label"),
        ('{"request_id": "id", "score": 1, "label": "good"}', "line 2: give exactly one of score and label"),
        ('{"score": 1}', "line 2: object missing required field `request_id`"),
        ('{"request_id": "", "score": 1}', "at `$.request_id`"),
        ('{"request_id": "' + "x" * 129 + '", "score": 1}', "at `$.request_id`"),
        ('{"request_id": "id", "score": 1, "source": "A b"}', "at `$.source`"),
        ('{"request_id": "id", "score": 1, "text": "?"}', "unknown field `text`"),
        ("[]", "line 2: expected `object`"),
        ("{", "line 2:"),
    ],
)
def test_a_body_with_one_bad_line_is_refused_as_a_whole(received: Received, line: str, problem: str) -> None:
    status, body = received.post('{"request_id": "id-1", "score": 1}\n' + line)
    assert status == 400
    assert problem.lower() in body.lower()
    assert received.events == []


def test_an_empty_body_is_refused(received: Received) -> None:
    assert received.post(" \n")[0] == 400


def test_a_worker_gives_the_outcomes_of_other_requests_back(received: Received) -> None:
    mine, other = '{"request_id": "id-1", "score": 1}', '{"request_id": "new", "label": "bad"}'
    known = received.feedback.posts["/outcomes/known"]
    page = known(f"{other}\n{mine}".encode())
    assert (page.status, json.loads(page.body)) == (200, {"request_id": "new", "label": "bad"})
    assert received.events == [OutcomeReported("id-1", 1.0, "user", "", "small")]
    assert known(mine.encode()).body == b""
    assert received.post(page.body)[0] == 200
    assert received.events[-1] == OutcomeReported("new", 0.0, "user", "bad", "")


@given(st.binary(max_size=200))
def test_no_body_raises(body: bytes) -> None:
    assert Received().post(body)[0] in (200, 400)


def test_the_rate_is_bounded_and_recovers(received: Received, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feedback, "BURST_MAX", 3)
    monkeypatch.setattr(feedback, "PER_SECOND_MAX", 1)
    limited = Received()
    line = '{"request_id": "id-1", "score": 1}\n'
    assert [limited.post(line * 2)[0], limited.post(line * 2)[0], limited.post(line)[0]] == [200, 429, 200]
    limited.now += 1.5
    assert [limited.post(line)[0], limited.post(line)[0]] == [200, 429]
    limited.now += 1_000
    assert [limited.post(line * 3)[0], limited.post(line)[0]] == [200, 429]
    assert len(limited.events) == 7


def test_outcomes_are_counted_by_pool_kind_and_a_bounded_number_of_sources() -> None:
    sink = PrometheusSink()
    sink.handle(OutcomeReported("id", 1.0, "user", "good", "small"))
    for number in range(2 * SOURCES_MAX):
        sink.handle(OutcomeReported("id", 0.5, f"s{number}", "", "large"))
    page = sink.exposition().decode()
    assert 'semroute_reported_total{kind="good",pool="small",source="user"} 1.0' in page
    assert 'semroute_reported_total{kind="score",pool="large",source="s0"} 1.0' in page
    other = 2 * SOURCES_MAX - (SOURCES_MAX - 1)
    assert f'semroute_reported_total{{kind="score",pool="large",source="other"}} {other}.0' in page


def test_more_than_the_rate_asks_no_other_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feedback, "BURST_MAX", 3)
    asked = list[str]()
    limited = Received()
    limited.feedback._shared.pools_of = lambda ids: asked.extend(ids) or {}  # type: ignore[method-assign]
    assert limited.post('{"request_id": "unknown", "score": 1}\n' * 4)[0] == 429
    assert asked == []


class Elsewhere:
    """What another process knows."""

    def __init__(self) -> None:
        self.reports = set[str]()

    def pools_of(self, request_ids: Sequence[str]) -> dict[str, str]:
        return {each: "large" for each in request_ids if each == "elsewhere"}

    def first(self, reports: Sequence[str]) -> list[bool]:
        new = [each not in self.reports for each in reports]
        self.reports.update(reports)
        return new


def test_an_outcome_of_another_process_finds_its_pool_and_counts_once() -> None:
    events, elsewhere = list[Event](), Elsewhere()
    processes = [Feedback(POOLS.get, events.append, elsewhere) for _ in range(2)]  # type: ignore[arg-type]
    report = b'{"request_id": "elsewhere", "label": "good"}'
    assert [each.post(report).status for each in processes * 2] == [200] * 4
    assert [(each.request_id, each.pool) for each in events if isinstance(each, OutcomeReported)] == [
        ("elsewhere", "large")
    ]
    processes[0].post(b'{"request_id": "elsewhere", "label": "bad"}')
    assert len(events) == 2, "another verdict"
    assert processes[1].post(report, known_only=True).body == b"", "it is known here"
