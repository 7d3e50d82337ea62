"""Framed texts as batches of tensors."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from semroute_extproc.encoder.preprocess import Framed, Framer

LENGTH_JITTER = 4  # Texts within this many tokens count as equally long when batches are drawn


@dataclass(frozen=True, slots=True)
class Frames:
    """Framed texts, in order."""

    framed: list[Framed]
    pad_id: int

    @staticmethod
    def of(texts: Sequence[str], framer: Framer, pad_id: int) -> Frames:
        """Frame every text."""
        return Frames([framer.frame(text) for text in texts], pad_id)

    def __len__(self) -> int:
        return len(self.framed)

    def take(self, index: Sequence[int]) -> Frames:
        """Some texts, in that order."""
        return Frames([self.framed[i] for i in index], self.pad_id)

    def spread(self, count: int) -> list[int]:
        """About `count` indices, evenly over all texts."""
        return list(range(0, len(self), max(1, len(self) // count)))

    def batch(self, index: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
        """Ids, mask [batch, longest] and surface [batch, s] of some texts."""
        own = [torch.tensor(self.framed[i].ids) for i in index]
        ids = pad_sequence(own, batch_first=True, padding_value=self.pad_id)
        mask = pad_sequence([torch.ones_like(each) for each in own], batch_first=True)
        return ids, mask, self.take(index).surface()

    def surface(self) -> Tensor:
        """Surface features of all texts, [rows, s]."""
        return torch.tensor([framed.surface for framed in self.framed], dtype=torch.float32)

    def by_length(self, size: int) -> Iterator[list[int]]:
        """Batches of texts of similar length, so that little is padded; every row once."""
        order = sorted(range(len(self)), key=lambda i: len(self.framed[i].ids))
        for start in range(0, len(order), size):
            yield order[start : start + size]

    def shuffled(self, size: int, rng: random.Random) -> list[list[int]]:
        """Batches for one epoch: texts of similar length together, in random order."""
        order = list(range(len(self)))
        rng.shuffle(order)
        order.sort(key=lambda i: len(self.framed[i].ids) // LENGTH_JITTER)
        batches = [order[start : start + size] for start in range(0, len(order), size)]
        rng.shuffle(batches)
        return batches
