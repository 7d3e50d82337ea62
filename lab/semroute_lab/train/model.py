"""The heads on the encoder's state, and the whole network: exactly what is exported."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from semroute_lab.train.bert import Encoder

EXPERTS = 3
"""Experts of the difficulty head, one for each of `datasets.FAMILIES`, in that order."""

MEMBERS = 4
"""Small networks that an expert is the mean of."""

DIFFICULTY_WIDTH = 48
"""Hidden units of each of them."""

TABLE_SURFACE = 0.08
"""Weight of the normalised surface features beside the unit embedding in the cluster table."""

PROBABILITY_MIN = 1e-4
"""Mixed probabilities are kept this far from 0 and 1: half precision must not round them there."""

GATE_SHARPNESS = 4.0
"""What the gate's logits are multiplied by once the experts are calibrated. Their scales differ, so a
little of another family's expert blurs the order within a family: a nearly hard choice kept more of it."""

MEMORY_FLOOR = 1e-3
"""Least probability that the memory gives a label."""

HEAD_DROPOUT = 0.1
"""Dropout in front of and inside the heads."""


class ClusterTable(nn.Module):  # type: ignore[misc]
    """The mean target of the nearest centroid, averaged over many clusterings.

    One K-means is a coarse and unstable router; the mean over many seeds was steadier and better
    than every regression tried on few noisy labels. Filled in by `tables.fill`.
    """

    def __init__(self, clusterings: int, clusters: int, inputs: int) -> None:
        super().__init__()
        self.clusterings, self.clusters = clusterings, clusters
        self.register_buffer("centroids", torch.zeros(clusterings * clusters, inputs))
        self.register_buffer("offset", torch.zeros(clusterings * clusters))
        self.register_buffer("means", torch.zeros(clusterings, clusters))

    def forward(self, x: Tensor) -> Tensor:
        """Inputs [batch, inputs] to the mean target [batch]."""
        closeness = x @ self.centroids.T - self.offset
        nearest = closeness.view(-1, self.clusterings, self.clusters).argmax(-1)
        start = torch.arange(self.clusterings, device=x.device) * self.clusters
        return self.means.reshape(-1)[nearest + start].mean(-1)


