"""Which pools can serve a request whose tokens are known within bounds."""

from __future__ import annotations

from typing import Any

import pytest

from semroute_extproc.policy.constraints import ANSWER_TOKENS_MIN, NoCandidate, candidates, clamped, near
from semroute_extproc.policy.context import RoutingContext
from semroute_extproc.request.view import Api, RequestHead, RequestView, Turn
from semroute_extproc.settings.pools import Pool


def pool(context: int, **more: Any) -> Pool:
    return Pool(cluster="c", model="m", context=context, **more)


def facts(low: int, high: int, answer: int | None = None, **counted: tuple[int, int]) -> RoutingContext:
    view = RequestView(Api.CHAT_COMPLETIONS, "auto", (Turn("user", "x"),), max_output_tokens=answer)
    head = RequestHead("POST", "/v1/chat/completions")
    return RoutingContext(head, view, "en", (low + high) // 2, bounds=(low, high), counted=counted)


POOLS = {"small": pool(1_000), "large": pool(2_000)}


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
    found = candidates(POOLS, "small", facts(low, high))
    assert (set(found.pools), set(found.doubtful), set(found.excluded)) == (kept, doubtful, excluded)


def test_a_request_is_refused_only_if_its_fewest_tokens_fit_no_pool() -> None:
    with pytest.raises(NoCandidate, match="a context of about 2100 tokens"):
        candidates(POOLS, "small", facts(2_100, 3_000))


def test_a_count_by_the_pools_tokenizer_settles_it() -> None:
    assert near("small", POOLS["small"], facts(900, 1_100))
    for tokens, fits in ((1_000, True), (1_001, False)):
        counted = facts(900, 1_100, small=(tokens, tokens))
        assert not near("small", POOLS["small"], counted)
        assert ("small" in candidates(POOLS, "small", counted).pools) is fits


def test_the_answer_needs_room_as_well() -> None:
    assert set(candidates(POOLS, "small", facts(500, 900, answer=600)).pools) == {"large"}


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
