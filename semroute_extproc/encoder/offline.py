"""Signals for many texts without a server: for `semroute score` and for evaluation."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

from semroute_extproc import bundle as bundles
from semroute_extproc.bundle import Bundle, Device
from semroute_extproc.encoder.onnx import OnnxModel
from semroute_extproc.language import language_of
from semroute_extproc.signals import Signals, calibrate

CHUNK = 256
"""Texts in flight at once: bounds the memory whatever the size of the input."""


class Scorer:
    """A loaded bundle that scores texts, one a pass on every core, exactly as the server does.

    Dynamic int8 quantisation takes its range from the whole batch, so batching unlike texts on
    the CPU would change the figures and not make them faster.
    """

    def __init__(self, bundle: Bundle, device: Device = "cpu", lanes: int = 0) -> None:
        """`lanes` threads, by default one a core."""
        self.bundle = bundle
        self._model = OnnxModel(bundle, device, threads=1)
        self._lanes = lanes or os.cpu_count() or 1

    def score(self, text: str) -> Signals:
        """Signals of one text."""
        framed = self._model.framer.frame(text)
        return calibrate(self.bundle, self._model.run([framed])[0], language_of(text))

    def score_all(self, texts: Iterable[str]) -> Iterator[Signals]:
        """Signals of `texts`, in order, lazily."""
        source = iter(texts)
        with ThreadPoolExecutor(self._lanes) as pool:
            while chunk := list(islice(source, CHUNK)):
                yield from pool.map(self.score, chunk)


def score_texts(bundle_dir: Path, texts: Iterable[str], device: Device = "cpu") -> list[Signals]:
    """Load the bundle in `bundle_dir` and score `texts` in order; raises BundleError."""
    return list(Scorer(bundles.load(bundle_dir, (device,)), device).score_all(texts))
