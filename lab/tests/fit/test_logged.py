"""`semroute calibrate` on the decision log, as it is and with outcomes that came back."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import BUNDLE
from click.testing import CliRunner, Result

from semroute_extproc.cli import main
from semroute_extproc.serve.offline import Scorer
from semroute_extproc.strategies.calibration import read_calibration


class Shipped:
    """Stands for the encoder, which the scores of a log do not need: it reads no text."""

    bundle, revisions = BUNDLE, {BUNDLE.revision}

    def score_all(self, texts: list[str]) -> Iterator[Any]:
        assert not texts
        return iter(())


@pytest.fixture(autouse=True)
def known_bundle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Scorer, "of", lambda *_: Shipped())


def decision(number: int, difficulty: float, **more: Any) -> dict[str, Any]:
    facts = {"max_output_tokens": 0}
    known = {"record": "decision", "request_id": f"id-{number}", "revision": BUNDLE.revision}
    return {**known, "facts": facts, "difficulty": difficulty, **more}


def write(folder: Path, records: list[dict[str, Any]]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "decisions-0.jsonl").write_text("".join(json.dumps(each) + "\n" for each in records))
    return folder


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def report_of(*arguments: object) -> dict[str, Any]:
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def test_a_share_is_of_the_logged_difficulties(tmp_path: Path) -> None:
    named = {"record": "decision", "request_id": "x", "kind": "named"}
    log = write(tmp_path / "log", [decision(n, n / 200) for n in range(200)] + [named])
    out = tmp_path / "c.json"
    report = report_of("calibrate", log, "--strong-share", 0.25, "-o", out)
    assert report["rows"] == 200
    assert report["threshold"] == pytest.approx(0.75, abs=0.01)
    calibration = read_calibration(out)
    assert (calibration.score, calibration.revision) == ("threshold", BUNDLE.revision)
    assert (calibration.data, calibration.quality) == ("log", None)
    again = report_of("calibrate", log / "decisions-0.jsonl", "--strong-share", 0.25)
    assert again["threshold"] == report["threshold"]


def test_signals_of_another_bundle_are_not_used(tmp_path: Path) -> None:
    other = [decision(n, 0.99, revision="f" * 12) for n in range(50)]
    log = write(tmp_path / "log", [decision(n, n / 200) for n in range(100)] + other)
    assert report_of("calibrate", log, "--strong-share", 0.5)["rows"] == 100


def explored(rng: np.random.Generator, count: int, coin: float = 0.25) -> Iterator[dict[str, Any]]:
    """The weak model is right below a difficulty of 0.6, the strong one always; a coin draws the pool."""
    for number in range(count):
        difficulty = float(rng.uniform())
        strong = rng.uniform() < coin
        model = ("org/small", "org/large")[strong]
        good = strong or difficulty < 0.6
        drawn = {"model": model, "pool": model[4:], "propensity": coin if strong else 1 - coin}
        yield decision(number, difficulty, **drawn)
        label = {"outcome": float(good), "label": ("bad", "good")[good], "source": "user"}
        yield {"record": "outcome", "request_id": f"id-{number}", **label}


MODELS = ("--strong-model", "org/large", "--weak-model", "org/small")


def test_a_quality_drop_is_found_from_draws_and_the_outcomes_that_came_back(tmp_path: Path) -> None:
    """Each request has the outcome of one model only. The truth: a share of 0.4 loses nothing."""
    log = write(tmp_path / "log", list(explored(np.random.default_rng(0), 4_000)))
    out = tmp_path / "c.json"
    report = report_of("calibrate", log, "--max-quality-drop", 0.02, *MODELS, "-o", out)
    assert report["rows"] == 4_000
    assert report["wanted_share"] == pytest.approx(0.4, abs=0.06)
    assert report["threshold"] == pytest.approx(0.6, abs=0.06)
    assert report["drop"]["low"] < 0.02
    calibration = read_calibration(out)
    assert calibration.quality is not None
    # Always weak is right for 60 %, always strong for all.
    assert calibration.quality[0] == pytest.approx(0.6, abs=0.04)
    assert calibration.quality[-1] == pytest.approx(1.0, abs=0.01)


def test_the_outcomes_may_come_from_a_file_and_replace_earlier_ones(tmp_path: Path) -> None:
    both = list(explored(np.random.default_rng(0), 400))
    log = write(tmp_path / "log", [each for each in both if each["record"] == "decision"])
    file = tmp_path / "graded.csv"
    rows = [f"{each['request_id']},{each['label']},user" for each in both if each["record"] == "outcome"]
    file.write_text("\n".join(["request_id,label,source", *rows, "unknown,good,user"]) + "\n")
    for _ in range(2):
        summary = report_of("outcomes", file, log)
        assert (summary["outcomes"], summary["decisions"]) == (401, 400)
        assert sum(each["count"] for each in summary["joined"].values()) == 400
        assert summary["joined"]["large"]["value"] == 1.0
        assert summary["joined"]["small"]["low"] < 0.6 < summary["joined"]["small"]["high"]
    assert len(list(log.iterdir())) == 2
    by_file = report_of("calibrate", log, "--max-quality-drop", 0.05, *MODELS)
    by_post = report_of("calibrate", write(tmp_path / "other", both), "--max-quality-drop", 0.05, *MODELS)
    assert by_file["threshold"] == by_post["threshold"]


def test_the_last_outcome_of_a_source_counts_and_sources_are_averaged(tmp_path: Path) -> None:
    def said(value: float, source: str) -> dict[str, Any]:
        return {"record": "outcome", "request_id": "id-0", "outcome": value, "source": source}

    records = [decision(0, 0.5, pool="small"), said(0.0, "user"), said(1.0, "user"), said(0.0, "grader")]
    log = write(tmp_path / "log", records)
    (tmp_path / "one.jsonl").write_text('{"request_id": "id-9", "score": 0.5}\n')
    summary = report_of("outcomes", tmp_path / "one.jsonl", log)
    assert summary["joined"]["small"]["value"] == 0.5


def test_an_outcome_is_of_the_last_of_several_attempts(tmp_path: Path) -> None:
    first = decision(0, 0.5, pool="small")
    second = decision(0, 0.5, pool="large", failed_pools={"small": "503"})
    outcome = {"record": "outcome", "request_id": "id-0", "outcome": 1.0, "source": "user"}
    log = write(tmp_path / "log", [first, second, outcome])
    (tmp_path / "one.jsonl").write_text('{"request_id": "id-9", "label": "bad"}\n')
    assert report_of("outcomes", tmp_path / "one.jsonl", log)["joined"].keys() == {"large"}


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ("id,2,,user", ":2:: Expected `float` <= 1.0 - at `$.score`"),
        ("id,,,user", ":2:: give exactly one of score and label"),
        (",1,,user", ":2:: Object missing required field `request_id`"),
        ("id,,fine,user", "Invalid enum value 'fine'"),
    ],
)
def test_a_wrong_row_of_outcomes_is_refused_with_its_place(tmp_path: Path, row: str, problem: str) -> None:
    log = write(tmp_path / "log", [decision(0, 0.5)])
    file = tmp_path / "o.csv"
    file.write_text(f"request_id,score,label,source\n{row}\n")
    result = run("outcomes", file, log)
    assert result.exit_code == 65, result.output
    assert problem in result.output
    assert len(list(log.iterdir())) == 1


def test_a_drop_without_draws_is_refused_with_what_is_missing(tmp_path: Path) -> None:
    log = write(tmp_path / "log", [decision(n, n / 200) for n in range(200)])
    result = run("calibrate", log, "--max-quality-drop", 0.02, *MODELS)
    assert result.exit_code == 65
    assert "20 drawn decisions of org/large and org/small with outcomes" in result.output


def test_a_table_of_a_log_has_its_prompts_and_the_outcomes_of_each_model(tmp_path: Path) -> None:
    from semroute_lab.common.tables import read_table

    def asked(number: int, prompt: str, model: str, value: float | None) -> list[dict[str, Any]]:
        made = [decision(number, 0.5, prompt=prompt, model=model)]
        said = {"record": "outcome", "request_id": f"id-{number}", "outcome": value, "source": "user"}
        return made if value is None else [*made, said]

    rows = (
        asked(0, "a", "s", 1.0)
        + asked(1, "a", "s", 0.0)
        + asked(2, "a", "w", 0.25)
        + asked(3, "b", "w", None)
    )
    usage = {"record": "usage", "request_id": "id-3", "output_tokens": 7}
    table = read_table(write(tmp_path / "log", [*rows, usage, decision(4, 0.1)]))
    assert table.columns == {
        "prompt": ["a", "b"],
        "outcome.s": ["0.5", ""],
        "outcome.w": ["0.25", ""],
        "tokens.w": ["", "7.0"],
    }
