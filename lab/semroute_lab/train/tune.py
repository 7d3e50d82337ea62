"""Fine-tuning the encoder with all heads at once; restartable from its last epoch."""

from __future__ import annotations

import copy
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.optim.swa_utils import AveragedModel

from semroute_lab.train.datasets import Example, FitSet
from semroute_lab.train.fit import Targets, Weights, multitask
from semroute_lab.train.frames import Frames
from semroute_lab.train.model import Network
from semroute_lab.train.spec import Say

COSINE_SCALE = 20.0
"""Inverse temperature of the fine labels' cosine softmax."""

REPORT_SECONDS = 60.0
"""A line of progress at least this often."""


@dataclass(frozen=True, slots=True)
class TunePlan:
    """How the encoder is fine-tuned."""

    epochs: int = 3
    batch: int = 32
    encoder_rate: float = 8e-5
    head_rate: float = 1e-3
    layer_decay: float = 0.9
    """Factor of a layer's rate, relative to the layer above it (Howard and Ruder 2018)."""
    warmup: float = 0.08
    clip: float = 1.0
    average: float = 0.997
    """Decay of the moving average of the weights, which is the result (Polyak and Juditsky 1992)."""
    fine: float = 0.3
    """Weight of the fine labels' loss."""
    masked: float = 0.08
    """Share of the tokens hidden from the encoder, instead of dropout inside it."""
    weights: Weights = field(default_factory=Weights)
    quota: Mapping[str, int] = field(default_factory=dict)
    """Rows of a source drawn per epoch, possibly more than it has; sources not named: every row."""


class FineLabels(nn.Module):  # type: ignore[misc]
    """A cosine classifier over the fine labels of each data set; shapes the embedding, is not exported.

    A row competes with the labels of its own data set only: two data sets may share an intent.
    """

    def __init__(self, rows: FitSet, dimensions: int) -> None:
        super().__init__()
        families: dict[str, list[str]] = {}
        for label in sorted({row.intent for row in rows if row.intent is not None}):
            families.setdefault(label.partition("/")[0], []).append(label)
        self.place = {
            label: (number, at)
            for number, labels in enumerate(families.values())
            for at, label in enumerate(labels)
        }
        self.families = nn.ParameterList(
            nn.Parameter(torch.randn(len(labels), dimensions) * 0.05) for labels in families.values()
        )

    def loss(self, embedding: Tensor, rows: Sequence[Example]) -> Tensor:
        """Mean cross-entropy over the rows [batch, d] that have a fine label."""
        total, count = embedding.sum() * 0.0, 0
        places = [(i, *self.place[row.intent]) for i, row in enumerate(rows) if row.intent in self.place]
        for number, vectors in enumerate(self.families):
            mine = [(i, at) for i, family, at in places if family == number]
            if not mine:
                continue
            index, target = (torch.tensor(column) for column in zip(*mine, strict=True))
            cosine = embedding[index] @ F.normalize(vectors, dim=-1).T
            total = total + F.cross_entropy(COSINE_SCALE * cosine, target, reduction="sum")
            count += len(mine)
        return total / max(count, 1)


class _Run:
    """One run of fine-tuning and everything that a restart needs."""

    def __init__(self, network: Network, rows: FitSet, plan: TunePlan, total: int, mask_id: int) -> None:
        self.rows, self.plan, self.total, self.mask_id = rows.rows, plan, total, mask_id
        self.network = network
        self.fine = FineLabels(rows, network.encoder.dimensions)
        self.optimiser = torch.optim.AdamW(_groups(network, self.fine, plan), weight_decay=0.01)
        self.rates = torch.optim.lr_scheduler.LambdaLR(self.optimiser, lambda step: _rate(step, total, plan))
        self.average = AveragedModel(network, avg_fn=self._move)
        # The first update copies: the average starts at the untuned weights.
        self.average.update_parameters(network)
        self.plain: dict[str, Any] = {"epoch": 0, "seconds": 0.0, "best": float("inf"), "best_state": {}}

    def _move(self, mean: Tensor, now: Tensor, updates: Tensor | int) -> Tensor:
        """The average's next value; its decay grows with the number of steps."""
        step = int(updates)
        return mean.lerp(now, 1.0 - min(self.plan.average, (1 + step) / (10 + step)))

    def _parts(self) -> dict[str, Any]:
        names = ("network", "average", "fine", "optimiser", "rates")
        return {name: getattr(self, name) for name in names}

    def save(self, file: Path) -> None:
        """Write the state and rename it into place."""
        part = file.with_suffix(".part")
        torch.save(self.plain | {name: each.state_dict() for name, each in self._parts().items()}, part)
        part.rename(file)

    def restore(self, file: Path) -> None:
        """Read a state that `save` wrote."""
        state = torch.load(file, weights_only=True)
        for name, each in self._parts().items():
            each.load_state_dict(state.pop(name))
        self.plain = state

    def epoch(self, frames: Frames, batches: list[list[int]], say: Say) -> None:
        """One pass over `batches`."""
        self.network.train()
        reported = time.monotonic()
        for index in batches:
            loss = self._loss(frames, index)
            self.optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(self.network.parameters(), self.plan.clip)
            self.optimiser.step()
            self.rates.step()
            self.average.update_parameters(self.network)
            if time.monotonic() - reported > REPORT_SECONDS:
                reported = time.monotonic()
                say(f"step {self.rates.last_epoch} of {self.total}, loss {float(loss.detach()):.3f}")

    def _loss(self, frames: Frames, index: list[int]) -> Tensor:
        ids, mask, surface = frames.batch(index)
        rows = [self.rows[i] for i in index]
        hidden = _masked(ids, mask, self.plan.masked, self.mask_id)
        out = self.network.heads.parts(self.network.encoder(hidden, mask), surface)
        fine = self.fine.loss(out.embedding, rows)
        return multitask(out, Targets.of(rows), self.plan.weights) + self.plan.fine * fine


