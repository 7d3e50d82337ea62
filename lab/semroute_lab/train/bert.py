"""The BERT encoder, in plain torch.

No model hub library: the exported graph is exactly the code below, and its node names are stable.

`smooth` moves outliers from activations to weights, so that eight bits are enough for both (SmoothQuant,
Xiao et al., arXiv 2211.10438, section 4): a channel j of an input is divided by
s_j = max|X_j|^a / max|W_j|^(1 - a) and the weights that read it are multiplied by it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from safetensors.torch import load
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from semroute_lab.train.frames import Frames
from semroute_lab.train.spec import BaseSpec, TunePlan

STRENGTH = 0.8  # The exponent a: of .4 to 1 the one with the smallest error of the embedding
TEXTS_MAX = 128  # Calibration texts for the ranges
RANGE_MIN = 1e-5


class Smoothing(nn.Module):  # type: ignore[misc]
    """Factors of a layer's inputs before their products; see `smooth`."""

    def __init__(self, dimensions: int, inner: int) -> None:
        super().__init__()
        self.register_buffer("attention", torch.ones(dimensions))
        self.register_buffer("widen", torch.ones(dimensions))
        self.register_buffer("narrow", torch.ones(inner))


class Layer(nn.Module):  # type: ignore[misc]
    """One transformer layer, normalized after each residual sum (Devlin et al. 2019)."""

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
    """BERT with mean pooling over the real tokens; fine-tuning masks tokens in place of dropout."""

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

    def groups(self, plan: TunePlan) -> list[dict[str, Any]]:
        """Parameters with their rates: upper layers slower than the heads, lower ones slower still."""
        depth = len(self.layers)
        rates = (plan.encoder_rate * plan.layer_decay ** (depth - 1 - at) for at in range(depth))
        return [
            {"params": list(each.parameters()), "lr": r} for each, r in zip(self.layers, rates, strict=True)
        ]


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


@torch.no_grad()  # type: ignore[untyped-decorator]
def smooth(encoder: Encoder, frames: Frames, index: Sequence[int]) -> None:
    """Smooth every layer of `encoder` in place, by the ranges on the texts `index` of `frames`."""
    ranges = _ranges(encoder, frames, index[:TEXTS_MAX])
    for layer in encoder.layers:
        own = Smoothing(layer.query.in_features, layer.narrow.in_features)
        for divisor, readers in (
            (own.attention, (layer.query, layer.key, layer.value)),
            (own.widen, (layer.widen,)),
            (own.narrow, (layer.narrow,)),
        ):
            scale = _scale(ranges[readers[0]], readers)
            divisor.copy_(1.0 / scale)
            for reader in readers:
                reader.weight.mul_(scale)
        # This product reads a mean of values, so the values' own weights take the division.
        scale = _scale(ranges[layer.attended], (layer.attended,))
        layer.attended.weight.mul_(scale)
        layer.value.weight.div_(scale[:, None])
        layer.value.bias.div_(scale)
        layer.smoothing = own


def _scale(largest: Tensor, readers: Sequence[nn.Linear]) -> Tensor:
    weights = torch.stack([reader.weight.abs().amax(0) for reader in readers]).amax(0)
    inputs, outputs = (each.clamp(min=RANGE_MIN) for each in (largest, weights))
    scale: Tensor = inputs**STRENGTH / outputs ** (1.0 - STRENGTH)
    return scale


def _ranges(encoder: Encoder, frames: Frames, index: Sequence[int]) -> dict[nn.Module, Tensor]:
    """The largest absolute input of each channel of each product."""
    found: dict[nn.Module, Tensor] = {}

    def record(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        now = inputs[0].abs().flatten(0, -2).amax(0)
        found[module] = torch.maximum(found[module], now) if module in found else now

    modules = [m for each in encoder.layers for m in (each.query, each.attended, each.widen, each.narrow)]
    hooks = [module.register_forward_pre_hook(record) for module in modules]
    for i in index:
        ids, mask, _ = frames.batch([i])
        encoder(ids, mask)
    for hook in hooks:
        hook.remove()
    return found
