"""`semroute fit` and `semroute calibrate`: artifacts from labeled prompts, and what refuses them."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import BUNDLE, MANIFEST
from click.testing import CliRunner, Result
from semroute_lab.fit.clusters import cluster_names, k_means

from semroute_extproc.cli import main
from semroute_extproc.encoder.signals import Signals
from semroute_extproc.serve.offline import Scorer
from semroute_extproc.strategies.calibration import read_calibration
from semroute_extproc.strategies.clusters import read_clusters
from semroute_extproc.strategies.factorization import read_factorization
from semroute_extproc.strategies.similarity import read_similarity

TOPICS = ("sums", "poems")


class FakeScorer:
    """Texts begin with their topic, which is a direction; `zh` is a text that another bundle reads."""

    bundle = BUNDLE

    def score_all(self, texts: Iterable[str]) -> Iterator[Signals]:
        for number, text in enumerate(texts):
            rng = np.random.default_rng(len(text) + number)
            x = 0.2 * rng.standard_normal(4)
            x[TOPICS.index(text.split()[0]) if text.split()[0] in TOPICS else 2] += 1.0
            yield Signals(
                domain="math",
                domain_probs={},
                domain_entropy=0.0,
                difficulty=0.9 if text.startswith("sums") else 0.1 + number / 1e4,
                unknown=False,
                tokens=5,
                truncated=False,
                language="en",
                neighbors=(x / np.linalg.norm(x)).astype(np.float32),
                revision="f" * 12 if text.startswith("zh") else BUNDLE.revision,
            )


@pytest.fixture(autouse=True)
def known_bundle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Scorer, "of", lambda *_: FakeScorer())


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


@pytest.fixture
def pair_file(tmp_path: Path) -> Path:
    """Only the strong model does sums; both write poems."""
    rows = [
        {"prompt": f"{TOPICS[i % 2]} number {i}", "strong_correct": 1, "weak_correct": i % 2}
        for i in range(80)
    ]
    return write(tmp_path / "pairs.csv", rows)


SUMS, POEMS = np.asarray([1, 0, 0, 0], dtype=np.float32), np.asarray([0, 1, 0, 0], dtype=np.float32)


class TestSimilarity:
    def test_the_strong_model_wins_where_it_won(self, pair_file: Path, tmp_path: Path) -> None:
        result = run("fit", "similarity", pair_file, "-o", tmp_path / "a.npz", "--gamma", 1e4, "--json")
        assert result.exit_code == 0, result.output
        artifact = read_similarity(tmp_path / "a.npz")
        score = artifact.score()
        assert score(SUMS) > 0.9
        assert score(POEMS) < 0.6
        assert artifact.quantiles[0] < 0.6 < 0.9 < artifact.quantiles[100]
        summary = json.loads(result.stdout)
        assert summary["held_out_apgr"] > 0.7
        assert (summary["rows"], summary["bundle"], summary["revision"]) == (80, "test", MANIFEST.revision)
        assert summary["data"] == "pairs.csv"
        assert len(summary["data_sha256"]) == 64

    def test_principal_axes_hold_what_tells_prompts_apart(self, pair_file: Path, tmp_path: Path) -> None:
        run("fit", "similarity", pair_file, "-o", tmp_path / "a.npz", "--gamma", 1e4, "--axes", 2)
        artifact = read_similarity(tmp_path / "a.npz")
        assert artifact.embeddings.shape == (80, 2)
        assert artifact.score()(SUMS) > artifact.score()(POEMS) + 0.3

    def test_the_same_seed_gives_the_same_artifact(self, pair_file: Path, tmp_path: Path) -> None:
        for name in ("a", "b"):
            run("fit", "similarity", pair_file, "-o", tmp_path / f"{name}.npz")
        assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()

    def test_prompts_of_another_bundles_language_are_left_out(self, tmp_path: Path) -> None:
        rows = [
            {"prompt": f"{'zh' if i < 5 else 'sums'} {i}", "strong_correct": 1, "weak_correct": 0}
            for i in range(40)
        ]
        file = write(tmp_path / "p.csv", rows)
        assert run("fit", "similarity", file, "-o", tmp_path / "a.npz").exit_code == 0
        assert read_similarity(tmp_path / "a.npz").manifest.rows == 35


def pool_files(
    tmp_path: Path, models: tuple[str, ...] = ("sums-only", "poems-only", "none")
) -> tuple[Path, Path]:
    questions = [{"id": i, "question": f"{TOPICS[i % 2]} number {i}"} for i in range(80)]
    good = {"sums-only": 0, "poems-only": 1, "none": 2}
    outcomes = [{"id": i, **{m: int(good[m] == i % 2) for m in models}} for i in range(80)]
    return write(tmp_path / "q.csv", questions), write(tmp_path / "o.csv", outcomes)


class TestFactorization:
    def test_a_pair_of_models(self, pair_file: Path, tmp_path: Path) -> None:
        result = run("fit", "factorization", pair_file, "-o", tmp_path / "a.npz", "--rank", 4)
        assert result.exit_code == 0, result.output
        artifact = read_factorization(tmp_path / "a.npz")
        score = artifact.score("strong", "weak")
        assert (artifact.vectors.shape, artifact.projection.shape) == ((2, 4), (4, 4))
        assert score(SUMS) > score(POEMS) + 0.2

    def test_any_number_of_models_and_the_pair_is_chosen_when_it_is_used(self, tmp_path: Path) -> None:
        questions, outcomes = pool_files(tmp_path)
        result = run(
            "fit", "factorization", questions, "--outcomes", outcomes, "-o", tmp_path / "a.npz", "--json"
        )
        assert result.exit_code == 0, result.output
        assert json.loads(result.stdout)["models"] == ["sums-only", "poems-only", "none"]
        score = read_factorization(tmp_path / "a.npz").score("poems-only", "sums-only")
        assert score(POEMS) > 0.7
        assert score(SUMS) < 0.3


class TestClusters:
    def test_clusters_have_names_that_people_understand(self, pair_file: Path, tmp_path: Path) -> None:
        result = run(
            "fit", "clusters", pair_file, "-o", tmp_path / "c.npz", "--clusters", 2, "--clusterings", 3
        )
        assert result.exit_code == 0, result.output
        artifact = read_clusters(tmp_path / "c.npz")
        assert artifact.centroids.shape == (6, 4)
        assert {name.split(",")[0] for name in artifact.names} == set(TOPICS)
        one, two = artifact.membership(np.stack([SUMS, POEMS]))
        assert one @ two == pytest.approx(0.0)
        assert "sums" in result.stdout

    def test_the_learned_map_parts_what_the_models_part(self, tmp_path: Path) -> None:
        questions, outcomes = pool_files(tmp_path)
        result = run(
            "fit",
            "clusters",
            questions,
            "--outcomes",
            outcomes,
            "-o",
            tmp_path / "c.npz",
            "--clusters",
            2,
            "--learned-map",
        )
        assert result.exit_code == 0, result.output
        artifact = read_clusters(tmp_path / "c.npz")
        assert artifact.bias is not None
        sums, poems = artifact.membership(np.stack([SUMS, POEMS]))
        assert sums @ poems < 0.1

    def test_few_prompts_make_few_clusters(self, pair_file: Path, tmp_path: Path) -> None:
        run("fit", "clusters", pair_file, "-o", tmp_path / "c.npz", "--clusters", 50, "--clusterings", 1)
        assert len(read_clusters(tmp_path / "c.npz").centroids) == 8

    def test_a_word_that_is_everywhere_names_nothing(self) -> None:
        names = cluster_names(["the cat", "the cat", "the dog", "the dog"], np.asarray([0, 0, 1, 1]), 3)
        assert [name.split(",")[0] for name in names] == ["cat", "dog", "cluster 2"]

    def test_k_means_finds_the_two_groups(self) -> None:
        x = np.asarray([[1, 0], [0.9, 0.1], [0, 1], [0.1, 0.9]], dtype=np.float32)
        _, near = k_means(x, 2, seed=1)
        assert near[0] == near[1] != near[2] == near[3]


class TestBadInput:
    @pytest.mark.parametrize(
        ("row", "message"),
        [
            ({"prompt": " "}, "pairs.csv:4:prompt: expected text"),
            ({"weak_correct": "yes"}, "pairs.csv:4:weak_correct: expected a number in 0..1"),
            ({"strong_correct": "3"}, "pairs.csv:4:strong_correct: expected a number in 0..1"),
        ],
    )
    @pytest.mark.parametrize("command", [("fit", "similarity"), ("calibrate",)])
    def test_a_bad_field_is_named_by_file_row_and_column(
        self, tmp_path: Path, command: tuple[str, ...], row: dict[str, str], message: str
    ) -> None:
        rows: list[dict[str, Any]] = [
            {"prompt": "sums", "strong_correct": 1, "weak_correct": 0} for _ in range(30)
        ]
        rows[2].update(row)
        extra = ("-o", tmp_path / "a.npz") if command[0] == "fit" else ("--strong-share", 0.3)
        result = run(*command, write(tmp_path / "pairs.csv", rows), *extra)
        assert result.exit_code == 65
        assert message in result.stderr
        assert not (tmp_path / "a.npz").exists()

    @pytest.mark.parametrize("kind", ["similarity", "factorization", "clusters"])
    def test_one_prompt_again_and_again_teaches_nothing(self, tmp_path: Path, kind: str) -> None:
        rows = [{"prompt": "sums", "strong_correct": 1, "weak_correct": 0} for _ in range(30)]
        result = run("fit", kind, write(tmp_path / "pairs.csv", rows), "-o", tmp_path / "a.npz")
        assert result.exit_code == 65
        assert "expected different prompts" in result.stderr

    def test_a_directory_that_is_not_there_is_told_before_the_work(
        self, pair_file: Path, tmp_path: Path
    ) -> None:
        result = run("fit", "similarity", pair_file, "-o", tmp_path / "none" / "a.npz")
        assert result.exit_code == 2
        assert "no such directory" in result.stderr

    def test_a_model_that_is_not_there_is_told_with_those_that_are(self, tmp_path: Path) -> None:
        questions, outcomes = pool_files(tmp_path)
        common = ("fit", "similarity", questions, "--outcomes", outcomes, "-o", tmp_path / "a.npz")
        assert (
            "there are sums-only, poems-only, none" in run(*common, "--strong", "x", "--weak", "none").stderr
        )
        assert "name --strong and --weak" in run(*common).stderr

    def test_an_artifact_is_never_half_written(self, pair_file: Path, tmp_path: Path) -> None:
        (tmp_path / "a.npz").mkdir()
        result = run("fit", "similarity", pair_file, "-o", tmp_path / "a.npz")
        assert result.exit_code != 0
        assert not list(tmp_path.glob(".*.part"))


class TestCalibrate:
    def test_a_share_of_ones_own_prompts_with_an_interval(self, tmp_path: Path) -> None:
        lines = [f"{TOPICS[i % 4 > 0]} number {i}" for i in range(80)]
        file = tmp_path / "prompts.txt"
        file.write_text("\n".join(lines) + "\n\n")
        result = run("calibrate", file, "--strong-share", 0.25, "-o", tmp_path / "c.json", "--json")
        assert result.exit_code == 0, result.output
        report = json.loads(result.stdout)
        assert report["rows"] == 80
        assert report["realized_share"]["value"] == pytest.approx(0.25, abs=0.02)
        assert report["realized_share"]["low"] < 0.25 < report["realized_share"]["high"]
        assert report["quality"] is None
        found = read_calibration(tmp_path / "c.json")
        assert (found.score, found.revision, found.quality) == ("threshold", BUNDLE.revision, None)

    def test_a_bearable_drop_where_outcomes_are_known(self, pair_file: Path, tmp_path: Path) -> None:
        result = run("calibrate", pair_file, "--max-quality-drop", 0.2, "-o", tmp_path / "c.json", "--json")
        assert result.exit_code == 0, result.output
        report = json.loads(result.stdout)
        assert report["drop"]["value"] <= 0.2 + 1e-9
        assert report["drop"]["low"] <= report["drop"]["value"] <= report["drop"]["high"]
        assert report["realized_share"]["value"] < 0.52
        assert read_calibration(tmp_path / "c.json").quality is not None
        assert "drop" in run("calibrate", pair_file, "--max-quality-drop", 0.2).stdout

    @pytest.mark.parametrize("kind", ["similarity", "factorization"])
    def test_the_score_of_an_artifact(self, pair_file: Path, tmp_path: Path, kind: str) -> None:
        run("fit", kind, pair_file, "-o", tmp_path / "a.npz")
        result = run(
            "calibrate", pair_file, "--artifact", tmp_path / "a.npz", "--strong-share", 0.5, "--json"
        )
        report = json.loads(result.stdout)
        assert report["score"] == kind
        assert len(report["artifact"]) == 12

    def test_clusters_have_no_score_of_a_pair(self, pair_file: Path, tmp_path: Path) -> None:
        run("fit", "clusters", pair_file, "-o", tmp_path / "c.npz")
        result = run("calibrate", pair_file, "--artifact", tmp_path / "c.npz", "--strong-share", 0.5)
        assert result.exit_code == 65
        assert "is a clusters artifact" in result.stderr

    def test_a_drop_needs_outcomes_and_one_setting_is_enough(self, tmp_path: Path) -> None:
        file = tmp_path / "prompts.txt"
        file.write_text("sums\n" * 30)
        result = run("calibrate", file, "--max-quality-drop", 0.1)
        assert result.exit_code == 65
        assert "prompts.txt:1:outcome.strong: " in result.stderr
        assert run("calibrate", file, "--max-quality-drop", 0.1, "--strong-share", 0.1).exit_code == 2
        assert run("calibrate", file).exit_code == 2

    def test_too_few_prompts_carry_no_figure(self, tmp_path: Path) -> None:
        file = tmp_path / "prompts.txt"
        file.write_text("sums\n" * 19)
        assert "at least 20 rows, found 19" in run("calibrate", file, "--strong-share", 0.1).stderr
