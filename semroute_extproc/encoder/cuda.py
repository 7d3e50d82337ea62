"""A bundle's graph on a GPU: shapes that come again, and passes that shrink when memory is short.

A pass of many texts is cut into passes of neighbours in length, so that short texts are not padded to
the longest, and each is padded to one of a few lengths: ONNX Runtime plans its memory once a shape. A
pass for which the device has no memory is halved until it fits, and passes stay that small for a
while. Every other failure is the caller's to deal with; `failures` counts them (see `failover`).
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import Any

import structlog

from semroute_extproc.encoder.bundle import Bundle, Device
from semroute_extproc.encoder.onnx import OnnxModel
from semroute_extproc.encoder.preprocess import Framed
from semroute_extproc.encoder.signals import RawOutput
from semroute_extproc.errors import ConfigError

BATCH_MAX = 128
"""Most texts of one pass."""

BATCH_TOKENS_MAX = 16_384
"""Most tokens of one pass, padding included (texts x padded length)."""

LENGTH_MIN = 16
"""Shortest padded length; the others are 24, 32, 48, 64, 96 … so that at most a third is padding."""

SHRUNK_SECONDS = 30.0
"""How long passes stay small after the device had no memory for one: then a large one is tried again."""

OUT_OF_MEMORY = ("out of memory", "failed to allocate memory", "alloc_failed", "memoryallocation")
"""What ONNX Runtime's arena, CUDA and cuBLAS say, in lower case; their exceptions share no class."""

log = structlog.get_logger("semroute.encoder")


class CudaModel(OnnxModel):
    """A bundle's graph on a GPU. `run` is thread-safe and takes any number of texts."""

    def __init__(self, bundle: Bundle, threads: int = 1) -> None:
        """Create the session; raises ConfigError without a usable device, BundleError without a graph."""
        super().__init__(bundle, "cuda", threads)
        self._lengths = padded_lengths(bundle.encoder.window)
        self.failures = 0
        """Calls of `run` in a row that failed."""
        self.on_out_of_memory: Callable[[], None] = lambda: None
        self._texts_max = BATCH_MAX
        self._shrunk_until = 0.0

    def warm_up(self) -> None:
        """Run every padded length with one text, and the largest pass, so that its memory is taken now.

        Raises ConfigError if the device cannot do it.
        """
        surface = self.framer.frame("word").surface
        shapes = [(1, length) for length in self._lengths] + [(BATCH_MAX, self._lengths[-1])]
        try:
            for texts, length in shapes:
                ids = [self.bundle.encoder.unk_id] * length
                self.run([Framed(ids, surface, length, False, 0.0)] * texts)
        except Exception as error:  # ONNX Runtime's own exceptions share no public base
            raise ConfigError([f"encoder.device: cuda: the first pass failed: {error}"]) from error

    def run(self, batch: Sequence[Framed]) -> list[RawOutput]:
        """As many passes over `batch` as it takes; the outputs are in its order."""
        outputs: dict[int, RawOutput] = {}
        try:
            for group in self._groups(batch):
                outputs.update(zip(group, self._run_group([batch[index] for index in group]), strict=True))
        except BaseException:
            self.failures += 1
            raise
        self.failures = 0
        return [outputs[index] for index in range(len(batch))]

    def close(self) -> None:
        """Free the device's memory, whoever else still knows this object; there is no pass after it."""
        del self._session

    def _groups(self, batch: Sequence[Framed]) -> list[list[int]]:
        """Indices of neighbours in length, each group within the tokens of a pass."""
        groups: list[list[int]] = [[]]
        for index in sorted(range(len(batch)), key=lambda index: len(batch[index].ids)):
            width = self._padded(len(batch[index].ids))
            if groups[-1] and (len(groups[-1]) + 1) * width > BATCH_TOKENS_MAX:
                groups.append([])
            groups[-1].append(index)
        return groups

    def _run_group(self, group: Sequence[Framed]) -> list[RawOutput]:
        """One pass, or several smaller ones where memory is short."""
        outputs: list[RawOutput] = []
        while len(outputs) < len(group):
            part = group[len(outputs) : len(outputs) + self._texts_now()]
            try:
                outputs += super().run(part)
            except Exception as error:
                if len(part) == 1 or not _is_out_of_memory(error):
                    raise
                self._shrink(len(part) // 2, error)
        return outputs

    def _texts_now(self) -> int:
        if self._texts_max < BATCH_MAX and time.monotonic() > self._shrunk_until:
            self._texts_max = BATCH_MAX
        return self._texts_max

    def _shrink(self, texts: int, error: Exception) -> None:
        self._texts_max = texts
        self._shrunk_until = time.monotonic() + SHRUNK_SECONDS
        self.on_out_of_memory()
        log.warning("gpu.out_of_memory", texts_a_pass=texts, seconds=SHRUNK_SECONDS, error=str(error))

    def _feeds(self, batch: Sequence[Framed], width: int = 0) -> dict[str, Any]:
        longest = max(len(framed.ids) for framed in batch)
        return super()._feeds(batch, max(width, self._padded(longest)))

    def _padded(self, length: int) -> int:
        return self._lengths[bisect_left(self._lengths, length)]


def open_model(bundle: Bundle, device: Device) -> OnnxModel:
    """A bundle's warm model on a device; raises BundleError or ConfigError."""
    model = CudaModel(bundle) if device == "cuda" else OnnxModel(bundle, device, threads=1)
    model.warm_up()
    return model


def padded_lengths(window: int) -> list[int]:
    """The padded lengths of a window, ascending; the window itself is the last."""
    lengths, power = [], LENGTH_MIN
    while power < window:
        lengths += [power, power * 3 // 2]
        power *= 2
    return [*(length for length in lengths if length < window), window]


def _is_out_of_memory(error: Exception) -> bool:
    said = str(error).lower()
    return isinstance(error, MemoryError) or any(words in said for words in OUT_OF_MEMORY)
