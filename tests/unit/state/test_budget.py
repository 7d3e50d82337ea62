"""A strategy's share or cost is held to its target, whatever the traffic does.

The traffic here is synthetic: a request is a score, the strategy is a cut-off whose quantiles are
those of the first hour, and the drift makes them wrong.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from semroute_extproc.settings.controllers import Budget
from semroute_extproc.state.budget import GAIN, BudgetController
from semroute_extproc.state.live import biased, threshold_for_share
from semroute_extproc.strategies.cutoff import pressed

QUANTILES = tuple(n / 100 for n in range(101))
SHARE = 0.3
Scores = Callable[[random.Random, float], float]
"""A score, given how far the run is (0..1)."""


@dataclass
class Run:
    """What became of a run."""

    strong: list[bool]
    leanings: list[float]

    def share(self, begin: float, end: float = 1.0) -> float:
        """The realized share between two parts of the run."""
        part = self.strong[int(begin * len(self.strong)) : int(end * len(self.strong))]
        return sum(part) / len(part)

    def windows(self, size: int, begin: float = 0.0) -> np.ndarray:
        """The realized share of each window."""
        part = np.array(self.strong[int(begin * len(self.strong)) :], dtype=float)
        whole = len(part) // size * size
        return part[:whole].reshape(-1, size).mean(axis=1)


def run(
    scores: Scores,
    requests: int = 40_000,
    promised: float = 0.0,
    rate: Callable[[float], float] = lambda _: 10.0,
    seed: int = 1,
    **budget: Any,
) -> Run:
    """A strategy with share 0.3 under a budget; a part of the requests is promised the strong pool."""
    rng = random.Random(seed)
    controller = BudgetController(Budget.model_validate({"strong_share": SHARE, **budget}))
    strong, leanings, now = [], [], 0.0
    for number in range(requests):
        part = number / requests
        now += rng.expovariate(rate(part))
        threshold = threshold_for_share(QUANTILES, biased(SHARE, controller.bias))
        goes = rng.random() < promised or scores(rng, part) >= threshold
        controller.decided(float(goes), now)
        strong.append(goes)
        leanings.append(controller.bias)
    return Run(strong, leanings)


def reference(rng: random.Random, _: float) -> float:
    """The traffic that the quantiles are of."""
    return rng.random()


def harder(rng: random.Random, part: float) -> float:
    """Traffic that grows harder: by the end two thirds lie above the reference's 70 %."""
    return rng.random() ** (1.0 - 0.7 * part)


def waves(rng: random.Random, part: float) -> float:
    """Day and night, five times."""
    return rng.random() ** math.exp(0.8 * math.sin(10 * math.pi * part))


def bursts(rng: random.Random, part: float) -> float:
    """Every tenth of the run a burst of nothing but hard requests, a twentieth of the tenth long."""
    return rng.uniform(0.7, 1.0) if part * 10 % 1 < 0.05 else rng.random()


@pytest.mark.parametrize("scores", [reference, harder, waves, bursts])
def test_the_share_is_held_within_two_points_under_drift(scores: Scores) -> None:
    assert run(scores).share(0.1) == pytest.approx(SHARE, abs=0.02)


def test_without_a_budget_the_drift_would_carry_the_share_away() -> None:
    rng = random.Random(1)
    threshold = threshold_for_share(QUANTILES, SHARE)
    shares = [harder(rng, n / 40_000) >= threshold for n in range(40_000)]
    assert sum(shares) / len(shares) > SHARE + 0.1


@pytest.mark.parametrize("scores", [reference, harder, waves])
def test_every_window_is_near_the_target(scores: Scores) -> None:
    assert np.abs(run(scores).windows(1_000, begin=0.1) - SHARE).max() < 0.08


@pytest.mark.parametrize("scores", [reference, harder])
def test_the_share_does_not_swing(scores: Scores) -> None:
    windows = run(scores).windows(1_000, begin=0.1)
    # An oscillation would show as neighbouring windows on opposite sides, further apart than chance:
    # the standard deviation of a mean of 1000 draws is 0.0145.
    assert np.abs(np.diff(windows)).mean() < 2 * 0.0145


def test_in_steady_traffic_the_leaning_rests() -> None:
    leanings = np.array(run(reference).leanings[10_000:])
    assert leanings.std() < 0.15
    assert abs(leanings.mean()) < 0.1


@pytest.mark.parametrize("seed", range(3))
def test_the_bound_of_the_docstring_holds(seed: int) -> None:
    """|realized − target| <= (largest − smallest leaning) / (gain · N), with the leaning unbounded."""
    subject = run(waves, requests=20_000, seed=seed, bias_max=8)
    span = max(subject.leanings) - min(subject.leanings)
    assert abs(subject.share(0.0) - SHARE) <= span / (GAIN / 1_000 * 20_000) + 1e-9


