"""A bundle's graph on a GPU: a fixed set of shapes, and smaller passes when memory is short.

A pass groups texts of similar length and pads them to one of a few lengths, because ONNX Runtime plans
memory once per shape. A pass that runs out of memory is halved until it fits, and later passes keep that
size for `SMALL_PASS_SECONDS`. Every other failure is raised to the caller.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from pathlib import Path
from time import monotonic
from typing import Any

import structlog

from semroute_extproc.encoder.bundle import DEFAULT, Bundle
from semroute_extproc.encoder.manifest import Device
from semroute_extproc.encoder.onnx import OnnxModel
from semroute_extproc.encoder.preprocess import Framed
from semroute_extproc.encoder.signals import RawOutput
from semroute_extproc.errors import ConfigError
from semroute_extproc.events import OutOfMemory

BATCH_MAX, BATCH_TOKENS_MAX = 128, 16_384  # texts per pass, and tokens with padding (texts x padded length)
LENGTH_MIN = 16  # padded length; the others are 24, 32, 48, 64, 96 … so that at most a third is padding
SMALL_PASS_SECONDS = 30.0  # that passes stay small after running out of memory
OUT_OF_MEMORY = ("out of memory", "failed to allocate memory", "alloc_failed", "memoryallocation")
"""In the messages of ONNX Runtime's arena, CUDA and cuBLAS; their exceptions share no class."""

log = structlog.get_logger("semroute.encoder")


class CudaModel(OnnxModel):
    """A bundle's graph on a GPU. `run` is thread-safe and takes any number of texts."""

    def __init__(self, bundle: Bundle, session: Any = None) -> None:
        self._lengths = padded_lengths(bundle.manifest.encoder.window)
        self._texts_max, self._small_until = BATCH_MAX, 0.0
        super().__init__(bundle, "cuda", session)

    def warm_up(self) -> None:
        """Run each padded length, and the largest pass to reserve its memory; raises ConfigError."""
        surface, unk_id = self.framer.frame("word").surface, self.bundle.manifest.encoder.unk_id
        passes = [[Framed([unk_id] * length, surface, length, False, 0.0)] for length in self._lengths]
        try:
            for batch in (*passes, passes[-1] * BATCH_MAX):
                self.run(batch)
        except Exception as error:  # ONNX Runtime's own exceptions share no public base
            raise ConfigError([f"encoder.device: cuda: the first pass failed: {error}"]) from error

    def run(self, batch: Sequence[Framed]) -> list[RawOutput]:
        """Run `batch` in passes of texts of similar length; the outputs are in its order."""
        order = sorted(range(len(batch)), key=lambda index: len(batch[index].ids))
        outputs: list[RawOutput] = []
        while len(outputs) < len(batch):
            if monotonic() > self._small_until:
                self._texts_max = BATCH_MAX
            part = [batch[index] for index in order[len(outputs) : len(outputs) + self._texts_max]]
            tokens = [count * self._width(len(framed.ids)) for count, framed in enumerate(part, 1)]
            part = part[: bisect_right(tokens, BATCH_TOKENS_MAX)]
            try:
                outputs += super().run(part)
            except Exception as error:
                if len(part) == 1 or not is_out_of_memory(error):
                    raise
                self._halve(len(part) // 2, error)
        by_index = dict(zip(order, outputs, strict=True))
        return [by_index[index] for index in range(len(batch))]

    def _halve(self, texts: int, error: Exception) -> None:
        self._texts_max, self._small_until = texts, monotonic() + SMALL_PASS_SECONDS
        log.warning("gpu.out_of_memory", texts_per_pass=texts, seconds=SMALL_PASS_SECONDS, error=str(error))
        self.emit(OutOfMemory(self.bundle.manifest.name))

    def _width(self, longest: int) -> int:
        return self._lengths[bisect_left(self._lengths, longest)]


def open_model(bundle: Bundle, device: Device) -> OnnxModel:
    """A bundle's model on a device, warmed up; raises BundleError or ConfigError."""
    model = CudaModel(bundle) if device == "cuda" else OnnxModel(bundle, device)
    model.warm_up()
    return model


def open_each(bundles: Mapping[str, Bundle], device: Device) -> dict[str, OnnxModel]:
    """Language to model, warmed up, of `load_each`'s bundles; raises BundleError or ConfigError."""
    opened: dict[Path, OnnxModel] = {}
    # The default bundle must support the device. Another bundle without a graph for it runs on the CPU.
    for language, each in sorted(bundles.items()):
        if each.path not in opened:
            able = language == DEFAULT or device in each.manifest.graphs
            opened[each.path] = open_model(each, device if able else "cpu")
    return {language: opened[each.path] for language, each in bundles.items()}


def padded_lengths(window: int) -> list[int]:
    """The padded lengths for a window, ascending; the window itself is the last."""
    powers = [LENGTH_MIN << n for n in range(window.bit_length())]
    return sorted({min(length, window) for power in powers for length in (power, power * 3 // 2)})


def is_out_of_memory(error: Exception) -> bool:
    """Whether the device had no memory for a pass."""
    message = str(error).lower()
    return isinstance(error, MemoryError) or any(words in message for words in OUT_OF_MEMORY)
