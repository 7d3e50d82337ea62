"""The memory beside the domain head: which texts it remembers, and how much it is listened to."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from semroute_lab.train.calibrate import temperature
from semroute_lab.train.datasets import DOMAINS, Example
from semroute_lab.train.losses import IGNORE
from semroute_lab.train.model import HeadOutputs, Heads, Memory

Say = Callable[[str], None]

SOURCE_ROWS_MAX = 700
"""Remembered rows of a source whose rows all have one domain: more of the same votes for nothing new."""

DIMENSIONS = 192
"""Principal axes that a text is remembered on: half of the embedding's, at the same accuracy."""

SHARPNESSES = (15.0, 20.0, 30.0, 40.0)
WEIGHTS = (0.5, 1.0, 1.5, 2.5, 4.0)
"""Grid from which the calibration rows choose."""


def add_memory(
    heads: Heads,
    rows: Sequence[Example],
    fit: HeadOutputs,
    check: HeadOutputs,
    target: Tensor,
    seed: int,
    say: Say,
) -> None:
    """Remember `rows` (their outputs are `fit`) and weigh the votes by the calibration rows.

    `target` is the domain of each calibration row, `IGNORE` where not known. The grid's best by
    cross-entropy after temperature scaling is taken.
    """
    chosen = remembered(rows, seed)
    with torch.inference_mode():
        known, asked = heads.recalled(fit), heads.recalled(check)
        cases = F.normalize(torch.stack([known[case].mean(0) for case in chosen]), dim=-1)
        axes = principal_axes(cases, DIMENSIONS)
    memory = Memory(len(cases), cases.shape[1], len(axes), len(DOMAINS))
    with torch.no_grad():
        memory.axes.weight.copy_(axes)
        memory.keys.copy_(memory.on_axes(cases))
    domains = torch.tensor([rows[case[0]].domain for case in chosen])
    memory.labels.copy_(F.one_hot(domains, len(DOMAINS)).float())
    heads.memory = memory
    known = target != IGNORE
    best = float("inf")
    for sharpness in SHARPNESSES:
        memory.sharpness.fill_(sharpness)
        memory.weight.fill_(1.0)
        with torch.inference_mode():
            votes = memory(asked[known])
        for weight in WEIGHTS:
            logits = (check.domain[known].log_softmax(-1) + weight * votes).clone()
            loss = float(F.cross_entropy(logits / temperature(logits, target[known]), target[known]))
            if loss < best:
                best, chosen_pair = loss, (sharpness, weight)
    memory.sharpness.fill_(chosen_pair[0])
    memory.weight.fill_(chosen_pair[1])
    say(
        f"memory: {len(cases)} cases, sharpness {chosen_pair[0]:g}, weight {chosen_pair[1]:g}, "
        f"loss {best:.4f} on calibration rows"
    )


def remembered(rows: Sequence[Example], seed: int) -> list[list[int]]:
    """Indices of the rows of each case to remember: a case is a place in a file, so a question with and
    without its options is one; all cases with a domain, but few of a source that has only one.
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
        cases = list(own.values())
        one_domain = len({rows[case[0]].domain for case in cases}) == 1
        chosen += rng.sample(cases, min(len(cases), SOURCE_ROWS_MAX)) if one_domain else cases
    return sorted(chosen)


def principal_axes(x: Tensor, count: int) -> Tensor:
    """The axes on which `x` [rows, d] is largest, not centred, at most `count`; orthonormal, [axes, d]."""
    _, vectors = torch.linalg.eigh((x.T @ x).double())
    return vectors.flip(1)[:, :count].T.to(x.dtype)
