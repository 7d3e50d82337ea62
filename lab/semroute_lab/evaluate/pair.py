"""`eval pair`: a difficulty score as a router between a weak and a strong model.

Rows of the report (all on the same requests):

    random         200 seeded orders; value and interval are the mean and the spread of single runs
    length         the text's characters: any signal must beat it before it is called semantic
    domain table   mean gain of the bundle's predicted domain, cross-fitted
    subject table  mean gain of the file's own `subject` column, cross-fitted
    ours           the bundle's difficulty: the strategy `threshold`
    similarity, factorization, clusters, intent
                   strategies that learn, fitted on other rows or cross-fitted; see `strategies`
    judge          the score of a model that the operator names
    oracle         the true gain
    always-weak, always-strong
                   the strategy `fixed`; `weighted` by pools is what `random` is

Cross-fitted: five folds of the evaluated rows themselves, identical prompts in one fold, each row
scored by the mean gain of the other folds only. These tables therefore see labels of the very
file, which `ours` does not. Intervals are percentile bootstraps over requests with the scores held
fixed; differences are paired.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from semroute_lab.evaluate import metrics, strategies
from semroute_lab.evaluate.data import Table, describe, prompt_texts, require_rows
from semroute_lab.evaluate.metrics.arrays import Floats
from semroute_lab.evaluate.metrics.resampling import ADVANTAGES, TARGETS, Estimate, estimate
from semroute_lab.evaluate.scoring import Scores
from semroute_lab.evaluate.splitting import cross_fitted_means, folds, text_groups

FOLDS = 5
"""Folds of the cross-fitted tables."""

RANDOM_RUNS = 200
"""Seeded random routers whose spread is the null distribution."""

CURVE_POINTS = 101
"""Points of each curve in the report."""

REFERENCE = "length"
"""The row that every other is compared with."""

STRATEGIES = {
    "random": "weighted",
    "ours": "threshold",
    "similarity": "similarity",
    f"similarity, {strategies.NEIGHBOURS} nearest": "similarity",
    "factorization": "factorization",
    "clusters": "clusters",
    "intent": "intent",
    "judge": "judge",
    "always-weak": "fixed",
    "always-strong": "fixed",
}
"""Row to the kind of strategy that it is; the others are baselines and references."""

ABOUT = {
    "random": f"{RANDOM_RUNS} random orders: mean and spread of single runs",
    "length": "characters of the prompt",
    "domain table": "mean gain of the predicted domain, cross-fitted within the file",
    "subject table": "mean gain of the true subject, cross-fitted within the file",
    "ours": "the bundle's difficulty",
    **strategies.ABOUT,
    "oracle": "the true gain",
}

Metrics = dict[str, float]
Report = dict[str, object]


@dataclass(frozen=True, slots=True)
class PairRows:
    """Requests with the outcome of both models; arrays of shape (n,)."""

    table: Table
    texts: list[str]
    strong: Floats
    weak: Floats
    subjects: list[str] | None

    @property
    def gain(self) -> float:
        """Mean outcome of the strong model less the weak one's."""
        return float(self.strong.mean() - self.weak.mean())


def read_pair(table: Table, text_column: str) -> PairRows:
    """Check a pair file; `DataError` if it is too small or its gap is not defined."""
    require_rows(table)
    strong, weak = table.numbers_in("strong_correct"), table.numbers_in("weak_correct")
    if strong.mean() <= weak.mean():
        found = f"{strong.mean():.3f} and {weak.mean():.3f}"
        raise table.error(
            "strong_correct", f"expected a mean above weak_correct's, found {found}: no gap to recover"
        )
    subjects = table.strings("subject") if table.has("subject") else None
    if subjects is not None and len(set(subjects)) < 2:
        subjects = None
    return PairRows(table, prompt_texts(table, text_column), strong, weak, subjects)


