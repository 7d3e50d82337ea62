"""What each data set holds, its licence, and what it may be used for.

A data folder has the shape of the published collections below: gzip-compressed CSV files under
`pairs/`, `matrices/`, `difficulty/` and `intent/`. Files that are not there are skipped and said
so; every row that is read carries the rights of its source.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from semroute_lab.common.tables import Table, prompt_texts, read_table
from semroute_lab.train.datasets import DOMAINS, FAMILIES, TASKS, Example, Part, Rights, Track, part_of_fit

STRONG_MODELS = ("Meta-Llama-3_1-70B-Instruct", "DeepSeek-Coder-V2", "jamba-1.5-large")
"""MMLU-Pro columns that stand for the strong model of a pair."""

WEAK_MODELS = ("Mixtral-8x7B-Instruct-v0.1", "Meta-Llama-3_1-8B-Instruct")
"""MMLU-Pro columns that stand for the weak model."""

SAME_MODELS = (
    ("Meta-Llama-3-70B", "Meta-Llama-3-8B"),
    ("Meta-Llama-3_1-70B", "Meta-Llama-3_1-8B"),
    ("Llama-2-70b-hf", "Llama-2-7b-hf"),
)
"""MMLU-Pro columns of one model in two sizes, the larger first: what size alone gains."""

LONGEST_SLIP = 0.5
"""A weak model's rate of error on the longest word problem; targets only."""

WORD_PROBLEM_WEIGHT = 2.0
"""Weight of that target: contest mathematics, as many rows, would blur what length says here."""

EVERYDAY, MATHEMATICS, EXAM = range(len(FAMILIES))

BARE_WEIGHT = 0.2
"""Weight of the difficulty of an exam question shown without its options: measured with them."""

COMMAND_WEIGHT = 0.2
"""Weight of the difficulty of a short command: all easy, and many."""

Rows = Iterator[Example]
Reader = Callable[[Path, Rights, Track], Rows]


@dataclass(frozen=True, slots=True)
class Source:
    """One file, its rights and how its rows become examples."""

    name: str
    file: str
    rights: Rights
    read: Reader
    used_for: str
    """For the card."""


def _domain(name: str) -> int:
    return DOMAINS.index(name)


def _task(name: str) -> int:
    return TASKS.index(name)


def _place(table: Table, row: int) -> str:
    return f"{table.path}:{table.numbers[row]}"


def _mmlu_pro(file: Path, rights: Rights, track: Track) -> Rows:
    """Domain of every question, with and without its options; gain where no MMLU question is involved."""
    table = read_table(file)
    only_strong, gains = _matrix_targets(file.with_name("mmlu_pro_correct.csv.gz"), track)
    bare, full = table.texts("question"), prompt_texts(table, "question", "options")
    domains, splits = table.strings("category"), table.strings("split")
    stems, ids, origins = (table.strings(name) for name in ("ori_mmlu", "question_id", "src"))
    for row, name in enumerate(domains):
        if name not in DOMAINS:
            raise table.error("category", f"expected one of {', '.join(DOMAINS)}, found {name!r}", row)
        dev, stem = splits[row] != "train", stems[row] == "True"
        part = Part.DEV if dev else part_of_fit(bare[row])
        task = _task("math" if name == "math" else "question answering")
        full_row = Example(
            full[row],
            "mmlu_pro_options",
            _place(table, row),
            rights,
            part,
            _domain(name),
            None if dev else task,
            None if dev or stem else only_strong.get(ids[row]),
            None if dev or stem else gains.get(ids[row]),
            EXAM,
            None if dev else f"mmlu_pro/{origins[row]}",
            stem,
        )
        family = MATHEMATICS if name == "math" else EVERYDAY
        yield replace(full_row, text=bare[row], source="mmlu_pro", family=family, weight=BARE_WEIGHT)
        yield full_row


