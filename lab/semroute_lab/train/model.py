"""The heads on the encoder's state, and the whole network: exactly the exported graph."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from semroute_lab.train.bert import Encoder
from semroute_lab.train.datasets import FAMILIES

EXPERTS = len(FAMILIES)  # Experts of the difficulty head, one per family
MEMBERS, DIFFICULTY_WIDTH = 4, 48  # Networks that an expert is the mean of, and hidden units of each
TABLE_SURFACE = 0.08  # Weight of the surface features in the cluster table
PROBABILITY_MIN = 1e-4  # Distance of mixed probabilities from 0 and 1, for half precision
MEMORY_FLOOR = 1e-3  # Least probability that the memory gives a label
HEAD_DROPOUT = 0.1  # Dropout in front of and inside the heads
Outputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]  # In the order of `bundling.OUTPUTS`


class ClusterTable(nn.Module):  # type: ignore[misc]
    """The mean target of the nearest centroid, averaged over many clusterings: a single one is unstable."""

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


class Memory(nn.Module):  # type: ignore[misc]
    """Stored texts that vote for their labels: softmax over the cosines with all of them.
    A soft nearest-neighbour classifier (Vinyals et al. 2016, section 2.1) next to the linear head.
    The cosines are taken on a few axes of the input, because every pass reads all keys.
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
        """Vectors [batch, inputs] as keys: unit vectors [batch, dimensions]."""
        return F.normalize(self.axes(x), dim=-1)


class HeadOutputs(NamedTuple):
    """Outputs of the heads for a batch before calibration."""

    embedding: Tensor  # [batch, d], L2-normalized
    domain: Tensor
    members: Tensor  # Difficulty logit of every member of every expert, [batch, experts, members]
    gate: Tensor  # Logits of the families, [batch, experts]
    task: Tensor
    form: Tensor  # Normalised surface features, [batch, s]


class Heads(nn.Module):  # type: ignore[misc]
    """The heads on one pooled state: domain and task from the embedding, difficulty with the surface too.
    Families of requests are hard for different reasons, so difficulty is a mixture of experts (Jacobs et al.
    1991) with a gate. An expert is the mean of small networks; the one for exams reads a cluster table.
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
        both = dimensions + surface
        self.domain = nn.Linear(dimensions, domains)
        self.task, self.gate = nn.Linear(both, tasks), nn.Linear(both, EXPERTS)
        self.hidden = nn.Linear(both, EXPERTS * MEMBERS * DIFFICULTY_WIDTH)
        score = torch.randn(EXPERTS, MEMBERS, DIFFICULTY_WIDTH) / math.sqrt(DIFFICULTY_WIDTH)
        self.score, self.offset = nn.Parameter(score), nn.Parameter(torch.zeros(EXPERTS, MEMBERS))
        self.recall = nn.Linear(dimensions, dimensions)
        self.table: ClusterTable | None = None
        self.memory: Memory | None = None

    def forward(self, pooled: Tensor, surface: Tensor) -> Outputs:
        """The graph's outputs: embedding, domain, difficulty and task logits, recalled base embedding."""
        out = self.parts(pooled, surface)
        difficulty = mixture_logit(self.gate_scale * out.gate, self.expert_logits(out))
        return out.embedding, self.domain_logits(out), difficulty, out.task, self.recalled(out)

    def parts(self, pooled: Tensor, surface: Tensor) -> HeadOutputs:
        """Everything the losses need, before the experts are mixed."""
        embedding = F.normalize(pooled, dim=-1)
        form = self.normalized(surface)
        x = self.dropout(embedding * self.scale)
        both = torch.cat([x, form], dim=-1)
        hidden = self.dropout(F.gelu(self.hidden(both))).view(-1, EXPERTS, MEMBERS, DIFFICULTY_WIDTH)
        members = (hidden * self.score).sum(-1) + self.offset
        return HeadOutputs(embedding, self.domain(x), members, self.gate(both), self.task(both), form)

    def domain_logits(self, out: HeadOutputs) -> Tensor:
        """The linear head's log-probabilities, with the memory's votes if there are any; [batch, domains]."""
        if self.memory is None:
            return out.domain
        votes: Tensor = self.memory(self.recalled(out))
        return out.domain.log_softmax(-1) + votes

    def expert_logits(self, out: HeadOutputs) -> Tensor:
        """One calibrated logit per expert, [batch, experts]."""
        means = out.members.mean(-1)
        if self.table is not None:
            read = self.table(self.table_inputs(out))
            means = torch.cat([means[:, :-1], read[:, None]], dim=-1)
        return means * self.expert_scale + self.expert_shift

    def table_inputs(self, out: HeadOutputs) -> Tensor:
        """Inputs of the table: the recalled base embedding and the surface features; [batch, d + s]."""
        return torch.cat([self.recalled(out), TABLE_SURFACE * out.form], dim=-1)

    def recalled(self, out: HeadOutputs) -> Tensor:
        """The base encoder's embedding as a linear map of the tuned one; unit, [batch, d].
        Fine-tuning pulls texts of one label together and loses the finer neighbourhoods that clusters, the
        memory and the detection of unknown text need.
        """
        return F.normalize(self.recall(out.embedding), dim=-1)

    def normalized(self, surface: Tensor) -> Tensor:
        """Surface features with zero mean and unit variance over the fit rows, clipped to +-3."""
        return ((surface - self.surface_mean) / self.surface_scale).clamp(-3.0, 3.0)


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
