"""`semroute calibrate`: read, score, settle, write."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from semroute_extproc.encoder.offline import Scorer
from semroute_extproc.errors import ArtifactError, DataError
from semroute_extproc.strategies.artifact import ArtifactFile, ArtifactManifest
from semroute_extproc.strategies.calibration import Calibration, write_calibration
from semroute_extproc.strategies.factorization import Factorization, read_factorization
from semroute_extproc.strategies.pair import Score
from semroute_extproc.strategies.similarity import Similarity, read_similarity
from semroute_lab.common.progress import tracked
from semroute_lab.common.tables import read_table, require_rows, texts_in
from semroute_lab.fit.judge_scores import judge
from semroute_lab.fit.outcomes import PAIR, quantiles
from semroute_lab.fit.settle import quality_by_share, settle


def calibrate(file: Path, options: Mapping[str, Any]) -> dict[str, Any]:
    """The report of `semroute calibrate` with its options, and the calibration written to `out`.
    Raises DataError, ArtifactError, BundleError, ConfigError or EndpointError.
    """
    table = read_table(file).in_splits(options["splits"])
    texts = texts_in(table, options["text_column"])
    require_rows(table)
    columns = [options["strong_column"], options["weak_column"]]
    known = any(column in table.columns for column in columns)
    if options["max_quality_drop"] is not None and not known:
        raise table.error(columns[0], "expected this column: a quality drop needs outcomes")
    outcomes = [table.numbers_in(column, 0.0, 1.0) for column in columns] if known else []
    scorer = Scorer.of(options["bundle"])
    kind, digest, by_text = _scores(scorer, list(dict.fromkeys(texts)), options)
    values = np.asarray([by_text[text] for text in texts], dtype=np.float64)
    kept = np.isfinite(values)
    if not kept.any():
        raise DataError(f"{file}:1:: no prompt has a score: all are in languages of other bundles")
    scores, left_out = values[kept], int((~kept).sum())
    pair = (outcomes[0][kept], outcomes[1][kept]) if outcomes else None
    found = Calibration(
        score=kind,
        bundle=scorer.bundle.manifest.name,
        revision=scorer.bundle.revision,
        artifact=digest,
        rows=len(scores),
        data=file.name,
        data_sha256=table.sha256,
        quantiles=quantiles(scores),
        quality=None if pair is None else quality_by_share(scores, *pair),
    )
    names = ("strong_share", "max_quality_drop", "replicates", "seed")
    setting = settle(found, scores, pair, **{name: options[name] for name in names})
    if options["out"] is not None:
        write_calibration(options["out"], found)
    figures = dataclasses.asdict(setting)
    return {
        "rows": len(scores),
        "left_out": left_out,
        "score": kind,
        "bundle": found.bundle,
        "revision": found.revision,
        "artifact": digest or None,
        "threshold": min(setting.threshold, 1.0),
        "wanted_share": setting.wanted_share,
        "realised_share": figures["realised"],
        "quality": figures["quality"],
        "drop": figures["drop"],
        "out": None if options["out"] is None else str(options["out"]),
    }


def _scores(
    scorer: Scorer, texts: list[str], options: Mapping[str, Any]
) -> tuple[str, str, dict[str, float | None]]:
    """The kind of score, the digest of its source, and the score of each text, None without one."""
    if options["judge"] is not None:
        judged = judge(options["judge"], options["strategy"], texts)
        return "judge", judged.settings.digest, judged.scores
    kind, digest, score = _score(scorer, options["artifact"], options["strong_model"], options["weak_model"])
    signals = tracked(scorer.score_all(texts), len(texts), "reading")
    return kind, digest, {text: score(each) for text, each in zip(texts, signals, strict=True)}


def _score(scorer: Scorer, path: Path | None, strong: str | None, weak: str | None) -> tuple[str, str, Score]:
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
    this, fitted = scorer.bundle, f"{manifest.bundle} {manifest.revision}"
    if manifest.revision != this.revision:
        raise ArtifactError(
            f"{path}: was fitted on bundle {fitted}, but this is {this.manifest.name} {this.revision}"
        )