def _matrix_targets(file: Path, track: Track) -> tuple[dict[str, float], dict[str, float]]:
    """Question to P(strong right) x P(weak wrong), and to the gain s - w, over the named columns.

    On the zero track these are all that is known of exams, and must carry over to other questions and
    another pair. Between models of different makers the gain is most of all who was taught mathematics
    step by step; so there it is what size gains within one maker's models, mean over `SAME_MODELS`.
    """
    if not file.exists():
        return {}, {}
    table = read_table(file)

    def outcomes(names: Sequence[str]) -> list[float | None]:
        columns = [table.numbers_in(name, 0, 1, blank=True) for name in names if table.has(name)]
        return [_mean_of_known(values) for values in zip(*columns, strict=True)]

    pairs: list[tuple[Sequence[str], Sequence[str]]] = [(STRONG_MODELS, WEAK_MODELS)]
    if track is Track.ZERO:
        pairs = [((large,), (small,)) for large, small in SAME_MODELS]
    only_strong: dict[str, list[float]] = {}
    gains: dict[str, list[float]] = {}
    keys = table.strings("question_id")
    for strong, weak in pairs:
        for key, s, w in zip(keys, outcomes(strong), outcomes(weak), strict=False):
            if s is not None and w is not None:
                only_strong.setdefault(key, []).append(s * (1.0 - w))
                gains.setdefault(key, []).append(s - w)
    return _means(only_strong), _means(gains)


def _means(values: dict[str, list[float]]) -> dict[str, float]:
    return {key: sum(found) / len(found) for key, found in values.items()}


def _mean_of_known(values: tuple[float, ...]) -> float | None:
    known = [float(value) for value in values if value == value]
    return sum(known) / len(known) if known else None


_SUBJECT_PREFIX = "ori_mmlu-"
"""MMLU-Pro's `src` of a question that came from an MMLU subject starts with this."""


