"""The declared data sets: the table `sources.toml`, and a small reader per shape.

A data folder has gzip-compressed files under `pairs/`, `matrices/`, `difficulty/`, `intent/`, `multilingual/`
and `traffic/`. Missing files are skipped and reported; every row carries the rights of its source. Readers
put difficulty on the one scale that `sources.toml` declares.
"""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from semroute_extproc.cli.score import text_of_body
from semroute_lab.common.metrics import Floats
from semroute_lab.common.tables import Table, prompt_texts, read_table
from semroute_lab.train.datasets import (
    DOMAINS,
    LEVELS,
    NAMES,
    TASKS,
    Example,
    Part,
    Rights,
    named,
    part_of_fit,
)

CLEAR = 0.04  # Difficulty where the weak model is as good as the strong one
REWARD_SCALE = 1.3  # Difficulty for each unit of a judge's reward, 0..1, that the weak model lacks
WORD_PROBLEM = (0.03, 0.13)  # Difficulty of the shortest and of the longest word problem
RAW_KINDS = ("housekeeping", "template")  # Read as they are: the envelope is what they are about
HARD_CHAT = (0.45, 0.85)  # Difficulty of the prompts with the smallest and the largest gap of outcomes
MMLU_PRIOR = 0.25  # Weight of the mean of MMLU's outcomes in a row's difficulty: a single answer is noisy
LOGS = "logs"  # Source name of a user's own logs
_HANDWRITTEN_ENDS = (".train.jsonl", ".eval.jsonl")
HANDWRITTEN = "handwritten/"  # Start of the source names of our own files, whose difficulty a person judged
_SUBJECT_PREFIX = "ori_mmlu-"  # Start of MMLU-Pro's `src` for a question from an MMLU subject
_KIND_TASKS: dict[str, str] = NAMES["kind_tasks"]
_CLASSES = {  # BELLE's classes: kind, level and task
    "open qa": ("short_question", 0.1, "question answering"),
    "brainstorming": ("writing", 0.12, "creative"),
    "rewrite": ("rewrite", 0.08, "other"),
    "generation": ("writing", 0.15, "creative"),
    "math": ("math_school", 0.1, "math"),
    "classification": ("classification", 0.06, "other"),
    "closed\xa0qa": ("qa_over_text", 0.09, "question answering"),
    "summarization": ("summarisation", 0.09, "summarisation"),
    "code": ("code", 0.3, "code"),
    "extract": ("extraction", 0.06, "extraction"),
}
Rows = Iterator[Example]


@dataclass(frozen=True, slots=True)
class Source:
    """One file: its rights, its reader, how much of it is used; the fields are those of `sources.toml`."""

    name: str
    file: str
    licence: str
    read: str = "plain"
    text: str = "text"
    kind: str = ""
    domain: str = ""
    task: str = ""
    quota: int | None = None
    rows_max: int | None = None
    weight: float = 1.0
    may_train: bool = True
    also: Sequence[str] = ()
    weak: Sequence[str] = ()
    strong: Sequence[str] = ()
    strong_right: float = 1.0
    error_left: float = 1.0
    shrink: float = 0.0
    levels: Sequence[float] = ()
    languages: Sequence[str] = ()
    tasks: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def row(self, table: Table, row: int, text: str, part: Part | None = None, **targets: Any) -> Example:
        """An example from a row of the file; without a part, its `split` or the text's hash decides."""
        fixed = {
            "domain": DOMAINS.index(self.domain) if self.domain else None,
            "task": TASKS.index(self.task) if self.task else None,
            "weight": self.weight,
            "kind": self.kind,
        }
        if part is None:
            part = Part.DEV if table.field("split", row) == "dev" and self.splits else part_of_fit(text)
        place, rights = f"{table.path}:{table.numbers[row]}", Rights(self.licence, self.may_train)
        return Example(text, self.name, place, rights, part, **(fixed | targets))

    @property
    def splits(self) -> bool:
        """Whether `dev` in the column `split` marks rows that are only reported on."""
        return self.read not in ("tasks", "outcomes") or self.name == "ifeval"


