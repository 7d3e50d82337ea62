"""`semroute profile`: from an endpoint or a file to a profile that a server reads."""

from __future__ import annotations

import csv
import json
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import BUNDLE
from click.testing import CliRunner, Result
from openai_server import Act, OpenAIServer, completion
from semroute_lab.common.writing import write_artifact

from semroute_extproc.cli import main
from semroute_extproc.serve.offline import Scorer
from semroute_extproc.strategies.artifact import ArtifactManifest
from semroute_extproc.strategies.clusters import ClustersArtifact
from semroute_extproc.strategies.profiles import read_profile

KINDS = ("math", "law")


class FakeScorer:
    """Puts a text into the cluster whose name it has."""

    bundle = BUNDLE

    def score_all(self, texts: Sequence[str]) -> Iterator[Any]:
        class Signals:
            def __init__(self, text: str) -> None:
                which = next((i for i, kind in enumerate(KINDS) if kind in text), 0)
                self.revision = BUNDLE.revision if "中文" not in text else "another"
                self.neighbors = np.eye(4, dtype=np.float32)[which]

        return (Signals(text) for text in texts)


@pytest.fixture(autouse=True)
def _scorer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Scorer, "of", lambda *_: FakeScorer())


@pytest.fixture
def clusters(tmp_path: Path) -> Path:
    return written(tmp_path / "clusters.npz", BUNDLE.revision)


def written(path: Path, revision: str) -> Path:
    manifest = ArtifactManifest(kind="clusters", bundle="test", revision=revision, dimensions=4, rows=10)
    write_artifact(path, ClustersArtifact(manifest, np.eye(4, dtype=np.float32)[:2], None, KINDS))
    return path


@pytest.fixture
def server() -> Iterator[OpenAIServer]:
    """Answers sums rightly and law always with B, from a loop in a thread of its own."""
    import asyncio

    def answer(body: dict[str, Any]) -> dict[str, Any]:
        asked = body["messages"][-1]["content"]
        if "math" in asked:
            a, b = asked.split("math ")[1].split("?")[0].split("+")
            return completion(f"The answer is {int(a) + int(b)}.", tokens=10)
        return completion("The answer is B.", tokens=30)

    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    running = OpenAIServer(answer)
    asyncio.run_coroutine_threadsafe(running.__aenter__(), loop).result(10)
    yield running
    asyncio.run_coroutine_threadsafe(running.__aexit__(), loop).result(10)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(10)
    loop.close()


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    rows: list[dict[str, Any]] = [
        {"prompt": f"math {n}+{n}?", "grader": "number", "answer": 2 * n} for n in range(12)
    ]
    rows += [
        {"prompt": f"law {n}", "grader": "choice", "options": ["x", "y"], "answer": "AB"[n % 2]}
        for n in range(8)
    ]
    file = tmp_path / "questions.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    return file


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["profile", *map(str, arguments)])


def test_a_profile_has_counts_errors_tokens_intervals_and_speed(
    server: OpenAIServer, questions: Path, clusters: Path, tmp_path: Path
) -> None:
    out = tmp_path / "m.json"
    common = ("--model", "org/m", "--questions", questions, "--clusters", clusters, "--out", out)
    done = invoke("run", "--endpoint", server.url, *common)
    assert done.exit_code == 0, done.output
    made = read_profile(out)
    assert (made.model, made.answers, made.errors) == ("org/m", (12.0, 8.0), (0.0, 4.0))
    assert made.output_tokens == (10.0, 30.0)
    assert made.intervals[0] is not None
    assert made.intervals[0][1] == pytest.approx(0.2425, abs=1e-3)
    assert made.seen is not None
    assert [made.seen[name] for name in ("answers", "failed", "unparsed", "cut")] == [20, 0, 0, 0]
    assert made.seen["seconds_p90"] >= made.seen["seconds_p50"] > 0.0
    assert "1 of 2 clusters have fewer than 10 answers" in done.stderr
    assert done.stdout.strip() == str(out)


def test_a_run_goes_on_where_it_stopped(
    server: OpenAIServer, questions: Path, clusters: Path, tmp_path: Path
) -> None:
    out = tmp_path / "m.json"
    command = ("run", "--endpoint", server.url, "--model", "m", "--questions", questions)
    options = ("--clusters", clusters, "--out", out, "--concurrency", 1, "--tries", 1)
    server.script.extend([Act()] * 5 + [Act(status=500)] * 10)
    failed = invoke(*command, *options)
    assert failed.exit_code == 69
    assert "500" in failed.stderr
    assert not out.exists()
    assert len(server.requests) == 15
    done = invoke(*command, *options)
    assert done.exit_code == 0, done.output
    assert len(server.requests) == 15 + 15
    assert read_profile(out).answers == (12.0, 8.0)
    assert invoke(*command, *options).exit_code == 0
    assert len(server.requests) == 30


