"""A user's own logs as training data: which model answered which prompt how well.

One file, CSV or JSON Lines (also gzip-compressed), one prompt a row:

    prompt            the text, required, no two alike
    outcome.<model>   quality of that model's answer, 0..1 (0/1 for wrong and right); several answers
                      of one model as a JSON list `[1, 0, 1]`
    cost.<model>      what the answer cost, positive, optional; blank where not known
    split             optional; rows marked `dev` are reported on and never train
    domain, task      optional names, see `datasets.DOMAINS` and `datasets.TASKS`

Every fault is a DataError `file:row:column: what was expected`, raised before anything is fitted.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from semroute_lab.common.tables import Table, read_table
from semroute_lab.train import labels
from semroute_lab.train.datasets import DOMAINS, FAMILIES, TASKS, Example, Part, Rights, part_of_fit, text_key

OUTCOME, COST = "outcome.", "cost."
"""Prefixes of the columns of a model."""

ROWS_MIN = 200
"""Fewer prompts than this teach a router nothing that outlasts the noise."""

RARER_MIN = 20
"""The rarer of the two classes (strong needed or not) must have this many rows."""

ANSWERS_MAX = 64
"""Most answers of one model to one prompt."""

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Outcomes:
    """One model's column: mean quality [rows], NaN where it was not asked, and the single answers."""

    mean: Floats
    answers: list[list[float]]


def read_logs(file: Path, weak: str, strong: str) -> list[Example]:
    """The rows of `file` on which both models were asked, as examples of the exam family's expert."""
    table = read_table(file)
    texts = table.texts("prompt")
    _refuse_twins(table, texts)
    sides = {name: _outcomes(table, name) for name in (weak, strong)}
    _check_costs(table)
    asked = np.isfinite(sides[weak].mean) & np.isfinite(sides[strong].mean)
    if int(asked.sum()) < ROWS_MIN:
        raise table.error(
            f"{OUTCOME}{strong}",
            f"expected at least {ROWS_MIN} rows on which {weak} and {strong} were both asked, "
            f"found {int(asked.sum())}",
        )
    only_strong = _only_strong(sides[strong].answers, sides[weak].answers)
    _refuse_one_class(table, only_strong[asked], strong)
    rights = Rights("your own", may_train=True)
    splits = table.columns.get("split", [""] * len(table))
    return [
        Example(
            texts[row],
            "logs",
            f"{file}:{table.numbers[row]}",
            rights,
            Part.DEV if splits[row] == "dev" else part_of_fit(texts[row]),
            domain=_named(table, row, "domain", DOMAINS),
            task=_named(table, row, "task", TASKS),
            difficulty=float(only_strong[row]),
            gain=float(sides[strong].mean[row] - sides[weak].mean[row]),
            family=len(FAMILIES) - 1,
        )
        for row in np.flatnonzero(asked).tolist()
    ]


def models_in(table: Table) -> list[str]:
    """The models that have an outcome column, in the file's order."""
    return [name.removeprefix(OUTCOME) for name in table.columns if name.startswith(OUTCOME)]


def _refuse_twins(table: Table, texts: list[str]) -> None:
    first: dict[str, int] = {}
    for row, text in enumerate(texts):
        before = first.setdefault(text_key(text), row)
        if before != row:
            raise table.error("prompt", f"the same prompt as in row {table.numbers[before]}", row)


def _outcomes(table: Table, model: str) -> Outcomes:
    column = OUTCOME + model
    if not table.has(column):
        known = ", ".join(models_in(table)) or "none"
        raise table.error(column, f"expected outcomes of {model}; the file has those of {known}")
    answers = [_answers(table, column, row, field) for row, field in enumerate(table.strings(column))]
    mean = np.array([np.mean(own) if own else math.nan for own in answers])
    return Outcomes(mean, answers)


def _answers(table: Table, column: str, row: int, field: str) -> list[float]:
    if not field.strip():
        return []
    try:
        value = json.loads(field)
    except ValueError:
        value = field
    values = value if isinstance(value, list) else [value]
    fine = 0 < len(values) <= ANSWERS_MAX and all(
        isinstance(one, int | float) and 0.0 <= one <= 1.0 for one in values
    )
    if not fine:
        expected = f"a number in 0..1, or a JSON list of 1 to {ANSWERS_MAX} of them"
        raise table.error(column, f"expected {expected}, found {field[:40]!r}", row)
    return [float(one) for one in values]


def _check_costs(table: Table) -> None:
    for name in table.columns:
        if name.startswith(COST):
            table.numbers_in(name, low=0.0, blank=True)


def _only_strong(strong: list[list[float]], weak: list[list[float]]) -> Floats:
    """`labels.only_strong` row by row, since rows may have different numbers of answers; NaN if unknown."""
    pairs = zip(strong, weak, strict=True)
    return np.array([float(labels.only_strong([s], [w])[0]) if s and w else math.nan for s, w in pairs])


def _refuse_one_class(table: Table, target: Floats, strong: str) -> None:
    needed = int((target >= 0.5).sum())
    rarer = min(needed, target.size - needed)
    if rarer < RARER_MIN:
        raise table.error(
            f"{OUTCOME}{strong}",
            f"expected at least {RARER_MIN} rows on which only {strong} does well and as many others, "
            f"found {needed} and {target.size - needed}: there is nothing to tell apart",
        )


def _named(table: Table, row: int, column: str, names: tuple[str, ...]) -> int | None:
    value = table.columns[column][row] if table.has(column) else ""
    if not value:
        return None
    if value not in names:
        raise table.error(column, f"expected one of {', '.join(names)}, found {value!r}", row)
    return names.index(value)