def difficulty_of(strong: Floats, weak: Floats) -> Floats:
    """P(strong is right and weak is not) of two rates, drawn independently."""
    return strong * (1.0 - weak)


def _rates(source: Source, table: Table) -> tuple[Floats, Floats]:
    """The frontier model's and the weak models' rate of right answers to each row; NaN where unknown."""
    weak = _means(table, source.weak)
    if not source.strong:
        return np.full(len(table), source.strong_right), weak
    return 1.0 - source.error_left * (1.0 - _means(table, source.strong)), weak


def _means(table: Table, names: Sequence[str]) -> Floats:
    """The mean of the known values of some columns; [rows]."""
    columns = [table.numbers_in(name, 0, 1, blank=True) for name in names if table.has(name)]
    if not columns:
        return np.full(len(table), np.nan)
    values = np.stack(columns)
    known = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        return np.asarray(np.where(known, values, 0.0).sum(0) / known.sum(0), dtype=np.float64)


def _known(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _plain(source: Source, table: Table) -> Rows:
    """Every row has the source's domain and task."""
    for row, text in enumerate(table.texts(source.text)):
        yield source.row(table, row, text)


def _outcomes(source: Source, table: Table) -> Rows:
    """Difficulty from the columns of outcomes."""
    found = difficulty_of(*_rates(source, table))
    for row, text in enumerate(table.texts(source.text)):
        yield source.row(table, row, text, difficulty=_known(found[row]))


def _mmlu_pro(source: Source, table: Table) -> Rows:
    """Domain of every question, with and without its options; difficulty where it is not MMLU's."""
    file = table.path.with_name("mmlu_pro_correct.csv.gz")
    rates: dict[str, float] = {}
    if file.exists():
        outcomes = read_table(file)
        found = difficulty_of(*_rates(source, outcomes))
        rates = dict(zip(outcomes.strings("question_id"), found.tolist(), strict=True))
    bare, full = table.texts(source.text), prompt_texts(table, source.text, "options")
    stems, ids, origins, splits = (table.strings(n) for n in ("ori_mmlu", "question_id", "src", "split"))
    for row, name in enumerate(table.strings("category")):
        targets: dict[str, Any] = {"domain": named(table, row, "category", DOMAINS)}
        part = Part.DEV
        if splits[row] == "train":
            part = part_of_fit(bare[row])
            targets["task"] = TASKS.index("math" if name == "math" else "question answering")
            targets["intent"] = f"mmlu_pro/{origins[row]}"
            if stems[row] != "True":
                targets["difficulty"] = _known(rates.get(ids[row], np.nan))
        yield source.row(table, row, bare[row], part, **targets)
        yield replace(source.row(table, row, full[row], part, **targets), source=source.also[0], weight=1.0)


def _pair(source: Source, table: Table) -> Rows:
    """Outcomes of two models: `gold` rows train, with their MMLU subject's domain."""
    domains = _domains_of_subjects(table.path.parents[1] / "matrices" / "mmlu_pro_questions.csv.gz")
    strong, weak = (table.numbers_in(name, 0, 1) for name in ("outcome.strong", "outcome.weak"))
    found = difficulty_of(strong, weak)
    mean = float(found.mean())
    subjects, splits = table.columns.get("subject"), table.strings("split")
    for row, text in enumerate(table.texts(source.text)):
        gold = splits[row] == "gold"
        subject = subjects[row] if subjects and gold else ""
        domain = domains.get(subject)
        intent = None if domain is None else f"mmlu_pro/{_SUBJECT_PREFIX}{subject}"
        level = (1.0 - MMLU_PRIOR) * float(found[row]) + MMLU_PRIOR * mean if gold else float(found[row])
        gain = float(strong[row] - weak[row])
        targets = {"domain": domain, "difficulty": level, "gain": gain, "intent": intent}
        yield source.row(table, row, text, None if gold else Part.DEV, **targets)


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


def _rewards(source: Source, table: Table) -> Rows:
    """A judge's rewards of one prompt set: difficulty grows with what the weak model lacks."""
    gaps = _means(table, source.strong) - _means(table, source.weak)
    train, other, origins = (table.strings(name) for name in ("train", "other_split", "source"))
    for row, text in enumerate(table.texts(source.text)):
        if train[row] == "1" and not other[row]:
            kind = "math_school" if origins[row] == "gsm8k" else source.kind
            level = np.clip(CLEAR + REWARD_SCALE * np.maximum(gaps[row], 0.0), 0.0, 0.9)
            yield source.row(table, row, text, difficulty=_known(level), kind=kind)


def _tasks(source: Source, table: Table) -> Rows:
    """Outcomes of several tasks, each with its kind; the weak rate is shrunk to the task's mean."""
    weak, names = _rates(source, table)[1], np.array(table.strings("task"))
    models = len(source.weak)
    for row, text in enumerate(table.texts(source.text)):
        own = source.tasks.get(str(names[row]))
        if own is not None:
            mean = float(np.nanmean(weak[names == names[row]]))
            rate = (models * weak[row] + source.shrink * mean) / (models + source.shrink)
            level = _known(own["strong_right"] * (1.0 - rate))
            task = TASKS.index(own["task"])
            yield source.row(table, row, text, difficulty=level, kind=own["kind"], task=task)


def _levels(source: Source, table: Table) -> Rows:
    """Competition levels 1, 2, …, each with a difficulty."""
    levels = table.numbers_in("level", 1, len(source.levels))
    for row, text in enumerate(table.texts(source.text)):
        yield source.row(table, row, text, difficulty=source.levels[int(levels[row]) - 1])


def _solve_rate(source: Source, table: Table) -> Rows:
    """Difficulty from the published solve rate of the weak model."""
    rates = table.numbers_in("solve_rate", 0, 1)
    for row, text in enumerate(table.texts(source.text)):
        yield source.row(table, row, text, difficulty=source.strong_right * (1.0 - float(rates[row])))


def _longer_is_harder(source: Source, table: Table) -> Rows:
    """No outcomes: the target is the rank by length, since a weak model slips more on longer problems."""
    texts, (low, high) = table.texts(source.text), WORD_PROBLEM
    by_length = sorted(range(len(texts)), key=lambda row: len(texts[row]))
    rank = {row: place / len(texts) for place, row in enumerate(by_length)}
    for row, text in enumerate(texts):
        yield source.row(table, row, text, difficulty=low + (high - low) * rank[row])


def _intent(source: Source, table: Table) -> Rows:
    """Commands to an assistant: the fine label shapes the embedding, and everyday commands are easy."""
    labels = table.strings("category" if table.has("category") else "intent")
    splits = table.strings("split")
    for row, text in enumerate(table.texts(source.text)):
        if splits[row] in ("oos_train", "oos_val", "oos_test") or labels[row] == "oos":
            continue
        part = part_of_fit(text) if splits[row] == "train" else Part.DEV
        easy = None if part is Part.DEV else LEVELS["command"]
        yield source.row(table, row, text, part, difficulty=easy, intent=f"{source.name}/{labels[row]}")


def _fine_label(source: Source, table: Table) -> Rows:
    """The source's domain and task, and a fine label."""
    labels = table.strings("label")
    for row, text in enumerate(table.texts(source.text)):
        yield source.row(table, row, text, intent=f"{source.name}/{labels[row]}")


def hard_chat(file: Path) -> dict[str, tuple[str, float]]:
    """English prompt to its part and difficulty, by the gap between good and small models (Arena-Hard).

    The gap is that of the better and the worse half of all models; its rank is put on `HARD_CHAT`.
    """
    if not file.exists():
        return {}
    table = read_table(file)
    models = [name for name in table.columns if name not in ("question_id", "cluster", "split")]
    models = [name for name in models if not name.startswith("prompt_")]
    scores = np.stack([table.numbers_in(name, -2, 2, blank=True) for name in models])
    order = np.argsort(np.nanmean(scores, axis=1))
    gaps = np.nanmean(scores[order[-12:]], axis=0) - np.nanmean(scores[order[:16]], axis=0)
    ranks = np.argsort(np.argsort(gaps)) / max(1, len(gaps) - 1)
    found = HARD_CHAT[0] + (HARD_CHAT[1] - HARD_CHAT[0]) * ranks
    rows = zip(table.strings("prompt_en"), table.strings("split"), found.tolist(), strict=True)
    return {text.strip(): (split, level) for text, split, level in rows}


def _arena(source: Source, table: Table) -> Rows:
    """Prompts of real users that were selected for being hard; creative ones only teach the task."""
    outcomes = hard_chat(table.path.parents[1] / "matrices" / "arena_hard_ko.csv.gz")
    kinds = table.strings("category")
    for row, text in enumerate(table.texts(source.text)):
        split, level = outcomes.get(text.strip(), ("", sum(HARD_CHAT) / 2))
        if kinds[row] == "creative_writing":
            task, level = TASKS.index("creative"), LEVELS["writing"]
            yield source.row(table, row, text, task=task, difficulty=level, kind="writing")
        elif split != "dev":
            yield source.row(table, row, text, difficulty=level)


def _translated(source: Source, table: Table) -> Rows:
    """The same prompts in other languages: the request is the same, and so is its difficulty."""
    outcomes = hard_chat(table.path.parents[1] / "matrices" / "arena_hard_ko.csv.gz")
    splits = table.strings("split")
    for row, text in enumerate(table.texts("en")):
        _, level = outcomes.get(text.strip(), ("", sum(HARD_CHAT) / 2))
        part = Part.DEV if splits[row] == "dev" else part_of_fit(text)
        for language in source.languages:
            if translated := table.field(language, row):
                yield source.row(table, row, translated, part, difficulty=level)


def _classes(source: Source, table: Table) -> Rows:
    """Instructions with a class, each with its kind, level and task."""
    names = table.strings("class")
    for row, text in enumerate(table.texts(source.text)):
        if names[row] in _CLASSES:
            kind, level, task = _CLASSES[names[row]]
            yield source.row(table, row, text, difficulty=level, kind=kind, task=TASKS.index(task))


def _requests(source: Source, table: Table) -> Rows:
    """Requests by kind, as an API gets them; the level of the kind, or of the row where it has one."""
    columns = ("kind", "source", "licence", "train", "split", "text", "messages", "task", "level", "id")
    for row in range(len(table)):
        kind, origin, licence, train, split, text, messages, task, level, group = (
            table.field(name, row) for name in columns
        )
        if train not in ("1", "true") or split != "train":
            continue
        if messages or kind not in RAW_KINDS:
            asked = json.loads(messages) if messages else [{"role": "user", "content": text}]
            text = text_of_body({"messages": asked})
        number = float(level) if level.replace(".", "").isdigit() else 2.0
        difficulty = LEVELS.get(kind)
        if "college_math" in task:
            difficulty = 0.38
        elif task == "multiple choice":
            difficulty = 0.22
        elif kind == "instruction_following":
            difficulty = 0.08 + 0.07 * number  # FollowBench: the number of added constraints, 0 to 5
        targets = {
            "task": TASKS.index(_KIND_TASKS[kind]) if kind in _KIND_TASKS else None,
            "domain": DOMAINS.index("math") if kind.startswith("math_") else None,
        }
        name = f"{source.name}/{origin.partition('@')[0].partition(' templates')[0]}"
        own = replace(source, name=name, licence=licence, kind=kind)
        yield own.row(table, row, text, part_of_fit(group or text), difficulty=difficulty, **targets)


_READERS = (
    *(_plain, _outcomes, _mmlu_pro, _pair, _rewards, _tasks, _levels, _solve_rate, _longer_is_harder),
    *(_intent, _fine_label, _arena, _translated, _classes, _requests),
)
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
    source = Source(name, file.name, "Apache-2.0", kind="everyday", may_train=train)
    hard = table.numbers_in("hard", 0, 1, blank=True) if table.has("hard") else np.full(len(table), np.nan)
    easy, difficult = LEVELS["everyday_easy"], LEVELS["everyday_hard"]
    for row, text in enumerate(table.texts("text")):
        level = None if np.isnan(hard[row]) else float(easy + (difficult - easy) * hard[row])
        targets = {**names_in(table, row), "difficulty": level}
        yield source.row(table, row, text, None if train else Part.DEV, **targets)
