"""`eval pair`: scores as routers between a weak and a strong model, all on the same requests.

Cross-fitted routers use five folds of the evaluated rows, with identical prompts in one fold. They thus see
labels from the evaluated file, unlike `ours`. Intervals are percentile bootstraps over
requests with the scores held fixed; differences are paired.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from semroute_lab.common import metrics, routing
from semroute_lab.common.metrics import Floats, Integers, estimate
from semroute_lab.common.tables import (
    TEXT_COLUMNS,
    Table,
    folds,
    pick_column,
    prompt_texts,
    require_rows,
    text_key,
)
from semroute_lab.evaluate import labels, strategies
from semroute_lab.evaluate.scoring import ROWS, Report, Scores, Source, described, head
from semroute_lab.evaluate.strategies import Labeled

RANDOM_RUNS = 200  # Seeded random routers whose spread is the null distribution
CURVE_POINTS = 101  # Points of each curve in the report
REFERENCE = "length"  # The row that every other is compared with
TABLE_WEIGHT = 5.0  # Weight of the overall mean in the cross-fitted tables, in rows


@dataclass(frozen=True, slots=True)
class PairRows:
    """Requests with the outcome of both models; arrays of shape (n,)."""

    table: Table
    texts: list[str]
    strong: Floats
    weak: Floats
    subjects: list[str] | None


def read_pair(table: Table, text_column: str) -> PairRows:
    """Check a pair file; `DataError` if it is too small or has no gap between the models."""
    require_rows(table)
    strong, weak = table.numbers_in("outcome.strong"), table.numbers_in("outcome.weak")
    if strong.mean() <= weak.mean():
        found = f"found {strong.mean():.3f} and {weak.mean():.3f}: no gap to recover"
        raise table.error(
            "outcome.strong", f"expected a mean above {table.actual('outcome.weak')}'s, {found}"
        )
    subjects = table.columns.get("subject", [])
    several = len(set(subjects)) > 1
    return PairRows(table, prompt_texts(table, text_column), strong, weak, subjects if several else None)


def fitted_scores(
    rows: PairRows,
    known: Scores,
    source: Source,
    fit: Table | None,
    text_column: str | None,
    *,
    seed: int,
    kinds: Sequence[str] = (),
    bartscore: Any = None,
) -> tuple[dict[str, Floats], dict[str, dict[str, object]]]:
    """Scores (n,) of the strategies that learn and of the labels `kinds`, by row; and `labels.notes`.
    They are fitted on `fit`, or cross-fitted on `rows` if that is None. Prompts of `fit` that are also
    evaluated are left out; DataError if too few remain.
    """

    def labeled(rows: PairRows, known: Scores, fitted_on: bool = True) -> Labeled:
        found = Labeled(known, np.stack([rows.strong, rows.weak], axis=1), rows.texts)
        samples = labels.samples(rows.table, bartscore) if fitted_on and kinds else found.samples
        return dataclasses.replace(found, samples=samples)

    def fitted(fit: Labeled, apply: Labeled) -> dict[str, Floats]:
        return strategies.scores(fit, apply.known, seed) | labels.scores(fit, apply, kinds)

    if fit is None:
        own = labeled(rows, known)
        return strategies.cross_fitted(own, seed, fitted), labels.notes(own, kinds)
    evaluated = {text_key(text) for text in rows.texts}
    column = pick_column(fit, text_column, TEXT_COLUMNS, "text")
    apart = read_pair(fit.where(text_key(text) not in evaluated for text in fit.texts(column)), column)
    other = labeled(apart, source.score(apart.texts))
    return fitted(other, labeled(rows, known, False)), labels.notes(other, kinds)


def evaluate_pair(
    rows: PairRows,
    *,
    scores: Scores | None = None,
    bundle: Mapping[str, object] | None = None,
    seed: int,
    replicates: int,
    threshold: float | None = None,
    more: Mapping[str, Floats],
    judge: Mapping[str, object] | None = None,
    notes: Mapping[str, dict[str, object]] | None = None,
) -> Report:
    """The report of `eval pair`; its shape is documented in `reports.md`.
    `more` are scores (n,) of further rows, by their names; `judge` describes the judge that was
    asked (`Judged.describe`); `notes` are further fields of rows and add each router's AUROC.
    """
    s, w = rows.strong, rows.weak
    routers = {**_routers(rows, scores, seed), **more}
    samples = routing.bootstrap_pair(routers, s, w, replicates, seed)
    points = {name: routing.point_metrics(each, s, w, seed) for name, each in routers.items()}
    table: list[Report] = []
    for name in ROWS["pair"]:
        if name == "random":
            table.append(described("pair", name) | _random(rows, seed))
        elif name in routers:
            table.append(_row(name, points, samples) | (notes or {}).get(name, {}))
            if notes:
                # How well the score predicts where the strong model does better.
                table[-1]["auroc"] = metrics.auroc_estimate(routers[name], s > w, replicates, seed)
    for name, share, outcome in (("always-weak", 0.0, w), ("always-strong", 1.0, s)):
        found = {"strong_share": share, "quality": float(outcome.mean())}
        table.append(described("pair", name) | found)
    return {
        **head("pair", rows.table, bundle, seed),
        "bootstrap": replicates,
        "models": _outcomes(rows),
        "routers": table,
        "judge": judge,
        "within_subject": _within_subject(rows, routers, replicates, seed),
        "calibration": None if scores is None else _calibration(rows, scores),
        "threshold": None if scores is None or threshold is None else _at_threshold(rows, scores, threshold),
        "curves": _curves(rows, routers, replicates, seed),
    }


def _routers(rows: PairRows, scores: Scores | None, seed: int) -> dict[str, Floats]:
    gain, fold = rows.strong - rows.weak, folds(rows.texts, seed)
    routers = {"length": np.log1p([float(len(text)) for text in rows.texts]), "oracle": gain}
    if rows.subjects is not None:
        routers["subject table"] = cross_fitted_means(rows.subjects, gain, fold)
    if scores is not None:
        domains = np.argmax(scores.domain, axis=1).astype(str)
        routers |= {"domain table": cross_fitted_means(domains, gain, fold), "ours": scores.difficulty}
    return {name: routers[name] for name in ROWS["pair"] if name in routers}


def cross_fitted_means(
    keys: Sequence[str] | Any, values: Floats, fold: Integers, weight: float = TABLE_WEIGHT
) -> Floats:
    """(sum + weight mean) / (rows + weight) of the values of each row's key in the *other* folds; (n,)."""
    _, index = np.unique(np.asarray(keys, dtype=str), return_inverse=True)
    classes = int(index.max()) + 1
    found = np.empty(values.size)
    for part in np.unique(fold):
        inside = fold == part
        prior = weight * float(values[~inside].mean())
        total = np.bincount(index[~inside], values[~inside], minlength=classes)
        rows = np.bincount(index[~inside], minlength=classes)
        found[inside] = ((total + prior) / (rows + weight))[index[inside]]
    return found


