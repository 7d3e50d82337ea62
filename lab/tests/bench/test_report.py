"""The aims: which hold, which do not, and which could not be measured."""

from __future__ import annotations

from typing import Any

import pytest
from bench_runs import RATIOS, run
from rich.console import Console
from semroute_bench import report


def test_all_aims_hold_in_a_good_run() -> None:
    found = list(report.aims(run()))
    assert [aim["what"] for aim in found if aim["holds"] is False] == []
    assert sum(aim["holds"] is None for aim in found) == 2, "only what needs another machine is not measured"


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
    missed = [aim["what"] for aim in report.aims(run(**changes)) if aim["holds"] is False]
    assert [what in each for each in missed] == [True]


def test_what_could_not_be_measured_neither_holds_nor_fails() -> None:
    unmeasured = [aim for aim in report.aims(run(gateway={"left out": "no Envoy"})) if aim["holds"] is None]
    assert len(unmeasured) == 3
    assert all(aim["note"] for aim in unmeasured)


def test_a_gpus_row_is_judged_by_its_rate_and_tail() -> None:
    row = {"at once": 64, "a second": 9_000.0, "decided": 1.0, "ms": {"p50": 2.5, "p99": 9.0}}
    found = [aim for aim in report.aims(run(gpu=row)) if aim["what"].startswith("GPU")]
    note = "64 at once, 100% decided, p50 2.50 ms"
    judged = [(aim["value"], aim["holds"], aim["note"]) for aim in found]
    assert judged == [(9_000.0, False, note), (9.0, True, note)]


def test_a_run_is_shown_as_tables() -> None:
    console = Console(width=200)
    with console.capture() as capture:
        for table in report.tables(run()):
            console.print(table)
    text = capture.get()
    assert "Aims" in text
    assert "CPU ms by length" in text
    assert "Open loop" in text
    assert "share of knee" in text
