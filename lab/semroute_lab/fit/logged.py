"""Scores and outcomes from a decision log, for `semroute calibrate`.

A request was answered by one model, so the outcome of the other one is unknown. Where a `weighted` strategy
drew the pool with a known probability p, the weighted mean of the outcomes of one model's answers, with
weights 1 / p, estimates that model's mean over all requests (Hajek 1971; in routing the same estimator is
known as self-normalized inverse propensity scoring).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from semroute_extproc.errors import DataError
from semroute_extproc.serve.offline import Scorer
from semroute_extproc.strategies.pair import Score
from semroute_lab.common.decisions import DecisionLog, signals_of_record
from semroute_lab.common.embedding import signals_of
from semroute_lab.common.metrics import Floats
from semroute_lab.common.tables import ROWS_MAX, ROWS_MIN

Drawn = tuple[str | None, str | None]  # the strong and the weak model


def of_log(path: Path, scorer: Scorer, score: Score, drawn: Drawn | None) -> tuple[Floats, list[Floats], str]:
    """Scores, weighted outcomes and the log's digest; with `drawn`, only of drawn requests with outcomes.

    The mean of the weighted outcomes, of strong and of weak, estimates the model's mean. Scores are of the
    logged signals, or of the logged prompt where its signals are of another revision or missing.
    """
    log, found, texts = DecisionLog(path), list[float](), dict[int, str]()
    rows: list[tuple[str, float, float]] = []  # Model, outcome and 1 / p
    for record in log.decisions():
        signals, prompt = signals_of_record(record), record.get("prompt", "")
        usable = signals is not None and signals.revision in scorer.revisions
        if "facts" not in record or not (usable or prompt):
            continue
        if drawn is not None:
            if "outcome" not in record or record.get("model") not in drawn or "propensity" not in record:
                continue
            rows.append((record["model"], record["outcome"], 1.0 / record["propensity"]))
        value = score(signals) if usable and signals is not None else None
        if value is None and prompt:
            texts[len(found)] = prompt
        found.append(np.nan if value is None else value)
        if len(found) > ROWS_MAX:
            raise DataError(f"{path}:1:: expected at most {ROWS_MAX} decisions with a score")
    if len(found) < ROWS_MIN:
        kind = f"drawn decisions of {' and '.join(map(str, drawn))} with outcomes" if drawn else "decisions"
        raise DataError(f"{path}:1:: expected at least {ROWS_MIN} {kind} with signals, found {len(found)}")
    read = signals_of(scorer, list(texts.values()), "reading") if texts else []
    for at, again in zip(texts, read, strict=True):
        value = score(again)
        found[at] = np.nan if value is None else value
    outcomes = [] if drawn is None else [_weighted(rows, model) for model in drawn]
    return np.asarray(found, dtype=np.float64), outcomes, log.sha256


def _weighted(rows: list[tuple[str, float, float]], model: str | None) -> Floats:
    """Each row's outcome times its weight, 0 for the other model; the mean weight of a row is 1."""
    weights = np.asarray([weight if name == model else 0.0 for name, _, weight in rows])
    if not weights.any():
        raise DataError(f"no drawn decision of model {model} has an outcome: name it with --…-model")
    values = np.asarray([outcome for _, outcome, _ in rows])
    return np.asarray(weights * values * len(rows) / weights.sum(), dtype=np.float64)
