"""A user's own logs as training data: how well each model answered each prompt.

One file, CSV or JSON Lines (also gzip-compressed), one prompt per row:

    prompt            the text, required, no two alike
    outcome.<model>   quality of that model's answer, 0..1; several answers of one model as a JSON
                      list `[1, 0, 1]`. Other measures read other columns, see `quality`
    reference         the reference answer, for the measures that compare with it
    cost.<model>      cost of the answer, positive, optional; blank where unknown
    split             optional; rows marked `dev` are reported on and never train
    domain, task      optional names, see `datasets.DOMAINS` and `datasets.TASKS`

Every error is a DataError, raised before anything is fitted.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from semroute_extproc.errors import DataError
from semroute_lab.common.metrics import Floats
from semroute_lab.common.tables import Table, read_table, text_key
from semroute_lab.train import labels, quality
from semroute_lab.train.datasets import Example, Part, part_of_fit
from semroute_lab.train.sources import LOGS, Source, names_in

COST = "cost."  # Start of the name of a column of costs
LOGS_WEIGHT = 3.0  # Of a row's difficulty in the loss: the operator's own outcomes count most
ROWS_MIN = 200  # Fewer prompts are too few to train a router
RARER_MIN = 20  # The rarer of the two classes (strong needed or not) must have this many rows
ANSWERS_MAX = 64  # Most answers of one model to one prompt


@dataclass(frozen=True, slots=True)
class LogsPlan:
    """How logs become targets."""

    file: Path
    weak: str
    strong: str  # The two models
    labels: str = "only-strong"  # One of `labels.KINDS`
    quality: str = "given"  # One of `quality.KINDS`
    bart: Path | None = None  # Directory of the seq2seq model for `bartscore`


def read_logs(plan: LogsPlan) -> tuple[list[Example], dict[str, Any]]:
    """The rows on which both models were asked, and facts about the labels."""
    table = read_table(plan.file)
    texts = table.texts("prompt")
    first: dict[str, int] = {}
    for row, text in enumerate(texts):
        if (before := first.setdefault(text_key(text), row)) != row:
            raise table.error("prompt", f"the same prompt as in row {table.numbers[before]}", row)
    if plan.quality == "bartscore" and plan.labels == "only-strong":
        no_scale = "BARTScore has no scale of good and bad: give --labels det, prob or trans"
        raise DataError(f"{plan.file}:1:: {no_scale}")
    strong, weak = (_qualities(table, model, plan) for model in (plan.strong, plan.weak))
    for name in table.columns:
        if name.startswith(COST):
            table.numbers_in(name, low=0.0, blank=True)
    column = quality.START[plan.quality] + plan.strong
    gains = labels.gain(strong, weak)
    asked = np.isfinite(gains)
    if (count := int(asked.sum())) < ROWS_MIN:
        both = f"rows on which {plan.weak} and {plan.strong} were both asked"
        raise table.error(column, f"expected at least {ROWS_MIN} {both}, found {count}")
    dev = np.array([split == "dev" for split in table.columns.get("split", [""] * len(table))])
    # t* is chosen without the rows that are reported on.
    fit = asked & ~dev
    _, info = labels.targets(plan.labels, strong[fit], weak[fit])
    targets, _ = labels.targets(plan.labels, strong, weak, info.get("t"))
    needed = int((targets[asked] >= 0.5).sum())
    if min(needed, count - needed) < RARER_MIN:
        only = f"rows on which only {plan.strong} does well and as many others"
        found = f"found {needed} and {count - needed}: there is nothing to learn"
        raise table.error(column, f"expected at least {RARER_MIN} {only}, {found}")
    # The cluster table holds the labels, or for `only-strong` the signed gain.
    values = gains if plan.labels == "only-strong" else targets
    source = Source(LOGS, str(plan.file), "your own", kind=LOGS, weight=LOGS_WEIGHT)
    rows = []
    for row in np.flatnonzero(asked).tolist():
        targets_of = {"difficulty": float(targets[row]), "gain": float(values[row]), **names_in(table, row)}
        part = Part.DEV if dev[row] else part_of_fit(texts[row])
        rows.append(source.row(table, row, texts[row], part, **targets_of))
    return rows, info | {"quality": plan.quality, "strong": plan.strong, "weak": plan.weak}


def _qualities(table: Table, model: str, plan: LogsPlan) -> Floats:
    """The quality of every answer of one model, [rows, answers]; NaN where there is none."""
    kind, start = plan.quality, quality.START[plan.quality]
    column = start + model
    if not table.has(column):
        known = ", ".join(name.removeprefix(start) for name in table.columns if name.startswith(start))
        what = f"{start.removesuffix('.')}s"
        raise table.error(column, f"expected {what} of {model}; the file has those of {known or 'none'}")
    of = object if kind in quality.SCALES else str
    answers = [_cells(field, of) for field in table.strings(column)]
    for row, own in enumerate(answers):
        if len(own) > ANSWERS_MAX:
            raise table.error(column, f"expected at most {ANSWERS_MAX} answers, found {len(own)}", row)
    pairs = [(row, one) for row, own in enumerate(answers) for one in own]
    if kind in quality.SCALES:
        found = [_number(table, column, row, one, kind) for row, one in pairs]
    elif kind in quality.COMPARISONS:
        references = table.texts("reference")
        found = [quality.COMPARISONS[kind](str(one), references[row]) for row, one in pairs]
    elif plan.bart is not None:
        prompts = table.texts("prompt")
        bart = quality.load_bart_score(plan.bart)
        found = bart([prompts[row] for row, _ in pairs], [str(one) for _, one in pairs])
    else:
        raise DataError(f"{table.path}:1:: BARTScore needs --bartscore-model")
    padded = np.full((len(table), max(1, *map(len, answers))), np.nan)
    places = [(row, at) for row, own in enumerate(answers) for at in range(len(own))]
    for place, value in zip(places, found, strict=True):
        padded[place] = value
    return padded


def _cells(field: str, of: type) -> list[Any]:
    """A JSON list of answers that are all `of` a type, or one answer; none if blank."""
    try:
        value = json.loads(field)
    except ValueError:
        value = None
    if isinstance(value, list) and value and all(isinstance(one, of) for one in value):
        return value
    return [field] if field.strip() else []


def _number(table: Table, column: str, row: int, value: Any, kind: str) -> float:
    """A number on the measure's scale as a quality 0..1."""
    _, low, high = quality.SCALES[kind]
    try:
        return quality.scaled(float(value), low, high)
    except (TypeError, ValueError):
        expected = f"a number in {low:g}..{high:g}, or a JSON list of 1 to {ANSWERS_MAX} of them"
        raise table.error(column, f"expected {expected}, found {str(value)[:40]!r}", row) from None
