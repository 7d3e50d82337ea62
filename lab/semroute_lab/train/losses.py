"""One loss over whatever targets a row has.

Each head's loss is averaged over the rows that have its target, so that a head's weight does not
depend on how many rows of a batch speak to it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from semroute_lab.train.datasets import Example
from semroute_lab.train.model import HeadOutputs

IGNORE = -100
"""Class index of a target that is not known."""


@dataclass(frozen=True, slots=True)
class Targets:
    """Targets of a batch as tensors; a missing class is `IGNORE`, a missing difficulty NaN."""

    domain: Tensor
    task: Tensor
    difficulty: Tensor
    weight: Tensor
    family: Tensor

    @staticmethod
    def of(rows: list[Example]) -> Targets:
        """The targets of `rows`, in order."""
        return Targets(
            torch.tensor([IGNORE if row.domain is None else row.domain for row in rows]),
            torch.tensor([IGNORE if row.task is None else row.task for row in rows]),
            torch.tensor([float("nan") if row.difficulty is None else row.difficulty for row in rows]),
            torch.tensor([row.weight for row in rows]),
            torch.tensor([row.family for row in rows]),
        )

    def take(self, index: Tensor) -> Targets:
        """The targets of some rows."""
        return Targets(
            self.domain[index],
            self.task[index],
            self.difficulty[index],
            self.weight[index],
            self.family[index],
        )


@dataclass(frozen=True, slots=True)
class Weights:
    """How much each head counts."""

    domain: float = 1.0
    task: float = 0.5
    difficulty: float = 1.0
    gate: float = 0.3
    smoothing: float = 0.05
    """Label smoothing of the classes (Szegedy et al. 2016, section 7)."""


def multitask(out: HeadOutputs, targets: Targets, weights: Weights) -> Tensor:
    """Weighted sum of the heads' losses.

    Cross-entropy for the classes and the gate; binary cross-entropy with soft targets for every
    member of the expert of a row's family, so that experts do not unlearn what others learn.
    """
    rows = torch.arange(len(targets.family), device=out.members.device)
    loss = weights.domain * _classes(out.domain, targets.domain, weights.smoothing)
    loss = loss + weights.task * _classes(out.task, targets.task, weights.smoothing)
    loss = loss + weights.gate * F.cross_entropy(out.gate, targets.family)
    members = out.members[rows, targets.family]
    return loss + weights.difficulty * soft_binary(members, targets.difficulty, targets.weight)


def _classes(logits: Tensor, target: Tensor, smoothing: float) -> Tensor:
    if not bool((target != IGNORE).any()):
        return logits.sum() * 0.0
    return F.cross_entropy(logits, target, ignore_index=IGNORE, label_smoothing=smoothing)


def soft_binary(logits: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Weighted mean of -(y log p + (1 - y) log(1 - p)) over the rows whose target is not NaN."""
    known = ~torch.isnan(target)
    if not bool(known.any()):
        return logits.sum() * 0.0
    if logits.dim() == 1:
        logits = logits[:, None]
    y = target[known][:, None].expand(-1, logits.shape[1])
    each = F.binary_cross_entropy_with_logits(logits[known], y, reduction="none").mean(1)
    return (each * weight[known]).sum() / weight[known].sum()
