"""Weak or strong by a score: a share of reference traffic is a threshold, and back."""

from __future__ import annotations

import pytest

from semroute_extproc.policy.context import Choice, Conditions, RoutingContext
from semroute_extproc.request.view import Api, RequestHead, RequestView
from semroute_extproc.strategies.cutoff import (
    Cutoff,
    biased,
    pressed,
    rise_above,
    share_for_threshold,
    threshold_for_share,
)

QUANTILES = tuple(n / 100 for n in range(101))


@pytest.mark.parametrize(("share", "threshold"), [(0.0, float("inf")), (1.0, 0.0), (0.3, 0.7), (0.25, 0.75)])
def test_a_share_of_the_traffic_is_a_quantile(share: float, threshold: float) -> None:
    assert threshold_for_share(QUANTILES, share) == pytest.approx(threshold)


@pytest.mark.parametrize("share", [0.01, 0.3, 0.5, 0.995])
def test_the_share_of_a_threshold_is_the_share_it_came_from(share: float) -> None:
    uneven = [q**3 for q in QUANTILES]
    assert share_for_threshold(uneven, threshold_for_share(uneven, share)) == pytest.approx(share)


@pytest.mark.parametrize(
    ("quantiles", "threshold", "share"),
    [
        ([0.5] * 101, 0.5, 1.0),
        ([0.0] * 40 + [n / 60 for n in range(61)], 0.0, 1.0),
        ([n / 60 for n in range(61)] + [1.0] * 40, 1.0, 0.4),
    ],
)
def test_scores_that_are_just_the_threshold_count(
    quantiles: list[float], threshold: float, share: float
) -> None:
    assert share_for_threshold(quantiles, threshold) == pytest.approx(share)


def choice(
    score: float, pressure: dict[str, float] | None = None, quality: float | None = None, **more: float
) -> Choice:
    """What a pair with strong share 0.3 chooses."""
    facts = RoutingContext(
        RequestHead("POST", "/"),
        RequestView(Api.CHAT_COMPLETIONS, "auto"),
        "en",
        10,
        quality=quality,
        bias=more.pop("bias", 0.0),
        conditions=Conditions(pressure or {}, **more),
    )
    return Cutoff("small", "large", QUANTILES, share=0.3).choose(score, facts)


class TestShares:
    def test_a_bias_adds_to_the_log_odds(self) -> None:
        assert biased(0.3, 0.0) == pytest.approx(0.3)
        assert biased(0.5, 1.0) == pytest.approx(0.731, abs=1e-3)
        assert biased(biased(0.3, 1.5), -1.5) == pytest.approx(0.3)

    @pytest.mark.parametrize("share", [0.0, 1.0])
    def test_the_ends_can_be_left(self, share: float) -> None:
        assert abs(biased(share, 4.0 if share == 0.0 else -4.0) - share) > 0.1

    @pytest.mark.parametrize(
        ("weak", "strong", "share"),
        [
            (0.0, 0.0, 0.3),
            (0.0, 1.0, 0.05),
            (0.0, 0.5, 0.175),
            (1.0, 1.0, 0.3),
            (0.5, 1.0, 0.175),
            (1.0, 0.0, 0.3),
        ],
    )
    def test_pressure_on_the_strong_pool_takes_down_to_the_floor(
        self, weak: float, strong: float, share: float
    ) -> None:
        assert pressed(0.3, weak, strong, 0.05, None) == pytest.approx(share)

    def test_pressure_on_the_weak_pool_pushes_up_only_to_a_ceiling(self) -> None:
        assert pressed(0.3, 1.0, 0.0, 0.05, 0.6) == pytest.approx(0.6)
        assert pressed(0.3, 0.5, 0.0, 0.05, 0.6) == pytest.approx(0.45)

    def test_neither_bound_moves_a_share_the_wrong_way(self) -> None:
        assert pressed(0.02, 0.0, 1.0, 0.05, None) == 0.02
        assert pressed(0.8, 1.0, 0.0, 0.05, 0.6) == 0.8


class TestCutoff:
    def test_the_easiest_of_the_strong_pools_requests_go_first(self) -> None:
        assert choice(0.75).pool == "large"
        assert choice(0.75, {"large": 0.5}).pool == "small"
        assert choice(0.95, {"large": 0.5}).pool == "large"

    def test_the_choice_says_who_moved_the_share_and_how(self) -> None:
        moved = choice(0.75, {"large": 0.5}, bias=0.5, floor=0.1)
        assert moved.moved == (("budget", "+0.50"), ("load", "share 0.41 to 0.26"))
        assert moved.share == pytest.approx(0.257, abs=1e-3)

    def test_what_moves_nothing_is_not_mentioned(self) -> None:
        quiet = choice(0.75, {"elsewhere": 1.0})
        assert (quiet.moved, quiet.share, quiet.threshold) == ((), None, pytest.approx(0.7))

    def test_a_quality_asked_for_is_moved_and_its_ends_are_not(self) -> None:
        assert choice(0.75, {"large": 1.0}, quality=0.5).pool == "small"
        assert choice(0.0, {"large": 1.0}, quality=1.0, bias=-4.0).pool == "large"
        assert choice(1.0, {"small": 1.0}, quality=0.0, bias=4.0, ceiling=1.0).pool == "small"

    def test_the_rise_is_the_part_of_the_strong_pools_traffic_that_the_score_leaves_behind(self) -> None:
        assert choice(0.7).rise == pytest.approx(0.0, abs=1e-9)
        assert choice(0.9).rise == pytest.approx(2 / 3)
        assert choice(1.0).rise == pytest.approx(1.0)
        assert choice(0.6).rise is None

    def test_a_rise_follows_the_share_that_controllers_leave(self) -> None:
        assert choice(0.925, {"large": 0.5}).rise == pytest.approx(0.5)

    @pytest.mark.parametrize("scale", [1.0, 0.03])
    def test_a_rise_does_not_depend_on_how_far_apart_scores_lie(self, scale: float) -> None:
        squeezed = [0.6 + scale * (q - 0.6) for q in QUANTILES]
        threshold, score = (0.6 + scale * (q - 0.6) for q in (0.7, 0.85))
        assert rise_above(squeezed, threshold, score) == pytest.approx(0.5)

    def test_a_threshold_above_all_reference_traffic_leaves_none_of_it_behind(self) -> None:
        assert rise_above(QUANTILES, 1.0, 1.0) == 1.0
        assert rise_above([q / 2 for q in QUANTILES], 0.6, 0.6) == 1.0

    def test_scores_that_are_tied_at_the_threshold_rise_by_nothing(self) -> None:
        assert rise_above([0.0] * 60 + [q / 41 for q in range(41)], 0.0, 0.0) == 0.0
