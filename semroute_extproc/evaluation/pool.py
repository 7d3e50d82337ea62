"""`eval pool`: routing over models that were not there when the router was trained.

UniRoute's protocol (arXiv 2502.08773, section 6): seeded trials, each with 60/10/30 % of the
prompts to train, to know the new models by, and to test; two thirds of the models to train on,
one third as the pool. With a models file there is a second setting, in which a whole family is
kept out: its models are the pool in every trial and only the prompts are drawn anew. Identical
prompts are on one side of every split.

Rows: ZeroRouter, kNN, K-means profiles (Laplace, shrunk to the model's own mean, and that averaged
over several clusterings) and LearnedMap, which are the strategy `clusters` as it is in the live path;
ridge refitted on the validation prompts, clairvoyant (reads outcomes it must not have) and oracle
(knows every outcome). Every router decides by the models' mean validation cost and pays the true one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from semroute_extproc.evaluation import metrics, unseen
from semroute_extproc.evaluation.data import describe
from semroute_extproc.evaluation.metrics.arrays import Floats, Integers
from semroute_extproc.evaluation.metrics.deferral import DeferralCurve, fixed_curve
from semroute_extproc.evaluation.pool_data import PoolRows
from semroute_extproc.evaluation.splitting import portions, text_groups
from semroute_extproc.fitting.clusters import k_means

PROMPT_SHARES = (0.6, 0.1, 0.3)
"""Training, validation and test prompts."""

TRAIN_MODELS = 2.0 / 3.0
"""Share of the models that are trained on in a random trial."""

HALF_BUDGET = 0.5
"""Budget of the second area, in units of the pool's dearest model."""

CURVE_POINTS = 101
"""Points of each mean curve in the report."""

ROUTERS: dict[str, Callable[[unseen.Trial], Floats]] = {
    "kNN": unseen.nearest_neighbours,
    "K-means, Laplace": unseen.clusters_laplace,
    "K-means, shrunk": unseen.clusters_shrunk,
    "K-means, averaged": unseen.clusters_averaged,
    "LearnedMap": unseen.learned_map,
    "ridge, refitted": unseen.ridge_on_validation,
    "clairvoyant": unseen.clairvoyant,
}

NAMES = ("ZeroRouter", *ROUTERS, "oracle")

Report = dict[str, object]


def evaluate_pool(
    rows: PoolRows,
    vectors: unseen.Vectors,
    bundle: dict[str, object] | None,
    *,
    seed: int,
    trials: int,
    validation_rows: int | None = None,
    progress: Callable[[range], Iterable[int]] = iter,
) -> Report:
    """The report of `eval pool`; its shape is documented in `reports`."""
    pools: dict[str, list[str] | None] = {"random models": None}
    if rows.held_out:
        pools["unseen family"] = rows.held_out
    seeds = range(seed, seed + trials)
    settings = {
        name: _setting(rows, vectors, pool, progress(seeds), validation_rows) for name, pool in pools.items()
    }
    return {
        "schema": 1,
        "kind": "pool",
        "data": describe(rows.questions),
        "bundle": bundle,
        "seed": seed,
        "trials": trials,
        "models": rows.models,
        "left_out": rows.left_out,
        "cost": rows.cost_from,
        "settings": settings,
    }


def _setting(
    rows: PoolRows,
    vectors: unseen.Vectors,
    pool: list[str] | None,
    seeds: Iterable[int],
    limit: int | None,
) -> Report:
    grid = np.linspace(0.0, 1.0, CURVE_POINTS)
    found: dict[str, list[dict[str, float]]] = {name: [] for name in NAMES}
    curves: dict[str, list[Floats]] = {name: [] for name in NAMES}
    sizes: list[int] = []
    groups = text_groups(rows.texts)
    for seed in seeds:
        for name, (curve, best) in _trial(rows, vectors, groups, pool, seed, limit, sizes).items():
            found[name].append(_figures(curve, best))
            curves[name].append(np.interp(grid, curve.cost, curve.quality))
    in_pool = len(pool) if pool else len(rows.models) - round(TRAIN_MODELS * len(rows.models))
    return {
        "pool": pool,
        "pool_size": in_pool,
        "validation_rows": round(float(np.mean(sizes))),
        "routers": [_row(name, found) for name in NAMES],
        "curves": {
            "cost": grid.tolist(),
            "quality": {name: np.mean(curves[name], axis=0).tolist() for name in NAMES},
            "quality_se": {name: _se(np.asarray(curves[name])).tolist() for name in NAMES},
        },
    }


