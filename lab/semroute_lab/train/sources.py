"""The declared data sets: the table `sources.toml`, and a small reader per shape.

A data folder has gzip-compressed CSV files under `pairs/`, `matrices/`, `difficulty/` and `intent/`.
Missing files are skipped and reported; every row carries the rights of its source.
"""

from __future__ import annotations

import csv
import gzip
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from semroute_lab.common.tables import Table, prompt_texts, read_table
from semroute_lab.train.datasets import (
    DOMAINS,
    EVERYDAY,
    EXAM,
    MATHEMATICS,
    NAMES,
    TASKS,
    Example,
    Part,
    Rights,
    named,
    part_of_fit,
)

STRONG_MODELS = ("Meta-Llama-3_1-70B-Instruct", "DeepSeek-Coder-V2", "jamba-1.5-large")
WEAK_MODELS = ("Mixtral-8x7B-Instruct-v0.1", "Meta-Llama-3_1-8B-Instruct")  # Columns of MMLU-Pro
LONGEST_SLIP = 0.5  # A weak model's assumed error rate on the longest word problem; a target only
HARD_PROMPT = 0.9  # Difficulty of prompts that were selected for being hard
ASCII_MIN = 0.95  # Smallest share of ASCII characters of such a prompt with a difficulty
EXAM_SOURCE = "routellm_mmlu"  # The source of the exam expert's outcomes
LOGS = "logs"  # Source name of a user's own logs, which replace `EXAM_SOURCE`
_HANDWRITTEN_ENDS = (".train.jsonl", ".eval.jsonl")
HANDWRITTEN = "handwritten/"  # Start of the source names of our own files, whose difficulty a person judged
_SUBJECT_PREFIX = "ori_mmlu-"  # Start of MMLU-Pro's `src` for a question from an MMLU subject
Rows = Iterator[Example]


@dataclass(frozen=True, slots=True)
class Source:
    """One file: its rights, its reader, how much of it is used; the fields are those of `sources.toml`."""

    name: str
    file: str
    licence: str
    read: str = "plain"
    text: str = "text"
    traffic: str = ""
    domain: str = ""
    task: str = ""
    quota: int | None = None
    rows_max: int | None = None
    weight: float = 1.0
    may_train: bool = True
    also: Sequence[str] = ()

    def row(self, table: Table, row: int, text: str, part: Part | None = None, **targets: Any) -> Example:
        """An example from a row of the file; without a part, it is split between fit and calibration."""
        fixed = {
            "domain": DOMAINS.index(self.domain) if self.domain else None,
            "task": TASKS.index(self.task) if self.task else None,
            "weight": self.weight,
        }
        place, rights = f"{table.path}:{table.numbers[row]}", Rights(self.licence, self.may_train)
        return Example(text, self.name, place, rights, part or part_of_fit(text), **(fixed | targets))


def _plain(source: Source, table: Table) -> Rows:
    """Every row has the source's domain and task."""
    for row, text in enumerate(table.texts(source.text)):
        yield source.row(table, row, text)


def _mmlu_pro(source: Source, table: Table) -> Rows:
    """Domain of every question, with and without its options; gain where it is not an MMLU question."""
    outcomes = _matrix_outcomes(table.path.with_name("mmlu_pro_correct.csv.gz"))
    bare, full = table.texts(source.text), prompt_texts(table, source.text, "options")
    stems, ids, origins, splits = (table.strings(n) for n in ("ori_mmlu", "question_id", "src", "split"))
    for row, name in enumerate(table.strings("category")):
        stem, math = stems[row] == "True", name == "math"
        targets: dict[str, Any] = {"domain": named(table, row, "category", DOMAINS)}
        part = Part.DEV
        if splits[row] == "train":
            part = part_of_fit(bare[row])
            targets["task"] = TASKS.index("math" if math else "question answering")
            targets["intent"] = f"mmlu_pro/{origins[row]}"
            if not stem and ids[row] in outcomes:
                strong, weak = outcomes[ids[row]]
                targets |= {"difficulty": strong * (1.0 - weak), "gain": strong - weak}
        yield source.row(table, row, bare[row], part, family=MATHEMATICS if math else EVERYDAY, **targets)
        whole = source.row(table, row, full[row], part, family=EXAM, **targets)
        yield replace(whole, source=source.also[0], weight=1.0)


