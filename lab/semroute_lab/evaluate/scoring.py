"""Scores of texts under a bundle, as arrays: the one place where evaluation meets the runtime."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from semroute_extproc.encoder.offline import Scorer
from semroute_extproc.encoder.signals import Signals, entropy
from semroute_lab.evaluate.metrics.arrays import Floats

Progress = Callable[[Iterable[Signals], int], Iterable[Signals]]
"""Passes signals through while it shows how many of a total have come."""


@dataclass(frozen=True, slots=True)
class Scores:
    """What a bundle says of n texts, in their order."""

    labels: tuple[str, ...]
    domain: Floats
    """Calibrated probabilities of the labels; shape (n, labels)."""
    difficulty: Floats
    """Calibrated probability that only the strong model answers well; shape (n,)."""
    similarity: Floats
    """Cosine to the nearest centroid of known text, low for unknown text; shape (n,)."""
    embedding: npt.NDArray[np.float32]
    """Rows of length 1; shape (n, d)."""
    neighbours: npt.NDArray[np.float32]
    """What artifacts of strategies are fitted on, rows of length 1; shape (n, d)."""
    unknown: npt.NDArray[np.bool_]
    """Text that is out of distribution for the bundle; shape (n,)."""

    def take(self, rows: Sequence[int] | npt.NDArray[np.int64]) -> Scores:
        """The scores of some rows, in that order."""
        index = np.asarray(rows, dtype=np.int64)
        return Scores(
            self.labels,
            self.domain[index],
            self.difficulty[index],
            self.similarity[index],
            self.embedding[index],
            self.neighbours[index],
            self.unknown[index],
        )

    def domain_of(self) -> list[str]:
        """The most probable label of each text."""
        return [self.labels[i] for i in np.argmax(self.domain, axis=1)]

    def expert(self, max_entropy: float) -> npt.NDArray[np.int64]:
        """The label by which the strategy `intent` chooses, as an index; -1 where it abstains; (n,)."""
        uncertain = np.asarray([entropy(p) > max_entropy for p in self.domain.tolist()], dtype=np.bool_)
        label = np.argmax(self.domain, axis=1).astype(np.int64)
        return np.where(self.unknown | uncertain, np.int64(-1), label)


@dataclass(frozen=True, slots=True)
class Source:
    """A loaded bundle that scores texts exactly as the server does on a CPU."""

    scorer: Scorer
    progress: Progress

    def describe(self) -> dict[str, object]:
        """What a report says of the bundle."""
        manifest = self.scorer.bundle.manifest
        return {"name": manifest.name, "version": manifest.version, "revision": self.scorer.bundle.revision}

    @property
    def quantiles(self) -> Sequence[float]:
        """The difficulty at 0, 1, … 100 % of the bundle's reference traffic."""
        return self.scorer.bundle.manifest.difficulty.quantiles

    def score(self, texts: Sequence[str]) -> Scores:
        """Score `texts`; identical texts are run once."""
        distinct = list(dict.fromkeys(texts))
        found = list(self.progress(self.scorer.score_all(distinct), len(distinct)))
        place = {text: row for row, text in enumerate(distinct)}
        labels = self.scorer.bundle.manifest.domain.labels
        return _as_arrays(labels, found).take([place[text] for text in texts])


def open_bundle(directory: Path, progress: Progress) -> Source:
    """Load the bundle in `directory`; raises BundleError."""
    return Source(Scorer.of(directory), progress)


def _as_arrays(labels: tuple[str, ...], signals: Sequence[Signals]) -> Scores:
    return Scores(
        labels,
        np.asarray([[one.domain_probs[label] for label in labels] for one in signals], dtype=np.float64),
        np.asarray([one.difficulty for one in signals], dtype=np.float64),
        np.asarray([one.similarity for one in signals], dtype=np.float64),
        np.asarray([one.embedding for one in signals], dtype=np.float32),
        np.asarray([one.neighbours for one in signals], dtype=np.float32),
        np.asarray([one.unknown for one in signals], dtype=np.bool_),
    )
