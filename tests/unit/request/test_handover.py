"""The plan that Envoy keeps, and the request that it hands back."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from semroute_extproc.request.body import members_of, set_members
from semroute_extproc.request.handover import (
    FAILURE_HEADER,
    FAILURES,
    HANDOVER_HEADER,
    OTHER,
    PLAN_CHARACTERS_MAX,
    Handover,
    plan,
    read,
    restored,
)
from semroute_extproc.request.view import RequestHead

POOLS = ("small", "large")


def planned(body: dict[str, Any], *edited: str, stored: bool = False) -> Handover | None:
    return plan(("small",), "vllm-small-or-next", members_of(json.dumps(body).encode()), edited, stored)


def handed_back(made: Handover, failure: str = "500") -> Handover:
    head = RequestHead("POST", "/", {HANDOVER_HEADER: made.header, FAILURE_HEADER: failure})
    found = read(head, POOLS)
    assert found is not None
    return found


def test_the_plan_says_what_was_tried_and_the_failure_how_it_ended() -> None:
    made = planned({"model": "auto"}, "model")
    assert made is not None
    assert made.header.startswith("small ")
    found = handed_back(made, "503")
    assert (found.tried, found.failure) == (("small",), "503")


@pytest.mark.parametrize("failure", ["", "teapot", "x" * 1_000])
def test_a_failure_that_is_not_known_is_other(failure: str) -> None:
    made = planned({"model": "auto"}, "model")
    assert made is not None
    assert handed_back(made, failure).failure == OTHER
    assert OTHER not in FAILURES


@given(st.dictionaries(st.text(), st.none() | st.booleans() | st.integers() | st.text(), max_size=4))
def test_the_clients_members_come_back(body: dict[str, Any]) -> None:
    """What was absent, or null, is absent again."""
    body |= {"model": "auto"}
    edits = {("model",): "m-s", ("chat_template_kwargs", "enable_thinking"): False}
    made = planned(body, *(path[0] for path in edits))
    assert made is not None
    edited = set_members(json.dumps(body).encode(), edits)
    found = msgspec.json.encode(restored(members_of(edited), handed_back(made)))
    if body.get("chat_template_kwargs", 0) is None:
        del body["chat_template_kwargs"]
    assert json.loads(found) == body


@pytest.mark.parametrize(
    ("body", "once", "if_stored"),
    [
        ({}, True, True),
        ({"store": False, "background": None}, True, True),
        ({"previous_response_id": ""}, True, True),
        ({"store": True}, False, True),
        ({"store": "yes"}, False, True),
        ({"background": True}, False, True),
        ({"previous_response_id": "resp_1"}, False, False),
    ],
    ids=str,
)
def test_a_body_with_state_on_a_server_is_not_repeated(
    body: dict[str, Any], once: bool, if_stored: bool
) -> None:
    assert (planned(body) is not None) is once
    assert (planned(body, stored=True) is not None) is if_stored


def test_a_plan_that_is_too_long_for_a_header_is_not_made() -> None:
    assert planned({"thinking": "x" * PLAN_CHARACTERS_MAX}, "thinking") is None
    assert planned({"messages": "x" * PLAN_CHARACTERS_MAX}, "model") is not None


@pytest.mark.parametrize(
    "header",
    [
        "",
        " ",
        "small",
        "small e30=,",
        "small !!!",
        "small AAAA",
        "nobody e30=",
        "small,nobody e30=",
        ",, e30=",
    ],
)
def test_a_header_that_is_no_plan_is_ignored(header: str) -> None:
    assert read(RequestHead("POST", "/", {HANDOVER_HEADER: header}), POOLS) is None
    assert read(RequestHead("POST", "/"), POOLS) is None
