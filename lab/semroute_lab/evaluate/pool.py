"""`eval pool`: routing over models that did not exist when the router was trained.

UniRoute's protocol (arXiv 2502.08773, section 6): seeded trials, each with 60/10/30 % of the
prompts for training, for profiles of new models, and for the test; two thirds of the models for
training, one third as the pool. With a models file there is a second setting that holds out a
whole family. Identical prompts are on one side of every split. Two-model strategies route between the
cheapest model and the one that is most accurate on the validation prompts. Routers decide by each model's
mean validation cost and are charged the true cost.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from semroute_extproc.errors import DataError
from semroute_lab.common.metrics import Floats, Integers
from semroute_lab.common.options import tracked
from semroute_lab.common.tables import Table, portions, require_rows, text_groups
from semroute_lab.evaluate import deferral, strategies
from semroute_lab.evaluate.deferral import DeferralCurve
from semroute_lab.evaluate.scoring import ROWS, Report, Scores, described, head
from semroute_lab.evaluate.unseen import ROUTERS, Trial
from semroute_lab.fit.clusters import k_means
from semroute_lab.fit.outcomes import join, row_of

PROMPT_SHARES = (0.6, 0.1, 0.3)  # Training, validation and test prompts
TRAIN_MODELS = 2.0 / 3.0  # Share of the models used for training in a random trial
QUESTIONS_MIN = 100  # Fewer questions cannot be split in three
MODELS_MIN = 4  # Fewer models cannot be split into a training set and a pool
CLUSTERS = 25  # Clusters of the training prompts; at most one for every ten validation prompts
HALF_BUDGET = 0.5  # Budget of the second area, in units of the pool's most expensive model
CURVE_POINTS = 101  # Points of each mean curve in the report

_SIZE = re.compile(r"(?i)(?<![a-z0-9.])(?:(\d+)x)?(\d+(?:\.\d+)?)b(?![a-z0-9])")


@dataclass(frozen=True, slots=True)
class PoolRows:
    """Questions by models; outcome and cost have shape (n, models)."""

    questions: Table
    texts: list[str]
    models: list[str]
    outcome: Floats
    cost: Floats
    held_out: list[str]  # Models of an unseen family; empty if none was declared
    left_out: list[str]  # Models with too many blanks
    cost_from: str


def read_pool(
    questions: Table, texts: list[str], outcomes: Table, costs: list[Table], models: Table | None
) -> PoolRows:
    """The outcomes with their costs; `DataError` where the files do not fit or are too small."""
    key = next(iter(outcomes.columns))
    roles: dict[str, str] = {}
    for row, name in enumerate(row_of(models, "model") if models is not None else ()):
        assert models is not None
        if name == key or name not in outcomes.columns:
            raise models.error("model", f"expected a column of {outcomes.path.name}, found {name!r}", row)
        roles[name] = models.field("role", row)
    joined, left_out = join(questions, texts, outcomes, None if models is None else list(roles))
    names = list(joined.models)
    if len(names) < MODELS_MIN:
        raise outcomes.error(key, f"expected at least {MODELS_MIN} models with outcomes, found {len(names)}")
    require_rows(joined.table, QUESTIONS_MIN)
    cost, source = _costs(joined.table.strings(key), key, names, costs)
    held_out = [name for name in names if roles.get(name, "").startswith("unseen")]
    return PoolRows(joined.table, joined.texts, names, joined.outcome, cost, held_out, left_out, source)


def _costs(ids: list[str], key: str, models: list[str], files: list[Table]) -> tuple[Floats, str]:
    """Cost of each question under each model: the product of the files, or parameters by name."""
    if not files:
        sizes = {model: billions(model) for model in models}
        if unknown := [model for model, size in sizes.items() if size is None]:
            listed = ", ".join(unknown)
            raise DataError(f"--costs:1:model: the size of {listed} is not in the name; give a costs file")
        row = np.asarray(list(sizes.values()), dtype=np.float64)
        return np.tile(row, (len(ids), 1)), "billions of parameters, by name"
    cost = np.ones((len(ids), len(models)))
    for table in files:
        by_model = "model" in table.columns
        cost *= _by_model(table, models) if by_model else _by_question(table, ids, key, models)
    return cost, " x ".join(table.path.name for table in files)


def billions(model: str) -> float | None:
    """Parameters in billions by the name: 70B is 70, 8x7B is 56; None if the name does not say."""
    found = _SIZE.search(model)
    return None if found is None else float(found[1] or 1) * float(found[2])


def _by_model(table: Table, models: list[str]) -> Floats:
    names, values = table.texts("model"), table.numbers_in("cost", 0.0)
    for model in models:
        if model not in names:
            raise table.error("model", f"expected a row for {model}")
        if values[names.index(model)] <= 0:
            raise table.error("cost", f"expected a positive cost of {model}", names.index(model))
    return values[[names.index(model) for model in models]]


def _by_question(table: Table, ids: list[str], key: str, models: list[str]) -> Floats:
    """Costs per question; a blank is the model's mean."""
    place = row_of(table, key)
    for value in ids:
        if value not in place:
            raise table.error(key, f"expected a row for {value!r}")
    at = [place[value] for value in ids]
    columns = []
    for model in models:
        values = table.numbers_in(model, 0.0, blank=True)[at]
        if not np.nansum(values) > 0:
            raise table.error(model, "expected positive costs")
        columns.append(np.where(np.isnan(values), np.nanmean(values), values))
    return np.stack(columns, axis=1)