def evaluate_pair(
    rows: PairRows,
    scores: Scores | None,
    bundle: dict[str, object] | None,
    *,
    seed: int,
    replicates: int,
    threshold: float | None = None,
    more: Mapping[str, Floats] | None = None,
    judge: Mapping[str, object] | None = None,
) -> Report:
    """The report of `eval pair`; its shape is documented in `reports`.

    `more` are scores (n,) of further strategies, by their names in `strategies.ABOUT`; `judge` is
    what to say of the judge that was asked (`Judged.describe`).
    """
    routers = {**_routers(rows, scores, seed), **(more or {})}
    names = [name for name in ABOUT if name in routers or name == "random"]
    samples = metrics.bootstrap_pair(routers, rows.strong, rows.weak, replicates, seed)
    table = [
        _random_row(rows, seed) if name == "random" else _row(rows, name, routers[name], samples, seed)
        for name in names
    ]
    for name, share in (("always-weak", 0.0), ("always-strong", 1.0)):
        quality = float(np.mean(rows.strong if share else rows.weak))
        table.append(
            {
                "name": name,
                "strategy": STRATEGIES[name],
                "about": "one model for everything",
                "strong_share": share,
                "quality": quality,
            }
        )
    return {
        "schema": 1,
        "kind": "pair",
        "data": describe(rows.table),
        "bundle": bundle,
        "seed": seed,
        "bootstrap": replicates,
        "models": _outcomes(rows),
        "routers": table,
        "judge": None if judge is None else dict(judge),
        "within_subject": _within_subject(rows, routers, replicates, seed),
        "calibration": None if scores is None else _calibration(rows, scores),
        "threshold": None if scores is None or threshold is None else _at_threshold(rows, scores, threshold),
        "curves": _curves(rows, routers, replicates, seed),
    }


def _routers(rows: PairRows, scores: Scores | None, seed: int) -> dict[str, Floats]:
    gain = rows.strong - rows.weak
    fold = folds(text_groups(rows.texts), FOLDS, seed)
    routers = {"length": np.log1p([float(len(text)) for text in rows.texts])}
    if scores is not None:
        routers["domain table"] = cross_fitted_means(scores.domain_of(), gain, fold)
    if rows.subjects is not None:
        routers["subject table"] = cross_fitted_means(rows.subjects, gain, fold)
    if scores is not None:
        routers["ours"] = scores.difficulty
    routers["oracle"] = metrics.oracle_score(rows.strong, rows.weak)
    return routers


def _point_metrics(scores: Floats, strong: Floats, weak: Floats, seed: int) -> Metrics:
    s, w = float(strong.mean()), float(weak.mean())
    coarse = metrics.decile_curve(scores, strong, weak, seed)
    exact = metrics.exact_curve(scores, strong, weak)
    found = {"apgr": metrics.apgr(coarse, s, w), "apgr_exact": metrics.apgr(exact, s, w)}
    for q in TARGETS:
        found[f"cpt{q * 100:.0f}"] = metrics.cpt(coarse, q, s, w)
        found[f"cpt{q * 100:.0f}_exact"] = metrics.cpt_exact(exact, q, s, w)
    for advantage in ADVANTAGES:
        found[f"drop{advantage * 100:.0f}"] = metrics.quality_drop(exact, advantage)
    return found


def _row(
    rows: PairRows, name: str, scores: Floats, samples: dict[str, dict[str, Floats]], seed: int
) -> Report:
    point = _point_metrics(scores, rows.strong, rows.weak, seed)
    found: Report = {"name": name, "strategy": STRATEGIES.get(name), "about": ABOUT[name]}
    found |= {metric: estimate(value, samples[name].get(metric)) for metric, value in point.items()}
    if name != REFERENCE:
        base = _point_metrics(
            np.log1p([float(len(text)) for text in rows.texts]), rows.strong, rows.weak, seed
        )
        found["apgr_minus_length"] = _difference("apgr", point, base, samples, name)
        found["apgr_exact_minus_length"] = _difference("apgr_exact", point, base, samples, name)
    return found


def _difference(
    metric: str, point: Metrics, base: Metrics, samples: dict[str, dict[str, Floats]], name: str
) -> Estimate:
    mine, theirs = samples[name].get(metric), samples[REFERENCE].get(metric)
    paired = None if mine is None or theirs is None else mine - theirs
    return estimate(point[metric] - base[metric], paired)


def _random_row(rows: PairRows, seed: int) -> Report:
    rng = np.random.default_rng(seed)
    runs = [
        _point_metrics(rng.random(rows.strong.size), rows.strong, rows.weak, seed) for _ in range(RANDOM_RUNS)
    ]
    found: Report = {"name": "random", "strategy": STRATEGIES["random"], "about": ABOUT["random"]}
    for metric in runs[0]:
        values = np.asarray([run[metric] for run in runs])
        found[metric] = estimate(float(np.nanmean(values)), values)
    return found