def _matrix_outcomes(file: Path) -> dict[str, tuple[float, float]]:
    """Question to the mean known outcomes of the strong and of the weak columns; none without the file."""
    if not file.exists():
        return {}
    table = read_table(file)

    def means(names: Sequence[str]) -> list[float]:
        columns = [table.numbers_in(name, 0, 1, blank=True) for name in names if table.has(name)]
        known = [[x for x in values if x == x] for values in zip(*columns, strict=True)]
        return [float(sum(values) / len(values)) if values else np.nan for values in known]

    rows = zip(table.strings("question_id"), means(STRONG_MODELS), means(WEAK_MODELS), strict=False)
    return {key: (strong, weak) for key, strong, weak in rows if strong == strong and weak == weak}


def _pair(source: Source, table: Table) -> Rows:
    """Outcomes of two models: `gold` rows train, with their MMLU subject's domain."""
    domains = _domains_of_subjects(table.path.parents[1] / "matrices" / "mmlu_pro_questions.csv.gz")
    strong, weak = (table.numbers_in(name, 0, 1) for name in ("strong_correct", "weak_correct"))
    subjects, splits = table.columns.get("subject"), table.strings("split")
    for row, text in enumerate(table.texts(source.text)):
        gold = splits[row] == "gold"
        subject = subjects[row] if subjects and gold else ""
        domain = domains.get(subject)
        intent = None if domain is None else f"mmlu_pro/{_SUBJECT_PREFIX}{subject}"
        s, w = float(strong[row]), float(weak[row])
        targets = {"domain": domain, "difficulty": s * (1.0 - w), "gain": s - w, "intent": intent}
        yield source.row(table, row, text, None if gold else Part.DEV, family=EXAM, **targets)


def _domains_of_subjects(file: Path) -> dict[str, int]:
    """MMLU subject to the index of its domain."""
    if not file.exists():
        return {}
    table = read_table(file)
    return {
        origin.removeprefix(_SUBJECT_PREFIX): DOMAINS.index(name)
        for origin, name in zip(table.strings("src"), table.strings("category"), strict=True)
        if origin.startswith(_SUBJECT_PREFIX) and name in DOMAINS
    }


def names_in(table: Table, row: int) -> dict[str, int | None]:
    """The optional domain and task of a row."""
    return {n: named(table, row, n, names) for n, names in (("domain", DOMAINS), ("task", TASKS))}


def _solve_rate(source: Source, table: Table) -> Rows:
    """Difficulty from the published solve rate. Its family is everyday: the shipped bundle was trained so."""
    rates = table.numbers_in("solve_rate", 0, 1)
    for row, text in enumerate(table.texts(source.text)):
        yield source.row(table, row, text, difficulty=1.0 - float(rates[row]))


def _longer_is_harder(source: Source, table: Table) -> Rows:
    """No outcomes: the target is the rank by length, since a weak model slips more on longer problems.
    The number of steps of the worked answer was a worse target on dev rows (APGR .598 to .624, against .633).
    """
    texts = table.texts(source.text)
    by_length = sorted(range(len(texts)), key=lambda row: len(texts[row]))
    rank = {row: place / len(texts) for place, row in enumerate(by_length)}
    for row, text in enumerate(texts):
        yield source.row(table, row, text, difficulty=LONGEST_SLIP * rank[row])