class Line(nn.Linear):  # type: ignore[misc]
    """A linear reading of the table's inputs, where no outcomes are near enough to be averaged."""

    def __init__(self, inputs: int) -> None:
        super().__init__(inputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Inputs [batch, inputs] to one value each, [batch]."""
        value: Tensor = super().forward(x)
        return value.squeeze(-1)


class Memory(nn.Module):  # type: ignore[misc]
    """Remembered texts that vote for their labels: softmax over the cosines with all of them.

    A soft nearest-neighbour classifier (Vinyals et al. 2016, section 2.1) beside the linear head:
    it knows the single cases, the head the rule. The cosines are taken on a few axes of the input,
    because every pass reads all keys. Filled in by `memory.add_memory`.
    """

    def __init__(self, rows: int, inputs: int, dimensions: int, labels: int) -> None:
        super().__init__()
        self.axes = nn.Linear(inputs, dimensions, bias=False)
        self.register_buffer("keys", torch.zeros(rows, dimensions))
        self.register_buffer("labels", torch.zeros(rows, labels))
        self.register_buffer("sharpness", torch.ones(()))
        self.register_buffer("weight", torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        """Vectors [batch, inputs] to log-probabilities times their weight, [batch, labels]."""
        votes = (self.sharpness * (self.on_axes(x) @ self.keys.T)).softmax(-1) @ self.labels
        return self.weight * (votes + MEMORY_FLOOR).log()

    def on_axes(self, x: Tensor) -> Tensor:
        """Vectors [batch, inputs] as the keys are: unit vectors [batch, dimensions]."""
        return F.normalize(self.axes(x), dim=-1)


class Heads(nn.Module):  # type: ignore[misc]
    """The heads on one pooled state: domain and task from the embedding, difficulty with the surface too.

    What makes an everyday request, a word problem and an exam question hard has little in common,
    and labels come from different models. So difficulty is a mixture of experts (Jacobs et al.
    1991), one a family of requests, with a gate that is told the family in training. An expert is
    the mean of a few small networks; the one for exam questions reads a cluster table.
    """

    def __init__(self, dimensions: int, surface: int, domains: int, tasks: int) -> None:
        super().__init__()
        self.register_buffer("surface_mean", torch.zeros(surface))
        self.register_buffer("surface_scale", torch.ones(surface))
        self.register_buffer("expert_scale", torch.ones(EXPERTS))
        self.register_buffer("expert_shift", torch.zeros(EXPERTS))
        self.register_buffer("gate_scale", torch.ones(()), persistent=False)
        self.scale = math.sqrt(dimensions)
        self.dropout = nn.Dropout(HEAD_DROPOUT)
        self.domain = nn.Linear(dimensions, domains)
        self.task = nn.Linear(dimensions + surface, tasks)
        self.gate = nn.Linear(dimensions + surface, EXPERTS)
        self.hidden = nn.Linear(dimensions + surface, EXPERTS * MEMBERS * DIFFICULTY_WIDTH)
        self.score = nn.Parameter(
            torch.randn(EXPERTS, MEMBERS, DIFFICULTY_WIDTH) / math.sqrt(DIFFICULTY_WIDTH)
        )
        self.offset = nn.Parameter(torch.zeros(EXPERTS, MEMBERS))
        self.recall = nn.Linear(dimensions, dimensions)
        self.surface_most: Tensor | None = None
        """[s]: what lies above it is read as this; None: everything as it is."""
        self.table: ClusterTable | Line | None = None
        self.memory: Memory | None = None

    def forward(self, pooled: Tensor, surface: Tensor) -> Outputs:
        """Pooled [batch, d] and raw surface [batch, s] to what the graph gives.

        Embedding, domain logits, difficulty logit, task logits, and the recalled base embedding.
        """
        out = self.parts(pooled, surface)
        difficulty = mixture_logit(self.gate_scale * out.gate, self.expert_logits(out))
        return out.embedding, self.domain_logits(out), difficulty, out.task, self.recalled(out)

    def domain_logits(self, out: HeadOutputs) -> Tensor:
        """The linear head's log-probabilities, with the memory's votes if there are any; [batch, domains]."""
        if self.memory is None:
            return out.domain
        votes: Tensor = self.memory(self.recalled(out))
        return out.domain.log_softmax(-1) + votes

    def parts(self, pooled: Tensor, surface: Tensor) -> HeadOutputs:
        """Everything the losses need, before the experts are mixed."""
        embedding = F.normalize(pooled, dim=-1)
        form = self.normalised(surface)
        x = self.dropout(embedding * self.scale)
        both = torch.cat([x, form], dim=-1)
        hidden = self.dropout(F.gelu(self.hidden(both))).view(-1, EXPERTS, MEMBERS, DIFFICULTY_WIDTH)
        members = (hidden * self.score).sum(-1) + self.offset
        return HeadOutputs(embedding, self.domain(x), members, self.gate(both), self.task(both), form)

    def expert_logits(self, out: HeadOutputs) -> Tensor:
        """One calibrated logit an expert, [batch, experts]."""
        means = out.members.mean(-1)
        if self.table is not None:
            read = self.table(self.table_inputs(out))
            means = torch.cat([means[:, :-1], read[:, None]], dim=-1)
        return means * self.expert_scale + self.expert_shift

    def table_inputs(self, out: HeadOutputs) -> Tensor:
        """What the table reads: the recalled base embedding and the surface features; [batch, d + s]."""
        return torch.cat([self.recalled(out), TABLE_SURFACE * out.form], dim=-1)

    def recalled(self, out: HeadOutputs) -> Tensor:
        """The base encoder's embedding, as far as a linear map finds it in the tuned one; unit, [batch, d].

        Fine-tuning pulls together what has the same label and loses the finer neighbourhoods that
        clusters, memories and the unknown live on.
        """
        return F.normalize(self.recall(out.embedding), dim=-1)

    def bounded(self, surface: Tensor) -> Tensor:
        """Raw surface features, none above `surface_most`."""
        return surface if self.surface_most is None else torch.minimum(surface, self.surface_most)

    def normalised(self, surface: Tensor) -> Tensor:
        """Surface features with zero mean and unit variance over the fit rows, clipped to +-3."""
        return ((self.bounded(surface) - self.surface_mean) / self.surface_scale).clamp(-3.0, 3.0)


@dataclass(frozen=True, slots=True)
class HeadOutputs:
    """What the heads give for a batch before calibration."""

    embedding: Tensor
    """[batch, d], L2-normalised."""
    domain: Tensor
    members: Tensor
    """Difficulty logit of every member of every expert, [batch, experts, members]."""
    gate: Tensor
    """Logits of the families, [batch, experts]."""
    task: Tensor
    form: Tensor
    """Normalised surface features, [batch, s]."""


Outputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]
"""What the graph gives, in the order of `export.OUTPUTS`."""


def mixture_logit(gate: Tensor, experts: Tensor) -> Tensor:
    """The logit of sum_f softmax(gate)_f sigmoid(expert_f); both [batch, experts], result [batch]."""
    p = (gate.softmax(-1) * experts.sigmoid()).sum(-1).clamp(PROBABILITY_MIN, 1.0 - PROBABILITY_MIN)
    return p.log() - (1.0 - p).log()


class Network(nn.Module):  # type: ignore[misc]
    """Encoder and heads: exactly the graph that is exported."""

    def __init__(self, encoder: Encoder, heads: Heads) -> None:
        super().__init__()
        self.encoder, self.heads = encoder, heads

    def forward(self, input_ids: Tensor, attention_mask: Tensor, surface: Tensor) -> Outputs:
        """See `Encoder.forward` and `Heads.forward`."""
        outputs: Outputs = self.heads(self.encoder(input_ids, attention_mask), surface)
        return outputs
