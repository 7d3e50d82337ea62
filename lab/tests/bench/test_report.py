"""The aims: which hold, which do not, and which could not be measured."""

from __future__ import annotations

from typing import Any

import pytest
from bench_runs import RATIOS, run
from rich.console import Console
from semroute_bench import report


def test_all_aims_hold_in_a_good_run() -> None:
    found = report.aims(run())
    assert [aim.what for aim in found if aim.holds is False] == []
    assert sum(aim.holds is None for aim in found) == 3, "only what needs another machine is not measured"


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"ratios": {**RATIOS, "server cpu / bare": 1.2}}, "server driven directly"),
        ({"ratios": {**RATIOS, "named rate / floor": 0.7}}, "do-nothing"),
        ({"start seconds": 2.5}, "start to SERVING"),
        (
            {
                "growth": {
                    "requests": 9,
                    "workers": 2,
                    "warm MiB": [200.0, 190.0],
                    "after MiB": [200.0, 196.0],
                }
            },
            "growth",
        ),
    ],
)
def test_an_aim_that_is_missed_says_so(changes: dict[str, Any], what: str) -> None:
    missed = [aim for aim in report.aims(run(**changes)) if aim.holds is False]
    assert [what in aim.what for aim in missed] == [True]


def test_what_could_not_be_measured_neither_holds_nor_fails() -> None:
    ratios = {name: value for name, value in RATIOS.items() if name != "int8 / fp32"}
    found = report.aims(run(gateway=None, ratios=ratios))
    unmeasured = [aim for aim in found if aim.holds is None]
    assert len(unmeasured) == 5
    assert all(aim.note for aim in unmeasured)


def gpu_row(workers: int, at_once: int, rate: float, p50: float, p99: float, decided: float = 1.0) -> Any:
    ms = {"p50": p50, "p90": p50, "p99": p99, "p999": p99}
    return {"workers": workers, "at once": at_once, "a second": rate, "decided": decided, "ms": ms}


def test_a_gpus_rate_is_the_best_with_a_short_tail_and_everything_decided() -> None:
    rows = [
        gpu_row(1, 1, 400.0, 2.5, 3.0),
        gpu_row(1, 64, 9_000.0, 5.0, 9.0),
        gpu_row(1, 512, 14_000.0, 20.0, 40.0),
        gpu_row(2, 64, 12_000.0, 5.0, 9.5),
        gpu_row(2, 128, 13_000.0, 5.0, 9.5, decided=0.5),
    ]
    found = {aim.what: aim for aim in report.aims(run(gpu={"device": "NVIDIA H200", "rows": rows}))}
    rate = found["GPU: decisions per second at p99 <= 10 ms"]
    assert (rate.value, rate.holds, rate.note) == (12_000.0, True, "NVIDIA H200, 2 workers, 64 at once")
    assert found["GPU: single decision p50"].value == 2.5


def test_a_gpu_whose_tail_is_always_too_long_has_no_rate_that_counts() -> None:
    gpu = {"device": "slow", "rows": [gpu_row(1, 1, 10.0, 50.0, 90.0)]}
    aims = [aim for aim in report.aims(run(gpu=gpu)) if aim.what.startswith("GPU")]
    assert [(aim.value, aim.holds) for aim in aims] == [(0.0, False), (50.0, False)]


def test_many_workers_are_compared_with_one() -> None:
    rows = [gpu_row(1, 2, 50.0, 20.0, 30.0), gpu_row(8, 16, 350.0, 20.0, 30.0)]
    [aim] = [aim for aim in report.aims(run(workers={"rows": rows})) if "8 workers" in aim.what]
    assert (aim.value, aim.holds) == (7.0, True)


def test_a_run_is_shown_as_tables() -> None:
    console = Console(width=200)
    with console.capture() as capture:
        for table in report.tables(run()):
            console.print(table)
    text = capture.get()
    assert "Aims" in text
    assert "CPU ms by length" in text
    assert "of saturation" in text
    assert "Workers" not in text, "there is no table of what was not measured"
