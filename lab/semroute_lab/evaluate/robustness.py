"""`eval robustness`: how often a decision flips when the prompt is changed but not what it needs.

A decision is the predicted domain, and on which side of the threshold the difficulty falls; the
threshold gives the strong model 30 % of the unchanged prompts unless another one is named. The
router by length, with a threshold of the same share, is the baseline of every row. For an attack
the figure that matters is the share of hard prompts (strong before) that it turns easy.
"""

from __future__ import annotations

import numpy as np

from semroute_lab.evaluate import metrics
from semroute_lab.evaluate.data import Table, describe, require_rows
from semroute_lab.evaluate.metrics.arrays import Booleans, Floats
from semroute_lab.evaluate.metrics.resampling import Estimate, estimate
from semroute_lab.evaluate.perturbations import PERTURBATIONS, Perturbation, perturb
from semroute_lab.evaluate.scoring import Scores, Source

STRONG_SHARE = 0.3
"""Share of the unchanged prompts that the threshold sends to the strong model."""

Report = dict[str, object]


def sample(table: Table, limit: int, seed: int) -> Table:
    """At most `limit` rows, drawn by `seed`, in the file's order."""
    require_rows(table)
    if len(table) <= limit:
        return table
    drawn = set(np.random.default_rng(seed).choice(len(table), size=limit, replace=False).tolist())
    return table.where(row in drawn for row in range(len(table)))


def evaluate_robustness(
    table: Table,
    texts: list[str],
    source: Source,
    *,
    seed: int,
    replicates: int,
    strong_share: float = STRONG_SHARE,
    threshold: float | None = None,
) -> Report:
    """The report of `eval robustness`; its shape is documented in `reports`."""
    changed = {one.name: perturb(one, texts, seed) for one in PERTURBATIONS}
    # One pass over everything: texts that a perturbation leaves alone are scored once.
    scores = source.score([*texts, *(text for group in changed.values() for text in group)])
    count = len(texts)
    clean = scores.take(range(count))
    cut = threshold if threshold is not None else float(np.quantile(clean.difficulty, 1.0 - strong_share))
    length_cut = float(np.quantile([len(text) for text in texts], 1.0 - strong_share))
    table_rows: list[Report] = []
    for i, one in enumerate(PERTURBATIONS, start=1):
        other = scores.take(range(i * count, (i + 1) * count))
        row = _row(one, clean, other, cut, seed, replicates)
        row["changed"] = float(np.mean([a != b for a, b in zip(texts, changed[one.name], strict=True)]))
        lengths = (_lengths(texts) >= length_cut) != (_lengths(changed[one.name]) >= length_cut)
        row["length_flip"] = _share(lengths, np.ones(count, dtype=bool), seed, replicates)
        table_rows.append(row)
    return {
        "schema": 1,
        "kind": "robustness",
        "data": describe(table),
        "bundle": source.describe(),
        "seed": seed,
        "bootstrap": replicates,
        "threshold": cut,
        "strong_share": float(np.mean(clean.difficulty >= cut)),
        "perturbations": table_rows,
    }


def _lengths(texts: list[str]) -> Floats:
    return np.asarray([len(text) for text in texts], dtype=np.float64)


def _row(one: Perturbation, clean: Scores, other: Scores, cut: float, seed: int, replicates: int) -> Report:
    before, after = clean.difficulty >= cut, other.difficulty >= cut
    domain = np.argmax(clean.domain, axis=1) != np.argmax(other.domain, axis=1)
    everything = np.ones(before.size, dtype=bool)
    return {
        "name": one.name,
        "group": one.group,
        "about": one.about,
        "domain_flip": _share(domain, everything, seed, replicates),
        "difficulty_flip": _share(before != after, everything, seed, replicates),
        "hard_to_easy": _share(before & ~after, before, seed, replicates),
        "easy_to_hard": _share(after & ~before, ~before, seed, replicates),
        "strong_share": float(after.mean()),
        "mean_shift": float(np.mean(other.difficulty - clean.difficulty)),
        "spearman": metrics.spearman(clean.difficulty, other.difficulty),
    }


def _share(event: Booleans, among: Booleans, seed: int, replicates: int) -> Estimate | None:
    """Share of `among` that is `event`, with its interval; None where `among` is empty."""
    if not among.any():
        return None
    hits, rows = (event & among).astype(np.float64), among.astype(np.float64)

    def shares(counts: Floats) -> Floats:
        with np.errstate(invalid="ignore", divide="ignore"):
            found: Floats = (counts @ hits) / (counts @ rows)
        return found

    return estimate(float(hits.sum() / rows.sum()), metrics.bootstrap(shares, event.size, replicates, seed))
