"""Which pools can serve a request: by what it needs, by bounds of its tokens, and after failures."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from builders import POOLS, config

from semroute_extproc.policy.constraints import ANSWER_TOKENS_MIN, NoCandidate, candidates, clamped, near
from semroute_extproc.policy.context import Candidates, Conditions, Held, Lock, RoutingContext
from semroute_extproc.request.view import Api, RequestHead, RequestView, Turn
from semroute_extproc.settings.pools import Pool

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
    assert found.excluded["small"] == "a context of more than 8000 tokens"


def test_a_prompt_that_the_largest_pool_found_too_long_gets_that_pools_answer() -> None:
    assert list(left(tried={"large": "context"}).pools) == ["large"]


def test_a_conversation_that_a_pool_stores_stays_there() -> None:
    stored = Held("small", Lock.STATEFUL)
    assert "small" in left(failing={"small": "500"}, held=stored).pools
    assert "small" not in left(failing={"small": "500"}, held=Held("small", Lock.TOOL_LOOP)).pools


def test_failures_never_admit_a_pool_that_cannot_serve_the_request() -> None:
    with pytest.raises(NoCandidate, match="image input"):
        left(failing={"eyes": "500"}, tried={"large": "500"}, images=1, tools=1, max_output_tokens=50_000)


def pool(context: int, **more: Any) -> Pool:
    return Pool(cluster="c", model="m", context=context, **more)


def facts(low: int, high: int, answer: int | None = None, **counted: tuple[int, int]) -> RoutingContext:
    view = RequestView(Api.CHAT_COMPLETIONS, "auto", (Turn("user", "x"),), max_output_tokens=answer)
    head = RequestHead("POST", "/v1/chat/completions")
    return RoutingContext(head, view, "en", (low + high) // 2, bounds=(low, high), counted=counted)


BOUNDED = {"small": pool(1_000), "large": pool(2_000)}


@pytest.mark.parametrize(
    ("low", "high", "kept", "doubtful", "excluded"),
    [
        (500, 900, {"small", "large"}, set(), set()),
        (900, 1_100, {"large"}, {"small"}, set()),
        (1_100, 1_500, {"large"}, set(), {"small"}),
        # None surely fits: the largest is the best guess.
        (900, 2_100, {"large"}, {"small"}, set()),
        (1_900, 2_100, {"large"}, set(), {"small"}),
    ],
)
def test_the_fewest_tokens_exclude_and_the_most_tokens_prefer(
    low: int, high: int, kept: set[str], doubtful: set[str], excluded: set[str]
) -> None:
    found = candidates(BOUNDED, "small", facts(low, high))
    assert (set(found.pools), set(found.doubtful), set(found.excluded)) == (kept, doubtful, excluded)


def test_a_request_is_refused_only_if_its_fewest_tokens_fit_no_pool() -> None:
    with pytest.raises(NoCandidate, match="a context of about 2100 tokens"):
        candidates(BOUNDED, "small", facts(2_100, 3_000))


def test_a_count_by_the_pools_tokenizer_settles_it() -> None:
    assert near("small", BOUNDED["small"], facts(900, 1_100))
    for tokens, fits in ((1_000, True), (1_001, False)):
        counted = facts(900, 1_100, small=(tokens, tokens))
        assert not near("small", BOUNDED["small"], counted)
        assert ("small" in candidates(BOUNDED, "small", counted).pools) is fits


def test_the_answer_needs_room_as_well() -> None:
    assert set(candidates(BOUNDED, "small", facts(500, 900, answer=600)).pools) == {"large"}


class TestClamp:
    POOL = pool(10_000, clamp=True)

    def test_it_lowers_the_limit_to_what_the_prompt_surely_leaves(self) -> None:
        asked = facts(2_000, 3_000, answer=32_000)
        assert set(candidates({"small": self.POOL}, "small", asked).pools) == {"small"}
        assert clamped("small", self.POOL, asked) == 7_000

    @pytest.mark.parametrize("answer", [None, 1, 7_000])
    def test_a_limit_that_fits_stays(self, answer: int | None) -> None:
        assert clamped("small", self.POOL, facts(2_000, 3_000, answer)) is None

    def test_some_answer_is_always_left(self) -> None:
        assert clamped("small", self.POOL, facts(9_000, 11_000, 32_000)) == ANSWER_TOKENS_MIN
        with pytest.raises(NoCandidate):
            candidates({"small": self.POOL}, "small", facts(10_000, 11_000, 32_000))

    def test_it_is_off_by_default(self) -> None:
        assert clamped("small", pool(10_000), facts(2_000, 3_000, answer=32_000)) is None