def _routellm_mmlu(file: Path, rights: Rights, track: Track) -> Rows:
    """`gold` rows train on the gold track and are left out on the zero track; `dev` rows are reported on.

    A gold row's subject also gives its domain, by the domain MMLU-Pro files that subject under.
    """
    table = read_table(file)
    domains = _domains_of_subjects(file.parents[1] / "matrices" / "mmlu_pro_questions.csv.gz")
    strong, weak = (table.numbers_in(name, 0, 1) for name in ("strong_correct", "weak_correct"))
    subjects = table.strings("subject")
    for row, (text, split) in enumerate(zip(table.texts("prompt"), table.strings("split"), strict=True)):
        gold = split == "gold"
        if gold and track is Track.ZERO:
            continue
        domain = domains.get(subjects[row]) if gold else None
        yield Example(
            text,
            "routellm_mmlu",
            _place(table, row),
            rights,
            part_of_fit(text) if gold else Part.DEV,
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
    pairs = zip(table.strings("src"), table.strings("category"), strict=True)
    return {
        origin.removeprefix(_SUBJECT_PREFIX): _domain(name)
        for origin, name in pairs
        if origin.startswith(_SUBJECT_PREFIX) and name in DOMAINS
    }


def _routellm_gsm8k(file: Path, rights: Rights, track: Track) -> Rows:
    table = read_table(file)
    strong, weak = (table.numbers_in(name, 0, 1) for name in ("strong_correct", "weak_correct"))
    for row, text in enumerate(table.texts("prompt")):
        target = float(strong[row] * (1.0 - weak[row]))
        place = _place(table, row)
        yield Example(text, "routellm_gsm8k", place, rights, Part.DEV, difficulty=target, family=MATHEMATICS)


def _big_math(file: Path, rights: Rights, track: Track) -> Rows:
    table = _without_broken_rows(file)
    rates = table.numbers_in("solve_rate", 0, 1)
    for row, text in enumerate(table.texts("instruction")):
        target = 1.0 - float(rates[row])
        part = part_of_fit(text)
        place = _place(table, row)
        yield Example(
            text, "big_math", place, rights, part, _domain("math"), _task("math"), target, MATHEMATICS
        )


def _without_broken_rows(file: Path) -> Table:
    """A table of a published file of which a few rows are torn by stray line breaks or lack a number."""
    with gzip.open(file, "rt", encoding="utf-8", newline="") as stream:
        rows = list(csv.reader(stream))
    header = rows[0]
    rate = header.index("solve_rate")
    whole = [i for i in range(1, len(rows)) if len(rows[i]) == len(header) and _is_number(rows[i][rate])]
    columns = {name: [rows[i][at] for i in whole] for at, name in enumerate(header)}
    return Table(file, hashlib.sha256(file.read_bytes()).hexdigest(), columns, [i + 1 for i in whole])


def _is_number(field: str) -> bool:
    try:
        float(field)
    except ValueError:
        return False
    return True


def _gsm8k_train(file: Path, rights: Rights, track: Track) -> Rows:
    """No outcomes: a weak model slips more often the longer the problem, whose rank by length is the target.

    The steps of the worked answer say no more: as a target they ranked the dev rows of the GSM8K pair
    worse than length, alone and in a mean with it (APGR .598 and .624, against .633 to .640).
    """
    table = read_table(file)
    texts = table.texts("question")
    longest_last = sorted(range(len(texts)), key=lambda row: len(texts[row]))
    rank = {row: place / len(texts) for place, row in enumerate(longest_last)}
    for row, text in enumerate(texts):
        yield Example(
            text,
            "gsm8k_train",
            _place(table, row),
            rights,
            part_of_fit(text),
            _domain("math"),
            _task("math"),
            LONGEST_SLIP * rank[row],
            MATHEMATICS,
            weight=WORD_PROBLEM_WEIGHT,
        )


def _intent(file: Path, rights: Rights, track: Track) -> Rows:
    """Commands to an assistant: the fine label shapes the embedding, and everyday commands are easy."""
    table = read_table(file)
    name = table.path.name.partition(".")[0]
    labels = table.strings("category" if table.has("category") else "intent")
    for row, (text, split) in enumerate(zip(table.texts("text"), table.strings("split"), strict=True)):
        if split in ("oos_train", "oos_val", "oos_test") or labels[row] == "oos":
            continue
        part = part_of_fit(text) if split == "train" else Part.DEV
        fine = f"{name}/{labels[row]}"
        easy = 0.0 if part is not Part.DEV else None
        yield Example(
            text, name, _place(table, row), rights, part, difficulty=easy, intent=fine, weight=COMMAND_WEIGHT
        )


def _stackoverflow(file: Path, rights: Rights, track: Track) -> Rows:
    table = read_table(file)
    for row, (text, label) in enumerate(zip(table.texts("text"), table.strings("label"), strict=True)):
        part = part_of_fit(text)
        computing = _domain("computer science")
        place, fine = _place(table, row), f"stackoverflow/{label}"
        yield Example(text, "stackoverflow20", place, rights, part, computing, _task("code"), intent=fine)


def _humaneval(file: Path, rights: Rights, track: Track) -> Rows:
    table = read_table(file)
    for row, text in enumerate(table.texts("prompt")):
        part = part_of_fit(text)
        computing = _domain("computer science")
        yield Example(text, "humaneval", _place(table, row), rights, part, computing, _task("code"))


def _arena_hard(file: Path, rights: Rights, track: Track) -> Rows:
    """Prompts of real users that were selected for being hard; creative ones only teach the task."""
    table = read_table(file)
    for row, (text, kind) in enumerate(zip(table.texts("prompt"), table.strings("category"), strict=True)):
        part, place = part_of_fit(text), _place(table, row)
        if kind == "creative_writing":
            yield Example(text, "arena_hard", place, rights, part, task=_task("creative"))
        elif sum(ord(character) < 128 for character in text) >= 0.95 * len(text):
            yield Example(text, "arena_hard", place, rights, part, difficulty=0.9)


def read_handwritten(folder: Path) -> list[Example]:
    """Our own files in `folder`: `*.train.jsonl` may train, `*.eval.jsonl` is reported on.

    A line holds `text` and any of `domain`, `task` (names) and `hard` (0 or 1).
    """
    rows: list[Example] = []
    for file in sorted(folder.glob("*.jsonl")):
        kind = file.name.removesuffix(".jsonl").rpartition(".")[2]
        if kind in ("train", "eval"):
            rows.extend(_handwritten(file, kind == "train"))
    return rows


def _handwritten(file: Path, train: bool) -> Rows:
    table = read_table(file)
    rights = Rights("Apache-2.0", train)
    name = f"handwritten/{file.name.partition('.')[0]}"
    blank = [""] * len(table)
    domains = table.columns.get("domain", blank)
    tasks = table.columns.get("task", blank)
    hard = table.numbers_in("hard", 0, 1, blank=True) if table.has("hard") else None
    for row, text in enumerate(table.texts("text")):
        known = hard is not None and hard[row] == hard[row]
        yield Example(
            text,
            name,
            _place(table, row),
            rights,
            part_of_fit(text) if train else Part.DEV,
            _named(table, row, "domain", domains[row], DOMAINS),
            _named(table, row, "task", tasks[row], TASKS),
            float(hard[row]) if hard is not None and known else None,
        )


def _named(table: Table, row: int, column: str, value: str, names: tuple[str, ...]) -> int | None:
    if not value:
        return None
    if value not in names:
        raise table.error(column, f"expected one of {', '.join(names)}, found {value!r}", row)
    return names.index(value)


APACHE, MIT = Rights("Apache-2.0", True), Rights("MIT", True)
CC_BY_3, CC_BY_4 = Rights("CC-BY-3.0", True), Rights("CC-BY-4.0", True)
CC0 = Rights("CC0-1.0", True)

SOURCES = (
    Source("mmlu_pro", "matrices/mmlu_pro_questions.csv.gz", MIT, _mmlu_pro, "domain, task, difficulty"),
    Source("routellm_mmlu", "pairs/routellm_mmlu.csv.gz", APACHE, _routellm_mmlu, "difficulty (gold rows)"),
    Source(
        "routellm_gsm8k",
        "pairs/routellm_gsm8k.csv.gz",
        Rights("Apache-2.0", False),
        _routellm_gsm8k,
        "evaluation",
    ),
    Source("big_math", "difficulty/big_math.csv.gz", APACHE, _big_math, "domain, task, difficulty"),
    Source("gsm8k_train", "difficulty/gsm8k_train.csv.gz", MIT, _gsm8k_train, "domain, task, difficulty"),
    Source("clinc150", "intent/clinc150.csv.gz", CC_BY_3, _intent, "embedding, difficulty"),
    Source("banking77", "intent/banking77.csv.gz", CC_BY_4, _intent, "embedding, difficulty"),
    Source("hwu64", "intent/hwu64.csv.gz", CC_BY_4, _intent, "embedding, difficulty"),
    Source("snips", "intent/snips.csv.gz", CC0, _intent, "embedding, difficulty"),
    Source("stackoverflow20", "intent/stackoverflow20.csv.gz", MIT, _stackoverflow, "domain, task"),
    Source("humaneval", "intent/humaneval.csv.gz", MIT, _humaneval, "domain, task"),
    Source("arena_hard", "intent/arena_hard.csv.gz", APACHE, _arena_hard, "task, difficulty"),
)
"""The declared sources, in the order they are read."""


def read_all(data: Path, track: Track) -> tuple[list[Example], list[str]]:
    """Every row of the declared sources in `data`, and the names of the files that are not there."""
    rows: list[Example] = []
    missing: list[str] = []
    for source in SOURCES:
        file = data / source.file
        if file.exists():
            rows.extend(source.read(file, source.rights, track))
        else:
            missing.append(source.file)
    return rows, missing
