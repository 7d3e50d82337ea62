"""The load controller in a closed loop: its decisions return to it through the pools' queues."""

from __future__ import annotations

import numpy as np
import pytest
from semroute_bench import load_simulation as simulation


def test_a_burst_is_shorter_in_the_tail_and_the_share_comes_back() -> None:
    runs = {controlled: simulation.simulate(16.0, controlled, seed=3) for controlled in (False, True)}
    figures = {controlled: simulation.figures(requests) for controlled, requests in runs.items()}
    assert figures[True]["p95_seconds"] < figures[False]["p95_seconds"] / 2
    assert 0.2 < figures[True]["strong_share"] < 0.35
    assert figures[True]["return_seconds"] <= 90.0
    # The cost: the easiest requests of the strong pool, so less than their share.
    lost = figures[False]["quality"] - figures[True]["quality"]
    assert 0.0 < lost < figures[False]["strong_share"] - figures[True]["strong_share"]


def test_where_both_pools_are_overrun_nothing_swings_wider_and_wider() -> None:
    requests = simulation.simulate(30.0, True)
    settled = simulation.bins(requests, simulation.BEGIN + 60.0, simulation.END, 15.0).values()
    shares = np.array([row["strong_share"] for row in settled])
    half = len(shares) // 2
    # The standard deviation of a share of 450 requests is 0.022 by chance alone.
    assert shares.std() < 0.1
    assert shares[half:].std() < shares[:half].std() + 0.03
    assert shares.max() < simulation.SHARE + 0.06


def test_without_a_burst_nothing_moves() -> None:
    found = simulation.summary(simulation.simulate(simulation.QUIET, True, seed=3))
    assert found["strong_share"] == pytest.approx(simulation.SHARE, abs=0.03)
    assert found["p99_seconds"] < 60