def test_few_questions_without_an_answer_are_left_out_and_told(
    server: OpenAIServer, questions: Path, clusters: Path, tmp_path: Path
) -> None:
    server.script.append(Act(status=400))
    out = tmp_path / "m.json"
    options = ("--clusters", clusters, "--out", out, "--concurrency", 1)
    done = invoke("run", "--endpoint", server.url, "--model", "m", "--questions", questions, *options)
    assert done.exit_code == 0, done.output
    made = read_profile(out)
    assert sum(made.answers) == 19
    assert made.seen is not None
    assert made.seen["failed"] == 1
    assert "no answer: status 400" in done.stderr


def test_a_judge_grades_by_the_same_endpoint_or_another(
    server: OpenAIServer, clusters: Path, tmp_path: Path
) -> None:
    file = tmp_path / "q.jsonl"
    file.write_text(json.dumps({"prompt": "law essay", "grader": "judge"}))
    out = tmp_path / "m.json"
    common = ("run", "--endpoint", server.url, "--model", "m", "--questions", file, "--clusters", clusters)
    refused = invoke(*common, "--out", out)
    assert refused.exit_code == 2
    assert "--judge-model" in refused.stderr
    server.answer = lambda body: completion("Good. [[10]]" if body["model"] == "j" else "An essay.")
    done = invoke(*common, "--out", out, "--judge-model", "j")
    assert done.exit_code == 0, done.output
    assert [body["model"] for body in server.requests] == ["m", "j"]
    assert read_profile(out).errors == (0.0, 0.0)


@pytest.mark.parametrize(
    ("changes", "status", "message"),
    [
        ({"--questions": "nowhere.jsonl"}, 65, "nowhere.jsonl:1::"),
        ({"--clusters": "nowhere.npz"}, 65, "nowhere.npz"),
        ({"--endpoint": "http://127.0.0.1:1/v1", "--tries": "1"}, 69, "127.0.0.1:1"),
        ({"--body": "[]"}, 2, "expected a JSON object"),
        ({"--body": '{"model": "x"}'}, 2, "model cannot be set"),
        ({"--api-key-env": "NO_SUCH_KEY"}, 69, "the environment has no NO_SUCH_KEY"),
        ({"--out": "nowhere/m.json"}, 65, "nowhere/m.answers.jsonl"),
    ],
)
def test_what_is_wrong_is_one_line(
    server: OpenAIServer,
    questions: Path,
    clusters: Path,
    tmp_path: Path,
    changes: dict[str, str],
    status: int,
    message: str,
) -> None:
    options = {
        "--endpoint": server.url,
        "--model": "m",
        "--questions": str(questions),
        "--clusters": str(clusters),
        "--out": str(tmp_path / "m.json"),
    }
    done = invoke("run", *(part for pair in {**options, **changes}.items() for part in pair))
    assert done.exit_code == status, done.output
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_clusters_of_another_bundle_are_refused_with_both_named(tmp_path: Path) -> None:
    stale = written(tmp_path / "stale.npz", "f" * 12)
    file = tmp_path / "o.csv"
    file.write_text("prompt,m\nmath,1\n")
    done = invoke("fit", file, "--column", "m", "--clusters", stale)
    assert done.exit_code == 65
    assert "ffffffffffff" in done.stderr
    assert BUNDLE.revision in done.stderr


# Outcomes that are there already.


def outcomes(tmp_path: Path, rows: list[list[str]]) -> Path:
    file = tmp_path / "outcomes.csv"
    with file.open("w", newline="") as stream:
        csv.writer(stream).writerows([["prompt", "outcome.m", "tokens"], *rows])
    return file


def test_outcomes_become_a_profile_and_blanks_were_not_asked(tmp_path: Path, clusters: Path) -> None:
    file = outcomes(
        tmp_path, [["math a", "1", "10"], ["math b", "0.5", ""], ["law c", "0", "40"], ["law d", "", ""]]
    )
    out = tmp_path / "m.json"
    options = ("--clusters", clusters, "--out", out, "--tokens-column", "tokens")
    done = invoke("fit", file, "--column", "outcome.m", *options)
    assert done.exit_code == 0, done.output
    made = read_profile(out)
    assert (made.model, made.answers, made.errors) == ("m", (2.0, 1.0), (0.5, 1.0))
    assert made.output_tokens == (10.0, 40.0)
    assert made.seen is None


