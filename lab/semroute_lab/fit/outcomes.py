"""Labelled prompts for fitting: texts, what each model's answer was worth, and embeddings."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from semroute_extproc.encoder.offline import Scorer
from semroute_extproc.encoder.signals import Signals
from semroute_extproc.errors import DataError
from semroute_extproc.strategies.artifact import ArtifactManifest
from semroute_lab.evaluate.data import (
    TEXT_COLUMNS,
    Table,
    pick_column,
    prompt_texts,
    read_table,
    require_rows,
)
from semroute_lab.evaluate.metrics.arrays import Floats, Integers
from semroute_lab.evaluate.pool_data import read_outcomes
from semroute_lab.evaluate.splitting import folds, text_groups

Vectors = npt.NDArray[np.float32]
Progress = Callable[[Iterable[Signals], int], Iterable[Signals]]

FOLDS = 5
"""Folds whose rows are scored by a fit on the others: what quantiles and figures come from."""

PAIR = ("strong", "weak")
"""What the models of a pair file are called."""


@dataclass(frozen=True, slots=True)
class Outcomes:
    """Prompts and what each model's answer was worth."""

    table: Table
    texts: list[str]
    models: tuple[str, ...]
    outcome: Floats
    """Shape (n, models), 0..1."""

    def win(self, strong: str = PAIR[0], weak: str = PAIR[1]) -> Floats:
        """Labels of a comparison, (n,): 1 where the strong model won, 0 where it lost, ½ for a tie.

        Graded outcomes count by their gap: (1 + s − w) / 2.
        """
        s, w = (self.outcome[:, self.models.index(name)] for name in (strong, weak))
        return np.asarray((1.0 + s - w) / 2.0, dtype=np.float64)

    def folds(self, seed: int) -> Integers:
        """A fold for each row; identical prompts are in one."""
        return folds(text_groups(self.texts), FOLDS, seed)

    def take(self, keep: npt.NDArray[np.bool_]) -> Outcomes:
        """The rows for which `keep` (n,) holds."""
        texts = [text for text, kept in zip(self.texts, keep.tolist(), strict=True) if kept]
        return Outcomes(self.table.where(keep.tolist()), texts, self.models, self.outcome[keep])


def read(
    file: Path,
    outcomes: Path | None,
    splits: Sequence[str] = (),
    text_column: str | None = None,
    options_column: str | None = None,
) -> Outcomes:
    """A pair file (prompt, strong_correct, weak_correct), or questions and outcomes of any models.

    The shapes are those of `eval pair` and `eval pool`; raises DataError with the place.
    """
    table = read_table(file).in_splits(splits)
    texts = prompt_texts(table, pick_column(table, text_column, TEXT_COLUMNS, "text"), options_column)
    if outcomes is None:
        require_rows(table)
        columns = [table.numbers_in(f"{model}_correct", 0.0, 1.0) for model in PAIR]
        return Outcomes(table, texts, PAIR, np.stack(columns, axis=1))
    joined = read_outcomes(table, texts, read_table(outcomes), None)
    require_rows(joined.questions)
    return Outcomes(joined.questions, joined.texts, tuple(joined.models), joined.outcome)


def embed(scorer: Scorer, outcomes: Outcomes, progress: Progress) -> tuple[Outcomes, Vectors]:
    """The rows that the default bundle reads, and their embeddings (n, d); identical texts run once.

    Prompts in a language with a bundle of its own are left out: their embedding is another one.
    """
    distinct = list(dict.fromkeys(outcomes.texts))
    found = dict(zip(distinct, progress(scorer.score_all(distinct), len(distinct)), strict=True))
    signals = [found[text] for text in outcomes.texts]
    keep = np.asarray([one.revision == scorer.bundle.revision for one in signals])
    if not keep.any():
        raise DataError(
            f"{outcomes.table.path}:1:: no prompt is in a language of {scorer.bundle.manifest.name}"
        )
    vectors = [one.neighbours for one, kept in zip(signals, keep.tolist(), strict=True) if kept]
    return outcomes.take(keep), np.asarray(vectors, dtype=np.float32)


def manifest(
    kind: str, scorer: Scorer, outcomes: Outcomes, x: Vectors, seed: int, licence: str
) -> ArtifactManifest:
    """What the artifact will say of itself."""
    return ArtifactManifest(
        kind=kind,
        bundle=scorer.bundle.manifest.name,
        revision=scorer.bundle.revision,
        dimensions=x.shape[1],
        rows=len(x),
        seed=seed,
        data=outcomes.table.path.name,
        data_sha256=outcomes.table.sha256,
        licence=licence,
    )


def quantiles(scores: Floats) -> tuple[float, ...]:
    """The scores at 0, 1, … 100 % of the rows, ascending."""
    return tuple(np.percentile(np.clip(scores, 0.0, 1.0), np.arange(101)).tolist())
