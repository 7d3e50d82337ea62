"""The BERT encoder, in plain torch.

No model hub library: the exported graph is exactly the code below, and its node names are stable.
"""

from __future__ import annotations

import math

import torch
from safetensors.torch import load
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from semroute_lab.train.spec import BaseSpec


class Smoothing(nn.Module):  # type: ignore[misc]
    """Factors of a layer's inputs before their products; see `smoothing`."""

    def __init__(self, dimensions: int, inner: int) -> None:
        super().__init__()
        self.register_buffer("attention", torch.ones(dimensions))
        self.register_buffer("widen", torch.ones(dimensions))
        self.register_buffer("narrow", torch.ones(inner))


class Layer(nn.Module):  # type: ignore[misc]
    """One transformer layer, normalised after each residual sum (Devlin et al. 2019)."""

    def __init__(self, base: BaseSpec) -> None:
        super().__init__()
        d = base.dimensions
        self.heads = base.heads
        self.query, self.key, self.value = nn.Linear(d, d), nn.Linear(d, d), nn.Linear(d, d)
        self.attended = nn.Linear(d, d)
        self.attended_norm = nn.LayerNorm(d, eps=base.epsilon)
        self.widen, self.narrow = nn.Linear(d, base.inner), nn.Linear(base.inner, d)
        self.norm = nn.LayerNorm(d, eps=base.epsilon)
        self.smoothing: Smoothing | None = None

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """`x` [batch, tokens, d]; `bias` [batch, 1, 1, tokens] is added to the attention scores."""
        batch, tokens, d = x.shape
        split = (batch, tokens, self.heads, d // self.heads)
        smoothing = self.smoothing
        read = x if smoothing is None else x * smoothing.attention
        q, k, v = (f(read).view(split).transpose(1, 2) for f in (self.query, self.key, self.value))
        scores = q @ k.transpose(-1, -2) / math.sqrt(d // self.heads) + bias
        mixed = (scores.softmax(-1) @ v).transpose(1, 2).reshape(batch, tokens, d)
        x = self.attended_norm(x + self.attended(mixed))
        wide = F.gelu(self.widen(x if smoothing is None else x * smoothing.widen))
        return self.norm(x + self.narrow(wide if smoothing is None else wide * smoothing.narrow))


class Encoder(nn.Module):  # type: ignore[misc]
    """BERT with mean pooling over the real tokens (Reimers and Gurevych 2019), without dropout.
    Fine-tuning hides tokens instead: dropout inside the encoder costs more time.
    """

    def __init__(self, base: BaseSpec) -> None:
        super().__init__()
        self.dimensions = base.dimensions
        self.words = nn.Embedding(base.vocabulary, base.dimensions)
        self.places = nn.Embedding(base.positions, base.dimensions)
        self.segment = nn.Parameter(torch.zeros(base.dimensions))
        self.norm = nn.LayerNorm(base.dimensions, eps=base.epsilon)
        self.layers = nn.ModuleList(Layer(base) for _ in range(base.layers))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Ids and mask [batch, tokens] to the mean of the last layer's states, [batch, d]."""
        x = self.norm(self.words(input_ids) + self.places.weight[: input_ids.shape[1]] + self.segment)
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


def from_checkpoint(weights: bytes, base: BaseSpec) -> Encoder:
    """An encoder with the tensors of a BERT's `model.safetensors`; KeyError names a missing tensor."""
    tensors = load(weights)
    state = {
        "words.weight": tensors["embeddings.word_embeddings.weight"],
        "places.weight": tensors["embeddings.position_embeddings.weight"],
        # Prompts are one segment, so its embedding is a constant.
        "segment": tensors["embeddings.token_type_embeddings.weight"][0],
        "norm.weight": tensors["embeddings.LayerNorm.weight"],
        "norm.bias": tensors["embeddings.LayerNorm.bias"],
    }
    for number in range(base.layers):
        for ours, theirs in _LAYER_NAMES.items():
            for kind in ("weight", "bias"):
                state[f"layers.{number}.{ours}.{kind}"] = tensors[f"encoder.layer.{number}.{theirs}.{kind}"]
    encoder = Encoder(base)
    encoder.load_state_dict(state)
    return encoder
