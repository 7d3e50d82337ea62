"""The declared data sets: one table of files, licences and uses, and a small reader per shape.

A data folder has gzip-compressed CSV files under `pairs/`, `matrices/`, `difficulty/` and `intent/`.
Missing files are skipped and reported; every row carries the rights of its source.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from semroute_lab.evaluate.data import Table, prompt_texts, read_table
from semroute_lab.train.datasets import (
    DOMAINS,
    EVERYDAY,
    EXAM,
    MATHEMATICS,
    TASKS,
    Example,
    Part,
    Rights,
    named,
    part_of_fit,
)

STRONG_MODELS = ("Meta-Llama-3_1-70B-Instruct", "DeepSeek-Coder-V2", "jamba-1.5-large")
WEAK_MODELS = ("Mixtral-8x7B-Instruct-v0.1", "Meta-Llama-3_1-8B-Instruct")
"""MMLU-Pro columns that represent the strong and the weak model of a pair."""

LONGEST_SLIP = 0.5
"""A weak model's assumed error rate on the longest word problem; a target only."""

WORD_PROBLEM_WEIGHT = 2.0
"""Weight of that target, so that as many rows of contest mathematics do not hide it."""

BARE_WEIGHT = 0.2
"""Weight of the difficulty of an exam question without its options: it was measured with them."""

COMMAND_WEIGHT = 0.2
"""Weight of the difficulty of a short command: all easy, and many."""

HARD_PROMPT = 0.9
"""Difficulty of prompts that were selected for being hard."""

ASCII_MIN = 0.95
"""Smallest share of ASCII characters of such a prompt with a difficulty."""

ROWS_MAX = 3_000
"""Rows of a capped source: more of the same adds time only."""

_SUBJECT_PREFIX = "ori_mmlu-"
"""Start of MMLU-Pro's `src` for a question from an MMLU subject."""

Rows = Iterator[Example]


@dataclass(frozen=True, slots=True)
class Source:
    """One file: its rights, its reader, how much of it is used, and the traffic it represents."""

    name: str
    file: str
    licence: str
    read: Callable[[Source, Table], Rows]
    traffic: str = ""
    """Kind of reference traffic; empty: none."""
    text: str = "text"
    """Column of the texts."""
    domain: str = ""
    task: str = ""
    """Targets of every row, if it has the same."""
    quota: int | None = None
    """Rows drawn per epoch of fine-tuning; None: every row."""
    capped: bool = False
    """At most `ROWS_MAX` rows are used."""
    may_train: bool = True
    also: tuple[str, ...] = ()
    """Further source names of its rows."""

    @property
    def rights(self) -> Rights:
        """Its licence, and whether it may train."""
        return Rights(self.licence, self.may_train)

    def row(self, table: Table, row: int, text: str, part: Part | None = None, **targets: Any) -> Example:
        """An example from a row of the file; without a part, it is split between fit and calibration."""
        constant = {
            "domain": DOMAINS.index(self.domain) if self.domain else None,
            "task": TASKS.index(self.task) if self.task else None,
        }
        place = f"{table.path}:{table.numbers[row]}"
        part = part or part_of_fit(text)
        return Example(text, self.name, place, self.rights, part, **(constant | targets))


def _plain(source: Source, table: Table) -> Rows:
    """Every row has the source's domain and task."""
    for row, text in enumerate(table.texts(source.text)):
        yield source.row(table, row, text)


def _mmlu_pro(source: Source, table: Table) -> Rows:
    """Domain of every question, with and without its options; gain where it is not an MMLU question."""
    only_strong, gains = _matrix_targets(table.path.with_name("mmlu_pro_correct.csv.gz"))
    bare, full = table.texts("question"), prompt_texts(table, "question", "options")
    stems, ids, origins, splits = (table.strings(n) for n in ("ori_mmlu", "question_id", "src", "split"))
    for row, name in enumerate(table.strings("category")):
        domain = named(table, row, "category", DOMAINS)
        dev, stem, math = splits[row] != "train", stems[row] == "True", name == "math"
        targets: dict[str, Any] = {"domain": domain, "mmlu_stem": stem}
        if not dev:
            task = TASKS.index("math" if math else "question answering")
            targets |= {"task": task, "intent": f"mmlu_pro/{origins[row]}"}
            if not stem:
                targets |= {"difficulty": only_strong.get(ids[row]), "gain": gains.get(ids[row])}
        part = Part.DEV if dev else part_of_fit(bare[row])
        family = MATHEMATICS if math else EVERYDAY
        yield source.row(table, row, bare[row], part, family=family, weight=BARE_WEIGHT, **targets)
        yield replace(source.row(table, row, full[row], part, family=EXAM, **targets), source=source.also[0])