def _estimates(points: Mapping[str, float], samples: Mapping[str, Floats]) -> Report:
    return {metric: estimate(value, samples.get(metric)) for metric, value in points.items()}


def _row(name: str, points: dict[str, dict[str, float]], samples: dict[str, dict[str, Floats]]) -> Report:
    found: Report = described("pair", name) | _estimates(points[name], samples[name])
    for metric in ("apgr", "apgr_exact") if name != REFERENCE else ():
        mine, theirs = (samples[row].get(metric) for row in (name, REFERENCE))
        paired = None if mine is None or theirs is None else mine - theirs
        value = points[name][metric] - points[REFERENCE][metric]
        found[f"{metric}_minus_length"] = estimate(value, paired)
    return found


def _random(rows: PairRows, seed: int) -> Report:
    rng = np.random.default_rng(seed)
    size = rows.strong.size
    runs = [routing.point_metrics(rng.random(size), rows.strong, rows.weak, seed) for _ in range(RANDOM_RUNS)]
    values = {metric: np.asarray([run[metric] for run in runs]) for metric in runs[0]}
    return {metric: estimate(float(np.nanmean(each)), each) for metric, each in values.items()}


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
    """APGR of scores standardized by subject, and with length regressed out as well."""
    if rows.subjects is None:
        return None
    variants: dict[str, Floats] = {}
    for name in ("length", "domain table", "ours"):
        if name in routers:
            variants[name] = routing.within_groups(routers[name], rows.subjects)
        if name in routers and name != "length":
            without = routing.within_groups(routers[name], rows.subjects, routers["length"])
            variants[f"{name}, length out"] = without
    samples = routing.bootstrap_pair(variants, rows.strong, rows.weak, replicates, seed)
    found = []
    for name, scores in variants.items():
        points = routing.point_metrics(scores, rows.strong, rows.weak, seed)
        found.append({"name": name} | _estimates(points, samples[name]))
    return found


def _calibration(rows: PairRows, scores: Scores) -> Report:
    """Difficulty as a probability of its event: the strong model does better than the weak one."""
    event = (rows.strong > rows.weak).astype(np.float64)
    found: Report = {
        "ece": metrics.binary_ece(scores.difficulty, event),
        "rate": float(event.mean()),
        "ece_if_calibrated": metrics.ece_if_calibrated(scores.difficulty, 0),
        "mean": float(scores.difficulty.mean()),
    }
    if 0 < event.sum() < event.size:
        found["auroc"] = metrics.auroc(scores.difficulty, event > 0)
    table = metrics.reliability(scores.difficulty, event)
    names = ("predicted", "observed", "share")
    return found | {name: column.tolist() for name, column in zip(names, table, strict=True)}


def _at_threshold(rows: PairRows, scores: Scores, threshold: float) -> Report:
    """The effect of a threshold chosen on other data: the drift that a deployment would see."""
    chosen = scores.difficulty >= threshold
    quality = float(np.where(chosen, rows.strong, rows.weak).mean())
    recovered = routing.pgr(quality, float(rows.strong.mean()), float(rows.weak.mean()))
    share = float(chosen.mean())
    return {"threshold": threshold, "strong_share": share, "quality": quality, "pgr": recovered}


def _curves(rows: PairRows, routers: dict[str, Floats], replicates: int, seed: int) -> Report:
    """Quality of every router by strong share, and the interval of PGR(x) - x of length and strategies."""
    share = np.linspace(0.0, 1.0, CURVE_POINTS)
    curves = {name: routing.exact_curve(score, rows.strong, rows.weak) for name, score in routers.items()}
    quality = {name: np.interp(share, curve.share, curve.quality).tolist() for name, curve in curves.items()}
    ends = [float(rows.weak.mean()), float(rows.strong.mean())]
    quality["random"] = np.interp(share, [0.0, 1.0], ends).tolist()
    bands: Report = {}
    for name in routers:
        if (name == REFERENCE or ROWS["pair"][name].get("strategy")) and replicates:
            lift = routing.bootstrap_lift(routers[name], rows.strong, rows.weak, share, replicates, seed)
            low, high = np.nanpercentile(lift, [2.5, 97.5], axis=0)
            bands[name] = {"low": low.tolist(), "high": high.tolist()}
    return {"strong_share": share.tolist(), "quality": quality, "lift_interval": bands}
