"""The Chinese rows: what may train, and what is only reported on."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from semroute_lab.common.tables import read_table
from semroute_lab.train.datasets import DOMAINS, TASKS, Example, FitSet, Part, Rights, assemble, part_of_fit
from semroute_lab.train.sources import read_handwritten

SEED = 7
"""Of the rows drawn from a larger set."""

HANDWRITTEN = "handwritten/chinese"
"""Prefix of the sources, among the hand-written files, that are in Chinese."""

BELLE = "intent/belle.csv.gz"

BELLE_RIGHTS = Rights("Apache-2.0 / ODC-By", True)

BELLE_TASKS = {
    "math": "math",
    "code": "code",
    "summarization": "summarisation",
    "extract": "extraction",
    "open qa": "question answering",
    "closed qa": "question answering",
    "classification": "other",
}
"""BELLE's class to a task, where the class decides. Brainstorming is of several kinds and left out."""

_TRANSLATION = re.compile("翻译|译成|译为")
_CREATIVE = re.compile("故事|诗|小说|歌词|剧本|童话|散文|短文|文章|创作|作文|对话|段落")

SUBJECT_ROWS_MAX = 38
"""Rows of one CMMLU subject: 38 subjects of 38 rows stay under 1,500."""

CMMLU_DOMAINS = {
    "biology": ("genetics", "high_school_biology"),
    "business": ("business_ethics", "management", "marketing", "professional_accounting"),
    "chemistry": ("high_school_chemistry",),
    "computer science": ("computer_science", "computer_security", "machine_learning"),
    "economics": ("economics",),
    "engineering": ("college_engineering_hydrology", "electrical_engineering"),
    "health": (
        *("anatomy", "clinical_knowledge", "college_medicine", "nutrition", "professional_medicine"),
        *("traditional_chinese_medicine", "virology"),
    ),
    "history": ("chinese_history", "world_history"),
    "law": ("college_law", "international_law", "jurisprudence", "professional_law"),
    "math": ("college_mathematics", "elementary_mathematics", "high_school_mathematics"),
    "other": ("arts", "chinese_driving_rule", "chinese_food_culture", "sports_science"),
    "philosophy": ("philosophy",),
    "physics": ("astronomy", "conceptual_physics", "high_school_physics"),
    "psychology": ("professional_psychology",),
}
"""CMMLU subjects by the domain under which MMLU-Pro files that kind of question; the rest map to none."""

ALIGNBENCH_DOMAINS = {
    "化学": "chemistry",
    "历史": "history",
    "法律": "law",
    "经济": "economics",
    "计算机": "computer science",
    "物理": "physics",
    "天文": "physics",
    "体育": "other",
    "音乐": "other",
    "文学": "other",
    "初等数学": "math",
    "高等数学": "math",
    "应用数学": "math",
}
"""AlignBench subcategory to a domain."""

ALIGNBENCH_TASKS = {
    "化学": "question answering",
    "历史": "question answering",
    "体育": "question answering",
    "音乐": "question answering",
    "天文": "question answering",
    "常识知识": "question answering",
    "初等数学": "math",
    "高等数学": "math",
    "应用数学": "math",
    "信息抽取": "extraction",
    "翻译": "translation",
    "创意文体写作": "creative",
}
"""AlignBench subcategory to a task."""

NOISE_ROWS = 200
"""Strings of random Chinese characters that ought to be unknown."""


def read_corpus(data: Path, datasets: Path, held_out: list[HeldOut]) -> FitSet:
    """Every Chinese row that may train and whose question is not reported on."""
    rows = [row for row in read_handwritten(datasets) if row.source.startswith(HANDWRITTEN)]
    rows.extend(_belle(data / BELLE))
    reported = [row for one in held_out for row in one.rows]
    corpus = assemble(rows, reported)
    return FitSet([*corpus.fit, *(replace(row, part=Part.FIT) for row in corpus.calibrate)])


def _belle(file: Path) -> Iterator[Example]:
    table = read_table(file)
    for row, (text, kind) in enumerate(zip(table.texts("question"), table.strings("class"), strict=True)):
        task = belle_task(kind.replace("\xa0", " "), text)
        place = f"{table.path}:{table.numbers[row]}"
        yield Example(
            text,
            "belle",
            place,
            BELLE_RIGHTS,
            part_of_fit(text),
            task=None if task is None else TASKS.index(task),
        )


def belle_task(kind: str, text: str) -> str | None:
    """The task of a BELLE row, from its class and, where that says too little, its words."""
    if kind == "rewrite":
        return "translation" if _TRANSLATION.search(text) else "other"
    if kind == "generation":
        return "creative" if _CREATIVE.search(text) else "other"
    return BELLE_TASKS.get(kind)


@dataclass(frozen=True, slots=True)
class HeldOut:
    """A set that is only reported on."""

    name: str
    rows: tuple[Example, ...]


def held_out(data: Path, datasets: Path) -> list[HeldOut]:
    """The sets that are there, with the targets that they have."""
    own = [row for row in read_handwritten(datasets) if row.source == "handwritten/chinese"]
    found = [HeldOut("chinese", tuple(row for row in own if row.part is Part.DEV))]
    for name, read in (("cmmlu", _cmmlu), ("alignbench", _alignbench)):
        file = data / "intent" / f"{name}.csv.gz"
        if file.exists():
            found.append(HeldOut(name, tuple(read(file))))
    found.append(HeldOut("noise", tuple(_noise())))
    return found


def _cmmlu(file: Path) -> list[Example]:
    """Questions without their options, at most `SUBJECT_ROWS_MAX` of a subject."""
    table = read_table(file)
    domains = {subject: domain for domain, subjects in CMMLU_DOMAINS.items() for subject in subjects}
    order = list(range(len(table)))
    random.Random(SEED).shuffle(order)
    taken: dict[str, int] = {}
    rows = []
    subjects, texts = table.strings("subject"), table.texts("Question")
    for i in order:
        taken[subjects[i]] = taken.get(subjects[i], 0) + 1
        if subjects[i] in domains and taken[subjects[i]] <= SUBJECT_ROWS_MAX:
            domain = DOMAINS.index(domains[subjects[i]])
            rows.append(_row(texts[i], "cmmlu", f"{file}:{table.numbers[i]}", domain=domain))
    return rows


def _alignbench(file: Path) -> list[Example]:
    table = read_table(file)
    rows = []
    for i, (text, kind) in enumerate(zip(table.texts("question"), table.strings("subcategory"), strict=True)):
        domain, task = ALIGNBENCH_DOMAINS.get(kind), ALIGNBENCH_TASKS.get(kind)
        rows.append(
            _row(
                text,
                "alignbench",
                f"{file}:{table.numbers[i]}",
                None if domain is None else DOMAINS.index(domain),
                None if task is None else TASKS.index(task),
            )
        )
    return rows


def _noise() -> list[Example]:
    rng = random.Random(SEED)
    texts = [
        "".join(chr(rng.randint(0x4E00, 0x9FA5)) for _ in range(rng.randint(6, 40)))
        for _ in range(NOISE_ROWS)
    ]
    return [_row(text, "noise", "noise") for text in texts]


def _row(text: str, source: str, place: str, domain: int | None = None, task: int | None = None) -> Example:
    rights = Rights("evaluation only", False)
    return Example(text, source, place, rights, Part.DEV, domain=domain, task=task)