def _trial(
    rows: PoolRows,
    vectors: unseen.Vectors,
    groups: Integers,
    pool: list[str] | None,
    seed: int,
    limit: int | None,
    sizes: list[int],
) -> dict[str, tuple[DeferralCurve, tuple[float, float]]]:
    """Curves of one trial, with quality and relative cost of the pool's most accurate model."""
    train, validation, test = portions(groups, PROMPT_SHARES, seed)
    validation = validation[:limit]
    sizes.append(len(validation))
    trained, tested = _model_split(rows.models, pool, seed)
    outcome, cost = rows.outcome[:, tested], rows.cost[:, tested]
    scale = float(cost[test].mean(axis=0).max())
    prices, paid = cost[validation].mean(axis=0) / scale, cost[test] / scale
    k = unseen.cluster_count(len(train), len(validation))
    centres, near = k_means(vectors[train], k, seed)
    setting = unseen.Trial(
        train=vectors[train],
        validation=vectors[validation],
        test=vectors[test],
        train_errors=1.0 - rows.outcome[np.ix_(train, trained)],
        validation_errors=1.0 - outcome[validation],
        forbidden_errors=1.0 - outcome[train],
        centres=centres,
        near=near,
        seed=seed,
    )
    on_hull = metrics.hull(prices, outcome[validation].mean(axis=0))
    curves = {"ZeroRouter": fixed_curve(on_hull, outcome[test], paid)}
    for name, router in ROUTERS.items():
        curves[name] = metrics.deferral_curve(router(setting), prices, outcome[test], paid)
    curves["oracle"] = metrics.deferral_curve(1.0 - outcome[test], prices, outcome[test], paid)
    best = int(np.argmax(outcome[test].mean(axis=0)))
    target = float(outcome[test, best].mean()), float(paid[:, best].mean())
    return {name: (curves[name], target) for name in NAMES}


def _model_split(models: list[str], pool: list[str] | None, seed: int) -> tuple[Integers, Integers]:
    """Indices of training models and of the pool."""
    if pool is not None:
        inside = np.isin(models, pool)
    else:
        order = np.random.default_rng([seed, 1]).permutation(len(models))
        inside = np.zeros(len(models), dtype=bool)
        inside[order[round(TRAIN_MODELS * len(models)) :]] = True
    return np.flatnonzero(~inside).astype(np.int64), np.flatnonzero(inside).astype(np.int64)


def _figures(curve: DeferralCurve, best: tuple[float, float]) -> dict[str, float]:
    return {
        "area": metrics.area(curve),
        "area_half": metrics.area(curve, HALF_BUDGET),
        "peak": metrics.peak(curve),
        "qnc": metrics.qnc(curve, *best),
    }


def _row(name: str, found: dict[str, list[dict[str, float]]]) -> Report:
    """Means with standard errors over trials, and the paired difference to ZeroRouter."""
    mine = {metric: np.asarray([trial[metric] for trial in found[name]]) for metric in found[name][0]}
    base = np.asarray([trial["area"] for trial in found["ZeroRouter"]])
    row: Report = {"name": name}
    for metric in ("area", "area_half", "peak"):
        row[metric] = {"value": float(mine[metric].mean()), "se": float(_se(mine[metric]))}
    reached = np.isfinite(mine["qnc"])
    median = float(np.median(mine["qnc"]))
    row["qnc"] = {"median": median if np.isfinite(median) else None, "never": int((~reached).sum())}
    if name != "ZeroRouter":
        gap = mine["area"] - base
        row["area_minus_zero"] = {
            "value": float(gap.mean()),
            "se": float(_se(gap)),
            "wins": int((gap > 0).sum()),
        }
    return row


def _se(values: Floats) -> Floats:
    """Standard error of the mean over trials (axis 0); zero for a single trial."""
    count = len(values)
    if count < 2:
        return np.zeros(values.shape[1:])
    return np.asarray(values.std(axis=0, ddof=1) / np.sqrt(count), dtype=np.float64)