@dataclass(frozen=True, slots=True)
class _Pool:
    """The inputs of every trial of one evaluation."""

    rows: PoolRows
    known: Scores
    groups: Integers
    judged: Floats | None  # The judge's score of every question, (n,), if one was asked
    limit: int | None
    clusters: int | None  # Clusters of prompts, or None for as many as the validation prompts can fill


def evaluate_pool(
    rows: PoolRows,
    known: Scores,
    bundle: Mapping[str, object] | None,
    *,
    seed: int,
    trials: int,
    validation_rows: int | None,
    clusters: int | None,
    judged: Floats | None,
    judge: Mapping[str, object] | None,
) -> Report:
    """The report of `eval pool` (see `reports.md`); `judged` (n,) are scores of the `judge`."""
    pools: dict[str, list[str] | None] = {"random models": None}
    if rows.held_out:
        pools["unseen family"] = rows.held_out
    seeds = range(seed, seed + trials)
    pool = _Pool(rows, known, text_groups(rows.texts), judged, validation_rows, clusters)
    return {
        **head("pool", rows.questions, bundle, seed),
        "trials": trials,
        "clusters": clusters,
        "models": rows.models,
        "left_out": rows.left_out,
        "cost": rows.cost_from,
        "judge": judge,
        "settings": {name: _setting(pool, models, seeds) for name, models in pools.items()},
    }


def _setting(pool: _Pool, models: list[str] | None, seeds: Sequence[int]) -> Report:
    grid = np.linspace(0.0, 1.0, CURVE_POINTS)
    figures: dict[str, list[dict[str, float]]] = {}
    curves: dict[str, list[Floats]] = {}
    sizes: list[int] = []
    for seed in tracked(seeds, len(seeds), "trials"):
        found, best = _trial(pool, models, seed, sizes)
        for name, curve in found.items():
            areas = {"area": deferral.area(curve), "area_half": deferral.area(curve, HALF_BUDGET)}
            others = {"peak": float(curve.quality.max()), "qnc": deferral.qnc(curve, *best)}
            figures.setdefault(name, []).append(areas | others)
            curves.setdefault(name, []).append(np.interp(grid, curve.cost, curve.quality))
    names, count = [name for name in ROWS["pool"] if name in figures], len(pool.rows.models)
    return {
        "pool": models,
        "pool_size": len(models) if models else count - round(TRAIN_MODELS * count),
        "validation_rows": round(float(np.mean(sizes))),
        "routers": [_row(name, figures) for name in names],
        "curves": {
            "cost": grid.tolist(),
            "quality": {name: np.mean(curves[name], axis=0).tolist() for name in names},
            "quality_se": {name: _se(np.asarray(curves[name])).tolist() for name in names},
        },
    }


