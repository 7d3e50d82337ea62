"""Signals for many texts without a server: for `semroute score` and for evaluation."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

from semroute_extproc.encoder import bundle as bundles
from semroute_extproc.encoder.bundle import Device
from semroute_extproc.encoder.cores import usable_cores
from semroute_extproc.encoder.cuda import open_model
from semroute_extproc.encoder.onnx import OnnxModel
from semroute_extproc.encoder.signals import Signals, calibrate
from semroute_extproc.request.language import language_of

CHUNK = 256
"""Texts in flight at once: bounds the memory whatever the size of the input."""


class Scorer:
    """Loaded bundles that score texts, one a pass on every core, exactly as the server does.

    Dynamic int8 quantisation takes its range from the whole batch, so batching unlike texts on
    the CPU would change the figures and not make them faster.
    """

    def __init__(self, default: OnnxModel, by_language: Mapping[str, OnnxModel], lanes: int = 0) -> None:
        """`by_language` has the models of single languages; `lanes` threads, by default one a core."""
        self.bundle = default.bundle
        self._default = default
        self._by_language = by_language
        self._lanes = lanes or usable_cores()

    @classmethod
    def of(cls, bundle_dir: Path | None = None, device: Device = "cpu", lanes: int = 0) -> Scorer:
        """The shipped bundles, or `bundle_dir` for every language; raises BundleError or ConfigError."""
        path = bundle_dir or bundles.default_bundle()
        default = open_model(bundles.load(path, (device,)), device)
        others: dict[str, OnnxModel] = {}
        if bundle_dir is None:
            for language, other in bundles.language_bundles().items():
                others[language] = open_model(bundles.load(other, ("cpu",)), "cpu")
        return cls(default, others, lanes)

    def score(self, text: str) -> Signals:
        """Signals of one text."""
        language = language_of(text)
        model = self._by_language.get(language, self._default)
        return calibrate(model.bundle, model.run([model.framer.frame(text)])[0], language)

    def score_all(self, texts: Iterable[str]) -> Iterator[Signals]:
        """Signals of `texts`, in order, lazily."""
        source = iter(texts)
        with ThreadPoolExecutor(self._lanes) as pool:
            while chunk := list(islice(source, CHUNK)):
                yield from pool.map(self.score, chunk)


def score_texts(bundle_dir: Path, texts: Iterable[str], device: Device = "cpu") -> list[Signals]:
    """Load the bundle in `bundle_dir` and score `texts` in order; raises BundleError."""
    return list(Scorer.of(bundle_dir, device).score_all(texts))
