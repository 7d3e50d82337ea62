"""`eval pool`: routing over models that were not there when the router was trained.

UniRoute's protocol (arXiv 2502.08773, section 6): seeded trials, each with 60/10/30 % of the
prompts to train, to know the new models by, and to test; two thirds of the models to train on,
one third as the pool. With a models file there is a second setting, in which a whole family is
kept out: its models are the pool in every trial and only the prompts are drawn anew. Identical
prompts are on one side of every split.

Rows, and in brackets the strategy that they are:

    ZeroRouter [weighted]  the best fixed mix of single models: reads nothing
    kNN                    mean error of the nearest validation prompts
    K-means, LearnedMap [clusters]
                           profiles (Laplace, shrunk to the model's own mean, and that averaged over
                           several clusterings), and UniRoute's learned map
    intent                 for every trade-off the expert of the predicted domain, chosen by error plus
                           cost on the validation prompts; where it abstains, the generalist, chosen
                           likewise over all of them
    threshold, similarity, factorization, judge
                           strategies of a pair: between the cheapest model and the one that is most
                           accurate on the validation prompts, which similarity and factorization are
                           fitted on
    ridge, refitted        on the validation prompts
    clairvoyant            reads outcomes it must not have
    oracle                 knows every outcome

Strategies are the live path's own classes. Every router decides by the models' mean validation cost
and pays the true one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from semroute_lab.evaluate import metrics, strategies, unseen
from semroute_lab.evaluate.data import describe
from semroute_lab.evaluate.metrics.arrays import Floats, Integers
from semroute_lab.evaluate.metrics.deferral import DeferralCurve, fixed_curve
from semroute_lab.evaluate.pool_data import PoolRows
from semroute_lab.evaluate.scoring import Scores
from semroute_lab.evaluate.splitting import portions, text_groups
from semroute_lab.fit.clusters import k_means

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

ABOUT: dict[str, tuple[str | None, str]] = {
    "ZeroRouter": ("weighted", "the best fixed mix of single models"),
    "kNN": (None, "mean error of the nearest validation prompts"),
    "K-means, Laplace": ("clusters", "profiles by Laplace's rule"),
    "K-means, shrunk": ("clusters", "profiles shrunk to the model's own mean"),
    "K-means, averaged": ("clusters", "the same over several clusterings"),
    "LearnedMap": ("clusters", "soft clusters learned on the training models"),
    "intent": ("intent", "experts by domain and the generalist, chosen on the validation prompts"),
    "threshold": ("threshold", "difficulty, between the cheapest and the most accurate model"),
    "similarity": ("similarity", "between the same two, labelled by the validation prompts"),
    "factorization": ("factorization", "between the same two, fitted on the validation prompts"),
    "judge": ("judge", "the judge's score, between the same two"),
    "ridge, refitted": (None, "linear, refitted on the validation prompts"),
    "clairvoyant": (None, "linear, fitted on outcomes it must not have"),
    "oracle": (None, "knows every outcome"),
}
"""Row to the kind of strategy that it is, if any, and what it is, in the order of the report."""

PAIRS = ("threshold", "similarity", "factorization", "judge")
"""Rows of strategies that choose between two models."""

Report = dict[str, object]


@dataclass(frozen=True, slots=True)
class _Pool:
    """What every trial of one evaluation sees."""

    rows: PoolRows
    known: Scores
    groups: Integers
    judged: Floats | None
    """The judge's score of every question, (n,), if one was asked."""
    limit: int | None
    clusters: int | None
    """Clusters of the neighbourhoods, or None for as many as the validation prompts can fill."""
    pairs: bool

    @property
    def names(self) -> list[str]:
        """The rows of the report, in order."""
        left_out = set() if self.pairs else set(PAIRS)
        return [
            name for name in ABOUT if name not in left_out and (name != "judge" or self.judged is not None)
        ]


def evaluate_pool(
    rows: PoolRows,
    known: Scores,
    bundle: dict[str, object] | None,
    *,
    seed: int,
    trials: int,
    validation_rows: int | None = None,
    clusters: int | None = None,
    judged: Floats | None = None,
    judge: Mapping[str, object] | None = None,
    pairs: bool = True,
    progress: Callable[[range], Iterable[int]] = iter,
) -> Report:
    """The report of `eval pool`; its shape is documented in `reports`.

    `pairs` has the strategies of a pair fitted as well, which takes two thirds of the time.

    `known` is what the bundle says of the questions; `judged` (n,) a judge's scores of them, and
    `judge` what to say of it (`Judged.describe`).
    """
    pools: dict[str, list[str] | None] = {"random models": None}
    if rows.held_out:
        pools["unseen family"] = rows.held_out
    seeds = range(seed, seed + trials)
    pool = _Pool(rows, known, text_groups(rows.texts), judged, validation_rows, clusters, pairs)
    settings = {name: _setting(pool, models, progress(seeds)) for name, models in pools.items()}
    return {
        "schema": 1,
        "kind": "pool",
        "data": describe(rows.questions),
        "bundle": bundle,
        "seed": seed,
        "trials": trials,
        "clusters": clusters,
        "models": rows.models,
        "left_out": rows.left_out,
        "cost": rows.cost_from,
        "judge": None if judge is None else dict(judge),
        "settings": settings,
    }


