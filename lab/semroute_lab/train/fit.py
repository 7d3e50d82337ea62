"""Fitting: heads on fixed states in seconds, or the whole network in minutes. Restartable."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from semroute_lab.train.bert import Encoder
from semroute_lab.train.datasets import FitSet
from semroute_lab.train.frames import Frames
from semroute_lab.train.losses import Targets, Weights, multitask
from semroute_lab.train.model import Heads

Say = Callable[[str], None]

EMBED_BATCH = 32
"""Texts of one pass when a whole set is embedded."""


@dataclass(frozen=True, slots=True)
class HeadPlan:
    """How heads are fitted on fixed states."""

    epochs: int = 30
    batch: int = 256
    rate: float = 2e-3
    decay: float = 1e-2
    patience: int = 6
    """Epochs without a better calibration loss before stopping."""


def embed(encoder: Encoder, frames: Frames, work: Path | None = None, key: str = "") -> Tensor:
    """Pooled states [rows, d] of all texts; kept in `work` under a digest of `key` and the ids."""
    file = None if work is None else work / f"states-{_digest(key, frames)}.npy"
    if file is not None and file.exists():
        return torch.from_numpy(np.load(file))
    encoder.eval()
    states = torch.zeros(len(frames), encoder.config.dimensions)
    with torch.inference_mode():
        for index in frames.by_length(EMBED_BATCH):
            ids, mask, _ = frames.batch(index)
            states[index] = encoder(ids, mask)
    if file is not None:
        # Written aside and renamed, so that an interrupted run leaves no half of it behind.
        part = file.with_suffix(".part.npy")
        np.save(part, states.numpy())
        part.rename(file)
    return states


def _digest(key: str, frames: Frames) -> str:
    digest = hashlib.sha256(key.encode())
    for framed in frames.framed:
        digest.update(np.asarray(framed.ids, dtype=np.int32).tobytes())
    return digest.hexdigest()[:24]


def set_surface(heads: Heads, surface: Tensor) -> None:
    """Take the surface features' mean and spread from the fit rows."""
    surface = heads.bounded(surface)
    heads.surface_mean.copy_(surface.mean(0))
    heads.surface_scale.copy_(surface.std(0).clamp(min=1e-3))


@dataclass(frozen=True, slots=True)
class States:
    """A set's rows with everything the heads need: states [rows, d], surface [rows, s], targets."""

    pooled: Tensor
    surface: Tensor
    targets: Targets

    @staticmethod
    def of(rows: FitSet, pooled: Tensor, frames: Frames) -> States:
        """Join a fit set with its states."""
        return States(pooled, frames.surface(), Targets.of(list(rows)))

    @staticmethod
    def joined(a: States, b: States) -> States:
        """The rows of both, one after the other."""
        targets = Targets(
            *(torch.cat([getattr(a.targets, name), getattr(b.targets, name)]) for name in Targets.__slots__)
        )
        return States(torch.cat([a.pooled, b.pooled]), torch.cat([a.surface, b.surface]), targets)


def fit_heads(
    heads: Heads, fit: States, check: States, weights: Weights, plan: HeadPlan, seed: int, say: Say
) -> float:
    """Fit heads on fixed states, keep the epoch with the best loss on `check`, and return that loss."""
    torch.manual_seed(seed)
    optimiser = torch.optim.AdamW(heads.parameters(), plan.rate, weight_decay=plan.decay)
    best, best_state, since = float("inf"), copy.deepcopy(heads.state_dict()), 0
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
    return best


def _heads_loss(heads: Heads, states: States, index: Tensor, weights: Weights) -> Tensor:
    out = heads.parts(states.pooled[index], states.surface[index])
    return multitask(out, states.targets.take(index), weights)
