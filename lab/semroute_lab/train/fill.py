"""The parts of the heads that are computed once the encoder and the heads' networks are fixed.

In order: the recalled base embedding, the exam expert's cluster table, the calibration of every
expert, and the memory of the domain head.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
from sklearn.linear_model import Ridge
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from semroute_lab.train.calibrate import kmeans, platt, temperature
from semroute_lab.train.datasets import DOMAINS, EXAM, FAMILIES, Example
from semroute_lab.train.fit import IGNORE, States
from semroute_lab.train.model import ClusterTable, HeadOutputs, Heads, Memory
from semroute_lab.train.sources import HANDWRITTEN
from semroute_lab.train.spec import Say

RECALL_RIDGE = 0.01
"""Ridge penalty of the recalled embedding."""

CLUSTERINGS = 64
"""K-means runs that are averaged: a single run varies by a point of APGR."""

CLUSTERS = 12
"""Clusters per run; few, because labels are few and noisy."""

SHRINKAGE = 5.0
"""A cluster's mean includes this many rows of the overall mean."""

FOLDS = 5
"""Folds for values by a table that has not seen the row."""

EXPERT_ROWS_MIN = 50
"""An expert with fewer calibration rows is not calibrated."""

TABLE_ROWS_MIN = CLUSTERS * EXPERT_ROWS_MIN // 2
"""Fewer outcomes than this are too few for a cluster table."""

GATE_SHARPNESS = 4.0
"""Factor of the gate's logits once the experts are calibrated. Their scales differ, so another family's
expert blurs the order within a family; a nearly hard choice preserves more of it."""

CASES_MAX = 700
"""Stored cases of a source whose rows all have one domain."""

MEMORY_AXES = 192
"""Principal axes of the stored vectors: half of the embedding's, at the same accuracy."""

SHARPNESSES = (15.0, 20.0, 30.0, 40.0)
WEIGHTS = (0.5, 1.0, 1.5, 2.5, 4.0)
"""Grid from which the calibration rows choose the memory's parameters."""


def fit_recall(heads: Heads, tuned: Tensor, base: Tensor, say: Say) -> None:
    """Ridge regression of the base encoder's unit embeddings on the tuned ones; both [rows, d] states."""
    x, y = F.normalize(tuned, dim=-1), F.normalize(base, dim=-1)
    found = Ridge(RECALL_RIDGE).fit(x.double().numpy(), y.double().numpy())
    with torch.no_grad():
        heads.recall.weight.copy_(torch.from_numpy(found.coef_))
        heads.recall.bias.copy_(torch.from_numpy(found.intercept_))
        cosine = F.cosine_similarity(heads.recall(x), y).mean()
    say(f"base embedding recalled with a cosine of {float(cosine):.3f} on {len(x)} rows")


def add_table(
    heads: Heads, rows: Sequence[Example], states: States, source: str, seed: int, say: Say
) -> None:
    """Give the exam expert its cluster table and calibrate it on out-of-fold values.

    `rows` and `states` are the fit and calibration rows together: out-of-fold values need no rows to
    be kept back, and labels are few. `source` is the source of the outcomes.
    """
    own = [i for i, row in enumerate(rows) if row.source == source and row.gain is not None]
    if len(own) < TABLE_ROWS_MIN:
        say(f"exam expert: {len(own)} rows of {source} are too few for a cluster table")
        return
    with torch.inference_mode():
        x = heads.table_inputs(heads.parts(states.pooled[own], states.surface[own]))
    values = torch.tensor([rows[i].gain for i in own])
    heads.table = cluster_table(x, values, seed)
    found = platt(out_of_fold(x, values, seed), states.targets.difficulty[own], torch.ones(len(own)))
    _calibrate(heads, EXAM, found.scale, found.shift, len(own), say)


def cluster_table(x: Tensor, target: Tensor, seed: int, clusterings: int = CLUSTERINGS) -> ClusterTable:
    """The mean target per cluster of inputs [rows, inputs], for many seeds of K-means.

    The rule of UniRoute (Jitkrittum et al., arXiv 2502.08773, section 4.1) for one model pair, averaged
    over clusterings.
    """
    k = min(CLUSTERS, len(x))
    table = ClusterTable(clusterings, k, x.shape[1])
    for run in range(clusterings):
        centroids = kmeans(x, k, seed + run)
        offset = (centroids**2).sum(1) / 2
        rows = slice(run * k, (run + 1) * k)
        table.centroids[rows], table.offset[rows] = centroids, offset
        table.means[run] = shrunk_means((x @ centroids.T - offset).argmax(1), target, k)
    return table


def shrunk_means(cluster: Tensor, target: Tensor, k: int) -> Tensor:
    """(sum + m mean) / (rows + m) of the targets in each cluster; [k]."""
    total = torch.zeros(k, dtype=target.dtype).index_add_(0, cluster, target)
    rows = torch.bincount(cluster, minlength=k)
    return (total + SHRINKAGE * target.mean()) / (rows + SHRINKAGE)


