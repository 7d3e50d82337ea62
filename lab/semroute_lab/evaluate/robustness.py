"""`eval robustness`: how often a decision flips when the prompt is changed but not its needs.

A decision is the predicted domain, and the side of the threshold on which the difficulty falls; by
default the threshold gives the strong model 30 % of the unchanged prompts. The router by length, with
a threshold of the same share, is the baseline of every row. For an attack the important figure is the
share of hard prompts (strong before) that become easy.
"""

from __future__ import annotations

import numpy as np

from semroute_lab.common import metrics
from semroute_lab.common.metrics import Booleans, Estimate, Floats, estimate
from semroute_lab.common.tables import Table, require_rows
from semroute_lab.evaluate.perturbations import PERTURBATIONS, perturb
from semroute_lab.evaluate.scoring import Source, head

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
    strong_share: float,
    threshold: float | None = None,
) -> Report:
    """The report of `eval robustness`; its shape is documented in `reports.md`."""
    changed = [perturb(one, texts, seed) for one in PERTURBATIONS]
    # One pass over everything: texts that a perturbation leaves alone are scored once.
    scores = source.score([text for group in (texts, *changed) for text in group])
    count = len(texts)
    clean = scores.take(range(count))
    cut = threshold if threshold is not None else float(np.quantile(clean.difficulty, 1.0 - strong_share))
    length = _lengths(texts)
    length_cut = float(np.quantile(length, 1.0 - strong_share))
    before, everything = clean.difficulty >= cut, np.ones(count, dtype=bool)

    def share(event: Booleans, among: Booleans = everything) -> Estimate | None:
        return _share(event, among, seed, replicates)

    rows: list[Report] = []
    for i, (one, other_texts) in enumerate(zip(PERTURBATIONS, changed, strict=True), start=1):
        other = scores.take(range(i * count, (i + 1) * count))
        after = other.difficulty >= cut
        domain = np.argmax(clean.domain, axis=1) != np.argmax(other.domain, axis=1)
        rows.append(
            {
                "name": one.name,
                "group": one.group,
                "about": one.about,
                "domain_flip": share(domain),
                "difficulty_flip": share(before != after),
                "hard_to_easy": share(before & ~after, before),
                "easy_to_hard": share(after & ~before, ~before),
                "strong_share": float(after.mean()),
                "mean_shift": float(np.mean(other.difficulty - clean.difficulty)),
                "spearman": metrics.spearman(clean.difficulty, other.difficulty),
                "changed": float(np.mean([a != b for a, b in zip(texts, other_texts, strict=True)])),
                "length_flip": share((length >= length_cut) != (_lengths(other_texts) >= length_cut)),
            }
        )
    return {
        **head("robustness", table, source.describe(), seed),
        "bootstrap": replicates,
        "threshold": cut,
        "strong_share": float(np.mean(before)),
        "perturbations": rows,
    }


def _lengths(texts: list[str]) -> Floats:
    return np.asarray([len(text) for text in texts], dtype=np.float64)


def _share(event: Booleans, among: Booleans, seed: int, replicates: int) -> Estimate | None:
    """Share of `among` that is `event`, with its interval; None where `among` is empty."""
    if not among.any():
        return None
    hits, rows = (event & among).astype(np.float64), among.astype(np.float64)

    def shares(counts: Floats) -> Floats:
        drawn = counts @ rows
        return np.divide(counts @ hits, drawn, out=np.full_like(drawn, np.nan), where=drawn > 0)

    return estimate(float(hits.sum() / rows.sum()), metrics.bootstrap(shares, event.size, replicates, seed))
