"""A part measured alone joins the run that is recorded."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import median, stdev
from typing import Any

import pytest
from bench_runs import HERE, run
from click.testing import CliRunner
from semroute_bench import cli, direct, measuring, report
from semroute_bench.cli import bench
from semroute_bench.measuring import Size, each


@pytest.fixture
def measured_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a recorded run of this machine, whose memory test gives what it was asked for."""

    async def growth(size: Size, *_: Any) -> dict[str, Any]:
        grown = {"requests": size.growth_requests, "workers": 1, "warm MiB": [1.0], "after MiB": [1.5]}
        return {"growth": grown}

    monkeypatch.setattr("semroute_bench.measuring.describe", lambda: {**HERE, "load_before": 9.0})
    monkeypatch.setitem(cli.PARTS, "growth", growth)  # type: ignore[arg-type]
    monkeypatch.setattr("semroute_bench.report.tables", lambda _: [])
    before = {**run(), "schema": cli.SCHEMA, "machine": HERE, "measured": {"costs": {"seconds": 1.0}}}
    (tmp_path / "bench.json").write_text(json.dumps(before))
    return tmp_path


def test_one_part_is_measured_and_the_rest_stays_as_it_was_recorded(measured_alone: Path) -> None:
    file = measured_alone / "bench.json"
    before = json.loads(file.read_text())
    done = CliRunner().invoke(bench, ["--only", "growth", "--out", str(measured_alone)])
    assert done.exit_code == 0, done.output
    after = json.loads(file.read_text())
    assert after["growth"]["requests"] == 100_000
    assert after["measured"].keys() == {"costs", "growth"}
    assert {key for key in before if after[key] != before[key]} == {"growth", "measured"}
    [aim] = [aim for aim in after["aims"] if aim["what"] == "growth after warm-up"]
    assert (aim["value"], aim["note"]) == (0.5, "over 100,000 requests, workers: 1")


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"machine": {**HERE, "cores": 64}}, "another machine: its cores is 64"),
        ({"schema": 2}, "has schema 2"),
    ],
)
def test_a_part_joins_no_run_that_it_cannot_be_compared_with(
    measured_alone: Path, change: dict[str, Any], why: str
) -> None:
    file = measured_alone / "bench.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    done = CliRunner().invoke(bench, ["--only", "growth", "--out", str(measured_alone)])
    assert done.exit_code == 2
    assert why in " ".join(done.output.replace("│", " ").split())


@pytest.mark.parametrize("where", [[], ["--out", "nowhere"]])
def test_a_part_needs_a_recorded_run(where: list[str]) -> None:
    done = CliRunner().invoke(bench, ["--only", "growth", *where])
    assert done.exit_code == 2
    assert "recorded run" in done.output


async def test_a_real_run_passes_against_itself_and_fails_against_half_of_its_ratios(tmp_path: Path) -> None:
    samples, more = await direct.rounds(Size(rounds=2, passes=2, streams=64), tmp_path, 1)
    assert more["tokens"] == 64
    now, here = direct.ratios(samples, 1), measuring.describe()
    assert set(report.WATCHED) <= now.keys()
    before = {"ratios": each(median, now), "spreads": each(stdev, now), "rounds": 2, "machine": here}
    assert not any(report.compare(before, now, here).values())
    cheaper = {**before, "ratios": {name: value / 2 for name, value in each(median, now).items()}}
    steady = {name: [value] * 2 for name, value in each(median, now).items()}
    cheaper["spreads"] = dict.fromkeys(now, 0.0)
    assert all(report.compare(cheaper, steady, here).values())
