"""When the check in CI fails, and when it does not."""

from __future__ import annotations

import random
from math import sqrt
from statistics import median, stdev

import pytest
from bench_runs import HERE, RATIOS, recorded, rounds
from semroute_bench import report as check
from semroute_bench.measuring import each


def losses(*arguments: object) -> list[str]:
    return [line for line, lost in check.compare(*arguments).items() if lost]  # type: ignore[arg-type]


@pytest.mark.parametrize("sigma", [0.0, 0.02, 0.1, 0.3])
@pytest.mark.parametrize("name", check.WATCHED)
def test_the_check_lets_noise_pass_as_large_as_the_rounds_show_it(sigma: float, name: str) -> None:
    """A median moves by up to two standard errors of its difference, and by a little for no reason."""
    error = check.MEDIAN_ERROR * sigma * sqrt(1 / 7 + 1 / 5)
    worse = RATIOS[name] * (1.04 + 2 * error)
    assert losses(recorded(sigma), rounds(sigma, **{name: worse}), HERE) == []


@pytest.mark.parametrize(("sigma", "loss"), [(0.01, 0.1), (0.03, 0.2), (0.1, 0.5), (0.2, 1.0)])
@pytest.mark.parametrize("name", check.WATCHED)
def test_the_check_fails_on_a_clear_loss_and_the_quieter_the_smaller(
    sigma: float, loss: float, name: str
) -> None:
    now = rounds(sigma, **{name: RATIOS[name] * (1 + loss)})
    [line] = losses(recorded(sigma), now, HERE)
    assert line.startswith(name)
    assert "allowed" in line


def test_a_quiet_record_does_not_make_a_noisy_run_fail() -> None:
    now = rounds(0.3, **{"named cpu / floor": RATIOS["named cpu / floor"] * 1.3})
    assert losses(recorded(0.01), now, HERE) == []


def test_the_check_seldom_fails_on_the_same_code() -> None:
    """A thousand checks with rounds drawn from one normal distribution, as wide as on a busy machine."""
    draw, failed = random.Random(1), 0
    for _ in range(1_000):
        drawn = {
            count: {name: [draw.gauss(1.3, 0.15) for _ in range(count)] for name in check.WATCHED}
            for count in (7, 5)
        }
        run_of_seven = {
            "ratios": each(median, drawn[7]),
            "spreads": each(stdev, drawn[7]),
            "rounds": 7,
            "machine": HERE,
        }
        failed += bool(losses(run_of_seven, drawn[5], HERE))
    assert failed < 20


def test_the_check_never_fails_on_a_gain() -> None:
    now = rounds(0.02, **dict.fromkeys(check.WATCHED, 0.1))
    assert losses(recorded(0.02), now, HERE) == []


def test_another_machine_is_held_to_what_does_not_depend_on_the_speed_of_a_pass() -> None:
    """A pass that takes a third of the time makes the same overhead three times as much of it."""
    now = rounds(0.02, **{"server cpu / bare": 2.5})
    other = {**HERE, "instructions": ["avx512", "vnni"]}
    assert losses(recorded(0.02), now, other) == []
    [line] = losses(recorded(0.02), rounds(0.02, **{"own cpu / yardstick": 2.0}), other)
    assert line.startswith("own cpu / yardstick")


def test_a_record_without_spreads_is_refused() -> None:
    with pytest.raises(ValueError, match="no spreads"):
        check.compare({"ratios": RATIOS, "rounds": 7}, rounds(0.1), HERE)
