"""Scores of the strategies that learn, for `eval pair`: from labels of other rows than they score."""

from __future__ import annotations

import numpy as np

from semroute_lab.evaluate.data import TEXT_COLUMNS, Table, pick_column
from semroute_lab.evaluate.metrics.arrays import Floats
from semroute_lab.evaluate.pair import PairRows, read_pair
from semroute_lab.evaluate.scoring import Scores, Source
from semroute_lab.evaluate.splitting import text_key
from semroute_lab.evaluate.strategies import Labelled, cross_fitted_scores, scores


def fitted_scores(
    rows: PairRows, known: Scores, source: Source, fit: Table | None, text_column: str | None, seed: int
) -> dict[str, Floats]:
    """Each strategy's scores of `rows`, (n,): fitted on `fit`, or cross-fitted within `rows` if None.

    Prompts of `fit` that are evaluated as well are left out; DataError if too few remain.
    """
    if fit is None:
        return cross_fitted_scores(_labelled(rows, known), seed)
    evaluated = {text_key(text) for text in rows.texts}
    column = pick_column(fit, text_column, TEXT_COLUMNS, "text")
    apart = read_pair(fit.where(text_key(text) not in evaluated for text in fit.texts(column)), column)
    return scores(_labelled(apart, source.score(apart.texts)), known, seed)


def _labelled(rows: PairRows, known: Scores) -> Labelled:
    return Labelled(known, np.stack([rows.strong, rows.weak], axis=1), rows.texts)