def test_promises_are_kept_and_count() -> None:
    subject = run(reference, promised=0.1)
    assert subject.share(0.2) == pytest.approx(SHARE, abs=0.02)


def test_promises_beyond_the_target_are_kept_and_the_leaning_stays_bounded() -> None:
    subject = run(reference, promised=0.6, bias_max=3)
    assert subject.share(0.2) > 0.6
    assert min(subject.leanings) == -3.0


def test_what_was_wound_up_at_the_bound_is_not_paid_back() -> None:
    """An hour of promises, then none: back at the target within a few windows, without an overshoot."""

    def scores(rng: random.Random, part: float) -> float:
        return 1.0 if part < 0.5 and rng.random() < 0.6 else rng.random()

    subject = run(scores, bias_max=3)
    windows = subject.windows(2_000, begin=0.5)
    assert windows.max() < SHARE + 0.06
    assert windows[5:].mean() == pytest.approx(SHARE, abs=0.03)


def test_a_window_of_seconds_holds_through_bursts_of_arrivals() -> None:
    subject = run(
        waves,
        rate=lambda part: 100.0 if part * 20 % 1 < 0.3 else 3.0,
        window_seconds=120,
        window_requests=None,
    )
    assert subject.share(0.1) == pytest.approx(SHARE, abs=0.02)


def test_dollars_are_held_where_requests_differ_in_size() -> None:
    rng = random.Random(3)
    target = 1.2
    controller = BudgetController(Budget(dollars_per_thousand=target))
    spent = []
    for number in range(40_000):
        size = rng.lognormvariate(0.0, 0.8)
        weak, strong = 0.0005 * size, 0.004 * size
        threshold = threshold_for_share(QUANTILES, biased(0.5, controller.bias))
        value = strong if harder(rng, number / 40_000) >= threshold else weak
        controller.decided(value, float(number), spread=strong - weak)
        spent.append(value)
    assert 1e3 * np.mean(spent[4_000:]) == pytest.approx(target, rel=0.05)


def test_where_both_pools_cost_the_same_nothing_leans() -> None:
    controller = BudgetController(Budget(dollars_per_thousand=1.0))
    for number in range(100):
        controller.decided(0.005, float(number), spread=0.0)
    assert controller.bias == 0.0


def test_while_the_load_presses_the_leaning_does_not_rise_above_where_it_was() -> None:
    controller = BudgetController(Budget(strong_share=0.3))
    controller.decided(0.0, 0.0)
    before = controller.bias
    assert before > 0.0
    controller.decided(0.0, 1.0, pressed=True)
    assert controller.bias == before
    controller.decided(1.0, 2.0, pressed=True)
    assert controller.bias < before
    for number in range(100):
        controller.decided(0.0, 3.0 + number, pressed=True)
    assert controller.bias == before, "what fell by chance comes back"
    controller.decided(0.0, 200.0)
    assert controller.bias > before


@pytest.mark.parametrize("pressure", [0.01, 0.2, 0.5, 1.0])
def test_a_pressure_that_lasts_takes_its_part_and_the_budget_takes_no_more(pressure: float) -> None:
    rng = random.Random(3)
    controller = BudgetController(Budget(strong_share=SHARE))
    strong = []
    for number in range(20_000):
        share = pressed(biased(SHARE, controller.bias), 0.0, pressure, 0.05, None)
        strong.append(rng.random() >= threshold_for_share(QUANTILES, share))
        controller.decided(float(strong[-1]), float(number), pressed=True)
    left = pressed(SHARE, 0.0, pressure, 0.05, None)
    assert sum(strong[10_000:]) / 10_000 == pytest.approx(left, abs=0.04)


def test_the_realized_share_is_the_mean_at_first_and_forgets_later() -> None:
    controller = BudgetController(Budget(strong_share=0.3, window_requests=50))
    assert controller.realized is None
    for _ in range(10):
        controller.decided(1.0, 0.0)
    assert controller.realized == 1.0
    for _ in range(500):
        controller.decided(0.0, 0.0)
    assert controller.realized == pytest.approx(0.0, abs=0.001)


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"strong_share": 0.3, "dollars_per_thousand": 1.0},
        {"strong_share": 0.3, "window_requests": 100, "window_seconds": 60},
        {"strong_share": 0.0},
        {"strong_share": 0.3, "window_requests": 5},
    ],
)
def test_a_budget_that_means_nothing_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Budget.model_validate(wrong)
