"""Labeled prompts for fitting: texts, the outcome of each model, and embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from semroute_extproc.errors import DataError
from semroute_extproc.serve.offline import Scorer
from semroute_extproc.strategies.artifact import ArtifactManifest as Manifest
from semroute_lab.common.decisions import is_log
from semroute_lab.common.embedding import embed
from semroute_lab.common.metrics import Floats, Integers, Vectors
from semroute_lab.common.tables import OUTCOME, Table, folds, read_table, require_rows, texts_in

ROWS_MAX = 100_000  # Prompts that a fit takes; of more, a sample
PAIR = ("strong", "weak")  # Names of the models of a pair file
BLANKS_MAX = 0.05  # A model that lacks outcomes for more than this share of the questions is left out


@dataclass(frozen=True, slots=True)
class Outcomes:
    """Prompts and the outcome of each model."""

    table: Table
    texts: list[str]
    models: tuple[str, ...]
    outcome: Floats  # Shape (n, models), 0..1

    def pair(self, strong: str, weak: str) -> tuple[Floats, Floats]:
        """Outcomes of two models; (n,) each."""
        s, w = (self.outcome[:, self.models.index(name)] for name in (strong, weak))
        return s, w

    def folds(self, seed: int) -> Integers:
        """A fold for each row; identical prompts are in one."""
        return folds(self.texts, seed)

    def take(self, rows: Integers) -> Outcomes:
        """Some rows, in ascending order."""
        kept = set(rows.tolist())
        table = self.table.where(row in kept for row in range(len(self.texts)))
        return Outcomes(table, [self.texts[row] for row in rows], self.models, self.outcome[rows])


def read(
    file: Path,
    outcomes: Path | None,
    splits: Sequence[str] = (),
    text_column: str | None = None,
    options_column: str | None = None,
) -> Outcomes:
    """A pair file as of `eval pair`, or questions and outcomes as of `eval pool`; raises DataError."""
    table = read_table(file, ROWS_MAX).in_splits(splits)
    texts = texts_in(table, text_column, options_column)
    if outcomes is None:
        logged = is_log(file)  # Where many prompts were answered by one model only.
        columns = [table.numbers_in(OUTCOME + model, 0.0, 1.0, blank=logged) for model in PAIR]
        outcome = np.stack(columns, axis=1)
        found = Outcomes(table, texts, PAIR, outcome).take(np.flatnonzero(np.isfinite(outcome).all(axis=1)))
    else:
        found, _ = join(table, texts, read_table(outcomes).by_model())
    require_rows(found.table)
    return found


def join(
    questions: Table, texts: list[str], outcomes: Table, models: Sequence[str] | None = None
) -> tuple[Outcomes, list[str]]:
    """Join questions and outcomes by the outcomes' first column; also the models dropped for many blanks.
    `models` selects columns. Questions with a blank are left out. DataError where the files do not fit.
    """
    key = next(iter(outcomes.columns))
    wanted = [name for name in outcomes.columns if name != key] if models is None else list(models)
    place = row_of(outcomes, key)
    rows = [row for row, value in enumerate(questions.strings(key)) if value in place]
    if not rows:
        raise questions.error(key, f"no value is in column {key} of {outcomes.path.name}")
    at = [place[questions.columns[key][row]] for row in rows]
    matrix = np.stack([outcomes.numbers_in(m, 0.0, 1.0, blank=True)[at] for m in wanted], axis=1)
    enough = np.isnan(matrix).mean(axis=0) <= BLANKS_MAX
    names = tuple(m for m, full in zip(wanted, enough, strict=True) if full)
    if len(names) < 2:
        raise outcomes.error(key, f"expected at least 2 models with outcomes, found {len(names)}")
    everything = np.full((len(texts), len(names)), np.nan)
    everything[rows] = matrix[:, enough]
    found = Outcomes(questions, texts, names, everything)
    complete = np.flatnonzero(np.isfinite(everything).all(axis=1))
    return found.take(complete), [m for m in wanted if m not in names]


def row_of(table: Table, key: str) -> dict[str, int]:
    """The row of each value of a column, which must be unique."""
    place: dict[str, int] = {}
    for row, value in enumerate(table.texts(key)):
        if place.setdefault(value, row) != row:
            raise table.error(key, f"duplicate value {value!r}", row)
    return place


def embedded(scorer: Scorer, outcomes: Outcomes) -> tuple[Outcomes, Vectors]:
    """The rows that the default bundle reads, with embeddings (n, d); DataError if all are alike."""
    path = outcomes.table.path
    try:
        rows, x = embed(scorer, outcomes.texts, outcomes.table)
    except DataError as error:
        raise DataError(f"{path}:1:: {error}") from None
    kept = outcomes.take(rows)
    if len(set(kept.texts)) < 2:
        raise DataError(f"{path}:1:: expected different prompts, found the same one in every row")
    return kept, x


def manifest(kind: str, scorer: Scorer, outcomes: Outcomes, x: Vectors, seed: int, rights: str) -> Manifest:
    """The artifact's description of itself."""
    made_with = {"bundle": scorer.bundle.manifest.name, "revision": scorer.bundle.revision}
    data = {"data": outcomes.table.path.name, "data_sha256": outcomes.table.sha256, "license": rights}
    return unwritten(kind, x, seed).model_copy(update=made_with | data)


def unwritten(kind: str, x: Vectors, seed: int) -> Manifest:
    """The manifest of an artifact that was fitted on `x` (n, d) and is never written."""
    return Manifest(kind=kind, bundle="", revision="", dimensions=x.shape[1], rows=len(x), seed=seed)


def wins(strong: Floats, weak: Floats) -> Floats:
    """Labels of a comparison: 1 where the strong model won, 0 where it lost, ½ for a tie; (1 + s − w) / 2."""
    return np.asarray((1.0 + strong - weak) / 2.0, dtype=np.float64)


def quantiles(scores: Floats) -> tuple[float, ...]:
    """The scores at 0, 1, … 100 % of the rows, ascending."""
    return tuple(np.percentile(scores, np.arange(101)).tolist())
