"""Reading a pool: questions, the outcome of each under every model, and what it cost."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from semroute_extproc.errors import DataError
from semroute_lab.evaluate.data import Table, require_rows
from semroute_lab.evaluate.metrics.arrays import Booleans, Floats

QUESTIONS_MIN = 100
"""Fewer questions cannot be split in three."""

MODELS_MIN = 4
"""Fewer models make neither a training set nor a pool."""

BLANKS_MAX = 0.05
"""A model that was not run on more than this share of the questions is left out."""

_SIZE = re.compile(r"(?i)(?<![a-z0-9.])(?:(\d+)x)?(\d+(?:\.\d+)?)b(?![a-z0-9])")


@dataclass(frozen=True, slots=True)
class PoolRows:
    """Questions by models; outcome and cost have shape (n, models)."""

    questions: Table
    texts: list[str]
    models: list[str]
    outcome: Floats
    cost: Floats
    held_out: list[str]
    """Models of an unseen family; empty if none was declared."""
    left_out: list[str]
    """Models with too many blanks."""
    cost_from: str


@dataclass(frozen=True, slots=True)
class Joined:
    """Questions by models, without costs; outcome has shape (n, models)."""

    questions: Table
    texts: list[str]
    models: list[str]
    outcome: Floats
    roles: dict[str, str]
    left_out: list[str]


def read_outcomes(questions: Table, texts: list[str], outcomes: Table, models: Table | None) -> Joined:
    """Join questions and outcomes on the outcomes' first column; `DataError` where they do not fit."""
    key = next(iter(outcomes.columns))
    roles = _roles(outcomes, key, models)
    place = _index(outcomes, key)
    kept_rows = [row for row, value in enumerate(questions.strings(key)) if value in place]
    if not kept_rows:
        raise questions.error(key, f"no value is in column {key} of {outcomes.path.name}")
    kept = set(kept_rows)
    joined = questions.where(row in kept for row in range(len(questions)))
    at = [place[value] for value in joined.strings(key)]
    matrix = np.stack([outcomes.numbers_in(m, 0.0, 1.0, blank=True)[at] for m in roles], axis=1)
    enough = np.isnan(matrix).mean(axis=0) <= BLANKS_MAX
    names = [m for m, full in zip(roles, enough, strict=True) if full]
    if len(names) < 2:
        raise outcomes.error(key, f"expected at least 2 models with outcomes, found {len(names)}")
    complete: Booleans = np.isfinite(matrix[:, enough]).min(axis=1)
    return Joined(
        questions=joined.where(complete.tolist()),
        texts=[texts[row] for row, full in zip(kept_rows, complete.tolist(), strict=True) if full],
        models=names,
        outcome=matrix[complete][:, enough],
        roles=roles,
        left_out=[m for m, full in zip(roles, enough, strict=True) if not full],
    )


def read_pool(
    questions: Table, texts: list[str], outcomes: Table, costs: list[Table], models: Table | None
) -> PoolRows:
    """The outcomes with their costs; `DataError` where the files do not fit or are too small."""
    key = next(iter(outcomes.columns))
    joined = read_outcomes(questions, texts, outcomes, models)
    if len(joined.models) < MODELS_MIN:
        found = len(joined.models)
        raise outcomes.error(key, f"expected at least {MODELS_MIN} models with outcomes, found {found}")
    require_rows(joined.questions, QUESTIONS_MIN)
    cost, source = _costs(joined.questions.strings(key), key, joined.models, costs)
    return PoolRows(
        questions=joined.questions,
        texts=joined.texts,
        models=joined.models,
        outcome=joined.outcome,
        cost=cost,
        held_out=[m for m in joined.models if joined.roles[m].startswith("unseen")],
        left_out=joined.left_out,
        cost_from=source,
    )


def _roles(outcomes: Table, key: str, models: Table | None) -> dict[str, str]:
    """The models to use and their roles; every outcome column, unless a models file selects."""
    columns = [name for name in outcomes.columns if name != key]
    if models is None:
        return dict.fromkeys(columns, "")
    names = models.texts("model")
    for row, name in enumerate(names):
        if name not in columns:
            raise models.error("model", f"expected a column of {outcomes.path.name}, found {name!r}", row)
        if name in names[:row]:
            raise models.error("model", f"{name!r} is there twice", row)
    roles = models.strings("role") if models.has("role") else [""] * len(names)
    return dict(zip(names, roles, strict=True))


def _index(table: Table, key: str) -> dict[str, int]:
    place: dict[str, int] = {}
    for row, value in enumerate(table.texts(key)):
        if value in place:
            raise table.error(key, f"{value!r} is there twice", row)
        place[value] = row
    return place


def _costs(ids: list[str], key: str, models: list[str], files: list[Table]) -> tuple[Floats, str]:
    """Cost of each question under each model: the product of the files, or parameters by name."""
    if not files:
        sizes = [billions(model) for model in models]
        unknown = [model for model, size in zip(models, sizes, strict=True) if size is None]
        if unknown:
            listed = ", ".join(unknown)
            raise DataError(f"--costs:1:model: the size of {listed} is not in the name; give a costs file")
        return np.tile(
            [float(size or 0.0) for size in sizes], (len(ids), 1)
        ), "billions of parameters, by name"
    cost = np.ones((len(ids), len(models)))
    for table in files:
        cost *= _by_model(table, models) if table.has("model") else _by_question(table, ids, key, models)
    return cost, " x ".join(table.path.name for table in files)


def billions(model: str) -> float | None:
    """Parameters in billions by the name: 70B is 70, 8x7B is 56; None if the name does not say."""
    found = _SIZE.search(model)
    return None if found is None else float(found[1] or 1) * float(found[2])


def _by_model(table: Table, models: list[str]) -> Floats:
    values = dict(zip(table.texts("model"), table.numbers_in("cost", 0.0), strict=True))
    for model in models:
        if model not in values:
            raise table.error("model", f"expected a row for {model}")
        if values[model] <= 0:
            raise table.error(
                "cost", f"expected a positive cost of {model}", table.strings("model").index(model)
            )
    return np.asarray([values[model] for model in models], dtype=np.float64)


def _by_question(table: Table, ids: list[str], key: str, models: list[str]) -> Floats:
    """Costs per question; a blank is the model's mean."""
    place = _index(table, key)
    for value in ids:
        if value not in place:
            raise table.error(key, f"expected a row for {value!r}")
    at = [place[value] for value in ids]
    columns = []
    for model in models:
        values = table.numbers_in(model, 0.0, blank=True)[at]
        if np.isnan(values).all() or not np.nansum(values) > 0:
            raise table.error(model, "expected positive costs")
        columns.append(np.where(np.isnan(values), np.nanmean(values), values))
    return np.stack(columns, axis=1)