def _setting(pool: _Pool, models: list[str] | None, seeds: Iterable[int]) -> Report:
    grid, names = np.linspace(0.0, 1.0, CURVE_POINTS), pool.names
    found: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    curves: dict[str, list[Floats]] = {name: [] for name in names}
    sizes: list[int] = []
    for seed in seeds:
        for name, (curve, best) in _trial(pool, models, seed, sizes).items():
            found[name].append(_figures(curve, best))
            curves[name].append(np.interp(grid, curve.cost, curve.quality))
    count = len(pool.rows.models)
    return {
        "pool": models,
        "pool_size": len(models) if models else count - round(TRAIN_MODELS * count),
        "validation_rows": round(float(np.mean(sizes))),
        "routers": [_row(name, found) for name in names],
        "curves": {
            "cost": grid.tolist(),
            "quality": {name: np.mean(curves[name], axis=0).tolist() for name in names},
            "quality_se": {name: _se(np.asarray(curves[name])).tolist() for name in names},
        },
    }


def _trial(
    pool: _Pool, models: list[str] | None, seed: int, sizes: list[int]
) -> dict[str, tuple[DeferralCurve, tuple[float, float]]]:
    """Curves of one trial, with quality and relative cost of the pool's most accurate model."""
    rows, vectors = pool.rows, pool.known.neighbours
    train, validation, test = portions(pool.groups, PROMPT_SHARES, seed)
    validation = validation[: pool.limit]
    sizes.append(len(validation))
    trained, tested = _model_split(rows.models, models, seed)
    outcome, cost = rows.outcome[:, tested], rows.cost[:, tested]
    scale = float(cost[test].mean(axis=0).max())
    prices, paid = cost[validation].mean(axis=0) / scale, cost[test] / scale
    k = pool.clusters or unseen.cluster_count(len(train), len(validation))
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
    estimates = {name: router(setting) for name, router in ROUTERS.items()}
    estimates["intent"] = _by_domain(pool.known, setting.validation_errors, validation, test)
    estimates["oracle"] = 1.0 - outcome[test]
    for name, errors in estimates.items():
        curves[name] = metrics.deferral_curve(errors, prices, outcome[test], paid)
    if pool.pairs:
        curves |= _pairs(pool, validation, test, outcome, prices, paid, seed)
    best = int(np.argmax(outcome[test].mean(axis=0)))
    target = float(outcome[test, best].mean()), float(paid[:, best].mean())
    return {name: (curves[name], target) for name in pool.names}


def _by_domain(known: Scores, errors: Floats, validation: Integers, test: Integers) -> Floats:
    """Expected errors for `intent`: of the predicted domain, and over all where it abstains."""
    found = strategies.domain_errors(known.take(validation), errors, known.take(test))
    return np.where(np.isnan(found), errors.mean(axis=0), found)


def _pairs(
    pool: _Pool,
    validation: Integers,
    test: Integers,
    outcome: Floats,
    prices: Floats,
    paid: Floats,
    seed: int,
) -> dict[str, DeferralCurve]:
    """Strategies of a pair, between the cheapest and the most accurate model of the validation prompts."""
    quality = outcome[validation].mean(axis=0)
    # Of models as cheap the better one, of models as good the cheaper one.
    weak, strong = (int(np.lexsort(keys)[0]) for keys in ((-quality, prices), (prices, -quality)))
    texts = [pool.rows.texts[row] for row in validation]
    fit = strategies.Labelled(pool.known.take(validation), outcome[validation][:, [strong, weak]], texts)
    x = pool.known.neighbours[test]
    scores = {"threshold": pool.known.difficulty[test]}
    if weak == strong:
        # Nothing to choose: whatever the score, the same model answers.
        scores |= dict.fromkeys(("similarity", "factorization"), scores["threshold"])
    else:
        scores["similarity"] = strategies.similarity_scores(fit, x, seed)
        scores["factorization"] = strategies.factorization_scores(fit, x, seed)
    if pool.judged is not None:
        scores["judge"] = pool.judged[test]
    return {
        name: metrics.pair_curve(values, weak, strong, outcome[test], paid) for name, values in scores.items()
    }


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
    strategy, about = ABOUT[name]
    row: Report = {"name": name, "strategy": strategy, "about": about}
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
