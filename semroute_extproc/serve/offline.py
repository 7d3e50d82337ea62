"""Signals for many texts without a server: for `semroute score` and for evaluation."""

from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Self

from semroute_extproc.encoder.bundle import DEFAULT, default_bundle, language_bundles, load_each
from semroute_extproc.encoder.cuda import open_each
from semroute_extproc.encoder.manifest import Device
from semroute_extproc.encoder.onnx import OnnxModel
from semroute_extproc.encoder.signals import Signals, calibrate
from semroute_extproc.io.cores import usable_cores
from semroute_extproc.request.language import language_of

CHUNK = 256  # Texts in flight at once: bounds the memory for any size of input


class Scorer:
    """Scores texts exactly as the server does, one text per pass on every core.

    On the CPU a batch would change the figures (int8 takes its range from it) and would not be faster.
    """

    def __init__(self, default: OnnxModel, by_language: Mapping[str, OnnxModel]) -> None:
        self.bundle, self._default, self._by_language = default.bundle, default, by_language

    @classmethod
    def of(cls, bundle_dir: Path | None = None, device: Device = "cpu") -> Self:
        """The shipped bundles, or `bundle_dir` for every language; raises BundleError or ConfigError."""
        paths = language_bundles() if bundle_dir is None else {}
        paths[DEFAULT] = bundle_dir or default_bundle()
        models = open_each(load_each(paths, (device, "cpu")), device)
        return cls(models.pop(DEFAULT), models)

    @property
    def revisions(self) -> set[str]:
        """The revisions of its bundles."""
        return {model.bundle.revision for model in (self._default, *self._by_language.values())}

    def score(self, text: str) -> Signals:
        """Signals of one text."""
        language = language_of(text)
        model = self._by_language.get(language, self._default)
        return calibrate(model.bundle, model.run([model.framer.frame(text)])[0], language)

    def score_all(self, texts: Iterable[str]) -> Iterator[Signals]:
        """Signals of `texts`, in order, lazily."""
        source = iter(texts)
        with ThreadPoolExecutor(usable_cores()) as pool:
            while chunk := list(islice(source, CHUNK)):
                yield from pool.map(self.score, chunk)
