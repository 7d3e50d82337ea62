"""The multilingual Universal Sentence Encoder, version 3, in plain torch.

A convolutional encoder of 16 languages in one space (Yang et al., arXiv 1907.04307, section 2): token
embeddings, convolutions over two, three and five tokens, and a residual network over their scaled sum. It
has no positions, so a text may be of any length. The weights are those of the package that the spec pins;
its table of token embeddings is stored in bytes and stays fixed.

Two parts are added. Weighted means of the states with learned queries (attention, Bahdanau et al. 2015) find
the question in a long text, which a plain mean hides. A small learned embedding lets single words count.
"""

from __future__ import annotations

import io
import math
import struct
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from semroute_lab.train.graphs import Array
from semroute_lab.train.spec import Checkpoint, TunePlan

CHUNKS = 17  # Parts of the table, each with a scale and an offset; row i is in part i modulo `CHUNKS`
LEXICON, LEXICON_SPEED = 16, 6.0  # Values that are learned for each token, and their rate over the encoder's
LOOKS, SEEN = 4, 64  # Weighted means of a text's states, and the values that are read from each
GRAMS = ((2, 0), (3, 1), (5, 2))  # Tokens of each convolution, and how many of them stand before its own
UNK, BOS, EOS = 0, 1, 2  # Ids of the vocabulary; padding is masked, so that its id does not matter


class Encoder(nn.Module):  # type: ignore[misc]
    """Token states from a fixed table of embeddings and trained convolutions, and their summary."""

    def __init__(self, tensors: Mapping[str, Array]) -> None:
        super().__init__()
        chunks = [tensors[f"q{number + 1}"] for number in range(CHUNKS)]
        self.channels, self.dimensions = tensors["proj2"].shape[1], chunks[0].shape[1]
        self.state = self.dimensions + self.channels * len(GRAMS)  # Values of a token's state
        table = np.stack(chunks, axis=1).reshape(-1, self.dimensions)
        self.register_buffer("table", torch.from_numpy(table), persistent=False)
        for name, key in (("step", "scale"), ("offset", "lo")):
            values = torch.from_numpy(tensors[key].astype(np.float32))[:, None]
            self.register_buffer(name, values.contiguous(), persistent=False)
        grams = [str(size) for size, _ in GRAMS]
        self.enter = _parameter(np.concatenate([tensors[f"proj{n}"] for n in grams], axis=1))
        self.enter_bias = _parameter(np.concatenate([tensors[f"proj_b{n}"] for n in grams]))
        self.enter_norm = _norm(*(np.concatenate([tensors[f"ln_{k}{n}"] for n in grams]) for k in "gb"))
        self.first, self.second = (
            nn.ParameterList(_parameter(tensors[f"w{layer}_{n}"]) for n in grams) for layer in (1, 2)
        )
        self.first_bias, self.second_bias = (
            nn.ParameterList(_parameter(tensors[f"b{layer}_{n}"]) for n in grams) for layer in (1, 2)
        )
        self.norm = _norm(tensors["ln_g"], tensors["ln_b"])
        self.summary, self.summary_bias = _parameter(tensors["cnn_W"]), _parameter(tensors["cnn_b"])
        self.dense = nn.ParameterDict({key: _parameter(tensors[key]) for key in ("d0", "d1", "d2", "d3")})
        self.skip = nn.ParameterDict({key: _parameter(tensors[key]) for key in ("p1", "p3")})
        self.lexicon = nn.Embedding(len(table), LEXICON)
        self.lift = nn.Linear(LEXICON, self.state, bias=False)
        self.look = nn.Linear(self.state, LOOKS)
        self.see = nn.Parameter(torch.randn(LOOKS, self.state, SEEN) / math.sqrt(self.state))
        self.add = nn.Linear(LOOKS * SEEN, self.dimensions)
        nn.init.normal_(self.lexicon.weight, std=0.02)
        nn.init.normal_(self.lift.weight, std=0.1)
        nn.init.zeros_(self.add.weight)  # before fine-tuning, the output is the package's
        nn.init.zeros_(self.add.bias)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Ids and mask [batch, tokens] to [batch, d]: the summary, and what weighted means add to it."""
        mask = attention_mask.to(torch.float32)[..., None]
        part = input_ids % CHUNKS
        words = self.table[input_ids].to(torch.float32) * self.step[part] + self.offset[part]
        x = self.enter_norm(words @ self.enter + self.enter_bias) * mask
        states = [words]
        for number, (size, before) in enumerate(GRAMS):
            h = x[..., number * self.channels : (number + 1) * self.channels]
            for weights, biases in ((self.first, self.first_bias), (self.second, self.second_bias)):
                h = (F.relu(_grams(h, size, before) @ weights[number] + biases[number]) + h) * mask
            states.append(h)
        state = self.norm(torch.cat(states, dim=-1))
        read = state + self.lift(self.lexicon(input_ids))
        means = (self.look(read) + (1.0 - mask) * -1e4).softmax(1).transpose(1, 2) @ read
        seen = F.gelu(torch.cat([means[:, at] @ self.see[at] for at in range(LOOKS)], dim=-1))
        added: Tensor = self._summary((state * mask).sum(1), mask.sum(1)) + self.add(seen)
        return added

    def groups(self, plan: TunePlan) -> list[dict[str, Any]]:
        """Parameters with their rates: the lexicon is new, so it learns faster than the rest."""
        rest = [parameter for name, parameter in self.named_parameters() if name != "lexicon.weight"]
        lexicon = {"params": [self.lexicon.weight], "lr": LEXICON_SPEED * plan.encoder_rate}
        return [{"params": rest, "lr": plan.encoder_rate}, lexicon]

    def _summary(self, total: Tensor, tokens: Tensor) -> Tensor:
        """The sum of the states [batch, state] over the square root of their number, through the network."""
        mean = (total @ self.summary + tokens * self.summary_bias) / tokens.sqrt()
        d, skip = self.dense, self.skip
        hidden = F.relu(mean @ skip["p1"] + F.relu(mean @ d["d0"]) @ d["d1"])
        return torch.tanh(hidden @ skip["p3"] + F.relu(hidden @ d["d2"]) @ d["d3"])


def _grams(x: Tensor, size: int, before: int) -> Tensor:
    """Each token with its neighbors, side by side; [batch, tokens, size * channels]."""
    padded, tokens = F.pad(x, (0, 0, before, size - 1 - before)), x.shape[1]
    return torch.cat([padded[:, at : at + tokens] for at in range(size)], dim=-1)


def _parameter(values: Array) -> nn.Parameter:
    # A copy: training must not change the arrays that were given.
    return nn.Parameter(torch.tensor(values, dtype=torch.float32))


def _norm(gain: Array, bias: Array) -> nn.LayerNorm:
    norm = nn.LayerNorm(len(gain), eps=1e-12)
    norm.weight, norm.bias = _parameter(gain), _parameter(bias)
    return norm


def from_checkpoint(checkpoint: Checkpoint) -> Encoder:
    """The encoder with the package's weights; KeyError names a missing tensor."""
    with np.load(io.BytesIO(checkpoint.weights), allow_pickle=False) as stored:
        return Encoder({name: stored[name] for name in stored.files})


