"""The BERT encoder, in plain torch.

Kept apart from any model hub library so that what is exported is what is written here. Module
and parameter names follow the published checkpoint, whose tensors then load by name.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812


@dataclass(frozen=True, slots=True)
class EncoderConfig:
    """Sizes of a BERT encoder; the defaults are all-MiniLM-L6-v2's."""

    vocabulary: int = 30_522
    positions: int = 512
    dimensions: int = 384
    layers: int = 6
    heads: int = 12
    inner: int = 1_536
    epsilon: float = 1e-12


class Smoothing(nn.Module):  # type: ignore[misc]
    """What a layer's inputs are multiplied by before their products; see `smoothing`."""

    def __init__(self, dimensions: int, inner: int) -> None:
        super().__init__()
        self.register_buffer("attention", torch.ones(dimensions))
        self.register_buffer("widen", torch.ones(dimensions))
        self.register_buffer("narrow", torch.ones(inner))


class Layer(nn.Module):  # type: ignore[misc]
    """One transformer layer, normalised after each residual sum (Devlin et al. 2019)."""

    def __init__(self, config: EncoderConfig, dropout: float) -> None:
        super().__init__()
        d = config.dimensions
        self.heads = config.heads
        self.query, self.key, self.value = nn.Linear(d, d), nn.Linear(d, d), nn.Linear(d, d)
        self.attended = nn.Linear(d, d)
        self.attended_norm = nn.LayerNorm(d, eps=config.epsilon)
        self.widen, self.narrow = nn.Linear(d, config.inner), nn.Linear(config.inner, d)
        self.norm = nn.LayerNorm(d, eps=config.epsilon)
        self.dropout = nn.Dropout(dropout)
        self.smoothing: Smoothing | None = None

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """`x` [batch, tokens, d]; `bias` [batch, 1, 1, tokens] is added to the attention scores."""
        batch, tokens, d = x.shape
        split = (batch, tokens, self.heads, d // self.heads)
        smoothing = self.smoothing
        read = x if smoothing is None else x * smoothing.attention
        q, k, v = (f(read).view(split).transpose(1, 2) for f in (self.query, self.key, self.value))
        scores = q @ k.transpose(-1, -2) / math.sqrt(d // self.heads) + bias
        mixed = (self.dropout(scores.softmax(-1)) @ v).transpose(1, 2).reshape(batch, tokens, d)
        x = self.attended_norm(x + self.dropout(self.attended(mixed)))
        wide = F.gelu(self.widen(x if smoothing is None else x * smoothing.widen))
        return self.norm(
            x + self.dropout(self.narrow(wide if smoothing is None else wide * smoothing.narrow))
        )


class Encoder(nn.Module):  # type: ignore[misc]
    """BERT with mean pooling over the real tokens (Reimers and Gurevych 2019)."""

    def __init__(self, config: EncoderConfig, dropout: float = 0.1) -> None:
        super().__init__()
        self.config = config
        self.words = nn.Embedding(config.vocabulary, config.dimensions)
        self.places = nn.Embedding(config.positions, config.dimensions)
        self.segment = nn.Parameter(torch.zeros(config.dimensions))
        self.norm = nn.LayerNorm(config.dimensions, eps=config.epsilon)
        self.dropout = nn.Dropout(dropout)
        self.layers = nn.ModuleList(Layer(config, dropout) for _ in range(config.layers))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Ids and mask [batch, tokens] to the mean of the last layer's states, [batch, d]."""
        places = self.places.weight[: input_ids.shape[1]]
        x = self.dropout(self.norm(self.words(input_ids) + places + self.segment))
        mask = attention_mask.to(x.dtype)
        bias = (1.0 - mask)[:, None, None, :] * -1e4
        for layer in self.layers:
            x = layer(x, bias)
        weights = mask[:, :, None]
        return (x * weights).sum(1) / weights.sum(1).clamp(min=1.0)


_LAYER_NAMES = {
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "attended": "attention.output.dense",
    "attended_norm": "attention.output.LayerNorm",
    "widen": "intermediate.dense",
    "narrow": "output.dense",
    "norm": "output.LayerNorm",
}


def from_checkpoint(tensors: dict[str, Tensor], config: EncoderConfig, dropout: float = 0.1) -> Encoder:
    """An encoder with the tensors of a BERT checkpoint; KeyError names a tensor that is missing."""
    state = {
        "words.weight": tensors["embeddings.word_embeddings.weight"],
        "places.weight": tensors["embeddings.position_embeddings.weight"],
        # Prompts are one segment, so its embedding is a constant.
        "segment": tensors["embeddings.token_type_embeddings.weight"][0],
        "norm.weight": tensors["embeddings.LayerNorm.weight"],
        "norm.bias": tensors["embeddings.LayerNorm.bias"],
    }
    for number in range(config.layers):
        for ours, theirs in _LAYER_NAMES.items():
            for kind in ("weight", "bias"):
                state[f"layers.{number}.{ours}.{kind}"] = tensors[f"encoder.layer.{number}.{theirs}.{kind}"]
    encoder = Encoder(config, dropout)
    encoder.load_state_dict(state)
    return encoder
