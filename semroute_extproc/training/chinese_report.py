"""What the Chinese bundle is worth: held-out rows, and figures with intervals."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from semroute_extproc.encoder.offline import score_texts
from semroute_extproc.evaluation.data import read_table
from semroute_extproc.evaluation.metrics.classification import (
    auroc,
    binary_ece,
    confusion_matrix,
    ece,
    macro_f1,
    weighted_auroc,
)
from semroute_extproc.evaluation.metrics.resampling import bootstrap, estimate
from semroute_extproc.signals import Signals
from semroute_extproc.training.datasets import DOMAINS, TASKS, Example, Part, Rights
from semroute_extproc.training.losses import IGNORE, Targets
from semroute_extproc.training.sources import read_handwritten

REPLICATES = 1_000
"""Bootstrap resamples of every interval."""

SEED = 7
"""Of the resamples and of the rows drawn from a larger set."""

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
    **{"化学": "chemistry", "历史": "history", "法律": "law", "经济": "economics", "计算机": "computer science"},
    **{"物理": "physics", "天文": "physics", "体育": "other", "音乐": "other", "文学": "other"},
    **{"初等数学": "math", "高等数学": "math", "应用数学": "math"},
}
"""AlignBench subcategory to a domain."""

ALIGNBENCH_TASKS = {
    **{"化学": "question answering", "历史": "question answering", "体育": "question answering"},
    **{"音乐": "question answering", "天文": "question answering", "常识知识": "question answering"},
    **{"初等数学": "math", "高等数学": "math", "应用数学": "math"},
    **{"信息抽取": "extraction", "翻译": "translation", "创意文体写作": "creative"},
}
"""AlignBench subcategory to a task."""

NOISE_ROWS = 200
"""Strings of random Chinese characters that ought to be unknown."""

Figures = dict[str, Any]
Floats = npt.NDArray[np.float64]


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
    texts = ["".join(chr(rng.randint(0x4E00, 0x9FA5)) for _ in range(rng.randint(6, 40))) for _ in range(NOISE_ROWS)]
    return [_row(text, "noise", "noise") for text in texts]


def _row(text: str, source: str, place: str, domain: int | None = None, task: int | None = None) -> Example:
    rights = Rights("evaluation only", False)
    return Example(text, source, place, rights, Part.DEV, domain=domain, task=task)


def evaluate(scored: Mapping[str, Path], sets: Sequence[HeldOut]) -> Figures:
    """Figures of every bundle on every set: bundle to set to figure to [value, low, high]."""
    return {
        name: {
            one.name: _figures(one.rows, score_texts(path, [row.text for row in one.rows])) for one in sets
        }
        for name, path in scored.items()
    }


def _figures(rows: Sequence[Example], signals: Sequence[Signals]) -> Figures:
    found: Figures = {"rows": len(rows)}
    found["unknown"] = _mean(np.array([one.unknown for one in signals], dtype=float))
    for head, names in (("domain", DOMAINS), ("task", TASKS)):
        known = [i for i, row in enumerate(rows) if getattr(row, head) is not None]
        if known:
            truth = np.array([getattr(rows[i], head) for i in known])
            probabilities = np.array(
                [[getattr(signals[i], f"{head}_probs").get(name, 0.0) for name in names] for i in known]
            )
            found[head] = _classes(truth, probabilities, names)
    rated = [i for i, row in enumerate(rows) if row.difficulty is not None]
    if rated:
        hard = np.array([rows[i].difficulty for i in rated]) > 0.5
        scores = np.array([signals[i].difficulty for i in rated])
        found["difficulty"] = _difficulty(hard, scores, np.array([len(rows[i].text) for i in rated], dtype=float))
    return found


def _classes(truth: npt.NDArray[np.int64], probabilities: Floats, names: Sequence[str]) -> Figures:
    predicted = probabilities.argmax(1)
    hit = predicted == truth
    cells = confusion_matrix(truth, predicted, len(names))
    wrong = cells - np.diag(np.diag(cells))
    worst = np.argsort(-wrong, axis=None, kind="stable")[:5]
    return {
        "rows": len(truth),
        "accuracy": _mean(hit.astype(float)),
        "majority": float(np.bincount(truth).max() / len(truth)),
        "macro_f1": macro_f1(cells),
        "ece": ece(probabilities.max(1), hit),
        "recall": {
            name: float(cells[i, i] / cells[i].sum()) for i, name in enumerate(names) if cells[i].sum() > 0
        },
        "confused": [
            [names[at // len(names)], names[at % len(names)], int(wrong.reshape(-1)[at])] for at in worst.tolist()
        ],
    }


def _difficulty(hard: npt.NDArray[np.bool_], scores: Floats, length: Floats) -> Figures:
    n = len(hard)
    ours = bootstrap(lambda counts: weighted_auroc(scores, hard, counts), n, REPLICATES, SEED)
    theirs = bootstrap(lambda counts: weighted_auroc(length, hard, counts), n, REPLICATES, SEED)
    a, b = auroc(scores, hard), auroc(length, hard)
    return {
        "rows": n,
        "auroc": _interval(a, ours),
        "auroc_length": _interval(b, theirs),
        "lead": _interval(a - b, ours - theirs),
        "ece": binary_ece(scores, hard.astype(float)),
        "mean_easy": float(scores[~hard].mean()),
        "mean_hard": float(scores[hard].mean()),
    }


def _mean(values: Floats) -> list[float | None]:
    samples = bootstrap(lambda counts: counts @ values / len(values), len(values), REPLICATES, SEED)
    return _interval(float(values.mean()), samples)


def _interval(value: float, samples: Floats) -> list[float | None]:
    found = estimate(value, samples)
    return [found.value, found.low, found.high]


def cross_fitted(domain: Tensor, difficulty: Tensor, task: Tensor, targets: Targets) -> Figures:
    """Figures on the training rows, each by heads that did not see its fold."""
    found: Figures = {}
    for name, logits, truth in (("domain", domain, targets.domain), ("task", task, targets.task)):
        known = truth != IGNORE
        hit = (logits[known].argmax(1) == truth[known]).double().numpy()
        found[name] = {"rows": len(hit), "accuracy": _mean(hit)}
    rated = ~torch.isnan(targets.difficulty)
    hard = targets.difficulty[rated].numpy() > 0.5
    scores = difficulty[rated].double().numpy()
    samples = bootstrap(lambda counts: weighted_auroc(scores, hard, counts), len(hard), REPLICATES, SEED)
    found["difficulty"] = {"rows": len(hard), "auroc": _interval(auroc(scores, hard), samples)}
    return found

