"""A user's own logs as training data: which model answered which prompt how well.

One file, CSV or JSON Lines (also gzip-compressed), one prompt per row:

    prompt            the text, required, no two alike
    outcome.<model>   quality of that model's answer, 0..1; several answers of one model as a JSON
                      list `[1, 0, 1]`. Other measures read other columns, see `quality`
    reference         the reference answer, for the measures that compare with it
    cost.<model>      cost of the answer, positive, optional; blank where unknown
    split             optional; rows marked `dev` are reported on and never train
    domain, task      optional names, see `datasets.DOMAINS` and `datasets.TASKS`

Every fault is a DataError `file:row:column: what was expected`, raised before anything is fitted.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from semroute_extproc.errors import DataError
from semroute_lab.evaluate.data import Table, read_table
from semroute_lab.train import labels, quality
from semroute_lab.train.datasets import (
    DOMAINS,
    EXAM,
    TASKS,
    Example,
    Part,
    Rights,
    named,
    part_of_fit,
    text_key,
)
from semroute_lab.train.labels import Floats
from semroute_lab.train.sources import LOGS

COST = "cost."
"""Start of the name of a column of costs."""

ROWS_MIN = 200
"""Fewer prompts than this teach a router nothing but noise."""

RARER_MIN = 20
"""The rarer of the two classes (strong needed or not) must have this many rows."""

ANSWERS_MAX = 64
"""Most answers of one model to one prompt."""


@dataclass(frozen=True, slots=True)
class LogsPlan:
    """How logs become targets."""

    file: Path
    weak: str
    strong: str
    """The two models."""
    labels: str = "only-strong"
    """One of `labels.KINDS`."""
    quality: str = "given"
    """One of `quality.KINDS`."""
    bart: Path | None = None
    """Directory of the seq2seq model for `bartscore`."""


def read_logs(plan: LogsPlan) -> tuple[list[Example], dict[str, Any]]:
    """The rows on which both models were asked, for the exam expert, and facts about the labels."""
    table = read_table(plan.file)
    texts = table.texts("prompt")
    _refuse_twins(table, texts)
    if plan.quality == "bartscore" and plan.labels == "only-strong":
        raise DataError(
            f"{plan.file}:1:: BARTScore has no scale of good and bad: give --labels det, prob or trans"
        )
    bart = quality.load_bart_score(plan.bart) if plan.quality == "bartscore" and plan.bart else None
    strong, weak = (_qualities(table, model, plan.quality, bart) for model in (plan.strong, plan.weak))
    for name in table.columns:
        if name.startswith(COST):
            table.numbers_in(name, low=0.0, blank=True)
    column = _column(plan.quality) + plan.strong
    gains = labels.gain(strong, weak)
    asked = np.isfinite(gains)
    if int(asked.sum()) < ROWS_MIN:
        raise table.error(
            column,
            f"expected at least {ROWS_MIN} rows on which {plan.weak} and {plan.strong} were both asked, "
            f"found {int(asked.sum())}",
        )
    dev = np.array([split == "dev" for split in table.columns.get("split", [""] * len(table))])
    # t* is chosen without the rows that are reported on.
    fit = asked & ~dev
    _, info = labels.targets(plan.labels, strong[fit], weak[fit])
    targets, _ = labels.targets(plan.labels, strong, weak, info.get("t"))
    _refuse_one_class(table, column, targets[asked], plan.strong)
    # The exam expert's table holds the labels themselves, but for the plain ones the signed gain.
    values = gains if plan.labels == "only-strong" else targets
    rights = Rights("your own", may_train=True)
    rows = [
        Example(
            texts[row],
            LOGS,
            f"{plan.file}:{table.numbers[row]}",
            rights,
            Part.DEV if dev[row] else part_of_fit(texts[row]),
            domain=named(table, row, "domain", DOMAINS),
            task=named(table, row, "task", TASKS),
            difficulty=float(targets[row]),
            gain=float(values[row]),
            family=EXAM,
        )
        for row in np.flatnonzero(asked).tolist()
    ]
    return rows, info | {"quality": plan.quality, "strong": plan.strong, "weak": plan.weak}


def _column(kind: str) -> str:
    """Start of the names of the columns that a measure reads."""
    return quality.SCALES[kind][0] if kind in quality.SCALES else quality.ANSWER


def _qualities(table: Table, model: str, kind: str, bart: quality.BartScore | None) -> Floats:
    """The quality of every answer of one model, [rows, answers]; NaN where there is none."""
    start = _column(kind)
    column = start + model
    if not table.has(column):
        known = [name.removeprefix(start) for name in table.columns if name.startswith(start)]
        what = start.removesuffix(".") + "s"
        raise table.error(
            column, f"expected {what} of {model}; the file has those of {', '.join(known) or 'none'}"
        )
    if kind in quality.SCALES:
        _, low, high = quality.SCALES[kind]
        found = [_numbers(table, column, row, low, high) for row in range(len(table))]
    else:
        found = _measured(table, [_answers(field) for field in table.strings(column)], kind, bart)
    for row, values in enumerate(found):
        if len(values) > ANSWERS_MAX:
            raise table.error(column, f"expected at most {ANSWERS_MAX} answers, found {len(values)}", row)
    padded = np.full((len(found), max(1, *map(len, found))), np.nan)
    for row, values in enumerate(found):
        padded[row, : len(values)] = values
    return padded


def _measured(
    table: Table, answers: list[list[str]], kind: str, bart: quality.BartScore | None
) -> list[list[float]]:
    if kind in quality.COMPARISONS:
        compare, references = quality.COMPARISONS[kind], table.texts("reference")
        return [[compare(one, references[row]) for one in own] for row, own in enumerate(answers)]
    if bart is None:
        raise DataError(f"{table.path}:1:: BARTScore needs --bartscore-model")
    prompts = table.texts("prompt")
    pairs = [(prompts[row], one) for row, own in enumerate(answers) for one in own]
    scores = iter(bart([prompt for prompt, _ in pairs], [answer for _, answer in pairs]))
    return [[next(scores) for _ in own] for own in answers]


def _json_list(field: str) -> list[Any] | None:
    try:
        value = json.loads(field)
    except ValueError:
        return None
    return value if isinstance(value, list) else None


def _answers(field: str) -> list[str]:
    """A JSON list of texts, or one text; none if blank."""
    found = _json_list(field)
    if found is not None and all(isinstance(one, str) for one in found):
        return found
    return [field] if field.strip() else []


def _numbers(table: Table, column: str, row: int, low: float, high: float) -> list[float]:
    """A JSON list of numbers, or one number, as qualities 0..1; none if blank."""
    field = table.columns[column][row]
    if not field.strip():
        return []
    try:
        return [quality.scaled(float(one), low, high) for one in _json_list(field) or [field]]
    except (TypeError, ValueError):
        expected = f"a number in {low:g}..{high:g}, or a JSON list of 1 to {ANSWERS_MAX} of them"
        raise table.error(column, f"expected {expected}, found {field[:40]!r}", row) from None


def _refuse_twins(table: Table, texts: list[str]) -> None:
    first: dict[str, int] = {}
    for row, text in enumerate(texts):
        before = first.setdefault(text_key(text), row)
        if before != row:
            raise table.error("prompt", f"the same prompt as in row {table.numbers[before]}", row)


def _refuse_one_class(table: Table, column: str, targets: Floats, strong: str) -> None:
    needed = int((targets >= 0.5).sum())
    if min(needed, targets.size - needed) < RARER_MIN:
        raise table.error(
            column,
            f"expected at least {RARER_MIN} rows on which only {strong} does well and as many others, "
            f"found {needed} and {targets.size - needed}: there is nothing to learn",
        )