def out_of_fold(x: Tensor, target: Tensor, seed: int) -> Tensor:
    """Each row's table value from a table that has not seen it, for calibration; [rows]."""
    fold = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed)) % FOLDS
    found = torch.zeros(len(x), dtype=target.dtype)
    for part in range(FOLDS):
        fit, rest = fold != part, fold == part
        found[rest] = cluster_table(x[fit], target[fit], seed, clusterings=CLUSTERINGS // 4)(x[rest])
    return found


def calibrate_experts(heads: Heads, rows: Sequence[Example], check: States, say: Say) -> None:
    """Platt scaling of the experts without a table, each on the calibration rows of its family.

    The everyday expert learns from many kinds of rows, some with a guessed difficulty; it is
    calibrated on those that a person judged, where there are enough.
    """
    with torch.inference_mode():
        means = heads.parts(check.pooled, check.surface).members.mean(-1)
    targets = check.targets
    judged = torch.tensor([row.source.startswith(HANDWRITTEN) for row in rows])
    for number in range(len(FAMILIES)):
        if number == EXAM and heads.table is not None:
            continue
        own = (targets.family == number) & ~torch.isnan(targets.difficulty)
        if int((own & judged).sum()) >= EXPERT_ROWS_MIN:
            own &= judged
        if int(own.sum()) < EXPERT_ROWS_MIN:
            continue
        found = platt(means[own, number], targets.difficulty[own], targets.weight[own])
        _calibrate(heads, number, found.scale, found.shift, int(own.sum()), say)
    heads.gate_scale.fill_(GATE_SHARPNESS)


def _calibrate(heads: Heads, number: int, scale: float, shift: float, rows: int, say: Say) -> None:
    heads.expert_scale[number], heads.expert_shift[number] = scale, shift
    say(f"{FAMILIES[number]} expert: {rows} rows, scale {scale:.2f}, shift {shift:.2f}")


def add_memory(
    heads: Heads,
    rows: Sequence[Example],
    fit: HeadOutputs,
    check: HeadOutputs,
    target: Tensor,
    seed: int,
    say: Say,
) -> None:
    """Store `rows` (their outputs are `fit`) in the memory and choose its parameters on calibration rows.

    `target` is the domain of each calibration row, `IGNORE` where unknown. The grid's best by
    cross-entropy after temperature scaling is used.
    """
    chosen = cases(rows, seed)
    with torch.inference_mode():
        known, asked = heads.recalled(fit), heads.recalled(check)
        vectors = F.normalize(torch.stack([known[case].mean(0) for case in chosen]), dim=-1)
        axes = principal_axes(vectors, MEMORY_AXES)
    memory = heads.memory = Memory(len(vectors), vectors.shape[1], len(axes), len(DOMAINS))
    with torch.no_grad():
        memory.axes.weight.copy_(axes)
        memory.keys.copy_(memory.on_axes(vectors))
    memory.labels.copy_(
        F.one_hot(torch.tensor([rows[case[0]].domain for case in chosen]), len(DOMAINS)).float()
    )
    labelled = target != IGNORE
    target = target[labelled]
    plain = check.domain[labelled].log_softmax(-1)
    tried: list[tuple[float, float, float]] = []
    for sharpness in SHARPNESSES:
        memory.sharpness.fill_(sharpness)
        with torch.inference_mode():
            votes = memory(asked[labelled])
        for weight in WEIGHTS:
            logits = (plain + weight * votes).clone()
            loss = float(F.cross_entropy(logits / temperature(logits, target), target))
            tried.append((loss, sharpness, weight))
    loss, sharpness, weight = min(tried, key=lambda one: one[0])
    memory.sharpness.fill_(sharpness)
    memory.weight.fill_(weight)
    say(
        f"memory: {len(vectors)} cases, sharpness {sharpness:g}, weight {weight:g}, "
        f"loss {loss:.4f} on calibration rows"
    )


def cases(rows: Sequence[Example], seed: int) -> list[list[int]]:
    """Indices of the rows of each case to store.

    A case is a place in a file, so a question with and without its options is one. All cases with a
    domain are stored, but at most `CASES_MAX` of a source that has only one domain.
    """
    sources: dict[str, dict[str, list[int]]] = {}
    first: dict[str, str] = {}
    for i, row in enumerate(rows):
        if row.domain is not None:
            source = first.setdefault(row.place, row.source)
            sources.setdefault(source, {}).setdefault(row.place, []).append(i)
    rng = random.Random(seed)
    chosen: list[list[int]] = []
    for _, own in sorted(sources.items()):
        found = list(own.values())
        one_domain = len({rows[case[0]].domain for case in found}) == 1
        chosen += rng.sample(found, min(len(found), CASES_MAX)) if one_domain else found
    return sorted(chosen)


def principal_axes(x: Tensor, count: int) -> Tensor:
    """The axes on which `x` [rows, d] is largest, not centred, at most `count`; orthonormal, [axes, d]."""
    _, vectors = torch.linalg.eigh((x.T @ x).double())
    return vectors.flip(1)[:, :count].T.to(x.dtype)