def fine_tune(
    network: Network,
    rows: FitSet,
    frames: Frames,
    mask_id: int,
    check: Callable[[Network], float],
    plan: TunePlan,
    seed: int,
    file: Path,
    say: Say,
) -> tuple[Network, float]:
    """Fine-tune `network`; the average of its weights at the epoch with the lowest `check`, and CPU seconds.

    `check` is the loss on calibration rows. The state is written to `file` after each epoch; a run
    that finds one continues after it, with the batches it would have had.
    """
    torch.manual_seed(seed)
    rng = random.Random(seed)
    schedule = [frames.shuffled(_draw(rows.rows, plan, rng), plan.batch, rng) for _ in range(plan.epochs)]
    run = _Run(network, rows, plan, sum(map(len, schedule)), mask_id)
    if file.exists():
        run.restore(file)
        say(f"continuing after epoch {run.plain['epoch']} of {plan.epochs}")
    for number, batches in enumerate(schedule):
        if number < run.plain["epoch"]:
            continue
        started = time.process_time()
        torch.manual_seed(seed + number)
        run.epoch(frames, batches, say)
        now = check(run.average.module)
        say(f"epoch {number + 1} of {plan.epochs}: {now:.4f} on calibration rows")
        if now < run.plain["best"]:
            run.plain |= {"best": now, "best_state": copy.deepcopy(run.average.module.state_dict())}
        run.plain["epoch"] = number + 1
        run.plain["seconds"] += time.process_time() - started
        run.save(file)
    tuned: Network = run.average.module
    tuned.load_state_dict(run.plain["best_state"])
    return tuned.eval(), run.plain["seconds"]


def _masked(ids: Tensor, mask: Tensor, share: float, mask_id: int) -> Tensor:
    """Ids with a share of the real tokens replaced by [MASK]; the first and last of a text stay."""
    hide = torch.rand(ids.shape) < share
    hide[:, 0] = hide[:, -1] = False
    hide[:, :-1] &= mask[:, 1:].bool()
    return ids.masked_fill(hide, mask_id)


def _draw(rows: Sequence[Example], plan: TunePlan, rng: random.Random) -> list[int]:
    """Row indices of one epoch: each source's quota, drawn again in each epoch."""
    sources: dict[str, list[int]] = {}
    for i, row in enumerate(rows):
        sources.setdefault(row.source, []).append(i)
    drawn: list[int] = []
    for source, own in sorted(sources.items()):
        quota = plan.quota.get(source, len(own))
        drawn.extend(own * (quota // len(own)) + rng.sample(own, quota % len(own)))
    return drawn


def _rate(step: int, total: int, plan: TunePlan) -> float:
    """Linear warm-up, then linear decay to a twentieth."""
    rising = max(1, round(plan.warmup * total))
    if step < rising:
        return (step + 1) / rising
    return max(0.05, (total - step) / max(1, total - rising))


def _groups(network: Network, fine: FineLabels, plan: TunePlan) -> list[dict[str, object]]:
    """Parameter groups: heads fast, upper layers slower, lower layers slower still, embeddings fixed.

    The embeddings are half of all weights, and few rows change any of them.
    """
    encoder = network.encoder
    encoder.requires_grad_(False)
    groups: list[dict[str, object]] = [
        {"params": list(network.heads.parameters()), "lr": plan.head_rate},
        {"params": list(fine.parameters()), "lr": plan.head_rate},
    ]
    depth = len(encoder.layers)
    for number, layer in enumerate(encoder.layers):
        rate = plan.encoder_rate * plan.layer_decay ** (depth - 1 - number)
        groups.append({"params": list(layer.requires_grad_(True).parameters()), "lr": rate})
    return groups
