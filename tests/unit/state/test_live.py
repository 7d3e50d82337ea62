"""A strong share as a threshold, and the share that is kept on whatever traffic comes."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from semroute_extproc.settings.controllers import Budget
from semroute_extproc.state.budget import BudgetController
from semroute_extproc.state.live import (
    BIAS_MAX,
    GAIN,
    WINDOW,
    LiveScores,
    biased,
    rise_above,
    share_for_threshold,
    threshold_for_share,
)

QUANTILES = tuple(n / 100 for n in range(101))
TIED = [0.1] * 40 + [0.5] * 40 + [0.9] * 21
"""One hundred and one scores with only three values."""


class TestQuantiles:
    @pytest.mark.parametrize(("share", "threshold"), [(0.0, math.inf), (1.0, 0.0), (0.3, 0.7), (0.25, 0.75)])
    def test_a_share_of_the_traffic_is_a_quantile(self, share: float, threshold: float) -> None:
        assert threshold_for_share(QUANTILES, share) == pytest.approx(threshold)

    @pytest.mark.parametrize("share", [0.01, 0.3, 0.5, 0.995])
    def test_the_share_of_a_threshold_is_the_share_it_came_from(self, share: float) -> None:
        uneven = [q**3 for q in QUANTILES]
        assert share_for_threshold(uneven, threshold_for_share(uneven, share)) == pytest.approx(share)

    @pytest.mark.parametrize(
        ("quantiles", "threshold", "share"),
        [
            ([0.5] * 101, 0.5, 1.0),
            ([0.5] * 101, 0.6, 0.0),
            ([0.0] * 40 + [n / 60 for n in range(61)], 0.0, 1.0),
            ([n / 60 for n in range(61)] + [1.0] * 40, 1.0, 0.4),
        ],
    )
    def test_scores_that_equal_the_threshold_count(
        self, quantiles: list[float], threshold: float, share: float
    ) -> None:
        assert share_for_threshold(quantiles, threshold) == pytest.approx(share)

    @pytest.mark.parametrize(
        ("share", "lowest"), [(0.15, 0.9), (0.25, 0.9), (0.35, 0.9), (0.45, 0.5), (0.75, 0.5), (0.9, 0.1)]
    )
    def test_equal_scores_are_all_strong_or_all_weak_whichever_is_nearer_to_the_share(
        self, share: float, lowest: float
    ) -> None:
        threshold = threshold_for_share(TIED, share)
        assert min(score for score in TIED if score >= threshold) == lowest

    def test_a_bias_adds_to_the_log_odds(self) -> None:
        assert biased(0.3, 0.0) == pytest.approx(0.3)
        assert biased(0.5, 1.0) == pytest.approx(0.731, abs=1e-3)
        assert biased(biased(0.3, 1.5), -1.5) == pytest.approx(0.3)
        assert threshold_for_share(QUANTILES, 0.5, 1.0) == pytest.approx(1.0 - 0.731, abs=1e-3)

    @pytest.mark.parametrize("share", [0.0, 1.0])
    def test_only_a_bias_of_the_share_itself_leaves_none_and_all(self, share: float) -> None:
        bias = -4.0 if share else 4.0
        assert abs(biased(share, bias) - share) > 0.1
        assert threshold_for_share(QUANTILES, share, bias) == threshold_for_share(QUANTILES, share)

    @pytest.mark.parametrize("scale", [1.0, 0.03])
    def test_a_rise_does_not_depend_on_how_far_apart_scores_lie(self, scale: float) -> None:
        squeezed = [0.6 + scale * (q - 0.6) for q in QUANTILES]
        threshold, score = (0.6 + scale * (q - 0.6) for q in (0.7, 0.85))
        assert rise_above(squeezed, threshold, score) == pytest.approx(0.5)

    def test_a_threshold_above_all_traffic_leaves_none_of_it_behind(self) -> None:
        assert rise_above(QUANTILES, 1.0, 1.0) == 1.0
        assert rise_above([q / 2 for q in QUANTILES], 0.6, 0.6) == 1.0

    def test_scores_that_are_tied_at_the_threshold_rise_by_nothing(self) -> None:
        assert rise_above([0.0] * 60 + [q / 41 for q in range(41)], 0.0, 0.0) == 0.0


Scores = Callable[[random.Random, float], float]
"""A score, given how far the run is (0..1)."""

TRAFFIC: dict[str, Scores] = {
    "like the reference": lambda rng, _: rng.random(),
    "below all of the reference": lambda rng, _: -rng.random(),
    "above all of the reference": lambda rng, _: 1.0 + rng.random(),
    "in a narrow band": lambda rng, _: rng.uniform(0.40, 0.41),
    "at both ends": lambda rng, _: round(rng.random()) * 0.98 + rng.uniform(0.0, 0.02),
    "mostly one text": lambda rng, _: 0.2 if rng.random() < 0.6 else rng.random(),
    "five scores": lambda rng, _: rng.randrange(5) / 4,
}
DRIFT: dict[str, Scores] = {
    "harder and harder": lambda rng, part: rng.random() ** (1.0 - 0.9 * part),
    "in waves": lambda rng, part: rng.random() ** math.exp(0.8 * math.sin(10 * math.pi * part)),
    "another application from the middle on": lambda rng, part: rng.random() / 10 + (part > 0.5) * 0.8,
}


@dataclass
class Run:
    """What became of the requests of a run."""

    strong: list[bool]
    biases: list[float]

    def share(self, begin: int, end: int) -> float:
        return sum(self.strong[begin:end]) / (end - begin)


def run(live: LiveScores, scores: Scores, requests: int = 1_000, seed: int = 1) -> Run:
    """Decide and learn, one request at a time."""
    rng, found = random.Random(seed), Run([], [live.bias])
    for number in range(requests):
        score = scores(rng, number / requests)
        found.strong.append(score >= threshold_for_share(live.scores, live.share, live.bias))
        live.learn(score, live.share, found.strong[-1])
        found.biases.append(live.bias)
    return found


class TestShare:
    @pytest.mark.parametrize("share", [0.1, 0.3, 0.5])
    @pytest.mark.parametrize("traffic", TRAFFIC)
    def test_it_is_within_three_points_on_any_traffic_from_the_first_500_requests_on(
        self, traffic: str, share: float
    ) -> None:
        for seed in range(5):
            found = run(LiveScores(share, QUANTILES), TRAFFIC[traffic], seed=seed)
            assert found.share(0, 500) == pytest.approx(share, abs=0.03)
            assert found.share(500, 1_000) == pytest.approx(share, abs=0.03)

    @pytest.mark.parametrize("traffic", DRIFT)
    def test_it_is_kept_under_drift(self, traffic: str) -> None:
        found = run(LiveScores(0.3, QUANTILES), DRIFT[traffic], 8_000)
        assert found.share(500, 8_000) == pytest.approx(0.3, abs=0.02)
        for begin in range(500, 8_000, 500):
            assert found.share(begin, begin + 500) == pytest.approx(0.3, abs=0.05)

    @pytest.mark.parametrize("traffic", [*TRAFFIC, *DRIFT])
    def test_the_bound_of_the_docstring_holds(self, traffic: str) -> None:
        found = run(LiveScores(0.3, QUANTILES), {**TRAFFIC, **DRIFT}[traffic], 2_000)
        assert max(map(abs, found.biases)) < BIAS_MAX
        span = max(found.biases) - min(found.biases)
        assert abs(found.share(0, 2_000) - 0.3) <= span / (GAIN * 2_000) + 1e-9

    @pytest.mark.parametrize("share", [0.0, 1.0])
    def test_none_and_all_are_exact(self, share: float) -> None:
        assert set(run(LiveScores(share, QUANTILES), TRAFFIC["five scores"]).strong) == {bool(share)}

    @pytest.mark.parametrize("share", [0.1, 0.3, 0.5])
    def test_one_text_alone_goes_to_both_pools_once_the_bias_has_moved_its_threshold(
        self, share: float
    ) -> None:
        found = run(LiveScores(share, QUANTILES), lambda *_: 0.2)
        assert found.share(0, 500) == pytest.approx(share, abs=0.05)
        assert found.share(500, 1_000) == pytest.approx(share, abs=0.01)

    def test_a_text_that_is_repeated_keeps_its_pool_if_a_threshold_next_to_it_gives_the_share(self) -> None:
        """Seven of ten requests are one text, and the other three score higher."""
        live = LiveScores(0.3, QUANTILES)
        rng, moved = random.Random(2), 0
        for number in range(4_000):
            score = 0.5 if rng.random() < 0.7 else rng.uniform(0.6, 0.9)
            strong = score >= threshold_for_share(live.scores, live.share, live.bias)
            moved += number >= 2_000 and score == 0.5 and strong
            live.learn(score, live.share, strong)
        assert moved < 0.01 * 2_000

    def test_requests_may_ask_for_different_shares(self) -> None:
        """As with a quality for each request: the mean of what was asked for is kept."""
        live, rng, strong = LiveScores(0.3, QUANTILES), random.Random(3), list[bool]()
        for number in range(1_000):
            asked, score = (0.1, 0.8)[number % 2], rng.uniform(0.4, 0.5)
            strong.append(score >= threshold_for_share(live.scores, asked, live.bias))
            live.learn(score, asked, strong[-1])
        assert sum(strong) / 1_000 == pytest.approx(0.45, abs=0.03)
        assert sum(strong[::2]) / 500 == pytest.approx(0.1, abs=0.05)

    def test_a_budget_next_to_it_still_holds_its_own_target(self) -> None:
        """The budget moves the share that is asked for; a tenth of its requests are not scored."""
        live, budget = LiveScores(0.5, QUANTILES), BudgetController(Budget(strong_share=0.2))
        rng, strong = random.Random(4), list[bool]()
        for number in range(10_000):
            asked, score = biased(0.5, budget.bias), rng.uniform(0.4, 0.5)
            if rng.random() < 0.1:
                strong.append(True)
            else:
                strong.append(score >= threshold_for_share(live.scores, asked, live.bias))
                live.learn(score, asked, strong[-1])
            budget.decided(float(strong[-1]), float(number))
        assert sum(strong[2_000:]) / 8_000 == pytest.approx(0.2, abs=0.02)


class TestWindow:
    def test_it_starts_with_the_reference(self) -> None:
        live = LiveScores(0.3, QUANTILES)
        assert (live.scores, live.bias, live.live) == (list(QUANTILES), 0.0, 0)
        assert live.status() == {
            "share": 0.3,
            "realized": None,
            "threshold": pytest.approx(0.7),
            "reference": pytest.approx(0.7),
            "bias": 0.0,
            "scores": 0,
        }

    def test_one_request_moves_the_threshold_by_little(self) -> None:
        live = LiveScores(0.3, QUANTILES)
        live.learn(1.0, 0.3, True)
        assert threshold_for_share(live.scores, 0.3, live.bias) == pytest.approx(0.7, abs=0.03)

    def test_the_reference_leaves_evenly_and_is_gone_after_two_hundred_requests(self) -> None:
        live = LiveScores(0.3, QUANTILES)
        for _ in range(100):
            live.learn(2.0, 0.3, True)
        left = [score for score in live.scores if score <= 1.0]
        assert (live.live, len(left)) == (100, 51)
        assert sum(score >= 0.5 for score in left) == pytest.approx(len(left) / 2, abs=5)
        for _ in range(102):
            live.learn(2.0, 0.3, True)
        assert (live.live, set(live.scores)) == (202, {2.0})

    def test_it_holds_the_latest_scores_in_order_and_no_more_than_its_bound(self) -> None:
        live, rng = LiveScores(0.3, QUANTILES), random.Random(5)
        scores = [rng.random() for _ in range(3 * WINDOW)]
        for score in scores:
            live.learn(score, 0.3, score >= 0.7)
        assert live.live == WINDOW
        assert live.scores == sorted(scores[-WINDOW:])

    def test_its_status_is_of_the_requests(self) -> None:
        live = LiveScores(0.3, QUANTILES)
        strong = run(live, TRAFFIC["in a narrow band"]).strong
        status = live.status()
        assert status["scores"] == 601
        assert 0.40 < (status["threshold"] or 0.0) < 0.41
        assert status["reference"] == pytest.approx(0.7)
        assert status["realized"] == pytest.approx(sum(strong) / 1_000)
