"""The loss, fine-tuning of the encoder (restartable), and the fit of the heads on its fixed states."""

from __future__ import annotations

import copy
import hashlib
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.optim.swa_utils import AveragedModel

from semroute_extproc.encoder.preprocess import Framer
from semroute_lab.train.augment import Augment
from semroute_lab.train.datasets import Example
from semroute_lab.train.frames import Frames
from semroute_lab.train.model import HeadOutputs, Heads, Network
from semroute_lab.train.sources import SOURCES
from semroute_lab.train.spec import HeadPlan, LossWeights, Say, TunePlan

EMBED_BATCH = 32  # Texts of one pass when a whole set is embedded
TABLED_WEIGHT = torch.tensor(2.0)  # Of rows of the table in the gate's loss: there are few
IGNORE = -100  # Class index of an unknown target
QUOTA = {source.name: source.quota for source in SOURCES if source.quota is not None}
"""Rows drawn from a source per epoch, at most all it has; other sources are used whole."""

REPORT_SECONDS = 60.0  # A line of progress at least this often


class Targets(NamedTuple):
    """Targets of a batch as tensors; a missing class is `IGNORE`, a missing difficulty NaN."""

    domain: Tensor
    task: Tensor
    difficulty: Tensor
    weight: Tensor
    tabled: Tensor  # 1 for a row of the cluster table, else 0

    @staticmethod
    def of(rows: Sequence[Example]) -> Targets:
        """The targets of `rows`, in order."""
        return Targets(
            torch.tensor([IGNORE if row.domain is None else row.domain for row in rows]),
            torch.tensor([IGNORE if row.task is None else row.task for row in rows]),
            torch.tensor([float("nan") if row.difficulty is None else row.difficulty for row in rows]),
            torch.tensor([row.weight for row in rows]),
            torch.tensor([float(row.gain is not None) for row in rows]),
        )

    def take(self, index: Tensor) -> Targets:
        """The targets of some rows."""
        return Targets(*(column[index] for column in self))


def multitask(out: HeadOutputs, targets: Targets, weights: LossWeights) -> Tensor:
    """Weighted sum of the heads' losses, each averaged over the rows that have its target."""
    loss = weights.domain * _classes(out.domain, targets.domain, weights.smoothing)
    loss = loss + weights.task * _classes(out.task, targets.task, weights.smoothing)
    if bool(targets.tabled.any()):
        gate = F.binary_cross_entropy_with_logits(out.gate, targets.tabled, pos_weight=TABLED_WEIGHT)
        loss = loss + weights.gate * gate
    return loss + weights.difficulty * soft_binary(out.members, targets.difficulty, targets.weight)


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


def embed(encoder: nn.Module, frames: Frames, work: Path | None = None) -> Tensor:
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


class FineLabels(nn.Module):  # type: ignore[misc]
    """A cosine classifier over the fine labels, each among its own data set's; not exported."""

    def __init__(self, rows: Sequence[Example], dimensions: int, scale: float) -> None:
        super().__init__()
        self.scale = scale
        sets: dict[str, list[str]] = {}
        for label in sorted({row.intent for row in rows if row.intent is not None}):
            sets.setdefault(label.partition("/")[0], []).append(label)
        own = enumerate(sets.values())
        self.place = {label: (number, at) for number, labels in own for at, label in enumerate(labels)}
        # One parameter per data set: an optimiser skips those without a row in the batch.
        self.vectors = nn.ParameterList(torch.randn(len(own), dimensions) * 0.05 for own in sets.values())

    def loss(self, embedding: Tensor, rows: Sequence[Example]) -> Tensor:
        """Mean cross-entropy over the rows [batch, d] that have a fine label."""
        total, count = embedding.sum() * 0.0, 0
        places = [(i, *self.place[row.intent]) for i, row in enumerate(rows) if row.intent in self.place]
        for number, vectors in enumerate(self.vectors):
            mine = [(i, at) for i, own, at in places if own == number]
            if mine:
                index, target = (torch.tensor(column) for column in zip(*mine, strict=True))
                cosine = embedding[index] @ F.normalize(vectors, dim=-1).T
                total = total + F.cross_entropy(self.scale * cosine, target, reduction="sum")
                count += len(mine)
        return total / max(count, 1)