def _trial(
    pool: _Pool, models: list[str] | None, seed: int, sizes: list[int]
) -> tuple[dict[str, DeferralCurve], tuple[float, float]]:
    """Curves of one trial, and quality and relative cost of the pool's most accurate model."""
    rows, known, vectors = pool.rows, pool.known, pool.known.neighbors
    train, validation, test = portions(pool.groups, PROMPT_SHARES, seed)
    validation = validation[: pool.limit]
    sizes.append(len(validation))
    trained, tested = _model_split(rows.models, models, seed)
    outcome, cost = rows.outcome[:, tested], rows.cost[:, tested]
    scale = float(cost[test].mean(axis=0).max())
    prices, paid = cost[validation].mean(axis=0) / scale, cost[test] / scale
    k = pool.clusters or max(1, min(CLUSTERS, len(validation) // 10, len(train)))
    centers, near = k_means(vectors[train], k, seed)
    embeddings = (vectors[train], vectors[validation], vectors[test])
    errors, forbidden = 1.0 - outcome[validation], 1.0 - outcome[train]
    known_errors = 1.0 - rows.outcome[np.ix_(train, trained)]
    trial = Trial(*embeddings, known_errors, errors, forbidden, centers, near, seed)
    quality = outcome[validation].mean(axis=0)
    on_hull = deferral.hull(prices, quality)
    curves = {"ZeroRouter": deferral.fixed_curve(on_hull, outcome[test], paid)}
    estimates = {name: router(trial) for name, router in ROUTERS.items()}
    # `intent` asks the expert of the predicted domain, and the generalist where it abstains.
    by_domain = strategies.domain_errors(known.take(validation), errors, known.take(test))
    estimates["intent"] = np.where(np.isnan(by_domain), errors.mean(axis=0), by_domain)
    estimates["oracle"] = 1.0 - outcome[test]
    for name, each in estimates.items():
        curves[name] = deferral.deferral_curve(each, prices, outcome[test], paid)
    # Ties go to the better of equally cheap models, and to the cheaper of equally good ones.
    weak, strong = (int(np.lexsort(keys)[0]) for keys in ((-quality, prices), (prices, -quality)))
    pair = None if weak == strong else outcome[validation][:, [strong, weak]]
    for name, scores in _pair_scores(pool, validation, test, pair, seed).items():
        curves[name] = deferral.pair_curve(scores, weak, strong, outcome[test], paid)
    best = int(np.argmax(outcome[test].mean(axis=0)))
    return curves, (float(outcome[test, best].mean()), float(paid[:, best].mean()))


def _pair_scores(
    pool: _Pool, validation: Integers, test: Integers, outcome: Floats | None, seed: int
) -> dict[str, Floats]:
    """Test scores of the two-model strategies; `outcome` (n, 2) on validation, None if both are one model."""
    scores = {"threshold": pool.known.difficulty[test]}
    if outcome is None:
        # One model is both the weak and the strong one: the score does not matter.
        scores |= dict.fromkeys(("similarity", "factorization"), scores["threshold"])
    else:
        texts = [pool.rows.texts[row] for row in validation]
        fit = strategies.Labeled(pool.known.take(validation), outcome, texts)
        x = pool.known.neighbors[test]
        scores["similarity"] = strategies.similarity_scores(fit, x, seed)
        scores["factorization"] = strategies.factorization_scores(fit, x, seed)
    return scores if pool.judged is None else scores | {"judge": pool.judged[test]}


def _model_split(models: list[str], pool: list[str] | None, seed: int) -> tuple[Integers, Integers]:
    """Indices of training models and of the pool."""
    if pool is not None:
        inside = np.isin(models, pool)
    else:
        order = np.random.default_rng([seed, 1]).permutation(len(models))
        inside = np.zeros(len(models), dtype=bool)
        inside[order[round(TRAIN_MODELS * len(models)) :]] = True
    return np.flatnonzero(~inside), np.flatnonzero(inside)


def _row(name: str, found: dict[str, list[dict[str, float]]]) -> Report:
    """Means with standard errors over trials, and the paired difference to ZeroRouter."""
    mine = {metric: np.asarray([trial[metric] for trial in found[name]]) for metric in found[name][0]}
    row: Report = described("pool", name)
    for metric in ("area", "area_half", "peak"):
        row[metric] = {"value": float(mine[metric].mean()), "se": float(_se(mine[metric]))}
    median = float(np.median(mine["qnc"]))
    never = int((~np.isfinite(mine["qnc"])).sum())
    row["qnc"] = {"median": median if np.isfinite(median) else None, "never": never}
    if name != "ZeroRouter":
        gap = mine["area"] - np.asarray([trial["area"] for trial in found["ZeroRouter"]])
        value, wins = float(gap.mean()), int((gap > 0).sum())
        row["area_minus_zero"] = {"value": value, "se": float(_se(gap)), "wins": wins}
    return row


def _se(values: Floats) -> Floats:
    """Standard error of the mean over trials (axis 0); zero for a single trial."""
    count = len(values)
    if count < 2:
        return np.zeros(values.shape[1:])
    return np.asarray(values.std(axis=0, ddof=1) / np.sqrt(count), dtype=np.float64)