def tokenizer(checkpoint: Checkpoint) -> Tokenizer:
    """The package's SentencePiece model (unigrams with scores) as a tokenizer of `tokenizers`.

    Runs of unknown characters become one token; all other ids are those of SentencePiece.
    """
    fields = list(_fields(checkpoint.tokenizer))
    pieces = [dict(_fields(value)) for number, value in fields if number == 1]
    charsmap = dict(_fields(next(value for number, value in fields if number == 3)))[2]
    vocabulary = [(piece[1].decode(), struct.unpack("<f", piece.get(2, bytes(4)))[0]) for piece in pieces]
    found = Tokenizer(models.Unigram(vocabulary, unk_id=UNK, byte_fallback=False))
    blanks = normalizers.Replace(Regex(" {2,}"), " ")
    found.normalizer = normalizers.Sequence([normalizers.Precompiled(charsmap), normalizers.Strip(), blanks])
    found.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always", split=False)
    return found


def _fields(message: bytes) -> Iterator[tuple[int, bytes]]:
    """Number and bytes of the fields of a protobuf message, without its integers."""
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = message[at]
            at, value, shift = at + 1, value | (byte & 127) << shift, shift + 7
            if byte < 128:
                return value

    while at < len(message):
        number, kind = divmod(varint(), 8)
        if kind == 0:
            varint()
            continue
        size = {1: 8, 5: 4}.get(kind) or varint()
        yield number, message[at : at + size]
        at += size
