"""Scores and outcomes from a decision log, for `semroute calibrate`.

A request was answered by one model, so the outcome of the other one is unknown. Where a `weighted` strategy
drew the pool with a known probability p, the weighted mean of the outcomes of one model's answers, with
weights 1 / p, estimates that model's mean over all requests (Hajek 1971; in routing the same estimator is
known as self-normalized inverse propensity scoring).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np

from semroute_extproc.errors import ArtifactError, DataError
from semroute_extproc.serve.offline import Scorer
from semroute_extproc.strategies.artifact import ArtifactFile
from semroute_extproc.strategies.factorization import read_factorization
from semroute_extproc.strategies.pair import Score, of_embedding
from semroute_extproc.strategies.similarity import read_similarity
from semroute_lab.common.decisions import DecisionLog, Record, signals_of_record
from semroute_lab.common.engine import Engine
from semroute_lab.common.metrics import Floats
from semroute_lab.common.shuffle import Sample
from semroute_lab.common.tables import ROWS_MAX, ROWS_MIN
from semroute_lab.fit.outcomes import PAIR

Drawn = tuple[str | None, str | None]  # the strong and the weak model
ROW_BYTES = 200  # Of a scored decision


def of_log(
    path: Path, bundle: Path | None, artifact: Path | None, models: Drawn, drawn: bool
) -> tuple[Floats, list[Floats], str]:
    """Scores, weighted outcomes and the log's digest; with `drawn`, only of drawn requests with outcomes.

    The mean of the weighted outcomes, of strong and of weak, estimates the model's mean. Scores are of the
    logged signals, or of the logged prompt where its signals are of another revision or missing. Of more than
    `ROWS_MAX` decisions, a keyed sample is taken.
    """
    log, memory = DecisionLog(path), Engine.current().memory
    found = Sample(ROWS_MAX, memory)
    for state in log.map("scoring", _scores, bundle, artifact, models, drawn, memory):
        found.merge(state)
    rows = [row for _, row in found.rows()]
    if len(rows) < ROWS_MIN:
        kind = f"drawn decisions of {' and '.join(map(str, models))} with outcomes" if drawn else "decisions"
        raise DataError(f"{path}:1:: expected at least {ROWS_MIN} {kind} with signals, found {len(rows)}")
    if len(rows) < found.seen:
        click.echo(f"note: {path}: a sample of {len(rows):,} of {found.seen:,} decisions is used", err=True)
    outcomes = [_weighted(rows, model) for model in models] if drawn else []
    return np.asarray([row[0] for row in rows], dtype=np.float64), outcomes, log.sha256


Row = tuple[float, str, float, float]  # Score, model, outcome and 1 / p


def _scores(
    records: Iterator[Record],
    number: int,
    folder: Path,
    bundle: Path | None,
    artifact: Path | None,
    models: Drawn,
    drawn: bool,
    memory: int,
) -> dict[str, object]:
    scorer, found = Scorer.of(bundle), Sample(ROWS_MAX, memory)
    score = score_of(scorer, artifact, *models)[2]
    unread = list[tuple[int, str, Row]]()
    for at, record in enumerate(records):
        signals, prompt = signals_of_record(record), record.get("prompt", "")
        usable = signals is not None and signals.revision in scorer.revisions
        if "facts" not in record or not (usable or prompt):
            continue
        row: Row = (np.nan, "", 0.0, 0.0)
        if drawn:
            if "outcome" not in record or record.get("model") not in models or "propensity" not in record:
                continue
            row = (np.nan, record["model"], record["outcome"], 1.0 / record["propensity"])
        value = score(signals) if usable and signals is not None else None
        if value is None and prompt:
            unread.append((at, prompt, row))
        else:
            found.add([number, at], (np.nan if value is None else value, *row[1:]), ROW_BYTES)
    read = scorer.score_all(prompt for _, prompt, _ in unread) if unread else []
    for (at, _, row), again in zip(unread, read, strict=True):
        value = score(again)
        found.add([number, at], (np.nan if value is None else value, *row[1:]), ROW_BYTES)
    return found.state()


def score_of(
    scorer: Scorer, path: Path | None, strong: str | None, weak: str | None
) -> tuple[str, str, Score]:
    """The kind of score, the digest of its artifact, and the function that serving uses."""
    if path is None:
        return "threshold", "", lambda signals: signals.difficulty
    manifest, this = ArtifactFile(path).manifest, scorer.bundle
    if manifest.kind not in ("similarity", "factorization"):
        raise ArtifactError(f"{path}: is a {manifest.kind} artifact, which has no score of a pair")
    if manifest.revision != this.revision:
        fitted = f"was fitted on bundle {manifest.bundle} {manifest.revision}"
        raise ArtifactError(f"{path}: {fitted}, but this is {this.manifest.name} {this.revision}")
    if manifest.kind == "similarity":
        similar = read_similarity(path)
        return manifest.kind, similar.digest, of_embedding(similar.manifest, similar.score())
    factors, names = read_factorization(path), (strong or PAIR[0], weak or PAIR[1])
    for name in names:
        if name not in factors.models:
            known = ", ".join(factors.models)
            raise ArtifactError(f"{path}: no model {name!r} in it; name one of {known}")
    score = of_embedding(factors.manifest, factors.score(*names))
    return manifest.kind, factors.pair_digest(*names), score


def _weighted(rows: list[Row], model: str | None) -> Floats:
    """Each row's outcome times its weight, 0 for the other model; the mean weight of a row is 1."""
    weights = np.asarray([weight if name == model else 0.0 for _, name, _, weight in rows])
    if not weights.any():
        raise DataError(f"no drawn decision of model {model} has an outcome: name it with --…-model")
    values = np.asarray([outcome for _, _, outcome, _ in rows])
    return np.asarray(weights * values * len(rows) / weights.sum(), dtype=np.float64)
