"""The load controller in a closed loop: through the pools' queues its own decisions come back to it."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

PATH = Path(__file__).resolve().parents[3] / "benchmarks" / "load_simulation.py"


@pytest.fixture(scope="module")
def simulation() -> ModuleType:
    spec = importlib.util.spec_from_file_location("load_simulation", PATH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def run(simulation: ModuleType, controlled: bool, burst: float, seed: int = 3) -> tuple[Any, Any, Any]:
    scenario = simulation.Scenario("test", 6.0, burst, begin=60.0, end=300.0, until=480.0)
    requests, looks = simulation.simulate(scenario, simulation.configuration(controlled), seed)
    return scenario, requests, np.array(looks)


def test_a_burst_is_shorter_in_the_tail_and_the_share_comes_back(simulation: ModuleType) -> None:
    figures = {
        controlled: simulation.figures(*run(simulation, controlled, 16.0)[:2]) for controlled in (False, True)
    }
    assert figures[True]["p95_seconds"] < figures[False]["p95_seconds"] / 2
    assert 0.2 < figures[True]["strong_share"] < 0.35
    assert figures[True]["return_seconds"] <= 90.0
    # What it costs: the easiest requests of the strong pool, so less than their share.
    lost = figures[False]["quality"] - figures[True]["quality"]
    assert 0.0 < lost < figures[False]["strong_share"] - figures[True]["strong_share"]


@pytest.mark.parametrize("seed", [1, 2])
def test_where_both_pools_are_overrun_nothing_swings_wider_and_wider(
    simulation: ModuleType, seed: int
) -> None:
    scenario, requests, _ = run(simulation, True, 30.0, seed)
    settled = [r for r in requests if scenario.begin + 60.0 <= r.arrived < scenario.end]
    shares = np.array([share for _, share in simulation.block_shares(settled, 15.0)])
    half = len(shares) // 2
    # The standard deviation of a share of 450 requests is 0.022 by chance alone.
    assert shares.std() < 0.1
    assert shares[half:].std() < shares[:half].std() + 0.03
    assert shares.max() < simulation.SHARE + 0.06


def test_without_a_burst_nothing_moves(simulation: ModuleType) -> None:
    _, requests, looks = run(simulation, True, 6.0)
    share = sum(r.pool == "large" for r in requests) / len(requests)
    assert share == pytest.approx(simulation.SHARE, abs=0.03)
    assert looks[:, 2].max() < 0.2
