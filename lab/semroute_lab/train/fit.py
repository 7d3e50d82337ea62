"""The loss over the targets that a row has, and the fit of the heads on fixed states of the encoder."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from semroute_lab.train.bert import Encoder, Frames
from semroute_lab.train.datasets import Example
from semroute_lab.train.model import HeadOutputs, Heads
from semroute_lab.train.spec import HeadPlan, LossWeights, Say

EMBED_BATCH = 32  # Texts of one pass when a whole set is embedded
IGNORE = -100  # Class index of an unknown target


class Targets(NamedTuple):
    """Targets of a batch as tensors; a missing class is `IGNORE`, a missing difficulty NaN."""

    domain: Tensor
    task: Tensor
    difficulty: Tensor
    weight: Tensor
    family: Tensor

    @staticmethod
    def of(rows: Sequence[Example]) -> Targets:
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
        return Targets(*(column[index] for column in self))


def multitask(out: HeadOutputs, targets: Targets, weights: LossWeights) -> Tensor:
    """Weighted sum of the heads' losses, each averaged over the rows that have its target.
    Only the expert of a row's family learns from it: experts do not unlearn each other's targets.
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
    """Weighted mean of -(y log p + (1 - y) log(1 - p)) of all members over rows whose target is not NaN."""
    known = ~torch.isnan(target)
    if not bool(known.any()):
        return logits.sum() * 0.0
    y = target[known][:, None].expand(-1, logits.shape[1])
    each = F.binary_cross_entropy_with_logits(logits[known], y, reduction="none").mean(1)
    return (each * weight[known]).sum() / weight[known].sum()


def embed(encoder: Encoder, frames: Frames, work: Path | None = None) -> Tensor:
    """Pooled states [rows, d] of all texts; kept in `work` under a digest of the weights and the ids."""
    if work is not None:
        digest = hashlib.sha256(repr([framed.ids for framed in frames.framed]).encode())
        for tensor in encoder.state_dict().values():
            digest.update(tensor.numpy().tobytes())
        file = work / f"states-{digest.hexdigest()[:24]}.pt"
        if not file.exists():
            torch.save(embed(encoder, frames), file.with_suffix(".part"))
            file.with_suffix(".part").rename(file)
        stored: Tensor = torch.load(file, weights_only=True)
        return stored
    encoder.eval()
    states = torch.zeros(len(frames), encoder.dimensions)
    with torch.inference_mode():
        for index in frames.by_length(EMBED_BATCH):
            ids, mask, _ = frames.batch(index)
            states[index] = encoder(ids, mask)
    return states


class States(NamedTuple):
    """A set's rows with everything the heads need: states [rows, d], surface [rows, s], targets."""

    pooled: Tensor
    surface: Tensor
    targets: Targets

    @staticmethod
    def of(rows: Sequence[Example], pooled: Tensor, frames: Frames) -> States:
        """Join a fit set with its states."""
        return States(pooled, frames.surface(), Targets.of(rows))

    @staticmethod
    def joined(a: States, b: States) -> States:
        """The rows of `a`, then those of `b`."""
        targets = Targets(*map(torch.cat, zip(a.targets, b.targets, strict=True)))
        return States(torch.cat([a.pooled, b.pooled]), torch.cat([a.surface, b.surface]), targets)


def fit_heads(
    heads: Heads, fit: States, check: States, weights: LossWeights, plan: HeadPlan, seed: int, say: Say
) -> None:
    """Fit the heads on fixed states; the epoch with the lowest loss on `check` is kept."""
    torch.manual_seed(seed)
    optimiser = torch.optim.AdamW(heads.parameters(), plan.rate, weight_decay=plan.decay)
    best, best_state, since = float("inf"), heads.state_dict(), 0
    order = torch.randperm(len(fit.pooled))
    for _ in range(plan.epochs):
        heads.train()
        order = order[torch.randperm(len(order))]
        for index in order.split(plan.batch):
            loss = _heads_loss(heads, fit, index, weights)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        heads.eval()
        with torch.inference_mode():
            now = float(_heads_loss(heads, check, torch.arange(len(check.pooled)), weights))
        since = 0 if now < best else since + 1
        if now < best:
            best, best_state = now, copy.deepcopy(heads.state_dict())
        if since >= plan.patience:
            break
    say(f"heads: loss {best:.4f} on calibration rows")
    heads.load_state_dict(best_state)
    heads.eval()


def _heads_loss(heads: Heads, states: States, index: Tensor, weights: LossWeights) -> Tensor:
    out = heads.parts(states.pooled[index], states.surface[index])
    return multitask(out, states.targets.take(index), weights)
