"""Moving outliers from activations to weights, so that eight bits are enough for both.

SmoothQuant (Xiao et al., arXiv 2211.10438, section 4): a few channels of a transformer's
activations are many times larger than the rest and take the whole range of a dynamic scale. A
channel j is divided by s_j = max|X_j|^a / max|W_j|^(1 - a) and the weights that read it are
multiplied by it, which changes nothing before quantisation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from semroute_lab.train.bert import Encoder, Layer, Smoothing
from semroute_lab.train.frames import Frames

STRENGTH = 0.8
"""The exponent a. Of .4 to 1 the one with the smallest error of the embedding: a quarter of the plain
error with eight-bit weights, half of it with seven."""

TEXTS_MAX = 128
"""Calibration texts that the ranges are read from."""

RANGE_MIN = 1e-5


def smooth(encoder: Encoder, frames: Frames, index: Sequence[int]) -> None:
    """Smooth every layer of `encoder` in place, by the ranges seen on the texts `index` of `frames`."""
    ranges = _ranges(encoder, frames, index[:TEXTS_MAX])
    for layer in encoder.layers:
        _smooth(layer, ranges)


def _smooth(layer: Layer, ranges: dict[nn.Module, Tensor]) -> None:
    own = Smoothing(layer.query.in_features, layer.narrow.in_features)
    with torch.no_grad():
        for divisor, readers in (
            (own.attention, (layer.query, layer.key, layer.value)),
            (own.widen, (layer.widen,)),
            (own.narrow, (layer.narrow,)),
        ):
            scale = _scale(ranges[readers[0]], readers)
            divisor.copy_(1.0 / scale)
            for reader in readers:
                reader.weight.mul_(scale)
        # What this product reads is a mean of values, so their own weights take the division.
        scale = _scale(ranges[layer.attended], (layer.attended,))
        layer.attended.weight.mul_(scale)
        layer.value.weight.div_(scale[:, None])
        layer.value.bias.div_(scale)
    layer.smoothing = own


def _scale(largest: Tensor, readers: Sequence[nn.Linear]) -> Tensor:
    weights = torch.stack([reader.weight.abs().amax(0) for reader in readers]).amax(0)
    scale: Tensor = largest.clamp(min=RANGE_MIN) ** STRENGTH / weights.clamp(min=RANGE_MIN) ** (
        1.0 - STRENGTH
    )
    return scale


def _ranges(encoder: Encoder, frames: Frames, index: Sequence[int]) -> dict[nn.Module, Tensor]:
    """The largest absolute input of each channel of each product."""
    found: dict[nn.Module, Tensor] = {}

    def look(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        now = inputs[0].abs().flatten(0, -2).amax(0)
        found[module] = torch.maximum(found[module], now) if module in found else now

    modules = [
        m for layer in encoder.layers for m in (layer.query, layer.attended, layer.widen, layer.narrow)
    ]
    hooks = [module.register_forward_pre_hook(look) for module in modules]
    with torch.inference_mode():
        for i in index:
            ids, mask, _ = frames.batch([i])
            encoder(ids, mask)
    for hook in hooks:
        hook.remove()
    return found
