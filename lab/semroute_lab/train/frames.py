"""Texts to padded tensors, framed by the very code that frames them in serving."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from semroute_extproc.encoder.preprocess import Framed, Framer

LENGTH_JITTER = 4
"""Texts within this many tokens count as equally long when batches are drawn."""


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

    def batch(self, index: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
        """Ids, mask [batch, longest] and surface [batch, s] of some texts."""
        longest = max(len(self.framed[i].ids) for i in index)
        ids = np.full((len(index), longest), self.pad_id, dtype=np.int64)
        mask = np.zeros((len(index), longest), dtype=np.int64)
        for row, i in enumerate(index):
            own = self.framed[i].ids
            ids[row, : len(own)] = own
            mask[row, : len(own)] = 1
        return torch.from_numpy(ids), torch.from_numpy(mask), self.surface(index)

    def surface(self, index: Sequence[int] | None = None) -> Tensor:
        """Surface features [rows, s] of some texts, or of all."""
        rows = self.framed if index is None else [self.framed[i] for i in index]
        return torch.tensor([framed.surface for framed in rows], dtype=torch.float32)

    def by_length(self, size: int) -> Iterator[list[int]]:
        """Batches of neighbours in length, so that little is padded; every row once."""
        order = sorted(range(len(self)), key=lambda i: len(self.framed[i].ids))
        for start in range(0, len(order), size):
            yield order[start : start + size]

    def shuffled(self, index: Sequence[int], size: int, rng: random.Random) -> list[list[int]]:
        """Batches of `index` for one epoch: neighbours in length together, in random order."""
        order = list(index)
        rng.shuffle(order)
        order.sort(key=lambda i: len(self.framed[i].ids) // LENGTH_JITTER)
        batches = [order[start : start + size] for start in range(0, len(order), size)]
        rng.shuffle(batches)
        return batches