def test_what_another_bundle_reads_is_left_out_and_told(tmp_path: Path, clusters: Path) -> None:
    file = outcomes(tmp_path, [["math a", "1", ""], ["math 中文", "0", ""]])
    out = tmp_path / "m.json"
    done = invoke("fit", file, "--column", "outcome.m", "--clusters", clusters, "--out", out)
    assert done.exit_code == 0, done.output
    assert read_profile(out).answers == (1.0, 0.0)
    assert "1 texts are left out" in done.stderr


@pytest.mark.parametrize(
    ("rows", "column", "message"),
    [
        ([["a", "2", ""]], "outcome.m", "outcomes.csv:2:outcome.m: expected a number in 0..1, found '2'"),
        ([["a", "", ""]], "outcome.m", "expected an outcome in at least one row"),
        ([["a", "1", ""]], "outcome.n", "expected a column of this name"),
        ([[" ", "1", ""]], "outcome.m", "outcomes.csv:2:prompt: expected text"),
    ],
)
def test_outcomes_that_are_wrong_are_placed(
    tmp_path: Path, clusters: Path, rows: list[list[str]], column: str, message: str
) -> None:
    done = invoke("fit", outcomes(tmp_path, rows), "--column", column, "--clusters", clusters)
    assert done.exit_code == 65
    assert message in done.stderr


def test_a_log_of_another_tool_becomes_a_profile(tmp_path: Path, clusters: Path) -> None:
    log = tmp_path / "samples_math_2026.jsonl"
    rows = [{"doc": {"question": f"{kind} {n}"}, "acc": n % 2} for n in range(4) for kind in KINDS]
    log.write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "m.json"
    done = invoke("import", log, "--model", "org/m", "--clusters", clusters, "--out", out)
    assert done.exit_code == 0, done.output
    made = read_profile(out)
    assert (made.model, made.answers, made.errors) == ("org/m", (4.0, 4.0), (2.0, 2.0))
    assert (made.source, made.output_tokens) == ("samples_math_2026.jsonl", ())
    assert invoke("import", log, "--model", "m", "--clusters", clusters, "--metric", "f1").exit_code == 65


# For people.


def two(tmp_path: Path, clusters: Path) -> list[Path]:
    files = []
    for name, rows in (
        ("good", [["math a", "1", ""]] * 1 + [["law", "1", ""]]),
        ("poor", [["math a", "1", ""], ["law", "0", ""]]),
    ):
        file = outcomes(tmp_path, rows)
        files.append(tmp_path / f"{name}.json")
        options = ("--model", name, "--clusters", clusters, "--out", files[-1])
        assert invoke("fit", file, "--column", "outcome.m", *options).exit_code == 0
    return files


def test_profiles_stand_side_by_side_and_what_differs_comes_first(tmp_path: Path, clusters: Path) -> None:
    done = invoke("show", *two(tmp_path, clusters), "--clusters", clusters)
    assert done.exit_code == 0, done.output
    head, first, second, *_ = done.stdout.splitlines()
    assert "good" in head
    assert "poor" in head
    assert first.startswith("law")
    assert second.startswith("math")
    assert "1.00 [0.21, 1.00] 1" in first
    assert "0.00 [0.00, 0.79] 1" in first


def test_the_same_as_json(tmp_path: Path, clusters: Path) -> None:
    done = invoke("show", *two(tmp_path, clusters), "--json")
    found = json.loads(done.stdout)
    assert [model["model"] for model in found["models"]] == ["good", "poor"]
    law = found["models"][1]["by_cluster"][1]
    assert (law["cluster"], law["answers"], law["strength"]) == ("cluster 1", 1.0, 0.0)


def test_profiles_of_different_clusters_are_not_compared(tmp_path: Path, clusters: Path) -> None:
    [good, poor] = two(tmp_path, clusters)
    document = json.loads(poor.read_text())
    document["clusters"] = "0" * 12
    poor.write_text(json.dumps(document))
    done = invoke("show", good, poor)
    assert done.exit_code == 65
    assert str(poor) in done.stderr
    assert "000000000000" in done.stderr


def test_a_profile_that_lacks_figures_of_its_endpoint_is_not_shown(tmp_path: Path, clusters: Path) -> None:
    [good, _] = two(tmp_path, clusters)
    good.write_text(json.dumps({**json.loads(good.read_text()), "seen": {"answers": 2}}))
    done = invoke("show", good)
    assert (done.exit_code, done.stdout) == (65, "")
    assert f"{good}: seen: expected answers, concurrency, cut" in done.stderr
