"""`semroute calibrate`: read, score, settle, write."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from semroute_extproc.encoder.offline import Scorer
from semroute_extproc.errors import ArtifactError, DataError
from semroute_extproc.strategies import calibration as files
from semroute_extproc.strategies.artifact import ArtifactFile, ArtifactManifest
from semroute_extproc.strategies.calibration import Calibration
from semroute_extproc.strategies.factorization import Factorization, read_factorization
from semroute_extproc.strategies.pair import Score
from semroute_extproc.strategies.similarity import Similarity, read_similarity
from semroute_lab.evaluate.data import (
    TEXT_COLUMNS,
    Table,
    pick_column,
    prompt_texts,
    read_table,
    require_rows,
)
from semroute_lab.evaluate.metrics.arrays import Floats
from semroute_lab.fit import judging
from semroute_lab.fit.cli import open_scorer, progress
from semroute_lab.fit.outcomes import PAIR
from semroute_lab.fit.settle import quality_by_share, score_quantiles, settle


def run(
    file: Path,
    bundle: Path | None,
    artifact: Path | None,
    strong_share: float | None,
    max_quality_drop: float | None,
    out: Path | None,
    splits: tuple[str, ...],
    text_column: str | None,
    strong_column: str,
    weak_column: str,
    strong_model: str | None,
    weak_model: str | None,
    judge: Path | None,
    strategy: str | None,
    replicates: int,
    seed: int,
) -> dict[str, Any]:
    """The report, and the calibration written to `out`; raises DataError, ArtifactError, BundleError."""
    table = read_table(file).in_splits(splits)
    texts = prompt_texts(table, pick_column(table, text_column, TEXT_COLUMNS, "text"))
    require_rows(table)
    outcomes = _outcomes(table, strong_column, weak_column)
    if max_quality_drop is not None and outcomes is None:
        raise table.error(strong_column, "expected this column: a quality drop needs outcomes")
    scorer = open_scorer(bundle)
    distinct = list(dict.fromkeys(texts))
    kind: str = "judge"
    if judge is not None:
        judged = judging.judge(judge, strategy, distinct)
        digest, known = judged.settings.digest, judged.scores
    else:
        kind, digest, score = _score(artifact, scorer, strong_model, weak_model)
        signals = progress(scorer.score_all(distinct), len(distinct))
        known = {text: score(each) for text, each in zip(distinct, signals, strict=True)}
    values = [known[text] for text in texts]
    kept = np.asarray([value is not None for value in values])
    if not kept.any():
        raise DataError(f"{file}:1:: none of the prompts has a score: nobody here understands its language")
    scores: Floats = np.asarray([value for value in values if value is not None])
    if outcomes is not None:
        outcomes = (outcomes[0][kept], outcomes[1][kept])
    found = Calibration(
        score=kind,
        bundle=scorer.bundle.manifest.name,
        revision=scorer.bundle.revision,
        artifact=digest,
        rows=len(scores),
        data=file.name,
        data_sha256=table.sha256,
        quantiles=score_quantiles(scores),
        quality=None if outcomes is None else quality_by_share(scores, *outcomes),
    )
    setting = settle(
        found,
        scores,
        outcomes,
        strong_share=strong_share,
        max_quality_drop=max_quality_drop,
        replicates=replicates,
        seed=seed,
    )
    if out is not None:
        files.write_calibration(out, found)
    return {
        "rows": len(scores),
        "left_out": int((~kept).sum()),
        "score": kind,
        "bundle": found.bundle,
        "revision": found.revision,
        "artifact": digest or None,
        "threshold": min(setting.threshold, 1.0),
        "wanted_share": setting.wanted_share,
        "realised_share": dataclasses.asdict(setting.realised),
        "quality": None if setting.quality is None else dataclasses.asdict(setting.quality),
        "drop": None if setting.drop is None else dataclasses.asdict(setting.drop),
        "out": None if out is None else str(out),
    }


def _outcomes(table: Table, strong: str, weak: str) -> tuple[Floats, Floats] | None:
    """Outcomes of both models, or None if the file has neither column."""
    if not table.has(strong) and not table.has(weak):
        return None
    return table.numbers_in(strong, 0.0, 1.0), table.numbers_in(weak, 0.0, 1.0)


def _score(path: Path | None, scorer: Scorer, strong: str | None, weak: str | None) -> tuple[str, str, Score]:
    """The kind of score, the digest of its artifact and the live path's own function."""
    if path is None:
        return "threshold", "", lambda signals: signals.difficulty
    match ArtifactFile(path).manifest.kind:
        case "similarity":
            similar = read_similarity(path)
            _same_bundle(path, similar.manifest, scorer)
            return "similarity", similar.digest, Similarity(similar)
        case "factorization":
            factors = read_factorization(path)
            _same_bundle(path, factors.manifest, scorer)
            names = (strong or PAIR[0], weak or PAIR[1])
            for name in names:
                if name not in factors.models:
                    known = ", ".join(factors.models)
                    raise ArtifactError(f"{path}: no model {name!r} in it; name one of {known}")
            return "factorization", factors.pair_digest(*names), Factorization(factors, *names)
        case kind:
            raise ArtifactError(f"{path}: is a {kind} artifact, which has no score of a pair")


def _same_bundle(path: Path, manifest: ArtifactManifest, scorer: Scorer) -> None:
    ours, theirs = scorer.bundle, f"{manifest.bundle} {manifest.revision}"
    if manifest.revision != ours.revision:
        this = f"{ours.manifest.name} {ours.revision}"
        raise ArtifactError(f"{path}: was fitted on bundle {theirs}, but this is {this}")