def _matrix_targets(file: Path) -> tuple[dict[str, float], dict[str, float]]:
    """Question to P(strong right) x P(weak wrong), and to the gain s - w, over the declared columns."""
    if not file.exists():
        return {}, {}
    table = read_table(file)
    keys = table.strings("question_id")
    strong, weak = (_mean_outcome(table, names) for names in (STRONG_MODELS, WEAK_MODELS))
    both = [(k, float(s), float(w)) for k, s, w in zip(keys, strong, weak, strict=True) if s == s and w == w]
    return {k: s * (1.0 - w) for k, s, w in both}, {k: s - w for k, s, w in both}


def _mean_outcome(table: Table, names: Sequence[str]) -> list[float]:
    """The mean of the known outcomes of each row; NaN if none is known."""
    columns = [table.numbers_in(name, 0, 1, blank=True) for name in names if table.has(name)]
    known = [[value for value in values if value == value] for values in zip(*columns, strict=True)]
    found = [sum(values) / len(values) if values else np.nan for values in known]
    return found or [np.nan] * len(table)


def _routellm_mmlu(source: Source, table: Table) -> Rows:
    """`gold` rows train, `dev` rows are reported on.

    A gold row's subject also gives its domain: the one under which MMLU-Pro files that subject.
    """
    domains = _domains_of_subjects(table.path.parents[1] / "matrices" / "mmlu_pro_questions.csv.gz")
    strong, weak = (table.numbers_in(name, 0, 1) for name in ("strong_correct", "weak_correct"))
    subjects, splits = table.strings("subject"), table.strings("split")
    for row, text in enumerate(table.texts(source.text)):
        gold = splits[row] == "gold"
        domain = domains.get(subjects[row]) if gold else None
        yield source.row(
            table,
            row,
            text,
            None if gold else Part.DEV,
            domain=domain,
            difficulty=float(strong[row] * (1.0 - weak[row])),
            gain=float(strong[row] - weak[row]),
            family=EXAM,
            intent=None if domain is None else f"mmlu_pro/{_SUBJECT_PREFIX}{subjects[row]}",
        )


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


def _routellm_gsm8k(source: Source, table: Table) -> Rows:
    strong, weak = (table.numbers_in(name, 0, 1) for name in ("strong_correct", "weak_correct"))
    for row, text in enumerate(table.texts(source.text)):
        target = float(strong[row] * (1.0 - weak[row]))
        yield source.row(table, row, text, Part.DEV, difficulty=target, family=MATHEMATICS)


def _big_math(source: Source, table: Table) -> Rows:
    """Difficulty from the published solve rate."""
    rates = table.numbers_in("solve_rate", 0, 1)
    for row, text in enumerate(table.texts(source.text)):
        yield source.row(table, row, text, difficulty=1.0 - float(rates[row]))


def _gsm8k_train(source: Source, table: Table) -> Rows:
    """No outcomes: the target is the rank by length, since a weak model slips more on longer problems.

    The number of steps of the worked answer was a worse target on the dev rows of the GSM8K pair
    (APGR .598, with length .624; length alone .633 to .640).
    """
    texts = table.texts(source.text)
    by_length = sorted(range(len(texts)), key=lambda row: len(texts[row]))
    rank = {row: place / len(texts) for place, row in enumerate(by_length)}
    for row, text in enumerate(texts):
        slip = LONGEST_SLIP * rank[row]
        yield source.row(table, row, text, difficulty=slip, weight=WORD_PROBLEM_WEIGHT)


def _intent(source: Source, table: Table) -> Rows:
    """Commands to an assistant: the fine label shapes the embedding, and everyday commands are easy."""
    labels = table.strings("category" if table.has("category") else "intent")
    splits = table.strings("split")
    for row, text in enumerate(table.texts(source.text)):
        if splits[row] in ("oos_train", "oos_val", "oos_test") or labels[row] == "oos":
            continue
        part = part_of_fit(text) if splits[row] == "train" else Part.DEV
        easy = None if part is Part.DEV else 0.0
        fine = f"{source.name}/{labels[row]}"
        yield source.row(table, row, text, part, difficulty=easy, intent=fine, weight=COMMAND_WEIGHT)


def _stackoverflow(source: Source, table: Table) -> Rows:
    labels = table.strings("label")
    for row, text in enumerate(table.texts(source.text)):
        yield source.row(table, row, text, intent=f"stackoverflow/{labels[row]}")


def _arena_hard(source: Source, table: Table) -> Rows:
    """Prompts of real users that were selected for being hard; creative ones only teach the task."""
    kinds = table.strings("category")
    for row, text in enumerate(table.texts(source.text)):
        if kinds[row] == "creative_writing":
            yield source.row(table, row, text, task=TASKS.index("creative"))
        elif sum(ord(character) < 128 for character in text) >= ASCII_MIN * len(text):
            yield source.row(table, row, text, difficulty=HARD_PROMPT)


def _commands(name: str, licence: str, quota: int) -> Source:
    return Source(name, f"intent/{name}.csv.gz", licence, _intent, "commands", quota=quota, capped=True)


