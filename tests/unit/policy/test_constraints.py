"""Which pools are left for a request when some have failed."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from builders import POOLS, config

from semroute_extproc.policy.constraints import NoCandidate, candidates
from semroute_extproc.policy.context import Candidates, Conditions, Held, Lock, RoutingContext
from semroute_extproc.request.view import Api, RequestHead, RequestView, Turn

PRICES = {"small": 1.0, "large": 10.0, "eyes": 2.0}
PRICED = {name: {**POOLS[name], "price": {"input": price, "output": price}} for name, price in PRICES.items()}


def left(
    failing: dict[str, str] | None = None,
    tried: dict[str, str] | None = None,
    held: Held | None = None,
    **view: Any,
) -> Candidates:
    settings = config(pools=PRICED)
    context = RoutingContext(
        RequestHead("POST", "/v1/chat/completions"),
        RequestView(Api.CHAT_COMPLETIONS, "auto", (Turn("user", "hi"),), **view),
        "en",
        10,
        held=held,
    )
    conditions = Conditions(failing=failing or {})
    context = dataclasses.replace(context, conditions=conditions, tried=tried or {})
    return candidates(settings.pools, settings.default_pool, context)


def test_without_failures_the_default_pool_is_first() -> None:
    found = left()
    assert list(found.pools) == list(found.untried) == ["large", "small", "eyes"]
    assert found.excluded == {}


def test_after_a_failure_the_cheapest_pool_that_can_serve_it_is_first() -> None:
    found = left(tried={"small": "500"})
    assert list(found.pools) == ["eyes", "large"]
    assert found.excluded == {"small": "a working server (500)"}
    assert set(found.untried) == {"eyes", "large"}


def test_what_a_request_needs_still_holds() -> None:
    found = left(tried={"large": "500"}, tools=1)
    assert list(found.pools) == ["eyes"]
    assert found.excluded == {"large": "a working server (500)", "small": "tool calls"}


def test_an_excluded_pool_remains_for_when_the_others_fail() -> None:
    found = left(failing={"large": "503"})
    assert list(found.pools) == ["small", "eyes"]
    assert set(found.untried) == {"small", "eyes", "large"}


def test_if_all_pools_are_excluded_none_is() -> None:
    found = left(failing=dict.fromkeys(POOLS, "500"))
    assert set(found.pools) == set(POOLS)
    assert found.excluded == {}


def test_an_excluded_pool_is_better_than_one_that_failed_this_request() -> None:
    found = left(failing={"small": "503", "eyes": "503"}, tried={"large": "500"})
    assert list(found.pools) == ["small", "eyes"]


def test_if_all_pools_were_tried_all_are_left() -> None:
    assert set(left(tried=dict.fromkeys(POOLS, "500")).pools) == set(POOLS)


def test_a_prompt_that_one_pool_found_too_long_goes_to_a_longer_context() -> None:
    found = left(tried={"eyes": "context"})
    assert list(found.pools) == ["large"]
    assert found.excluded["small"] == "a working server (context)"


def test_a_conversation_that_a_pool_stores_stays_there() -> None:
    stored = Held("small", Lock.STATEFUL)
    assert "small" in left(failing={"small": "500"}, held=stored).pools
    assert "small" not in left(failing={"small": "500"}, held=Held("small", Lock.TOOL_LOOP)).pools


def test_failures_never_admit_a_pool_that_cannot_serve_the_request() -> None:
    with pytest.raises(NoCandidate, match="image input"):
        left(failing={"eyes": "500"}, tried={"large": "500"}, images=1, tools=1, max_output_tokens=50_000)