def _intent(source: Source, table: Table) -> Rows:
    """Commands to an assistant: the fine label shapes the embedding, and everyday commands are easy."""
    labels = table.strings("category" if table.has("category") else "intent")
    splits = table.strings("split")
    for row, text in enumerate(table.texts(source.text)):
        if splits[row] in ("oos_train", "oos_val", "oos_test") or labels[row] == "oos":
            continue
        part = part_of_fit(text) if splits[row] == "train" else Part.DEV
        easy = None if part is Part.DEV else 0.0
        yield source.row(table, row, text, part, difficulty=easy, intent=f"{source.name}/{labels[row]}")


def _fine_label(source: Source, table: Table) -> Rows:
    """The source's domain and task, and a fine label."""
    labels = table.strings("label")
    for row, text in enumerate(table.texts(source.text)):
        yield source.row(table, row, text, intent=f"{source.name}/{labels[row]}")


def _selected_as_hard(source: Source, table: Table) -> Rows:
    """Prompts of real users that were selected for being hard; creative ones only teach the task."""
    kinds = table.strings("category")
    for row, text in enumerate(table.texts(source.text)):
        if kinds[row] == "creative_writing":
            yield source.row(table, row, text, task=TASKS.index("creative"))
        elif sum(ord(character) < 128 for character in text) >= ASCII_MIN * len(text):
            yield source.row(table, row, text, difficulty=HARD_PROMPT)


_READERS = (_plain, _mmlu_pro, _pair, _solve_rate, _longer_is_harder, _intent, _fine_label, _selected_as_hard)
READERS: dict[str, Callable[[Source, Table], Rows]] = {each.__name__[1:]: each for each in _READERS}

SOURCES = tuple(Source(**row) for row in NAMES["source"])  # In the order in which they are read


def read_all(data: Path) -> tuple[list[Example], list[str]]:
    """Every row of the declared sources in `data`, and the names of the missing files."""
    rows: list[Example] = []
    missing: list[str] = []
    for source in SOURCES:
        file = data / source.file
        if file.exists():
            table = _without_torn_rows(file) if source.read == "solve_rate" else read_table(file)
            rows.extend(READERS[source.read](source, table))
        else:
            missing.append(source.file)
    return rows, missing


def _without_torn_rows(file: Path) -> Table:
    """A published table without the few rows broken by stray line breaks or lacking a solve rate."""
    with gzip.open(file, "rt", encoding="utf-8", newline="") as stream:
        header, *rows = csv.reader(stream)
    rate = header.index("solve_rate")
    fits = (len(row) == len(header) and row[rate].replace(".", "").isdigit() for row in rows)
    whole = [i for i, fit in enumerate(fits) if fit]
    columns = {name: [rows[i][at] for i in whole] for at, name in enumerate(header)}
    return Table(file, "", columns, [i + 2 for i in whole])


def read_handwritten(folder: Path) -> list[Example]:
    """`*.train.jsonl` may train, `*.eval.jsonl` is reported on: text, domain, task, hard."""
    files = [file for file in sorted(folder.glob("*.jsonl")) if file.name.endswith(tuple(_HANDWRITTEN_ENDS))]
    return [row for file in files for row in _handwritten(file, file.name.endswith(_HANDWRITTEN_ENDS[0]))]


def _handwritten(file: Path, train: bool) -> Rows:
    table = read_table(file)
    name = HANDWRITTEN + file.name.partition(".")[0]
    source = Source(name, file.name, "Apache-2.0", may_train=train)
    hard = table.numbers_in("hard", 0, 1, blank=True) if table.has("hard") else np.full(len(table), np.nan)
    for row, text in enumerate(table.texts("text")):
        targets = {**names_in(table, row), "difficulty": None if np.isnan(hard[row]) else float(hard[row])}
        yield source.row(table, row, text, None if train else Part.DEV, **targets)


def traffic_of(name: str) -> str:
    """The kind of reference traffic that a row of source `name` represents; empty: none."""
    if name.startswith(HANDWRITTEN):
        return "handwritten"
    return next((source.traffic for source in SOURCES if name in (source.name, *source.also)), "")
