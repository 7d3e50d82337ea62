"""The load controller in a closed loop: its decisions return to it through the pools' queues."""

from __future__ import annotations

import numpy as np
import pytest
from semroute_bench import load_simulation as simulation
from semroute_bench.load_simulation import Request, Scenario


def run(controlled: bool, burst: float, seed: int = 3) -> tuple[Scenario, list[Request]]:
    scenario = Scenario("test", 6.0, burst, begin=60.0, end=240.0, until=390.0)
    return scenario, simulation.simulate(scenario, controlled, seed)


def test_a_burst_is_shorter_in_the_tail_and_the_share_comes_back() -> None:
    figures = {controlled: simulation.figures(*run(controlled, 16.0)) for controlled in (False, True)}
    assert figures[True]["p95_seconds"] < figures[False]["p95_seconds"] / 2
    assert 0.2 < figures[True]["strong_share"] < 0.35
    assert figures[True]["return_seconds"] <= 90.0
    # The cost: the easiest requests of the strong pool, so less than their share.
    lost = figures[False]["quality"] - figures[True]["quality"]
    assert 0.0 < lost < figures[False]["strong_share"] - figures[True]["strong_share"]


def test_where_both_pools_are_overrun_nothing_swings_wider_and_wider() -> None:
    scenario, requests = run(True, 30.0, seed=1)
    settled = simulation.bins(requests, scenario.begin + 60.0, scenario.end, 15.0).values()
    shares = np.array([row["strong_share"] for row in settled])
    half = len(shares) // 2
    # The standard deviation of a share of 450 requests is 0.022 by chance alone.
    assert shares.std() < 0.1
    assert shares[half:].std() < shares[:half].std() + 0.03
    assert shares.max() < simulation.SHARE + 0.06


def test_without_a_burst_nothing_moves() -> None:
    _, requests = run(True, 6.0)
    found = simulation.summary(requests)
    assert found["strong_share"] == pytest.approx(simulation.SHARE, abs=0.03)
    assert found["p99_seconds"] < 60
