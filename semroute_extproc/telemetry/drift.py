"""Drift: how the live texts differ from a reference.

The difficulty is compared with the bundle's reference traffic, whose quantiles the bundle has. No bundle
says which domains or embeddings its reference has, so these are compared with the first texts of the process.
"""

from bisect import bisect_right
from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from semroute_extproc.encoder.manifest import Manifest
from semroute_extproc.events import Decided, Event
from semroute_extproc.request.signals import Signals

BLOCK = 500  # Texts that are counted together
BLOCKS = 4  # The live window is the last complete blocks, the baseline the first ones of the process
SMOOTHING = 0.5  # Added to every count, so that an empty cell is finite
DECILES = 10
SMALL, LARGE = 0.1, 0.25  # Of a stability index, as it is commonly read; SemrouteDrift fires above LARGE.
MOVED_MAX = 5  # domains that are named

Readings = dict[tuple[str, ...], float]  # by bundle, what drifts and the reference
Counts = npt.NDArray[np.float64]


def stability_index(live: Counts, reference: Counts) -> float:
    """Population stability index of two counts of cells: sum of (p - q) ln(p / q), p live, q reference."""
    return float(_terms(live, reference).sum())


def _terms(live: Counts, reference: Counts) -> Counts:
    """What each cell adds to the index."""
    p, q = (((each + SMOOTHING) / (each + SMOOTHING).sum()) for each in (live, reference))
    terms: Counts = (p - q) * np.log(p / q)
    return terms


class BundleDrift:
    """The drift of the texts that one bundle reads; each block is one vector of counts and sums."""

    def __init__(self, manifest: Manifest) -> None:
        self.name, self._edges = manifest.name, manifest.difficulty.quantiles[10:100:10]
        self._domains = {label: DECILES + at for at, label in enumerate(manifest.domain.labels)}
        ends = np.cumsum([DECILES, len(self._domains), 2, manifest.encoder.dimensions]).tolist()
        names = ("difficulty", "domain", "unknown", "embedding")
        self._parts = dict(zip(names, map(slice, [0, *ends[:3]], ends), strict=True))
        self._known = ends[1]
        self._texts = 0
        self._begin()
        self._first: list[Counts] = []
        self._last = deque[Counts](maxlen=BLOCKS)

    def _begin(self) -> None:
        part = self._parts["embedding"]  # The rest is counted in a list, which is faster than an array.
        self._counts, self._sum = [0] * part.start, np.zeros(part.stop - part.start, np.float32)

    def add(self, signals: Signals) -> None:
        """Count a text."""
        counts = self._counts
        counts[bisect_right(self._edges, signals.difficulty)] += 1
        counts[self._domains[signals.domain]] += 1
        counts[self._known + signals.unknown] += 1
        if signals.neighbors is not None:
            self._sum += signals.neighbors
        self._texts += 1
        if self._texts % BLOCK == 0:
            block = np.concatenate([counts, self._sum])
            if len(self._first) < BLOCKS:
                self._first.append(block)
            self._last.append(block)
            self._begin()

    def readings(self) -> Readings:
        """What is known; another thread may call this."""
        first, last = list(self._first), list(self._last)
        if not last:
            return {}
        live = {name: np.sum(last, axis=0)[part] for name, part in self._parts.items()}
        bundles = np.full(DECILES, len(last) * BLOCK / DECILES)
        found: Readings = {(self.name, "difficulty", "bundle"): stability_index(live["difficulty"], bundles)}
        if len(first) == BLOCKS:
            base = {name: np.sum(first, axis=0)[part] for name, part in self._parts.items()}
            a, b = live.pop("embedding"), base["embedding"]
            cosine = a @ b / max(float(np.linalg.norm(a) * np.linalg.norm(b)), 1e-12)
            found |= {(self.name, of, "start"): stability_index(live[of], base[of]) for of in live}
            found[self.name, "embedding", "start"] = max(0.0, 1.0 - float(cosine))
        return found

    def shown(self) -> dict[str, Any]:
        """For the page: the readings, and the shares at the start and now of the domains that moved most."""
        first, last = list(self._first), list(self._last)
        readings = self.readings().items()
        rows = [(of, to, n, to == "start" and of != "embedding") for (_, of, to), n in readings]
        moved = list[tuple[str, float, float]]()
        if any(of == "domain" and index > SMALL for of, _, index, _ in rows):
            was, now = (np.sum(each, axis=0)[self._parts["domain"]] for each in (first, last))
            order, labels = np.argsort(-_terms(now, was))[:MOVED_MAX], [*self._domains]
            moved = [(labels[at], *(float(each[at] / each.sum()) for each in (was, now))) for at in order]
            moved = [each for each in moved if each[1] != each[2]]
        worst = max((index for _, _, index, limited in rows if limited), default=-1.0)
        return {"bundle": self.name, "texts": self._texts, "rows": rows, "moved": moved, "worst": worst}


class Drift:
    """The sink that counts every text with signals, by bundle."""

    def __init__(self, manifests: Mapping[str, Manifest]) -> None:
        """`manifests` has the bundles by revision."""
        self._bundles = {revision: BundleDrift(each) for revision, each in manifests.items()}

    def handle(self, event: Event) -> None:
        """Count a decision's text."""
        signals = event.outcome.signals if type(event) is Decided else None
        if signals is not None and signals.revision in self._bundles:
            self._bundles[signals.revision].add(signals)

    def readings(self) -> Readings:
        """The drift of every bundle's texts."""
        return {key: value for each in self._bundles.values() for key, value in each.readings().items()}

    def shown(self) -> list[dict[str, Any]]:
        """What the page shows of every bundle."""
        return [each.shown() for each in self._bundles.values()]
