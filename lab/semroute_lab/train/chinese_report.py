"""What the Chinese bundle is worth on rows that no fit saw: figures with intervals."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from sklearn.metrics import confusion_matrix
from torch import Tensor

from semroute_extproc.encoder.offline import score_texts
from semroute_extproc.encoder.signals import Signals
from semroute_lab.common.metrics import auroc, binary_ece, bootstrap, estimate, macro_f1, weighted_auroc
from semroute_lab.train.chinese_data import HeldOut
from semroute_lab.train.datasets import DOMAINS, TASKS, Example
from semroute_lab.train.losses import IGNORE, Targets

REPLICATES = 1_000
"""Bootstrap resamples of every interval."""

SEED = 7
"""Of the resamples."""

Figures = dict[str, Any]
Floats = npt.NDArray[np.float64]


def evaluate(bundle: Path, sets: Sequence[HeldOut]) -> Figures:
    """Figures of a bundle on every set: set to figure to a number or [value, low, high]."""
    return {one.name: _figures(one.rows, score_texts(bundle, [row.text for row in one.rows])) for one in sets}


def largest_gap(a: Figures, b: Figures) -> float:
    """The most that any accuracy or AUROC of `a` lies below `b`'s, or a share of unknown rows beside it.

    Noise is left out. Of few rows one or two change sides whatever is done to the weights, so that a
    figure that rises says no more against a graph than for it.
    """
    gaps = [0.0]
    for name, own in a.items():
        if name != "noise":
            gaps.append(abs(own["unknown"][0] - b[name]["unknown"][0]))
        for head, figure in (("domain", "accuracy"), ("task", "accuracy"), ("difficulty", "auroc")):
            if head in own:
                gaps.append(b[name][head][figure][0] - own[head][figure][0])
    return max(gaps)


def _figures(rows: Sequence[Example], signals: Sequence[Signals]) -> Figures:
    found: Figures = {"rows": len(rows)}
    found["unknown"] = _mean(np.array([one.unknown for one in signals], dtype=float))
    for head, names in (("domain", DOMAINS), ("task", TASKS)):
        known = [i for i, row in enumerate(rows) if getattr(row, head) is not None]
        if known:
            truth = np.array([getattr(rows[i], head) for i in known])
            probabilities = np.array(
                [[getattr(signals[i], f"{head}_probs").get(name, 0.0) for name in names] for i in known]
            )
            found[head] = _classes(truth, probabilities, names)
    rated = [i for i, row in enumerate(rows) if row.difficulty is not None]
    if rated:
        hard = np.array([rows[i].difficulty for i in rated]) > 0.5
        scores = np.array([signals[i].difficulty for i in rated])
        found["difficulty"] = _difficulty(
            hard, scores, np.array([len(rows[i].text) for i in rated], dtype=float)
        )
    return found


def _classes(truth: npt.NDArray[np.int64], probabilities: Floats, names: Sequence[str]) -> Figures:
    predicted = probabilities.argmax(1)
    hit = predicted == truth
    cells = confusion_matrix(truth, predicted, labels=range(len(names)))
    wrong = cells - np.diag(np.diag(cells))
    worst = np.argsort(-wrong, axis=None, kind="stable")[:5]
    return {
        "rows": len(truth),
        "accuracy": _mean(hit.astype(float)),
        "majority": float(np.bincount(truth).max() / len(truth)),
        "macro_f1": float(macro_f1(truth, predicted)[0]),
        "ece": binary_ece(probabilities.max(1), hit.astype(float)),
        "recall": {
            name: float(cells[i, i] / cells[i].sum()) for i, name in enumerate(names) if cells[i].sum() > 0
        },
        "confused": [
            [names[at // len(names)], names[at % len(names)], int(wrong.reshape(-1)[at])]
            for at in worst.tolist()
        ],
    }


def _difficulty(hard: npt.NDArray[np.bool_], scores: Floats, length: Floats) -> Figures:
    n = len(hard)
    ours = bootstrap(lambda counts: weighted_auroc(scores, hard, counts), n, REPLICATES, SEED)
    theirs = bootstrap(lambda counts: weighted_auroc(length, hard, counts), n, REPLICATES, SEED)
    a, b = auroc(scores, hard), auroc(length, hard)
    return {
        "rows": n,
        "auroc": _interval(a, ours),
        "auroc_length": _interval(b, theirs),
        "lead": _interval(a - b, ours - theirs),
        "ece": binary_ece(scores, hard.astype(float)),
        "mean_easy": float(scores[~hard].mean()),
        "mean_hard": float(scores[hard].mean()),
    }


def _mean(values: Floats) -> list[float | None]:
    samples = bootstrap(lambda counts: counts @ values / len(values), len(values), REPLICATES, SEED)
    return _interval(float(values.mean()), samples)


def _interval(value: float, samples: Floats) -> list[float | None]:
    found = estimate(value, samples)
    return [found.value, found.low, found.high]


def cross_fitted(domain: Tensor, difficulty: Tensor, task: Tensor, targets: Targets) -> Figures:
    """Figures on the training rows, each by heads that did not see its fold."""
    found: Figures = {}
    for name, logits, truth in (("domain", domain, targets.domain), ("task", task, targets.task)):
        known = truth != IGNORE
        hit = (logits[known].argmax(1) == truth[known]).double().numpy()
        found[name] = {"rows": len(hit), "accuracy": _mean(hit)}
    rated = ~torch.isnan(targets.difficulty)
    hard = targets.difficulty[rated].numpy() > 0.5
    scores = difficulty[rated].double().numpy()
    samples = bootstrap(lambda counts: weighted_auroc(scores, hard, counts), len(hard), REPLICATES, SEED)
    found["difficulty"] = {"rows": len(hard), "auroc": _interval(auroc(scores, hard), samples)}
    return found
