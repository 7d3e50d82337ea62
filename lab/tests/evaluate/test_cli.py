"""`eval` end to end over small files, with scores whose quality is known beforehand."""

from __future__ import annotations

import csv
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from openai_server import Act, OpenAIServer, in_a_thread, labeled
from semroute_lab.evaluate import cli
from semroute_lab.evaluate.scoring import Scores

MIXED = Path(__file__).resolve().parents[3] / "datasets" / "mixed.jsonl"
LABELS = ("biology", "law", "math")
WORDS = {
    "biology": ("cell", "enzyme", "species", "membrane"),
    "law": ("contract", "court", "tort", "statute"),
    "math": ("integral", "matrix", "prime", "theorem"),
}


class KnownSource:
    """Reads label and difficulty off the text: `<label word> … d<percent>`; the rest is a hash."""

    def describe(self) -> dict[str, object]:
        return {"name": "known", "version": "1", "revision": "0" * 12}

    quantiles = tuple(np.linspace(0.0, 1.0, 101).tolist())

    def score(self, texts: list[str]) -> Scores:
        domain, difficulty, embedding = [], [], []
        for text in texts:
            words = text.lower().split()
            row = np.full(3, 0.1)
            for i, label in enumerate(LABELS):
                row[i] += 5.0 * any(word in WORDS[label] for word in words)
            domain.append(row / row.sum())
            marks = [int(word[1:]) for word in words if word[0] == "d" and word[1:].isdigit()]
            difficulty.append(marks[0] / 100 if marks else 0.5)
            embedding.append(np.append(row, 0.01 * difficulty[-1]))
        vectors = np.asarray(embedding)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        vectors = vectors.astype("f4")
        unknown = np.asarray(["gibberish" in text for text in texts])
        return Scores(
            LABELS, np.asarray(domain), np.asarray(difficulty), vectors.max(axis=1), vectors, vectors, unknown
        )


@pytest.fixture(autouse=True)
def known_bundle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "open_bundle", lambda directory, **given: KnownSource())


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli.evaluate, [str(argument) for argument in arguments])


