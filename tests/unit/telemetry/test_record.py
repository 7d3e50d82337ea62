"""What a record of the decision log holds, and what it does not."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from builders import config, signals
from decisions import SECRET, context, event
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs
from semroute_lab.common.decisions import embedding_of

from semroute_extproc.events import Decided, OutcomeReported
from semroute_extproc.outcome import Cause, Kind, Outcome
from semroute_extproc.policy.context import Conditions, Held, Lock
from semroute_extproc.policy.rules import REQUEST_FACTS, WORK_FACTS
from semroute_extproc.request.view import Turn
from semroute_extproc.settings.process import DecisionLog
from semroute_extproc.telemetry import record

SETTINGS = DecisionLog(path=Path("log"))
COLUMNS = msgspec.toml.decode(Path(record.__file__).with_name("columns.toml").read_bytes())


def record_of(given: Decided | None = None, settings: DecisionLog = SETTINGS) -> dict[str, Any]:
    return record.of_decision(given or event(), "c" * 64, settings, b"k" * 32)


def test_a_record_says_what_was_decided_and_why() -> None:
    found = record_of()
    assert (found["record"], found["request_id"], found["time"], found["config"]) == (
        "decision",
        "id-1",
        3.0,
        "c" * 12,
    )
    assert (found["kind"], found["pool"], found["policy"], found["strategy"]) == (
        "routed",
        "small",
        "main",
        "s",
    )
    assert (found["score"], found["threshold"], found["reason"]) == (
        0.5,
        0.7,
        "difficulty 0.50 is below 0.70, the top 30% of the reference scores",
    )
    assert found["pools"] == ["small", "large", "eyes"]
    assert (found["difficulty"], found["domain"], found["task"]) == (0.5, "math", "code")
    assert (found["prompt_tokens"], found["bounds"], found["language"]) == (100, (90, 110), "en")
    assert found["stages_ms"] == {"parse": 0.1, "encode": 4.0}


def test_every_column_of_a_record_is_described_and_every_described_one_can_occur() -> None:
    full = event(
        conditions=Conditions(pressure={"large": 0.1}, bias={"s": 0.1}, failing={"eyes": "502"}),
        held=Held("small", Lock.TOOL_LOOP),
        quality=0.4,
        tried={"large": "503"},
        counted={"small": (100, 100)},
        signals=signals(unknown=True, truncated=True, neighbors=np.ones(4, np.float32), revision="r"),
    )
    found = record_of(full, DecisionLog(path=Path("log"), headers=("x-tier",), embedding=True, prompts=True))
    described = COLUMNS["decision"]
    assert found.keys() <= described.keys()
    # What only other decisions have.
    others = {
        "observed",
        "unread",
        "canary",
        "policy_propensity",
        "propensity",
        "rule",
        "judge",
        "shadow",
        "share",
    }
    assert described.keys() - found.keys() - others == {"rise", "score", "session", "threshold"}


def test_every_fact_that_a_rule_reads_is_a_column_or_in_the_map_but_for_text() -> None:
    kept = {*record.FACTS, "language", "prompt_tokens", "quality"}
    assert {*REQUEST_FACTS, *WORK_FACTS} - kept == {"request", "text", "user", "metadata", "tenant"}


def test_the_text_is_in_no_record_unless_it_was_asked_for() -> None:
    assert SECRET not in json.dumps(record_of())
    asked = record_of(settings=DecisionLog(path=Path("log"), prompts=True))
    assert (asked["prompt"], asked["user"], asked["metadata"]) == (SECRET, SECRET, {"a": SECRET})


def test_the_hash_of_a_text_depends_on_the_key() -> None:
    one, same = record_of()["prompt_hash"], record_of()["prompt_hash"]
    other = record.of_decision(event(), "c", SETTINGS, b"other")["prompt_hash"]
    assert one == same != other
    assert record_of(event(text="another"))["prompt_hash"] != one


def test_only_the_headers_that_were_named_are_logged_and_an_absent_one_is_null() -> None:
    settings = DecisionLog(path=Path("log"), headers=("x-tier", "x-team"))
    assert record_of(settings=settings)["headers"] == {"x-tier": "free", "x-team": None}
    assert "headers" not in record_of()


def test_an_embedding_is_read_back_in_half_precision() -> None:
    x = np.linspace(-1, 1, 7, dtype=np.float32)
    x /= np.linalg.norm(x)
    given = event(signals=signals(neighbors=x))
    found = record_of(given, DecisionLog(path=Path("log"), embedding=True))
    back = embedding_of(found)
    assert back is not None
    np.testing.assert_allclose(back, x, atol=1e-3)
    assert "embedding" not in record_of(given)
    assert embedding_of(record_of(given)) is None


def test_a_zero_is_kept_and_a_threshold_that_no_score_reaches_is_finite() -> None:
    pair = {"kind": "threshold", "weak": "small", "strong": "large", "strong_share": 0.0}
    settings = config(strategies={"s": {**pair, "follow_traffic": False}})
    found = record_of(event(settings, signals=signals(difficulty=0.0)))
    assert (found["difficulty"], found["score"], found["threshold"]) == (0.0, 0.0, record.UNREACHABLE)
    assert record_of(event(quality=0.0))["quality"] == 0.0


def test_a_draw_has_its_propensity() -> None:
    weights = {"kind": "weighted", "weights": {"small": 1, "large": 3}}
    found = record_of(event(config(strategies={"s": weights})))
    assert found["propensity"] == {"small": 0.25, "large": 0.75}[found["pool"]]


def test_a_request_that_no_policy_decided_has_a_short_record() -> None:
    outcome = Outcome(Kind.PASSTHROUGH, Cause.UNKNOWN_PATH, pool="large", model="m", reason="passed through")
    found = record_of(Decided(outcome, "id", "/x", (), 1, 2, 3, observed=True))
    assert (found["kind"], found["cause"], found["pool"], found["observed"]) == (
        "passthrough",
        "unknown_path",
        "large",
        True,
    )


@given(st.text(), st.text())
def test_what_a_client_sends_is_bounded(identifier: str, word: str) -> None:
    given = event(request_id=identifier * 40, text=word * 700)
    settings = DecisionLog(path=Path("log"), headers=("x-tier",), prompts=True)
    found = record_of(given, settings)
    assert len(found.get("request_id", "")) <= record.REQUEST_ID_CHARACTERS_MAX
    assert len(found.get("user", "")) <= record.CHARACTERS_MAX


def test_the_state_of_a_very_long_conversation_is_left_out() -> None:
    long = context()
    turns = (Turn("user", "Why?"), Turn("assistant", "So.")) * record.TURNS_MAX
    given = event()
    for kept, count in ((True, record.TURNS_MAX), (False, record.TURNS_MAX + 1)):
        view = dataclasses.replace(long.view, turns=turns[:count])
        outcome = structs.replace(given.outcome, context=dataclasses.replace(long, view=view))
        facts = record_of(structs.replace(given, outcome=outcome))["facts"]
        assert ("reask" in facts, facts["turns"], facts["api"]) == (kept, count, "chat_completions")


def test_the_record_of_an_outcome_has_the_described_columns() -> None:
    found = record.of_outcome(OutcomeReported("id", 1.0, "user", "good", "small"), 5.0)
    assert found == {
        "record": "outcome",
        "time": 5.0,
        "request_id": "id",
        "outcome": 1.0,
        "label": "good",
        "source": "user",
    }
    assert found.keys() == COLUMNS["outcome"].keys()
    assert not math.isnan(found["outcome"])
