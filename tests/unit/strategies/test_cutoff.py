"""Weak or strong by a score: a share of reference traffic is a threshold, and back."""

from __future__ import annotations

import pytest

from semroute_extproc.policy.context import Choice, Conditions, RoutingContext
from semroute_extproc.request.view import Api, RequestHead, RequestView
from semroute_extproc.state.live import LiveScores
from semroute_extproc.strategies.cutoff import Cutoff, pressed

QUANTILES = tuple(n / 100 for n in range(101))


def choice(
    score: float,
    pressure: dict[str, float] | None = None,
    quality: float | None = None,
    traffic: LiveScores | None = None,
    follow: bool = True,
    **more: float,
) -> Choice:
    """What a pair with strong share 0.3 chooses."""
    facts = context(pressure, quality, traffic, **more)
    return Cutoff("small", "large", QUANTILES, share=0.3, follow=follow).choose(score, facts)


def context(
    pressure: dict[str, float] | None = None,
    quality: float | None = None,
    traffic: LiveScores | None = None,
    **more: float,
) -> RoutingContext:
    return RoutingContext(
        RequestHead("POST", "/"),
        RequestView(Api.CHAT_COMPLETIONS, "auto"),
        "en",
        10,
        quality=quality,
        bias=more.pop("bias", 0.0),
        traffic=traffic,
        conditions=Conditions(pressure or {}, **more),
    )


class TestShares:
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


class TestTraffic:
    """The share of traffic whose scores are all below those of the reference."""

    LIVE = LiveScores(0.3, QUANTILES)
    for number in range(1_000):
        LIVE.learn(number * 7 % 100 / 1_000, 0.3, number % 10 < 3)

    def test_a_share_is_of_the_traffic_if_the_cutoff_follows(self) -> None:
        assert choice(0.08, traffic=self.LIVE).pool == "large"
        assert choice(0.05, traffic=self.LIVE).pool == "small"
        assert choice(0.08, traffic=self.LIVE, follow=False).pool == "small"

    def test_a_quality_is_a_share_of_the_traffic_too(self) -> None:
        assert choice(0.05, traffic=self.LIVE, quality=0.6).pool == "large"

    def test_pressure_and_budget_move_the_share_that_is_asked_for(self) -> None:
        assert choice(0.08, {"large": 1.0}, floor=0.05, traffic=self.LIVE).pool == "small"
        assert choice(0.05, bias=2.0, traffic=self.LIVE).pool == "large"

    def test_the_sample_is_what_the_score_decided_and_the_share_asked_for(self) -> None:
        assert choice(0.08, traffic=self.LIVE).sample == (0.08, 0.3, True)
        pressed_down = choice(0.05, {"large": 1.0}, floor=0.05, traffic=self.LIVE).sample
        assert pressed_down == (0.05, pytest.approx(0.05), False)
        assert choice(0.05, quality=0.6, traffic=self.LIVE).sample == (0.05, 0.6, True)
        assert choice(0.08).sample is None

    @pytest.mark.parametrize("quality", [0.0, 1.0])
    def test_a_hard_preference_teaches_nothing(self, quality: float) -> None:
        assert choice(0.08, quality=quality, traffic=self.LIVE).sample is None

    def test_a_rise_is_within_the_traffic(self) -> None:
        assert (choice(0.085, traffic=self.LIVE).rise or 0.0) == pytest.approx(0.5, abs=0.1)

    def test_the_source_of_the_threshold_is_in_words(self) -> None:
        assert choice(0.8).source == "the top 30% of the reference scores"
        live = choice(0.08, traffic=self.LIVE).source
        assert live.startswith("the top 30% of your last 601 requests, bias ")


class TestTheReason:
    """It says what the score was compared with, in words that an operator knows."""

    def test_a_score_below_the_threshold_and_one_above(self) -> None:
        assert choice(0.52).reason == "difficulty 0.52 is below 0.70, the top 30% of the reference scores"
        assert choice(0.9).reason.startswith("difficulty 0.90 is at least 0.70, the top 30% of")

    def test_scores_of_the_own_traffic_and_of_the_reference_are_told_apart(self) -> None:
        live = LiveScores(0.3, QUANTILES)
        for _ in range(50):
            live.learn(0.5, 0.3, False)
        reason = choice(0.9, traffic=live).reason
        assert reason.endswith("of your last 50 requests and 76 reference scores")
        assert TestTraffic.LIVE.live == 601
        assert choice(0.9, traffic=TestTraffic.LIVE).reason.endswith("of your last 601 requests")

    def test_the_share_is_the_one_that_controllers_and_clients_left(self) -> None:
        assert "the top 15% of" in choice(0.75, {"large": 0.5}).reason
        assert "the top 60% of" in choice(0.75, quality=0.6).reason

    def test_a_configured_threshold_is_named_as_such_until_something_moves_it(self) -> None:
        cutoff = Cutoff("small", "large", QUANTILES, threshold=0.63)
        assert (
            cutoff.choose(0.52, context()).reason == "difficulty 0.52 is below 0.63, the configured threshold"
        )
        assert "the top 50% of" in cutoff.choose(0.52, context(quality=0.5)).reason

    def test_the_prompts_of_a_calibration_are_named(self) -> None:
        cutoff = Cutoff("small", "large", QUANTILES, share=0.3, of="your calibration prompts")
        assert cutoff.choose(0.9, context()).reason.endswith("the top 30% of your calibration prompts")

    def test_a_score_that_looks_like_the_threshold_has_more_digits(self) -> None:
        cutoff = Cutoff("small", "large", QUANTILES, threshold=0.634)
        assert cutoff.choose(0.632, context()).reason.startswith("difficulty 0.6320 is below 0.6340")

    def test_a_share_of_zero_has_a_threshold_that_no_score_reaches(self) -> None:
        cutoff = Cutoff("small", "large", QUANTILES, share=0.0)
        assert cutoff.choose(0.9, context()).reason.startswith("difficulty 0.90 is below 1.00, the top 0% of")
