"""Scores of texts under a bundle, as arrays: the only place where evaluation runs the encoder."""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from semroute_extproc.cli.score import text_of_body
from semroute_extproc.encoder.bundle import default_bundle
from semroute_extproc.serve.offline import Scorer
from semroute_lab.common.embedding import signals_of
from semroute_lab.common.metrics import Booleans, Floats, Integers, Vectors
from semroute_lab.common.tables import Table

Report = dict[str, Any]
NONE = np.zeros(0, dtype=np.float32)  # In place of an embedding
SHARE = 0.3  # Strong share of the example configuration
PERCENTILES = np.linspace(0.0, 1.0, 101)

ROWS: dict[str, dict[str, dict[str, str]]] = tomllib.loads(
    Path(__file__).with_name("rows.toml").read_text(encoding="utf-8")
)
"""Kind of report to row to its description, in the order of the report."""


@dataclass(frozen=True, slots=True)
class Scores:
    """A bundle's output for n texts, in their order."""

    labels: tuple[str, ...]
    domain: Floats  # Calibrated probabilities of the labels; shape (n, labels)
    difficulty: Floats  # Calibrated probability that only the strong model answers well; shape (n,)
    similarity: Floats  # Cosine to the nearest centroid of known text, low for unknown text; shape (n,)
    embedding: Vectors  # Rows of length 1; shape (n, d), or (n, 0) if several bundles scored
    neighbors: Vectors  # The embedding that artifacts are fitted on, rows of length 1; shape (n, d)
    unknown: Booleans  # Text that is out of distribution for the bundle; shape (n,)

    def take(self, rows: Sequence[int] | Integers) -> Scores:
        """The scores of some rows, in that order."""
        index = np.asarray(rows, dtype=np.int64)
        return Scores(self.labels, *(getattr(self, field.name)[index] for field in fields(self)[1:]))

    def expert(self, max_entropy: float) -> Integers:
        """The label by which the strategy `intent` chooses, as an index; -1 where it abstains; (n,)."""
        p = np.clip(self.domain, np.finfo(np.float64).tiny, 1.0)
        entropy = -(p * np.log(p)).sum(axis=1) / np.log(len(self.labels))
        label = np.argmax(self.domain, axis=1).astype(np.int64)
        return np.where(self.unknown | (entropy > max_entropy), np.int64(-1), label)


@dataclass(frozen=True, slots=True)
class Source:
    """A loaded bundle that scores texts exactly as the server does on a CPU."""

    scorer: Scorer

    def describe(self) -> dict[str, object]:
        """The `bundle` section of a report."""
        manifest = self.scorer.bundle.manifest
        return {"name": manifest.name, "version": manifest.version, "revision": manifest.revision}

    @property
    def quantiles(self) -> Sequence[float]:
        """The difficulty at 0, 1, … 100 % of the bundle's reference traffic."""
        return self.scorer.bundle.manifest.difficulty.quantiles

    def score(self, texts: Sequence[str]) -> Scores:
        """Score `texts`; identical texts run once."""
        found = signals_of(self.scorer, texts, "scoring")
        labels = self.scorer.bundle.manifest.domain.labels
        domain = np.asarray([[one.domain_probs[label] for label in labels] for one in found], np.float64)
        types: dict[str, Any] = {"embedding": np.float32, "neighbors": np.float32, "unknown": np.bool_}
        names = [field.name for field in fields(Scores)[2:]]
        if len({one.revision for one in found}) > 1:  # embeddings of different bundles cannot be compared
            found = [dataclasses.replace(one, embedding=NONE, neighbors=NONE) for one in found]
        others: Any = ([getattr(one, name) for one in found] for name in names)
        typed = zip(others, names, strict=True)
        return Scores(labels, domain, *(np.asarray(x, types.get(name, np.float64)) for x, name in typed))


def open_bundle(directory: Path | None, every_language: bool = False) -> Source:
    """Load the bundle in `directory`, by default the shipped one; raises BundleError.

    With `every_language`, the shipped bundles score together, each its languages, as in the server.
    """
    return Source(Scorer.of(directory or (None if every_language else default_bundle())))


def judged(table: Table, bodies: Iterable[tuple[str, object]]) -> list[str]:
    """The text that the server classifies for each row, from its column's name and its request body.

    DataError names the row and the column.
    """
    texts = []
    for row, (column, body) in enumerate(bodies):
        try:
            texts.append(text_of_body(body))
        except ValueError as error:
            raise table.error(column, str(error), row) from None
    return texts


def described(kind: str, name: str) -> dict[str, object]:
    """The fields that a row of a report begins with."""
    row = ROWS[kind][name]
    return {"name": name, "strategy": row.get("strategy"), "about": row["about"]}


def head(kind: str, table: Table, bundle: Mapping[str, object] | None, seed: int) -> dict[str, object]:
    """The fields that every report begins with; see `reports.md`."""
    splits = table.columns.get("split", [])
    counts = {split: splits.count(split) for split in sorted(set(splits))}
    data = {"file": table.path.name, "sha256": table.sha256, "rows": len(table), "splits": counts}
    return {"schema": 1, "kind": kind, "data": data, "bundle": bundle, "seed": seed}
