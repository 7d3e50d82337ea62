"""What is known of a judge's scores: `semroute calibrate --judge`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from builders import BUNDLE
from click.testing import CliRunner, Result
from openai_server import Act, OpenAIServer, in_a_thread, labeled
from semroute_lab.fit.settle import FAILURES_MAX, score_all

from semroute_extproc.cli import main
from semroute_extproc.errors import EndpointError
from semroute_extproc.serve.offline import Scorer
from semroute_extproc.strategies.calibration import read_calibration
from semroute_extproc.strategies.judge import JudgeSettings

CONFIG = """\
pools:
  small: {{cluster: s, model: m-s}}
  large: {{cluster: l, model: m-l}}
default_pool: large
strategies:
  s: {{kind: judge, weak: small, strong: large, url: "{url}", model: j, threshold: 0.5}}
"""


class FakeScorer:
    bundle = BUNDLE


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[OpenAIServer]:
    """Gives prompt number n of 40 a score of n / 40."""
    monkeypatch.setattr(Scorer, "of", lambda *_: FakeScorer())

    def answer(body: dict[str, Any]) -> dict[str, Any]:
        n = int(body["messages"][1]["content"].split("prompt ")[1].split()[0])
        return labeled({"1": max(n / 40, 1e-9), "5": max(1 - n / 40, 1e-9)})

    with in_a_thread(answer) as running:
        yield running


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    file = tmp_path / "prompts.jsonl"
    rows = [{"prompt": f"prompt {n} .", "strong_correct": 1, "weak_correct": int(n < 30)} for n in range(41)]
    file.write_text("\n".join(map(json.dumps, rows)))
    return file


def calibrate(tmp_path: Path, url: str, prompts: Path, *options: str) -> Result:
    config = tmp_path / "semroute.yaml"
    config.write_text(CONFIG.format(url=url))
    command = ["calibrate", str(prompts), "--judge", str(config), "--bootstrap", "0", *options]
    return CliRunner().invoke(main, command)


def test_the_judges_scores_of_my_prompts_become_a_calibration_its_strategy_takes(
    tmp_path: Path, server: OpenAIServer, prompts: Path
) -> None:
    out = tmp_path / "judge.json"
    done = calibrate(tmp_path, server.url, prompts, "--max-quality-drop", "0", "--out", str(out))
    assert done.exit_code == 0, done.output
    found = read_calibration(out)
    assert (found.score, found.rows) == ("judge", 41)
    assert found.quantiles[50] == pytest.approx(0.5)
    settings = {"kind": "judge", "weak": "a", "strong": "b", "url": "http://x", "model": "j"}
    assert found.artifact == JudgeSettings.model_validate({**settings, "threshold": 0.5}).digest
    # Eleven of 41 prompts need the strong model, and they have the highest scores.
    assert 0.25 <= found.share_for_drop(0.0) <= 0.29


def test_prompts_without_a_score_are_left_out(tmp_path: Path, server: OpenAIServer, prompts: Path) -> None:
    server.script.append(Act(status=400))
    done = calibrate(tmp_path, server.url, prompts, "--strong-share", "0.3", "--json")
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert (report["rows"], report["left_out"]) == (40, 1)
    server.script.append(Act(status=400))
    done = calibrate(tmp_path, server.url, prompts, "--strong-share", "0.3")
    assert done.stdout.startswith("40 prompts, 1 left out without a score, score judge,")


def test_a_judge_that_is_not_there_is_said(tmp_path: Path, server: OpenAIServer, prompts: Path) -> None:
    done = calibrate(tmp_path, "http://127.0.0.1:1/v1", prompts, "--strong-share", "0.3")
    assert done.exit_code == 69
    assert "http://127.0.0.1:1/v1: no scores, the judge's answers were: connection" in done.stderr


def test_a_judge_must_be_named_if_it_is_not_the_only_one(
    tmp_path: Path, server: OpenAIServer, prompts: Path
) -> None:
    done = calibrate(tmp_path, server.url, prompts, "--strong-share", "0.3", "--strategy", "t")
    assert done.exit_code == 78
    assert "there are s" in done.stderr


def test_a_judge_that_stops_answering_is_not_waited_for(server: OpenAIServer) -> None:
    server.script.extend([Act()] * 20 + [Act(status=500)] * 500)
    settings = {
        "kind": "judge",
        "weak": "a",
        "strong": "b",
        "url": server.url,
        "model": "j",
        "concurrency": 8,
    }
    judge = JudgeSettings.model_validate({**settings, "threshold": 0.5})
    with pytest.raises(EndpointError, match=f"no score for {FAILURES_MAX} prompts in a row.*http"):
        score_all(judge, [f"prompt {n} of many" for n in range(500)])
    assert len(server.requests) <= 20 + FAILURES_MAX + 8
