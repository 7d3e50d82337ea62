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

from semroute_lab.train.datasets import Example, FitSet
from semroute_lab.train.frames import Frames
from semroute_lab.train.losses import Targets, Weights, multitask
from semroute_lab.train.model import Network

Say = Callable[[str], None]

COSINE_SCALE = 20.0
"""Inverse temperature of the fine labels' cosine softmax."""

MASK_ID = 103
"""[MASK] in BERT's uncased vocabulary."""

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
    """Each layer learns this much more slowly than the one above it (Howard and Ruder 2018)."""
    warmup: float = 0.08
    clip: float = 1.0
    average: float = 0.997
    """Decay of the moving average of the weights, which is what is kept (Polyak and Juditsky 1992)."""
    fine: float = 0.3
    """Weight of the fine labels' loss."""
    fixed_layers: int = 0
    """Lowest layers that stay as they are; the embeddings always do."""
    masked: float = 0.08
    """Share of the tokens hidden from the encoder, instead of dropout inside it, which costs more time."""
    weights: Weights = field(default_factory=Weights)
    quota: dict[str, int] = field(default_factory=dict)
    """Rows of a source drawn per epoch; every row where a source is not named; may exceed its rows."""


class FineLabels(nn.Module):  # type: ignore[misc]
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


@dataclass(slots=True)
class _Run:
    """Everything that a restart needs."""

    network: Network
    average: Network
    fine: FineLabels
    optimiser: torch.optim.Optimizer
    rates: torch.optim.lr_scheduler.LambdaLR
    epoch: int = 0
    step: int = 0
    seconds: float = 0.0
    """CPU time spent so far, that of interrupted runs included."""
    best: float = float("inf")
    best_state: dict[str, Tensor] = field(default_factory=dict)

    def save(self, file: Path) -> None:
        """Write the state aside and rename it into place."""
        state = {name: getattr(self, name).state_dict() for name in _STATEFUL}
        state |= {name: getattr(self, name) for name in _PLAIN}
        part = file.with_suffix(".part")
        torch.save(state, part)
        part.rename(file)

    def restore(self, file: Path) -> None:
        """Read what `save` wrote."""
        state = torch.load(file, weights_only=True)
        for name in _STATEFUL:
            getattr(self, name).load_state_dict(state[name])
        for name in _PLAIN:
            setattr(self, name, state[name])


_PLAIN = ("epoch", "step", "seconds", "best", "best_state")
_STATEFUL = ("network", "average", "fine", "optimiser", "rates")


def fine_tune(
    network: Network,
    rows: FitSet,
    frames: Frames,
    check: Callable[[Network], float],
    plan: TunePlan,
    seed: int,
    file: Path,
    say: Say,
) -> tuple[Network, float]:
    """Fine-tune `network`; the average of its weights at the epoch `check` scores best, and the CPU seconds.

    `check` is lower for better and looks at calibration rows only. The state is written to `file`
    after each epoch; a run that finds one goes on after it, with the very batches it would have had.
    """
    torch.manual_seed(seed)
    rng = random.Random(seed)
    everything = list(rows)
    schedule = [frames.shuffled(_draw(everything, plan, rng), plan.batch, rng) for _ in range(plan.epochs)]
    total = sum(len(batches) for batches in schedule)
    fine = FineLabels(rows, network.encoder.config.dimensions)
    optimiser = torch.optim.AdamW(_groups(network, fine, plan), weight_decay=0.01)
    rates = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: _rate(step, total, plan))
    run = _Run(network, copy.deepcopy(network), fine, optimiser, rates)
    if file.exists():
        run.restore(file)
        say(f"going on after epoch {run.epoch} of {plan.epochs}")
    for batches in schedule[run.epoch :]:
        started = time.process_time()
        torch.manual_seed(seed + run.epoch)
        _epoch(run, everything, frames, batches, total, plan, say)
        now = check(run.average)
        say(f"epoch {run.epoch} of {plan.epochs}: {now:.4f} on calibration rows")
        if now < run.best:
            run.best, run.best_state = now, copy.deepcopy(run.average.state_dict())
        run.seconds += time.process_time() - started
        run.save(file)
    run.average.load_state_dict(run.best_state)
    run.average.eval()
    return run.average, run.seconds


def _epoch(
    run: _Run,
    rows: list[Example],
    frames: Frames,
    batches: list[list[int]],
    total: int,
    plan: TunePlan,
    say: Say,
) -> None:
    run.network.train()
    said = time.monotonic()
    for index in batches:
        ids, mask, surface = frames.batch(index)
        inputs = (_masked(ids, mask, plan.masked), mask, surface)
        loss = _loss(run.network, run.fine, [rows[i] for i in index], inputs, plan)
        run.optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(run.network.parameters(), plan.clip)
        run.optimiser.step()
        run.rates.step()
        run.step += 1
        _move(run.average, run.network, min(plan.average, (1 + run.step) / (10 + run.step)))
        if time.monotonic() - said > REPORT_SECONDS:
            said = time.monotonic()
            say(f"step {run.step} of {total}, loss {float(loss.detach()):.3f}")
    run.epoch += 1


def _loss(
    network: Network,
    fine: FineLabels,
    batch: list[Example],
    inputs: tuple[Tensor, Tensor, Tensor],
    plan: TunePlan,
) -> Tensor:
    ids, mask, surface = inputs
    out = network.heads.parts(network.encoder(ids, mask), surface)
    return multitask(out, Targets.of(batch), plan.weights) + plan.fine * fine.loss(out.embedding, batch)


def _masked(ids: Tensor, mask: Tensor, share: float) -> Tensor:
    """Ids with a share of the real tokens replaced by [MASK]; the first and last of a text stay."""
    hide = torch.rand(ids.shape) < share
    hide[:, 0] = hide[:, -1] = False
    hide[:, :-1] &= mask[:, 1:].bool()
    return ids.masked_fill(hide, MASK_ID)


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
    # The embeddings stay as well: half of all weights, and few rows move any of them.
    encoder.requires_grad_(False)
    groups: list[dict[str, object]] = [
        {"params": list(network.heads.parameters()), "lr": plan.head_rate},
        {"params": list(fine.parameters()), "lr": plan.head_rate},
    ]
    for number in range(plan.fixed_layers, depth):
        layer = encoder.layers[number].requires_grad_(True)
        rate = plan.encoder_rate * plan.layer_decay ** (depth - 1 - number)
        groups.append({"params": list(layer.parameters()), "lr": rate})
    return groups


@torch.no_grad()  # type: ignore[untyped-decorator]
def _move(average: Network, network: Network, decay: float) -> None:
    for mean, now in zip(average.parameters(), network.parameters(), strict=True):
        if now.requires_grad:
            mean.lerp_(now, 1.0 - decay)
    for mean, now in zip(average.buffers(), network.buffers(), strict=True):
        mean.copy_(now)
