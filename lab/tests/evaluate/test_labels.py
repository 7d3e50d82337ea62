"""Routers fitted to the labels of Hybrid LLM and RouteLLM."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from semroute_lab.common.tables import read_table
from semroute_lab.evaluate import labels
from semroute_lab.evaluate.cli import LABELS
from semroute_lab.evaluate.scoring import Scores
from semroute_lab.evaluate.strategies import Labeled

from semroute_extproc.errors import DataError


def known(x: np.ndarray) -> Scores:
    """What a bundle says of texts of which only the embedding matters."""
    n, vectors = len(x), x.astype(np.float32)
    half = np.full(n, 0.5)
    return Scores(("a", "b"), np.full((n, 2), 0.5), half, half, vectors, vectors, np.zeros(n, dtype=bool))


def labeled(samples: np.ndarray, seed: int = 0) -> tuple[Labeled, np.ndarray]:
    """Rows on two directions with `samples` (2, 2, s); the second one needs the strong model."""
    topic = np.random.default_rng(seed).integers(0, 2, 120)
    found = samples[topic]
    texts = [f"text {row}" for row in range(120)]
    return Labeled(known(np.eye(2)[topic]), found.mean(axis=2), texts, found), topic


# Strong and weak of the first topic are both right; of the second only the strong one, two times of three.
SAMPLED = np.asarray([[[1, 1, 1], [1, 1, 1]], [[1, 1, 1], [0, 0, 1]]], dtype=float)


@pytest.mark.parametrize("kind", LABELS)
def test_a_head_on_every_label_finds_the_topic_that_needs_the_strong_model(kind: str) -> None:
    fit, _ = labeled(SAMPLED)
    apply, topic = labeled(SAMPLED, seed=1)
    [(name, found)] = labels.scores(fit, apply, [kind]).items()
    assert name == f"label {kind}"
    assert found[topic == 1].min() > found[topic == 0].max() + 0.1


def test_without_samples_det_and_prob_are_the_same_label_and_the_row_says_so() -> None:
    fit, _ = labeled(SAMPLED[:, :, :1])
    det, prob = (labels.target(fit, kind)[0] for kind in ("det", "prob"))
    assert (det == prob).all()
    notes = labels.notes(fit, LABELS)
    assert "the same label" in str(notes["label det"]["note"])
    assert notes["label win"]["note"] is None
    sampled = labels.notes(labeled(SAMPLED)[0], ("prob",))
    assert sampled["label prob"]["note"] is None


def test_one_kind_of_label_gives_one_score_for_all() -> None:
    fit, _ = labeled(np.ones((2, 2, 1)))
    assert set(labels.scores(fit, fit, ["det"])["label det"].tolist()) == {0.0}


def table(tmp_path: Path, *lines: str) -> object:
    file = tmp_path / "p.jsonl"
    file.write_text("\n".join(lines))
    return read_table(file)


def test_samples_are_lists_of_qualities_or_else_the_outcomes(tmp_path: Path) -> None:
    single = table(tmp_path, '{"strong_correct": 1, "weak_correct": 0.5}')
    assert labels.samples(single).tolist() == [[[1.0], [0.5]]]  # type: ignore[arg-type]
    several = table(tmp_path, '{"strong_samples": [1, 0.5], "weak_samples": [0, 1]}')
    assert labels.samples(several).tolist() == [[[1.0, 0.5], [0.0, 1.0]]]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"strong_samples": [1, 0], "weak_samples": [0]}', "expected equally many samples"),
        ('{"strong_samples": [1, "x"], "weak_samples": [0, 1]}', "1:strong_samples: expected a JSON list"),
        ('{"strong_samples": [1]}', "1:weak_samples: expected a column of this name"),
    ],
)  # fmt: skip
def test_samples_that_do_not_fit_are_refused(tmp_path: Path, line: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        labels.samples(table(tmp_path, line))  # type: ignore[arg-type]


def test_with_bartscore_answers_are_scored_against_the_reference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stand-in scores by how many characters differ in number."""

    def load(_: object) -> object:
        return lambda sources, targets: [
            -abs(len(a) - len(b)) * 1.0 for a, b in zip(sources, targets, strict=True)
        ]

    monkeypatch.setattr("semroute_lab.train.quality.load_bart_score", load)
    rows = table(tmp_path, '{"reference": "four", "strong_answer": "five", "weak_answer": ["six", "to"]}')
    with pytest.raises(DataError, match="equally many"):
        labels.samples(rows, tmp_path)  # type: ignore[arg-type]
    rows = table(tmp_path, '{"reference": "four", "strong_answer": "five", "weak_answer": "sixty"}')
    assert labels.samples(rows, tmp_path).tolist() == [[[0.0], [-1.0]]]  # type: ignore[arg-type]