def report(*arguments: object) -> dict:
    result = run(*arguments, "--json", "-")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def write(path: Path, header: list[str], rows: list[list[object]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([header, *rows])
    return path


@pytest.fixture
def pair_file(tmp_path: Path) -> Path:
    """The strong model is right wherever difficulty is high; length says nothing."""
    rng = np.random.default_rng(0)
    rows = []
    for i in range(300):
        label = LABELS[i % 3]
        difficulty = int(rng.integers(0, 100))
        text = f"{WORDS[label][i % 4]} {'x' * int(rng.integers(1, 50))} {i} d{difficulty}"
        weak = int(rng.random() > difficulty / 100)
        rows.append([text, 1, weak, "dev" if i % 10 else "gold", label])
    return write(
        tmp_path / "pair.csv", ["prompt", "strong_correct", "weak_correct", "split", "subject"], rows
    )


@pytest.fixture
def intent_file(tmp_path: Path) -> Path:
    rows = []
    for i in range(240):
        label = LABELS[i % 3]
        words = WORDS[label]
        rows.append(
            [f"{words[i % 4]} {words[(i // 4) % 4]} number {i} d50", label, "train" if i < 120 else "test"]
        )
    rows += [[f"hello there {i} d50", "oos", "test"] for i in range(40)]
    return write(tmp_path / "intent.csv", ["text", "intent", "split"], rows)


@pytest.fixture
def pool_files(tmp_path: Path) -> tuple[Path, Path, Path]:
    """Six models, each good at one subject; the three large ones are good at everything."""
    rng = np.random.default_rng(1)
    names = ["bio-7b", "law-7b", "math-7b", "big-70b", "huge-8x22b", "giant-70B"]
    questions, outcomes = [], []
    for i in range(400):
        topic = i % 3
        questions.append([f"q{i}", f"{WORDS[LABELS[topic]][i % 4]} {i} d50"])
        rates = [0.9 if m == topic else 0.2 for m in range(3)] + [0.8] * 3
        outcomes.append([f"q{i}", *(int(rng.random() < rate) for rate in rates)])
    first = write(tmp_path / "questions.csv", ["id", "prompt"], questions)
    second = write(tmp_path / "outcomes.csv", ["id", *names], outcomes)
    roles = [[name, "unseen-dev" if i < 3 else "train"] for i, name in enumerate(names)]
    return first, second, write(tmp_path / "models.csv", ["model", "role"], roles)


def rows_by_name(rows: list[dict]) -> dict[str, dict]:
    return {row["name"]: row for row in rows}


def test_pair_reports_every_row_and_ours_beats_length_here(pair_file: Path) -> None:
    found = report("pair", pair_file, "--bootstrap", 200)
    rows = rows_by_name(found["routers"])
    assert list(rows) == [
        "random", "length", "domain table", "subject table", "ours", "oracle", "always-weak", "always-strong",
    ]  # fmt: skip
    # The gain is the difficulty d, uniform: PGR(x) = 2x - x^2, whose mean is 2/3.
    assert rows["ours"]["apgr"]["value"] == pytest.approx(2 / 3, abs=0.05)
    assert rows["ours"]["apgr_minus_length"]["low"] > 0.05
    assert rows["oracle"]["apgr"]["value"] >= rows["ours"]["apgr"]["value"]
    assert rows["random"]["apgr"]["value"] == pytest.approx(0.5, abs=0.02)
    assert rows["always-strong"]["quality"] == found["models"]["strong"] == 1.0
    assert found["models"]["cells"]["weak_only"] == 0
    assert found["data"] | {"sha256": ""} == {
        "file": "pair.csv", "sha256": "", "rows": 300, "splits": {"dev": 270, "gold": 30},
    }  # fmt: skip
    assert {row["name"] for row in found["within_subject"]} >= {"length", "ours", "ours, length out"}
    assert found["calibration"]["auroc"] > 0.7
    assert found["threshold"] is None


def test_intervals_contain_their_values_and_shrink_to_none_without_replicates(pair_file: Path) -> None:
    ours = rows_by_name(report("pair", pair_file, "--bootstrap", 100)["routers"])["ours"]["apgr"]
    assert ours["low"] < ours["value"] < ours["high"]
    bare = rows_by_name(report("pair", pair_file, "--bootstrap", 0)["routers"])["ours"]["apgr"]
    assert bare == {"value": ours["value"], "low": None, "high": None}


def test_reports_are_the_same_on_every_run_of_one_seed(pair_file: Path) -> None:
    first = report("pair", pair_file, "--bootstrap", 50, "--seed", 3)
    assert first == report("pair", pair_file, "--bootstrap", 50, "--seed", 3)
    assert first != report("pair", pair_file, "--bootstrap", 50, "--seed", 4)


STRATEGIES = {"similarity", "similarity, 200 nearest", "factorization", "clusters", "intent"}


@pytest.fixture
def topical_file(tmp_path: Path) -> Path:
    """The weak model fails on one topic of three, whatever the difficulty says."""
    rows = [
        [f"{WORDS[LABELS[i % 3]][i % 4]} number {i} d50", 1, int(i % 3 > 0), "dev" if i % 2 else "gold"]
        for i in range(400)
    ]
    return write(tmp_path / "topics.csv", ["prompt", "strong_correct", "weak_correct", "split"], rows)


def test_strategies_with_an_artifact_learn_the_topic_from_the_rows_they_are_fitted_on(
    topical_file: Path,
) -> None:
    fit = ["--split", "dev", "--fit", topical_file, "--fit-split", "gold"]
    for options in (fit, ["--split", "dev", "--cross-fit"]):
        rows = rows_by_name(report("pair", topical_file, "--bootstrap", 0, *options)["routers"])
        assert set(rows) >= STRATEGIES
        for name in STRATEGIES:
            # A third of the requests is all there is to gain: the best APGR is 1 - 1/6.
            assert rows[name]["apgr_exact"]["value"] == pytest.approx(5 / 6, abs=0.02), name
        assert rows["ours"]["apgr_exact"]["value"] < 0.6


def test_prompts_that_are_evaluated_are_not_fitted_on(topical_file: Path) -> None:
    result = run("pair", topical_file, "--fit", topical_file, "--bootstrap", 0)
    assert result.exit_code == 65
    assert "expected at least 20 rows, found 0" in result.output


@pytest.mark.parametrize(
    "options",
    [["--cross-fit", "--no-bundle"], ["--cross-fit", "--fit", "FILE"], ["--fit", "FILE", "--no-bundle"]],
)
def test_fitting_needs_a_bundle_and_one_way(topical_file: Path, options: list[str]) -> None:
    given = [str(topical_file) if option == "FILE" else option for option in options]
    assert run("pair", topical_file, *given).exit_code == 2


def test_labels_are_rows_next_to_the_others_with_their_auroc_and_a_note(topical_file: Path) -> None:
    fit = ["--fit", topical_file, "--fit-split", "gold", "--split", "dev", "--bootstrap", 0]
    result = run("pair", topical_file, *fit, "--labels", "det,win", "--json", "-")
    assert result.exit_code == 0, result.output
    rows = rows_by_name(json.loads(result.stdout)["routers"])
    for name in ("label det", "label win"):
        assert rows[name]["auroc"]["value"] == 1.0
        assert rows[name]["apgr_exact"]["value"] == pytest.approx(5 / 6, abs=0.02), name
    assert "the same label" in rows["label det"]["note"]
    assert rows["label win"]["note"] is None
    assert rows["ours"]["auroc"]["value"] == pytest.approx(0.5)
    assert "is the strong model better?" in result.stderr


def test_labels_need_rows_to_fit_on_and_are_those_there_are(topical_file: Path) -> None:
    assert "--labels needs --fit or --cross-fit" in run("pair", topical_file, "--labels", "det").stderr
    unknown = run("pair", topical_file, "--cross-fit", "--labels", "det,other").stderr
    assert "expected some of det, prob, trans, win" in unknown


JUDGE = """\
pools: {{small: {{cluster: s, model: m-s}}, large: {{cluster: l, model: m-l}}}}
default_pool: large
strategies:
  judged:
    {{kind: judge, weak: small, strong: large, url: "{url}", model: j, threshold: 0.5, concurrency: 4}}
"""


@pytest.fixture
def judge() -> Iterator[OpenAIServer]:
    """A live endpoint whose model is asked for a label, and says what the difficulty mark says."""

    def answer(body: dict[str, Any]) -> dict[str, Any]:
        mark = int(re.search(r"\bd(\d+)", body["messages"][1]["content"])[1])  # type: ignore[index]
        return labeled({"1": max(mark / 100, 1e-9), "5": max(1 - mark / 100, 1e-9)})

    with in_a_thread(answer) as running:
        yield running


def judged(tmp_path: Path, url: str) -> Path:
    config = tmp_path / "semroute.yaml"
    config.write_text(JUDGE.format(url=url))
    return config


def test_a_judge_is_asked_about_every_prompt_a_few_at_once_and_is_a_row(
    pair_file: Path, judge: OpenAIServer, tmp_path: Path
) -> None:
    judge.delay = 0.01
    found = report("pair", pair_file, "--bootstrap", 0, "--judge", judged(tmp_path, judge.url))
    rows = rows_by_name(found["routers"])
    assert rows["judge"]["strategy"] == "judge"
    assert rows["judge"]["apgr"]["value"] == pytest.approx(rows["ours"]["apgr"]["value"], abs=0.02)
    assert found["judge"] == {
        "strategy": "judged", "model": "j", "labels": "score", "asked": 300, "failed": {},
    }  # fmt: skip
    assert len(judge.requests) == 300
    assert 2 <= judge.most_at_once <= 4


def test_what_the_judge_gives_no_score_is_counted_shown_and_decided_by_difficulty(
    pair_file: Path, judge: OpenAIServer, tmp_path: Path
) -> None:
    judge.script.extend([Act(status=500)] * 30 + [Act(body=b"{}")] * 10)
    result = run("pair", pair_file, "--bootstrap", 0, "--json", "-", "--judge", judged(tmp_path, judge.url))
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["judge"]["failed"] == {"http": 30, "unparsable": 10}
    assert "40 gave no score (http 30, unparsable 10) and were decided by difficulty" in result.stderr
    # The difficulty says here what the judge would have said.
    assert rows_by_name(found["routers"])["judge"]["apgr"]["value"] == pytest.approx(2 / 3, abs=0.05)


def test_a_judge_that_answers_nothing_is_no_row_but_an_error(pair_file: Path, tmp_path: Path) -> None:
    result = run("pair", pair_file, "--judge", judged(tmp_path, "http://127.0.0.1:1/v1"))
    assert result.exit_code == 69
    assert "no score for 100 prompts in a row, the last answer was: connection" in result.stderr


def test_a_judge_needs_a_bundle_for_what_it_does_not_answer(pair_file: Path, tmp_path: Path) -> None:
    assert run("pair", pair_file, "--no-bundle", "--judge", judged(tmp_path, "http://x")).exit_code == 2


def test_the_table_says_which_row_is_which_strategy_and_which_were_not_measured(
    pair_file: Path, topical_file: Path
) -> None:
    bare = run("pair", pair_file, "--bootstrap", 0).output
    for said in ("ours (threshold)", "random (weighted)", "always-strong (fixed)"):
        assert said in bare
    assert "similarity, factorization, clusters, intent (--fit or --cross-fit); judge (--judge)" in bare
    fitted = run("pair", topical_file, "--bootstrap", 0, "--cross-fit").output
    assert "not measured: judge (--judge)" in fitted


def test_every_strategy_has_a_band_to_be_drawn_with(topical_file: Path) -> None:
    found = report("pair", topical_file, "--bootstrap", 20, "--cross-fit")
    assert set(found["curves"]["lift_interval"]) == STRATEGIES | {"length", "ours"}


def test_split_keeps_its_rows_only(pair_file: Path) -> None:
    assert report("pair", pair_file, "--split", "gold", "--bootstrap", 0)["data"]["splits"] == {"gold": 30}


def test_a_threshold_fixed_elsewhere_reports_the_share_it_gives_here(pair_file: Path) -> None:
    found = report("pair", pair_file, "--threshold", 0.7, "--bootstrap", 0)["threshold"]
    with pair_file.open(newline="") as stream:
        marks = [int(row["prompt"].rpartition("d")[2]) for row in csv.DictReader(stream)]
    assert found["strong_share"] == pytest.approx(np.mean([mark >= 70 for mark in marks]))
    assert 0 < found["pgr"] <= 1


def test_without_a_bundle_pair_reports_the_baselines(pair_file: Path) -> None:
    found = report("pair", pair_file, "--no-bundle", "--bootstrap", 0)
    assert found["bundle"] is None
    assert "ours" not in rows_by_name(found["routers"])
    assert found["calibration"] is None


def test_a_pair_without_a_gap_is_refused(tmp_path: Path) -> None:
    rows = [[f"text {i}", 0, 1] for i in range(30)]
    file = write(tmp_path / "p.csv", ["prompt", "strong_correct", "weak_correct"], rows)
    result = run("pair", file)
    assert result.exit_code == 65
    assert f"{file}:1:strong_correct: expected a mean above weak_correct's" in result.stderr


def test_a_wrong_outcome_is_named_by_file_row_and_column(tmp_path: Path) -> None:
    rows: list[list[object]] = [[f"text {i}", 1, 0] for i in range(30)]
    rows[4][1] = "maybe"
    file = write(tmp_path / "p.csv", ["prompt", "strong_correct", "weak_correct"], rows)
    result = run("pair", file)
    assert result.exit_code == 65
    assert f"{file}:6:strong_correct: expected a finite number, found 'maybe'" in result.stderr


def test_intent_measures_the_bundles_own_labels_and_its_unknown_score(intent_file: Path) -> None:
    found = report("intent", intent_file, "--split", "test", "--bootstrap", 100)
    rows = rows_by_name(found["models"])
    assert list(rows) == ["majority", "tfidf + logistic", "bundle"]
    assert rows["bundle"]["accuracy"]["value"] == 1.0
    assert rows["bundle"]["ood"]["auroc"]["value"] == 1.0
    assert rows["bundle"]["ood"]["fpr95"] == 0.0
    assert rows["majority"]["accuracy"]["value"] == pytest.approx(1 / 3)
    assert found["rows"] == {"known": 120, "ood": 40}
    assert found["fit"] == {"rows": 120, "dropped": 0, "cross_fitted": False}
    assert np.trace(found["confusion"]["counts"]) == 120
    assert found["abstention"]["bundle"]["accuracy"][-1] == 1.0


def test_intent_without_a_train_split_cross_fits_the_baselines(intent_file: Path) -> None:
    found = report("intent", intent_file, "--bootstrap", 0)
    assert found["fit"]["cross_fitted"]
    rows = rows_by_name(found["models"])
    assert rows["tfidf + logistic"]["accuracy"]["value"] > 0.9
    assert rows["tfidf + logistic"]["ood"] is None


def test_labels_that_the_bundle_lacks_need_fitted_heads(intent_file: Path) -> None:
    text = intent_file.read_text().replace(",biology,", ",life,")
    intent_file.write_text(text)
    refused = run("intent", intent_file, "--split", "test")
    assert refused.exit_code == 65
    assert "life …: not among the bundle's labels; use --fit" in refused.stderr
    rows = rows_by_name(report("intent", intent_file, "--split", "test", "--fit", "--bootstrap", 0)["models"])
    assert list(rows) == ["majority", "tfidf + logistic", "centroid", "neighbors", "logistic"]
    assert {rows[name]["accuracy"]["value"] for name in ("centroid", "neighbors", "logistic")} == {1.0}
    assert rows["centroid"]["ood"]["auroc"]["value"] > 0.99


def test_train_rows_whose_text_is_evaluated_are_not_fitted_on(intent_file: Path) -> None:
    """Case and blanks do not make another text."""
    text, label, split = intent_file.read_text().splitlines()[200].split(",")
    assert split == "test"
    with intent_file.open("a") as stream:
        stream.write(f"{text.upper().replace(' ', '  ')},{label},train\n")
        stream.write(f"{text} and more,{label},train\n")
    found = report("intent", intent_file, "--split", "test", "--bootstrap", 0)["fit"]
    assert (found["dropped"], found["rows"]) == (1, 121)


def test_one_class_is_refused(tmp_path: Path) -> None:
    file = write(tmp_path / "i.csv", ["text", "label"], [[f"text {i}", "law"] for i in range(30)])
    result = run("intent", file)
    assert result.exit_code == 65
    assert f"{file}:1:label: expected at least two classes, found law" in result.stderr


def test_pool_ranks_routers_between_the_zero_router_and_the_oracle(
    pool_files: tuple[Path, Path, Path],
) -> None:
    questions, outcomes, models = pool_files
    found = report("pool", questions, outcomes, "--models", models, "--trials", 4)
    assert found["cost"] == "billions of parameters, by name"
    family = found["settings"]["unseen family"]
    assert family["pool"] == ["bio-7b", "law-7b", "math-7b"]
    rows = rows_by_name(family["routers"])
    # One topic each: the best single model is right in .43 of all cases, the best per topic in .9.
    assert rows["ZeroRouter"]["peak"]["value"] < 0.55
    for name in ("kNN", "K-means, Laplace", "K-means, shrunk", "LearnedMap", "clairvoyant"):
        assert rows[name]["area_minus_zero"]["wins"] == 4, name
        assert rows[name]["peak"]["value"] > 0.7, name
        assert rows[name]["area"]["value"] <= rows["oracle"]["area"]["value"]
    assert found["settings"]["random models"]["pool_size"] == 2


def test_one_cluster_knows_no_more_than_the_zero_router(pool_files: tuple[Path, Path, Path]) -> None:
    questions, outcomes, models = pool_files
    found = report("pool", questions, outcomes, "--models", models, "--trials", 2, "--clusters", 1)
    rows = rows_by_name(found["settings"]["unseen family"]["routers"])
    assert found["clusters"] == 1
    assert rows["K-means, shrunk"]["peak"]["value"] < 0.55, "each topic was one of its own"


def test_pool_has_a_row_for_every_strategy_and_experts_find_their_subjects(
    pool_files: tuple[Path, Path, Path], judge: OpenAIServer, tmp_path: Path
) -> None:
    questions, outcomes, models = pool_files
    config = judged(tmp_path, judge.url)
    found = report("pool", questions, outcomes, "--models", models, "--trials", 2, "--judge", config)
    assert found["judge"]["asked"] == 400
    rows = rows_by_name(found["settings"]["unseen family"]["routers"])
    kinds = {row["strategy"] for row in rows.values()} - {None}
    assert kinds == {
        "weighted", "clusters", "intent", "threshold", "similarity", "factorization", "judge",
    }  # fmt: skip
    # One topic each: experts by domain reach what a pair of these models cannot.
    assert rows["intent"]["peak"]["value"] > 0.8
    for name in ("threshold", "similarity", "factorization", "judge"):
        assert rows[name]["peak"]["value"] < 0.75, name


def test_costs_by_model_and_by_question_are_multiplied(
    pool_files: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    questions, outcomes, _ = pool_files
    names = outcomes.read_text().splitlines()[0].split(",")[1:]
    prices = write(tmp_path / "prices.csv", ["model", "cost"], [[name, 2.0] for name in names])
    lengths = write(tmp_path / "lengths.csv", ["id", *names], [[f"q{i}", *[10] * 6] for i in range(400)])
    found = report("pool", questions, outcomes, "--costs", prices, "--costs", lengths, "--trials", 2)
    assert found["cost"] == "prices.csv x lengths.csv"
    # All models cost the same, so the oracle pays no less than the best single model does.
    rows = rows_by_name(found["settings"]["random models"]["routers"])
    assert rows["oracle"]["qnc"] == {"median": 100.0, "never": 0}


def test_a_model_without_a_size_in_its_name_needs_costs(pool_files: tuple[Path, Path, Path]) -> None:
    questions, outcomes, _ = pool_files
    outcomes.write_text(outcomes.read_text().replace("big-70b", "big-turbo"))
    result = run("pool", questions, outcomes)
    assert result.exit_code == 65
    assert "the size of big-turbo is not in the name; give a costs file" in result.stderr


def test_a_question_that_is_there_twice_is_refused(pool_files: tuple[Path, Path, Path]) -> None:
    questions, outcomes, _ = pool_files
    with outcomes.open("a") as stream:
        stream.write("q5,1,1,1,1,1,1\n")
    result = run("pool", questions, outcomes)
    assert result.exit_code == 65
    assert f"{outcomes}:402:id: duplicate value 'q5'" in result.stderr


def test_models_with_many_blanks_are_left_out_and_named(pool_files: tuple[Path, Path, Path]) -> None:
    questions, outcomes, _ = pool_files
    lines = outcomes.read_text().splitlines()
    lines[1:60] = [line.rpartition(",")[0] + "," for line in lines[1:60]]
    outcomes.write_text("\n".join(lines) + "\n")
    found = report("pool", questions, outcomes, "--trials", 1)
    assert found["left_out"] == ["giant-70B"]
    assert found["data"]["rows"] == 400


def test_robustness_counts_flips_of_domain_difficulty_and_length(tmp_path: Path) -> None:
    """The known source reads marks that typing errors hit and appended text does not."""
    rows = [[f"{WORDS[LABELS[i % 3]][0]} is the word here number {i} d{i}"] for i in range(100)]
    found = report("robustness", write(tmp_path / "r.csv", ["prompt"], rows), "--bootstrap", 50, *SHARE)
    table = rows_by_name(found["perturbations"])
    assert found["strong_share"] == pytest.approx(0.3)
    assert table["signature"]["same_domain"]["value"] == 1.0
    assert table["signature"]["hard_to_easy"]["value"] == 0.0
    assert table["upper case"]["same_domain"]["value"] == 1.0
    assert table["typos"]["same_domain"]["value"] < 1.0
    lengths = [len(row[0]) for row in rows]
    long = np.mean(np.asarray(lengths) >= np.quantile(lengths, 0.7))
    assert table["small story"]["length_same_decision"]["value"] == pytest.approx(long)
    assert table["signature"]["spearman"] == 1.0
    assert table["signature"]["auroc"] is table["signature"]["hard_strong"] is None


SHARE = ["--share", "0.305"]  # Between two marks of `KnownSource`, whose quantiles are uniform


def test_the_threshold_is_the_servers_and_not_the_files(tmp_path: Path) -> None:
    """All prompts are easy for the bundle, so none is sent to the strong model."""
    file = write(tmp_path / "r.csv", ["prompt"], [[f"cell number {i} d{i}"] for i in range(40)])
    found = report("robustness", file, "--bootstrap", 0, *SHARE)
    assert (found["threshold"], found["strong_share"]) == (pytest.approx(0.695), 0.0)
    assert found["perturbations"][0]["hard_to_easy"] is None
    assert report("robustness", file, "--bootstrap", 0, "--threshold", 0.2)["strong_share"] == 0.5


def test_unknown_text_is_sent_to_the_strong_model(tmp_path: Path) -> None:
    rows = [[f"cell number {i} d10" + " gibberish" * (i < 10)] for i in range(40)]
    assert (
        report("robustness", write(tmp_path / "r.csv", ["prompt"], rows), "--bootstrap", 0)["strong_share"]
        == 0.25
    )


def test_judged_prompts_show_what_each_envelope_leaves_of_the_order(tmp_path: Path) -> None:
    """The known source does not read a mark before a quotation mark."""
    rows = [[f"cell number {i} d{90 if i % 2 else 10}", i % 2] for i in range(40)]
    found = report("robustness", write(tmp_path / "r.csv", ["prompt", "hard"], rows), "--bootstrap", 0)
    table = rows_by_name(found["perturbations"])
    for name, expected in (
        ("unchanged", (1.0, 1.0, 0.0)),
        ("long conversation", (1.0, 1.0, 0.0)),
        ("quotes", (0.5, 0.0, 0.0)),
    ):
        figures = ("auroc", "hard_strong", "easy_strong")
        assert tuple(table[name][figure]["value"] for figure in figures) == expected, name


def test_mixed_compares_kinds_of_a_file(tmp_path: Path) -> None:
    kinds = {"contest": 80, "chat": 20, "summary": 90}
    rows = [[kind, f"{kind} number {i} d{mark}", "en"] for kind, mark in kinds.items() for i in range(10)]
    file = write(tmp_path / "m.csv", ["kind", "text", "lang"], rows)
    found = report("mixed", file, "--hard", "contest", "--bootstrap", 20)
    assert [(row["easy"], row["ours"]["value"]) for row in found["pairs"]] == [
        ("chat", 1.0),
        ("summary", 0.0),
    ]
    assert (found["kind"], found["bundle"]["name"], found["data"]["rows"]) == ("mixed", "known", 30)
    assert found["threshold"] == pytest.approx(0.7)
    assert {row["name"]: row["above"]["value"] for row in found["kinds"]} == {
        "chat": 0.0,
        "contest": 1.0,
        "summary": 1.0,
    }
    refused = run("mixed", file, "--hard", "tests")
    assert (refused.exit_code, refused.stderr) == (
        65,
        "tests: expected kinds of the file, each on one side; they are chat, contest, summary\n",
    )


def test_robustness_draws_the_same_rows_for_a_seed(tmp_path: Path) -> None:
    file = write(tmp_path / "r.csv", ["prompt"], [[f"cell number {i} d{i % 100}"] for i in range(200)])
    first = report("robustness", file, "--limit", 40, "--bootstrap", 0)
    assert first["data"]["rows"] == 40
    assert first == report("robustness", file, "--limit", 40, "--bootstrap", 0)


def test_every_report_prints_its_tables_writes_json_and_draws_png_and_svg(
    pair_file: Path, intent_file: Path, pool_files: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    plots, out = tmp_path / "plots", tmp_path / "out.json"
    commands: list[tuple[list[object], set[str]]] = [
        (["pair", pair_file, "--bootstrap", 20], {"pair_threshold_pair"}),
        (["intent", intent_file, "--split", "test", "--bootstrap", 20],
         {"intent_calibration_intent"}),
        (["pool", *pool_files[:2], "--models", pool_files[2], "--trials", 2],
         {"pool_random_models_clusters_questions", "pool_unseen_family_intent_questions"}),
        (["robustness", pair_file, "--limit", 40, "--bootstrap", 20], {"robustness_pair"}),
        (["mixed", MIXED, "--bootstrap", 20], {"mixed_mixed"}),
    ]  # fmt: skip
    for command, names in commands:
        result = run(*command, "--plots", plots, "--json", out)
        assert result.exit_code == 0, result.output
        assert "known 1" in result.stdout
        assert json.loads(out.read_text())["schema"] == 1
        for name in names:
            assert (plots / f"{name}.png").read_bytes().startswith(b"\x89PNG")
            assert "<svg" in (plots / f"{name}.svg").read_text()


def test_json_to_standard_output_is_nothing_but_json(pair_file: Path) -> None:
    result = run("pair", pair_file, "--bootstrap", 0, "--json", "-")
    assert json.loads(result.stdout)["kind"] == "pair"
    assert "APGR" in result.stderr


def test_a_bundle_that_is_none_is_refused_in_one_line(
    pair_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    result = run("pair", pair_file, "--bundle", tmp_path)
    assert result.exit_code == 78
    assert "bundle.json: no such file" in result.stderr


def test_a_place_that_cannot_be_written_is_refused_before_any_work(pair_file: Path, tmp_path: Path) -> None:
    result = run("pair", pair_file, "--json", tmp_path / "missing" / "out.json")
    assert result.exit_code == 2
    assert "is not a file in an existing directory" in result.stderr


def test_a_missing_package_is_named(pair_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    result = run("pair", pair_file, "--bootstrap", 0, "--plots", tmp_path)
    assert result.exit_code == 69
    assert "the Python package 'matplotlib' is missing" in result.stderr
