"""Fine-tuning the encoder with all heads at once, on the CPU or a GPU. Restartable from its last epoch."""

from __future__ import annotations

import copy
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from semroute_extproc.training.datasets import Example, FitSet
from semroute_extproc.training.frames import Frames
from semroute_extproc.training.losses import Targets, Weights, multitask
from semroute_extproc.training.model import Network

Say = Callable[[str], None]

COSINE_SCALE = 20.0
"""Inverse temperature of the fine labels' cosine softmax."""

REPORT_SECONDS = 60.0
"""A line of progress at least this often."""


@dataclass(frozen=True, slots=True)
class TunePlan:
    """How the encoder is fine-tuned."""

    epochs: int = 3
    batch: int = 32
    encoder_rate: float = 5e-5
    head_rate: float = 1e-3
    layer_decay: float = 0.9
    """Each layer learns this much more slowly than the one above it (Howard and Ruder 2018)."""
    warmup: float = 0.08
    clip: float = 1.0
    average: float = 0.998
    """Decay of the moving average of the weights, which is what is kept (Polyak and Juditsky 1992)."""
    fine: float = 0.3
    """Weight of the fine labels' loss."""
    weights: Weights = field(default_factory=Weights)
    quota: dict[str, int] = field(default_factory=dict)
    """Rows of a source drawn per epoch; every row where a source is not named; may exceed its rows."""


class FineLabels(nn.Module):
    """A cosine classifier over the fine labels of each data set; shapes the embedding, is not exported.

    A row competes with the labels of its own data set only: two data sets may name one intent twice.
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

    def loss(self, embedding: Tensor, rows: list[Example]) -> Tensor:
        """Mean cross-entropy over the rows [batch, d] that have a fine label."""
        total, count = embedding.sum() * 0.0, 0
        for number, vectors in enumerate(self.families):
            mine = [
                (i, self.place[row.intent][1])
                for i, row in enumerate(rows)
                if row.intent is not None and self.place.get(row.intent, (-1, 0))[0] == number
            ]
            if not mine:
                continue
            at, target = (torch.tensor(column) for column in zip(*mine, strict=True))
            cosine = embedding[at] @ F.normalize(vectors, dim=-1).T
            total = total + F.cross_entropy(COSINE_SCALE * cosine, target, reduction="sum")
            count += len(mine)
        return total / max(count, 1)


def fine_tune(
    network: Network,
    rows: FitSet,
    frames: Frames,
    check: Callable[[Network], float],
    plan: TunePlan,
    seed: int,
    work: Path,
    say: Say,
) -> Network:
    """Fine-tune `network` and return the average of its weights at the epoch `check` scores best.

    `check` is lower for better and looks at calibration rows only. After each epoch the state is
    written to `work`; a run that finds one goes on after it.
    """
    torch.manual_seed(seed)
    rng = random.Random(seed)
    fine = FineLabels(rows, network.encoder.config.dimensions)
    optimiser = torch.optim.AdamW(_groups(network, fine, plan), weight_decay=0.01)
    average = copy.deepcopy(network)
    everything = list(rows)
    schedule = [frames.shuffled(_draw(everything, plan, rng), plan.batch, rng) for _ in range(plan.epochs)]
    total = sum(len(batches) for batches in schedule)
    rates = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: _rate(step, total, plan))
    best, best_state = float("inf"), copy.deepcopy(average.state_dict())
    step, said = 0, time.monotonic()
    for epoch, batches in enumerate(schedule):
        network.train()
        for index in batches:
            batch = [everything[i] for i in index]
            loss = _loss(network, fine, batch, frames.batch(index), plan)
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(network.parameters(), plan.clip)
            optimiser.step()
            rates.step()
            step += 1
            _move(average, network, min(plan.average, (1 + step) / (10 + step)))
            if time.monotonic() - said > REPORT_SECONDS:
                said = time.monotonic()
                say(f"step {step} of {total}, loss {float(loss):.3f}")
        now = check(average)
        say(f"epoch {epoch + 1} of {plan.epochs}: {now:.4f} on calibration rows")
        if now < best:
            best, best_state = now, copy.deepcopy(average.state_dict())
    average.load_state_dict(best_state)
    return average.eval()


def _loss(
    network: Network, fine: FineLabels, batch: list[Example], inputs: tuple[Tensor, Tensor, Tensor], plan: TunePlan
) -> Tensor:
    ids, mask, surface = inputs
    embedding, domain, members, task = network.heads.parts(network.encoder(ids, mask), surface)
    loss = multitask(domain, members, task, Targets.of(batch), plan.weights)
    return loss + plan.fine * fine.loss(embedding, batch)


def _draw(rows: list[Example], plan: TunePlan, rng: random.Random) -> list[int]:
    """Row indices of one epoch: each source's quota, drawn anew each epoch."""
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
    """Parameter groups: heads fast, upper layers slower, lower layers slower still."""
    encoder = network.encoder
    depth = len(encoder.layers)
    below = [encoder.words.weight, encoder.places.weight, encoder.segment, *encoder.norm.parameters()]
    groups: list[dict[str, object]] = [
        {"params": list(network.heads.parameters()), "lr": plan.head_rate},
        {"params": list(fine.parameters()), "lr": plan.head_rate},
        {"params": below, "lr": plan.encoder_rate * plan.layer_decay**depth},
    ]
    for number, layer in enumerate(encoder.layers):
        rate = plan.encoder_rate * plan.layer_decay ** (depth - 1 - number)
        groups.append({"params": list(layer.parameters()), "lr": rate})
    return groups


@torch.no_grad()
def _move(average: Network, network: Network, decay: float) -> None:
    for mean, now in zip(average.parameters(), network.parameters(), strict=True):
        mean.lerp_(now, 1.0 - decay)
    for mean, now in zip(average.buffers(), network.buffers(), strict=True):
        mean.copy_(now)


