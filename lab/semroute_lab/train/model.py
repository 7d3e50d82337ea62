"""The heads on the encoder's state, and the whole network: exactly the exported graph."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

MEMBERS, DIFFICULTY_WIDTH = 4, 64  # Networks that the difficulty is the mean of, and hidden units of each
GATE_SHARPNESS = 8.0  # Factor of the gate's logit: a soft choice would blur the order of the table's texts
PROBABILITY_MIN = 1e-4  # Distance of a mixed probability from 0 and 1, for half precision
TABLE_SURFACE = 0.08  # Weight of the surface features in the cluster table
SURFACE_MAX = 3.0  # Bound of a normalized feature
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
    members: Tensor  # Difficulty logit of every member, [batch, members]
    gate: Tensor  # Logit of text like the table's, [batch]
    task: Tensor
    form: Tensor  # Normalized surface features, [batch, s]


class Heads(nn.Module):  # type: ignore[misc]
    """The heads on one pooled state: domain from the embedding, task and difficulty with the surface too.
    Difficulty is the mean of small networks. A gate recognizes text like that of the cluster table (exam
    questions, or a user's logs), which gets the table's value on the same scale: these outcomes depend on the
    subject, which a network does not learn from so few of them (a mixture of experts, Jacobs et al. 1991).
    """

    def __init__(self, dimensions: int, surface: int, domains: int, tasks: int) -> None:
        super().__init__()
        self.register_buffer("surface_mean", torch.zeros(surface))
        self.register_buffer("surface_scale", torch.ones(surface))
        self.register_buffer("table_scale", torch.ones(()))
        self.register_buffer("table_shift", torch.zeros(()))
        self.scale = math.sqrt(dimensions)
        self.dropout = nn.Dropout(HEAD_DROPOUT)
        both = dimensions + surface
        self.domain, self.task = nn.Linear(dimensions, domains), nn.Linear(both, tasks)
        self.gate = nn.Linear(both, 1)
        self.hidden = nn.Linear(both, MEMBERS * DIFFICULTY_WIDTH)
        score = torch.randn(MEMBERS, DIFFICULTY_WIDTH) / math.sqrt(DIFFICULTY_WIDTH)
        self.score, self.offset = nn.Parameter(score), nn.Parameter(torch.zeros(MEMBERS))
        self.recall = nn.Linear(dimensions, dimensions)
        self.table: ClusterTable | None = None
        self.memory: Memory | None = None

    def forward(self, pooled: Tensor, surface: Tensor) -> Outputs:
        """The graph's outputs: embedding, domain, difficulty and task logits, recalled base embedding."""
        out = self.parts(pooled, surface)
        return out.embedding, self.domain_logits(out), self.difficulty(out), out.task, self.recalled(out)

    def parts(self, pooled: Tensor, surface: Tensor) -> HeadOutputs:
        """Everything the losses need."""
        embedding = F.normalize(pooled, dim=-1)
        form = self.normalized(surface)
        x = self.dropout(embedding * self.scale)
        both = torch.cat([x, form], dim=-1)
        hidden = self.dropout(F.gelu(self.hidden(both))).view(-1, MEMBERS, DIFFICULTY_WIDTH)
        members = (hidden * self.score).sum(-1) + self.offset
        return HeadOutputs(embedding, self.domain(x), members, self.gate(both)[:, 0], self.task(both), form)

    def difficulty(self, out: HeadOutputs) -> Tensor:
        """The logit of the difficulty, of the networks and of the table as the gate says; [batch]."""
        rest = out.members.mean(-1)
        if self.table is None:
            return rest
        values = self.table_scale * self.table(self.table_inputs(out.embedding, out.form)) + self.table_shift
        gate = (GATE_SHARPNESS * out.gate).sigmoid()
        mixed = gate * values.sigmoid() + (1.0 - gate) * rest.sigmoid()
        p = mixed.clamp(PROBABILITY_MIN, 1.0 - PROBABILITY_MIN)
        return p.log() - (1.0 - p).log()

    def domain_logits(self, out: HeadOutputs) -> Tensor:
        """The linear head's log-probabilities, with the memory's votes if there are any; [batch, domains]."""
        if self.memory is None:
            return out.domain
        votes: Tensor = self.memory(self.recalled(out))
        return out.domain.log_softmax(-1) + votes

    def table_inputs(self, embedding: Tensor, form: Tensor) -> Tensor:
        """Inputs of the table: the recalled base embedding and the surface features; [batch, d + s]."""
        return torch.cat([self._recalled(embedding), TABLE_SURFACE * form], dim=-1)

    def recalled(self, out: HeadOutputs) -> Tensor:
        """The base encoder's embedding as a linear map of the tuned one; unit, [batch, d].
        Fine-tuning pulls texts of one label together and loses the finer neighbourhoods that clusters, the
        memory and the detection of unknown text need.
        """
        return self._recalled(out.embedding)

    def _recalled(self, embedding: Tensor) -> Tensor:
        return F.normalize(self.recall(embedding), dim=-1)

    def normalized(self, surface: Tensor) -> Tensor:
        """Surface features with zero mean and unit variance over the fit rows, bounded."""
        return ((surface - self.surface_mean) / self.surface_scale).clamp(-SURFACE_MAX, SURFACE_MAX)


class Network(nn.Module):  # type: ignore[misc]
    """Encoder and heads: exactly the graph that is exported."""

    def __init__(self, encoder: nn.Module, heads: Heads) -> None:
        super().__init__()
        self.encoder, self.heads = encoder, heads

    def forward(self, input_ids: Tensor, attention_mask: Tensor, surface: Tensor) -> Outputs:
        """Ids and mask [batch, tokens] and surface features [batch, s] to the graph's outputs."""
        outputs: Outputs = self.heads(self.encoder(input_ids, attention_mask), surface)
        return outputs
