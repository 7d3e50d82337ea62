"""A bundle's graph on a GPU: a few shapes that recur, and smaller passes when memory is short.

A large batch is split into passes of texts of similar length, so that short texts are not padded to the
longest. Each pass is padded to one of a few lengths, because ONNX Runtime plans its memory once per shape.
A pass that does not fit the device's memory is halved until it fits, and passes stay that small for a
while. Every other failure is left to the caller.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import Any

import structlog

from semroute_extproc.encoder.bundle import Bundle
from semroute_extproc.encoder.manifest import Device
from semroute_extproc.encoder.onnx import OnnxModel
from semroute_extproc.encoder.preprocess import Framed
from semroute_extproc.encoder.signals import RawOutput
from semroute_extproc.errors import ConfigError
from semroute_extproc.events import OutOfMemory

BATCH_MAX = 128
"""Most texts per pass."""

BATCH_TOKENS_MAX = 16_384
"""Most tokens per pass, padding included (texts x padded length)."""

LENGTH_MIN = 16
"""Shortest padded length; the others are 24, 32, 48, 64, 96 … so that at most a third is padding."""

SMALL_PASS_SECONDS = 30.0
"""How long passes stay small after one did not fit; then a large one is tried again."""

OUT_OF_MEMORY = ("out of memory", "failed to allocate memory", "alloc_failed", "memoryallocation")
"""Messages of ONNX Runtime's arena, CUDA and cuBLAS, in lower case; their exceptions share no class."""

log = structlog.get_logger("semroute.encoder")


class CudaModel(OnnxModel):
    """A bundle's graph on a GPU. `run` is thread-safe and takes any number of texts."""

    def __init__(
        self, bundle: Bundle, session: Any = None, now: Callable[[], float] = time.monotonic
    ) -> None:
        """Create the session, unless one is given; raises ConfigError or BundleError."""
        self._lengths = padded_lengths(bundle.manifest.encoder.window)
        self._now = now
        self._texts_max = BATCH_MAX
        self._small_until = 0.0
        super().__init__(bundle, "cuda", session)

    def warm_up(self) -> None:
        """Run every padded length with one text, and the largest pass, which reserves its memory.

        Raises ConfigError if the device cannot do it.
        """
        surface = self.framer.frame("word").surface
        shapes = [(1, length) for length in self._lengths] + [(BATCH_MAX, self._lengths[-1])]
        try:
            for texts, length in shapes:
                ids = [self.bundle.manifest.encoder.unk_id] * length
                self.run([Framed(ids, surface, length, False, 0.0)] * texts)
        except Exception as error:  # ONNX Runtime's own exceptions share no public base
            raise ConfigError([f"encoder.device: cuda: the first pass failed: {error}"]) from error

    def run(self, batch: Sequence[Framed]) -> list[RawOutput]:
        """Run `batch` in as many passes as needed; the outputs are in its order."""
        outputs: dict[int, RawOutput] = {}
        for group in self._groups(batch):
            outputs.update(zip(group, self._run_group([batch[index] for index in group]), strict=True))
        return [outputs[index] for index in range(len(batch))]

    def _groups(self, batch: Sequence[Framed]) -> list[list[int]]:
        """Indices of texts of similar length, each group within `BATCH_TOKENS_MAX`."""
        groups: list[list[int]] = [[]]
        for index in sorted(range(len(batch)), key=lambda index: len(batch[index].ids)):
            if groups[-1] and (len(groups[-1]) + 1) * self._width(len(batch[index].ids)) > BATCH_TOKENS_MAX:
                groups.append([])
            groups[-1].append(index)
        return groups

    def _run_group(self, group: Sequence[Framed]) -> list[RawOutput]:
        """One pass, or several smaller ones if memory is short."""
        outputs: list[RawOutput] = []
        while len(outputs) < len(group):
            if self._now() > self._small_until:
                self._texts_max = BATCH_MAX
            part = group[len(outputs) : len(outputs) + self._texts_max]
            try:
                outputs += super().run(part)
            except Exception as error:
                if len(part) == 1 or not is_out_of_memory(error):
                    raise
                self._halve(len(part) // 2, error)
        return outputs

    def _halve(self, texts: int, error: Exception) -> None:
        self._texts_max = texts
        self._small_until = self._now() + SMALL_PASS_SECONDS
        log.warning("gpu.out_of_memory", texts_per_pass=texts, seconds=SMALL_PASS_SECONDS, error=str(error))
        self.emit(OutOfMemory(self.bundle.manifest.name))

    def _width(self, longest: int) -> int:
        return self._lengths[bisect_left(self._lengths, longest)]


def open_model(bundle: Bundle, device: Device) -> OnnxModel:
    """A bundle's model on a device, warmed up; raises BundleError or ConfigError."""
    model = CudaModel(bundle) if device == "cuda" else OnnxModel(bundle, device)
    model.warm_up()
    return model


def padded_lengths(window: int) -> list[int]:
    """The padded lengths for a window, ascending; the window itself is the last."""
    lengths, power = [], LENGTH_MIN
    while power < window:
        lengths += [power, power * 3 // 2]
        power *= 2
    return [*(length for length in lengths if length < window), window]


def is_out_of_memory(error: Exception) -> bool:
    """Whether the device had no memory for a pass."""
    message = str(error).lower()
    return isinstance(error, MemoryError) or any(words in message for words in OUT_OF_MEMORY)