def fine_tune(
    network: Network,
    rows: Sequence[Example],
    framer: Framer,
    pad_id: int,
    mask_id: int,
    check: Callable[[Network], float],
    plan: TunePlan,
    weights: LossWeights,
    seed: int,
    file: Path,
    say: Say,
) -> tuple[Network, float]:
    """Fine-tune `network`; the average of its weights at the epoch with the lowest `check`, and CPU seconds.
    The state is written to `file` after each epoch; a run that finds it continues with the next one.
    """
    torch.manual_seed(seed)
    total = plan.epochs * -(-len(_draw(rows, random.Random(seed))) // plan.batch)
    fine = FineLabels(rows, network.encoder.dimensions, plan.cosine_scale)
    optimiser = torch.optim.AdamW(_groups(network, fine, plan), weight_decay=0.01)
    rates = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: _rate(step, total, plan))

    def decayed(mean: Tensor, now: Tensor, n: Tensor | int) -> Tensor:
        """The decay of the average grows with the number of steps."""
        return mean.lerp(now, 1.0 - min(plan.average, (1 + int(n)) / (10 + int(n))))

    average = AveragedModel(network, avg_fn=decayed)
    # The first update copies: the average starts at the untuned weights.
    average.update_parameters(network)
    parts = {"network": network, "average": average, "fine": fine, "optimiser": optimiser, "rates": rates}
    state: dict[str, Any] = {"epoch": 0, "seconds": 0.0, "best": float("inf"), "best_state": {}}
    if file.exists():
        state = torch.load(file, weights_only=True)
        for name, part in parts.items():
            part.load_state_dict(state.pop(name))
        say(f"continuing after epoch {state['epoch']} of {plan.epochs}")

    def step(frames: Frames, drawn: Sequence[Example], index: list[int]) -> float:
        ids, mask, surface = frames.batch(index)
        batch = [drawn[i] for i in index]
        out = network.heads.parts(network.encoder(_masked(ids, mask, plan.masked, mask_id), mask), surface)
        loss = multitask(out, Targets.of(batch), weights) + plan.fine * fine.loss(out.embedding, batch)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), plan.clip)
        optimiser.step()
        rates.step()
        average.update_parameters(network)
        return float(loss.detach())

    for number in range(state["epoch"], plan.epochs):
        started, reported = time.process_time(), time.monotonic()
        torch.manual_seed(seed + number)
        rng = random.Random(f"{seed} {number}")
        augment = Augment([row.text for row in rows], rng)
        drawn = [augment(rows[i]) for i in _draw(rows, rng)]
        frames = Frames.of([row.text for row in drawn], framer, pad_id)
        network.train()
        for index in frames.shuffled(plan.batch, rng):
            loss = step(frames, drawn, index)
            if time.monotonic() - reported > REPORT_SECONDS:
                reported = time.monotonic()
                say(f"step {rates.last_epoch} of {total}, loss {loss:.3f}")
        now = check(average.module)
        say(f"epoch {number + 1} of {plan.epochs}: {now:.4f} on calibration rows")
        if now < state["best"]:
            state |= {"best": now, "best_state": copy.deepcopy(average.module.state_dict())}
        state |= {"epoch": number + 1, "seconds": state["seconds"] + time.process_time() - started}
        aside = file.with_suffix(".part")
        torch.save(state | {name: part.state_dict() for name, part in parts.items()}, aside)
        aside.rename(file)
    tuned: Network = average.module
    tuned.load_state_dict(state["best_state"])
    return tuned.eval(), state["seconds"]


def _masked(ids: Tensor, mask: Tensor, share: float, mask_id: int) -> Tensor:
    """Ids with a share of the real tokens replaced by [MASK]; the first and last of a text stay."""
    hide = torch.rand(ids.shape) < share
    hide[:, 0] = hide[:, -1] = False
    hide[:, :-1] &= mask[:, 1:].bool()
    return ids.masked_fill(hide, mask_id)


def _draw(rows: Sequence[Example], rng: random.Random) -> list[int]:
    """Row indices of one epoch: each source's quota, drawn again in each epoch."""
    sources: dict[str, list[int]] = {}
    for i, row in enumerate(rows):
        sources.setdefault(row.source, []).append(i)
    drawn: list[int] = []
    for source, own in sorted(sources.items()):
        drawn.extend(rng.sample(own, min(len(own), QUOTA.get(source, len(own)))))
    return drawn


def _rate(step: int, total: int, plan: TunePlan) -> float:
    """Linear warm-up, then linear decay to a twentieth."""
    rising = max(1, round(plan.warmup * total))
    if step < rising:
        return (step + 1) / rising
    return max(0.05, (total - step) / max(1, total - rising))


def _groups(network: Network, fine: FineLabels, plan: TunePlan) -> list[dict[str, Any]]:
    """Heads fast, the encoder as it says; what it leaves out is fixed."""
    groups: list[dict[str, Any]] = network.encoder.groups(plan)
    network.encoder.requires_grad_(False)
    for parameter in (each for group in groups for each in group["params"]):
        parameter.requires_grad_(True)
    heads = [parameter for part in (network.heads, fine) for parameter in part.parameters()]
    return [{"params": heads, "lr": plan.head_rate}, *groups]