def _outcomes(rows: PairRows) -> Report:
    """Mean outcomes, and the four cells where outcomes are 0/1."""
    found: Report = {"strong": float(rows.strong.mean()), "weak": float(rows.weak.mean()), "cells": None}
    if np.isin(np.concatenate((rows.strong, rows.weak)), (0.0, 1.0)).all():
        s, w = rows.strong == 1, rows.weak == 1
        cells = {"strong_only": s & ~w, "weak_only": w & ~s, "both": s & w, "neither": ~s & ~w}
        found["cells"] = {name: int(cell.sum()) for name, cell in cells.items()}
    return found


def _within_subject(
    rows: PairRows, routers: dict[str, Floats], replicates: int, seed: int
) -> list[Report] | None:
    """APGR with the subject taken out of the score, and with subject and length taken out."""
    if rows.subjects is None:
        return None
    variants: dict[str, Floats] = {}
    for name in ("length", "domain table", "ours"):
        if name in routers:
            variants[name] = metrics.within_groups(routers[name], rows.subjects)
        if name in routers and name != "length":
            variants[f"{name}, length out"] = metrics.within_groups(
                routers[name], rows.subjects, routers["length"]
            )
    samples = metrics.bootstrap_pair(variants, rows.strong, rows.weak, replicates, seed)
    table: list[Report] = []
    for name, scores in variants.items():
        point = _point_metrics(scores, rows.strong, rows.weak, seed)
        table.append({"name": name} | {m: estimate(v, samples[name].get(m)) for m, v in point.items()})
    return table


def _calibration(rows: PairRows, scores: Scores) -> Report:
    """Difficulty as a probability of its event: the strong model does better than the weak one."""
    event = (rows.strong > rows.weak).astype(np.float64)
    table = metrics.reliability(scores.difficulty, event)
    filled = table.share > 0
    found: Report = {"ece": metrics.binary_ece(scores.difficulty, event), "rate": float(event.mean())}
    found["ece_if_calibrated"] = metrics.ece_if_calibrated(scores.difficulty, 0)
    found["mean"] = float(scores.difficulty.mean())
    if 0 < event.sum() < event.size:
        found["auroc"] = metrics.auroc(scores.difficulty, event > 0)
    return found | {
        "predicted": table.confidence[filled].tolist(),
        "observed": table.observed[filled].tolist(),
        "share": table.share[filled].tolist(),
    }


def _at_threshold(rows: PairRows, scores: Scores, threshold: float) -> Report:
    """What a threshold that was fixed elsewhere does here: the drift a deployment would see."""
    chosen = scores.difficulty >= threshold
    quality = float(np.where(chosen, rows.strong, rows.weak).mean())
    recovered = metrics.pgr(quality, float(rows.strong.mean()), float(rows.weak.mean()))
    return {
        "threshold": threshold,
        "strong_share": float(chosen.mean()),
        "quality": quality,
        "pgr": recovered,
    }


def _curves(rows: PairRows, routers: dict[str, Floats], replicates: int, seed: int) -> Report:
    """Quality of every router by strong share, and the interval of PGR(x) - x of length and strategies."""
    share = np.linspace(0.0, 1.0, CURVE_POINTS)
    curves = {name: metrics.exact_curve(score, rows.strong, rows.weak) for name, score in routers.items()}
    ends = [float(rows.weak.mean()), float(rows.strong.mean())]
    quality = {name: np.interp(share, curve.share, curve.quality).tolist() for name, curve in curves.items()}
    quality["random"] = np.interp(share, [0.0, 1.0], ends).tolist()
    bands: Report = {}
    for name in routers:
        if (name == REFERENCE or name in STRATEGIES) and replicates:
            lift = metrics.bootstrap_lift(routers[name], rows.strong, rows.weak, share, replicates, seed)
            low, high = np.nanpercentile(lift, [2.5, 97.5], axis=0)
            bands[name] = {"low": low.tolist(), "high": high.tolist()}
    return {"strong_share": share.tolist(), "quality": quality, "lift_interval": bands}
