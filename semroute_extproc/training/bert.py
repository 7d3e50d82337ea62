"""A BERT encoder in plain torch, whose like tokens may become one on their way through the layers.

Kept apart from any model hub library so that what is exported is what is written here. Module
and parameter names follow the published checkpoint, whose tensors then load by name.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

HIDDEN = -1e4
"""Added to the attention scores of padding."""


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
    merging: tuple[float, ...] = ()
    """The cosine above which two tokens of a layer become one, layer by layer; see `merged`. A layer
    that has none, or 1, leaves them alone."""


class Smoothing(nn.Module):  # type: ignore[misc]
    """What a layer's inputs are multiplied by before their products; see `smoothing`."""

    def __init__(self, dimensions: int, inner: int) -> None:
        super().__init__()
        self.register_buffer("attention", torch.ones(dimensions))
        self.register_buffer("widen", torch.ones(dimensions))
        self.register_buffer("narrow", torch.ones(inner))


class Tokens(NamedTuple):
    """What a layer reads and gives."""

    states: Tensor
    """[batch, tokens, d]."""
    sizes: Tensor
    """How many of the text's tokens each is, 0 for padding; [batch, tokens]."""
    staying: int
    """The first so many have always stayed where others joined; see `merged`."""


class Layer(nn.Module):  # type: ignore[misc]
    """One transformer layer, normalised after each residual sum (Devlin et al. 2019)."""

    def __init__(self, config: EncoderConfig, dropout: float, merge_above: float) -> None:
        super().__init__()
        d = config.dimensions
        self.merge_above = merge_above
        self.heads = config.heads
        self.query, self.key, self.value = nn.Linear(d, d), nn.Linear(d, d), nn.Linear(d, d)
        self.attended = nn.Linear(d, d)
        self.attended_norm = nn.LayerNorm(d, eps=config.epsilon)
        self.widen, self.narrow = nn.Linear(d, config.inner), nn.Linear(config.inner, d)
        self.norm = nn.LayerNorm(d, eps=config.epsilon)
        self.dropout = nn.Dropout(dropout)
        self.smoothing: Smoothing | None = None

    def forward(self, tokens: Tokens) -> Tokens:
        """The next layer's tokens, perhaps fewer.

        A token that is several draws attention as several: log(size) is added to its scores (Bolya et
        al. 2023, equation 1).
        """
        x, sizes = tokens.states, tokens.sizes
        batch, count, d = x.shape
        split = (batch, count, self.heads, d // self.heads)
        smoothing = self.smoothing
        read = x if smoothing is None else x * smoothing.attention
        q, k, v = (f(read).view(split).transpose(1, 2) for f in (self.query, self.key, self.value))
        bias = sizes.clamp(min=1.0).log() + (sizes == 0).to(x.dtype) * HIDDEN
        scores = q @ k.transpose(-1, -2) / math.sqrt(d // self.heads) + bias[:, None, None, :]
        mixed = (self.dropout(scores.softmax(-1)) @ v).transpose(1, 2).reshape(batch, count, d)
        x = self.attended_norm(x + self.dropout(self.attended(mixed)))
        tokens = Tokens(x, sizes, tokens.staying)
        if self.merge_above < 1.0:
            tokens = merged(tokens, self.merge_above)
        x = tokens.states
        wide = F.gelu(self.widen(x if smoothing is None else x * smoothing.widen))
        x = self.norm(x + self.dropout(self.narrow(wide if smoothing is None else wide * smoothing.narrow)))
        return Tokens(x, tokens.sizes, tokens.staying)


def merged(tokens: Tokens, above: float) -> Tokens:
    """Tokens that say nearly the same as one, so that the products to come have fewer rows.

    Token merging (Bolya et al. 2023, section 3), by a bound on the cosine in place of a number of tokens:
    a text that repeats itself shrinks more than one that does not. Of those that have stayed so far every
    other one stays; each of the rest joins the one of them that it is most alike, if alike enough. Who
    stays is a matter of places alone, so that the texts of a batch have no say in each other's.
    """
    stay, join = _parted(tokens.states, tokens.staying)
    stay_sizes, join_sizes = _parted(tokens.sizes[:, :, None], tokens.staying)
    lengths = join.norm(dim=-1, keepdim=True) * stay.norm(dim=-1, keepdim=True).transpose(1, 2)
    # Nobody joins padding, whose state may be 0.
    alike = join @ stay.transpose(1, 2) / lengths.clamp(min=1e-3) * stay_sizes.clamp(max=1.0).transpose(1, 2)
    most = alike.amax(-1, keepdim=True)
    to = ((alike >= most) & (most > above)).to(alike.dtype).transpose(1, 2)
    sizes = stay_sizes + to @ join_sizes
    stay = (stay * stay_sizes + to @ (join * join_sizes)) / sizes.clamp(min=1.0)
    left = join_sizes * (most <= above).to(alike.dtype)
    # A place is kept as long as any text of the batch has something there.
    used = left.amax((0, 2)).nonzero().squeeze(1)
    states = torch.cat([stay, join[:, used]], dim=1)
    return Tokens(states, torch.cat([sizes, left[:, used]], dim=1).squeeze(2), stay.shape[1])


def _parted(values: Tensor, staying: int) -> tuple[Tensor, Tensor]:
    """Every other one of the first `staying` [batch, tokens, any], and the rest."""
    head = values[:, :staying]
    return head[:, 0::2], torch.cat([head[:, 1::2], values[:, staying:]], dim=1)


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
        merging = (*config.merging, *[1.0] * config.layers)
        self.layers = nn.ModuleList(Layer(config, dropout, merging[n]) for n in range(config.layers))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Ids and mask [batch, tokens] to the mean of the last layer's states, [batch, d]."""
        places = self.places.weight[: input_ids.shape[1]]
        x = self.dropout(self.norm(self.words(input_ids) + places + self.segment))
        tokens = Tokens(x, attention_mask.to(x.dtype), x.shape[1])
        for layer in self.layers:
            tokens = layer(tokens)
        weights = tokens.sizes[:, :, None]
        return (tokens.states * weights).sum(1) / weights.sum(1).clamp(min=1.0)


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
