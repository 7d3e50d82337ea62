"""The prompts written for this project: well formed, and the measuring ones unlike the training ones."""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from semroute_lab.train.sources import read_handwritten

from semroute_extproc.encoder import bundle

FOLDER = Path(__file__).resolve().parents[3] / "datasets"
FILES = sorted(FOLDER.glob("*.*.jsonl"))  # Files of training and of `semroute train`'s evaluation
SIMILAR = 0.6
"""Jaccard index of two prompts' words (of Chinese, pairs of characters) from which on they are alike."""

COMMON = 400
"""Words in more prompts than this find no neighbors."""


def read(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def pieces(text: str) -> frozenset[str]:
    han = re.findall(r"[\u4e00-\u9fff]", text)
    pairs = {a + b for a, b in itertools.pairwise(han)}
    return frozenset(pairs | set(re.findall(r"[^\W\u4e00-\u9fff]+", text.lower())))


def alike(texts: list[str], others: list[str]) -> Iterator[tuple[float, str, str]]:
    """Each of `texts` that is alike one of `others`, with the nearest."""
    bags = [pieces(other) for other in others]
    places: dict[str, list[int]] = defaultdict(list)
    for index, bag in enumerate(bags):
        for piece in bag:
            places[piece].append(index)
    for text in texts:
        bag = pieces(text)
        shared = Counter(i for piece in bag if len(places[piece]) < COMMON for i in places[piece])
        for index, _ in shared.most_common(30):
            score = len(bag & bags[index]) / len(bag | bags[index])
            if score >= SIMILAR:
                yield score, text, others[index]
                break


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_every_line_is_a_labeled_prompt_and_none_comes_twice(file: Path) -> None:
    rows = read(file)
    domains = set(bundle.read_manifest(bundle.default_bundle()).domain.labels)
    for number, row in enumerate(rows, 1):
        assert set(row) <= {"text", "domain", "hard", "task", "language"}, number
        assert row["text"].strip(), number
        assert row.get("domain", "other") in domains, number
        assert row.get("hard", 0) in (0, 1), number
    assert len({row["text"].strip().casefold() for row in rows}) == len(rows)


@pytest.mark.parametrize("file", [f for f in FILES if ".eval." in f.name], ids=lambda file: file.name)
def test_no_measuring_prompt_is_alike_a_training_prompt(file: Path) -> None:
    training = [row["text"] for other in FILES if ".train." in other.name for row in read(other)]
    assert list(alike([row["text"] for row in read(file)], training)) == []


def test_no_prompt_of_mixed_traffic_is_alike_a_training_prompt() -> None:
    training = [row["text"] for file in FILES if ".train." in file.name for row in read(file)]
    rows = read(FOLDER / "mixed.jsonl")
    said = [
        row.get("text") or next(t["content"] for t in row["messages"] if t["role"] == "user") for row in rows
    ]
    assert list(alike(said, training)) == []


def test_training_reads_no_mixed_traffic() -> None:
    sources = {row.source for row in read_handwritten(FOLDER)}
    assert "handwritten/languages" in sources
    assert "handwritten/mixed" not in sources


def test_every_language_is_asked_about_every_domain_once() -> None:
    rows = read(FOLDER / "languages.eval.jsonl")
    asked = Counter((row["language"], row["domain"]) for row in rows)
    assert set(asked.values()) == {1}
    assert len(asked) == 14 * len({language for language, _ in asked})


@pytest.mark.parametrize("part", ["train", "eval"])
def test_half_of_the_prompts_of_each_language_are_hard_and_length_hardly_says_which(part: str) -> None:
    lengths: dict[str, dict[int, list[int]]] = defaultdict(lambda: {0: [], 1: []})
    for row in read(FOLDER / f"languages_difficulty.{part}.jsonl"):
        lengths[row["language"]][row["hard"]].append(len(row["text"]))
    assert " ".join(sorted(lengths)) == "ar de es fr it ja ko nl pl pt ru th tr zh zh-TW"
    for language, by_label in lengths.items():
        easy, hard = by_label[0], by_label[1]
        assert len(easy) == len(hard) >= 10, language
        longer = sum((h > e) + 0.5 * (h == e) for h, e in itertools.product(hard, easy))
        assert longer / len(hard) / len(easy) < 0.7, language


MEASURING = [f for f in FILES if ".eval." in f.name and not f.name.startswith("languages")]


@pytest.mark.parametrize("file", MEASURING, ids=lambda file: file.name)
def test_the_measuring_files_are_large_enough_and_have_every_domain(file: Path) -> None:
    counts = Counter(row["domain"] for row in read(file))
    assert len(counts) == 14
    assert sum(counts.values()) >= (190 if "chinese" in file.name else 300)
    assert min(counts.values()) >= 10


def test_the_readme_counts_the_lines() -> None:
    readme = (FOLDER / "README.md").read_text()
    for file in FOLDER.glob("*.jsonl"):
        assert f"{len(read(file)):,}" in readme, file.name