SOURCES = (
    Source(
        "mmlu_pro",
        "matrices/mmlu_pro_questions.csv.gz",
        "MIT",
        _mmlu_pro,
        "exam",
        also=("mmlu_pro_options",),
    ),
    Source("routellm_mmlu", "pairs/routellm_mmlu.csv.gz", "Apache-2.0", _routellm_mmlu, "exam", "prompt"),
    Source(
        "routellm_gsm8k",
        "pairs/routellm_gsm8k.csv.gz",
        "Apache-2.0",
        _routellm_gsm8k,
        text="prompt",
        may_train=False,
    ),
    Source(
        "big_math",
        "difficulty/big_math.csv.gz",
        "Apache-2.0",
        _big_math,
        "mathematics",
        text="instruction",
        domain="math",
        task="math",
        quota=1_000,
        capped=True,
    ),
    Source(
        "gsm8k_train",
        "difficulty/gsm8k_train.csv.gz",
        "MIT",
        _gsm8k_train,
        "mathematics",
        text="question",
        domain="math",
        task="math",
        quota=600,
        capped=True,
    ),
    _commands("clinc150", "CC-BY-3.0", 2_000),
    _commands("banking77", "CC-BY-4.0", 600),
    _commands("hwu64", "CC-BY-4.0", 600),
    _commands("snips", "CC0-1.0", 400),
    Source(
        "stackoverflow20",
        "intent/stackoverflow20.csv.gz",
        "MIT",
        _stackoverflow,
        domain="computer science",
        task="code",
        quota=500,
        capped=True,
    ),
    Source(
        "humaneval",
        "intent/humaneval.csv.gz",
        "MIT",
        _plain,
        text="prompt",
        domain="computer science",
        task="code",
        quota=80,
    ),
    Source(
        "arena_hard", "intent/arena_hard.csv.gz", "Apache-2.0", _arena_hard, "arena", text="prompt", quota=300
    ),
)
"""The declared sources, in the order in which they are read."""

EXAM_SOURCE = "routellm_mmlu"
"""The source of the exam expert's outcomes."""

LOGS = "logs"
"""Source name of a user's own logs, which replace it."""

HANDWRITTEN = "handwritten/"
"""Start of the source names of our own files, whose difficulty a person judged."""


def read_all(data: Path) -> tuple[list[Example], list[str]]:
    """Every row of the declared sources in `data`, and the names of the missing files."""
    rows: list[Example] = []
    missing: list[str] = []
    for source in SOURCES:
        file = data / source.file
        if file.exists():
            torn = source.name == "big_math"
            rows.extend(source.read(source, _without_torn_rows(file) if torn else read_table(file)))
        else:
            missing.append(source.file)
    return rows, missing


def _without_torn_rows(file: Path) -> Table:
    """A published table without the few rows that stray line breaks tore, or that lack a solve rate."""
    with gzip.open(file, "rt", encoding="utf-8", newline="") as stream:
        header, *rows = csv.reader(stream)
    rate = header.index("solve_rate")
    whole = [i for i, row in enumerate(rows) if len(row) == len(header) and _is_number(row[rate])]
    columns = {name: [rows[i][at] for i in whole] for at, name in enumerate(header)}
    return Table(file, hashlib.sha256(file.read_bytes()).hexdigest(), columns, [i + 2 for i in whole])


def _is_number(field: str) -> bool:
    try:
        float(field)
    except ValueError:
        return False
    return True


def read_handwritten(folder: Path) -> list[Example]:
    """Our own files in `folder`: `*.train.jsonl` may train, `*.eval.jsonl` is reported on.

    A line has `text` and any of `domain`, `task` (names) and `hard` (0 or 1).
    """
    rows: list[Example] = []
    for file in sorted(folder.glob("*.jsonl")):
        kind = file.name.removesuffix(".jsonl").rpartition(".")[2]
        if kind in ("train", "eval"):
            rows.extend(_handwritten(file, kind == "train"))
    return rows


def _handwritten(file: Path, train: bool) -> Rows:
    table = read_table(file)
    name = HANDWRITTEN + file.name.partition(".")[0]
    source = Source(name, file.name, "Apache-2.0", _plain, "handwritten", may_train=train)
    hard = table.numbers_in("hard", 0, 1, blank=True) if table.has("hard") else np.full(len(table), np.nan)
    for row, text in enumerate(table.texts("text")):
        yield source.row(
            table,
            row,
            text,
            None if train else Part.DEV,
            domain=named(table, row, "domain", DOMAINS),
            task=named(table, row, "task", TASKS),
            difficulty=float(hard[row]) if hard[row] == hard[row] else None,
        )


def traffic_of(name: str) -> str:
    """The kind of reference traffic that a row of source `name` represents; empty: none."""
    if name.startswith(HANDWRITTEN):
        return "handwritten"
    return next((source.traffic for source in SOURCES if name in (source.name, *source.also)), "")
