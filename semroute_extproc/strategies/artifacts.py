"""What `semroute fit` writes and strategies read: one `.npz` file for each artifact.

A file holds plain arrays and, as the string `manifest`, the JSON of `Manifest`: what it was fitted
on and with which bundle's embedding. It is written aside and renamed, so that it is whole or not
there. Nothing in it is executed when it is read.

    similarity     RouteLLM (arXiv 2406.18665): labelled prompts, ranked by similarity
    factorization  RouteLLM: vectors of models and a projection of prompts
    clusters       UniRoute (arXiv 2502.08773): K-means centroids (section 5.1) or a learned map (5.2)
"""

from __future__ import annotations

import hashlib
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from semroute_extproc.errors import ArtifactError
from semroute_extproc.io.files import write_whole

FORMAT = 1
"""The artifact format this package reads and writes."""

FILE_BYTES_MAX = 1024**3
"""Largest artifact."""

PROMPTS_MAX = 200_000
"""Most stored prompts of a similarity artifact: beyond it a decision takes too long."""

QUANTILES = 101
"""Quantiles of a score on reference prompts: at 0, 1, … 100 %."""

CLUSTERS_MAX = 4096
"""Most clusters of an artifact, all clusterings together."""

Floats = npt.NDArray[np.float32]
Kind = Literal["similarity", "factorization", "clusters"]


class Manifest(BaseModel):
    """What an artifact is and where it comes from."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: int = FORMAT
    kind: Kind
    bundle: str
    """Name of the bundle whose `neighbours` embedding it was fitted on."""
    revision: str
    """`Bundle.revision` of that bundle, twelve hexadecimal digits."""
    dimensions: int = Field(gt=0)
    """Length of the embedding."""
    rows: int = Field(ge=0)
    """Labelled prompts it was fitted on."""
    seed: int = 0
    data: str = ""
    """Name of the file of those prompts, without its directory."""
    data_sha256: str = ""
    licence: str = ""
    """What the operator says of the data's licence."""


@dataclass(frozen=True, slots=True)
class Similarity:
    """Labelled prompts of one pair of models."""

    manifest: Manifest
    embeddings: Floats
    """Shape (n, r), rows of length 1."""
    axes: Floats | None
    """Shape (r, d): principal axes on which cosines are taken; None for all of the embedding, r = d."""
    wins: Floats
    """Shape (n,): 1 where the strong model won, 0 where the weak one did, 0.5 for a tie."""
    gamma: float
    """Base of the weights γ^(1 + S); RouteLLM's is 10."""
    neighbours: int
    """How many of the most similar prompts count; 0 for all, as in RouteLLM."""
    quantiles: tuple[float, ...]
    """Of the score on prompts that it had not stored, ascending."""

    @property
    def digest(self) -> str:
        """Twelve hexadecimal digits that change with the scores."""
        setting = np.asarray([self.gamma, self.neighbours])
        return _digest(self.embeddings, self.wins, setting, *(() if self.axes is None else (self.axes,)))


@dataclass(frozen=True, slots=True)
class Factorization:
    """δ(M, q) = w · (v_M ⊙ (W x_q + b)): how well a model answers a prompt, on a scale of log-odds."""

    manifest: Manifest
    models: tuple[str, ...]
    vectors: Floats
    """Shape (models, r): v_M, with the paper's w₂ multiplied in."""
    projection: Floats
    """Shape (r, d): W."""
    bias: Floats
    """Shape (r,): b."""
    quantiles: tuple[float, ...]
    """Of P(strong wins) on prompts it was not fitted on, ascending, for the pair it was fitted for."""

    def pair_digest(self, strong: str, weak: str) -> str:
        """Twelve hexadecimal digits that change with the score of two of its models."""
        pair = self.vectors[[self.models.index(strong), self.models.index(weak)]]
        return _digest(pair, self.projection, self.bias)


@dataclass(frozen=True)
class Clusters:
    """Clusters of prompts, hard (K-means, one or more clusterings) or soft (a learned map).

    Without `bias` a prompt belongs to the nearest centroid of each clustering; with it, to all by
    softmax(centroids · x + bias) (UniRoute, equation 8), and there is one clustering.
    """

    manifest: Manifest
    centroids: Floats
    """Shape (k, d); the clusterings stand one after the other, k / clusterings rows each."""
    bias: Floats | None
    """Shape (k,), or None for K-means."""
    names: tuple[str, ...]
    """One for each cluster, for people."""
    clusterings: int = 1

    @cached_property
    def digest(self) -> str:
        """Twelve hexadecimal digits that change with the clusters; profiles carry them."""
        return _digest(self.centroids, *(() if self.bias is None else (self.bias,)))

    @cached_property
    def _offset(self) -> Floats:
        """What is added to centroids · x: the bias, or −|c|²/2, which makes the largest the nearest."""
        return self.bias if self.bias is not None else -(self.centroids**2).sum(axis=1) / np.float32(2.0)

    def membership(self, x: Floats) -> Floats:
        """How much each row of `x` (n, d) belongs to each cluster; (n, k), rows add up to 1."""
        scores: Floats = x @ self.centroids.T + self._offset
        if self.bias is not None:
            soft = np.exp(scores - scores.max(axis=1, keepdims=True))
            return np.asarray(soft / soft.sum(axis=1, keepdims=True), dtype=np.float32)
        runs = scores.reshape(len(x), self.clusterings, -1)
        hard = np.zeros_like(runs)
        np.put_along_axis(hard, runs.argmax(axis=2)[:, :, None], 1.0 / self.clusterings, axis=2)
        return hard.reshape(scores.shape)


def _digest(*arrays: npt.NDArray[Any]) -> str:
    found = hashlib.sha256()
    for array in arrays:
        found.update(array.tobytes())
    return found.hexdigest()[:12]


def save_similarity(path: Path, artifact: Similarity) -> None:
    """Write `path` whole or not at all; raises ArtifactError."""
    arrays = {
        "embeddings": artifact.embeddings.astype(np.float32),
        "wins": artifact.wins.astype(np.float32),
        "gamma": np.asarray(artifact.gamma),
        "neighbours": np.asarray(artifact.neighbours),
        "quantiles": np.asarray(artifact.quantiles),
    }
    if artifact.axes is not None:
        arrays["axes"] = artifact.axes.astype(np.float32)
    _save(path, artifact.manifest, arrays)


def load_similarity(path: Path) -> Similarity:
    """Read a `similarity` artifact; raises ArtifactError, naming the file and what is wrong."""
    manifest, arrays = _load(path, "similarity")
    axes = _floats(path, arrays, "axes", (None, manifest.dimensions)) if "axes" in arrays else None
    width = manifest.dimensions if axes is None else len(axes)
    embeddings = _floats(path, arrays, "embeddings", (None, width))
    n = len(embeddings)
    if not 0 < n <= PROMPTS_MAX:
        raise ArtifactError(f"{path}: {n} prompts, expected 1 to {PROMPTS_MAX}")
    wins = _floats(path, arrays, "wins", (n,))
    gamma = float(_floats(path, arrays, "gamma", ()).item())
    neighbours = _integer(path, arrays, "neighbours", 0)
    if wins.min() < 0.0 or wins.max() > 1.0 or not gamma >= 1.0 or neighbours < 0:
        raise ArtifactError(f"{path}: wins outside 0..1, gamma below 1 or neighbours below 0")
    return Similarity(manifest, embeddings, axes, wins, gamma, neighbours, _quantiles(path, arrays))


def save_factorization(path: Path, artifact: Factorization) -> None:
    """Write `path` whole or not at all; raises ArtifactError."""
    _save(
        path,
        artifact.manifest,
        {
            "models": np.asarray(artifact.models),
            "vectors": artifact.vectors.astype(np.float32),
            "projection": artifact.projection.astype(np.float32),
            "bias": artifact.bias.astype(np.float32),
            "quantiles": np.asarray(artifact.quantiles),
        },
    )


def load_factorization(path: Path) -> Factorization:
    """Read a `factorization` artifact; raises ArtifactError, naming the file and what is wrong."""
    manifest, arrays = _load(path, "factorization")
    projection = _floats(path, arrays, "projection", (None, manifest.dimensions))
    rank = len(projection)
    vectors = _floats(path, arrays, "vectors", (None, rank))
    models = tuple(str(name) for name in arrays.get("models", np.empty(0)).ravel())
    if len(models) < 2 or len(models) != len(vectors) or len(set(models)) < len(models):
        raise ArtifactError(f"{path}: {len(models)} names for {len(vectors)} models")
    bias = _floats(path, arrays, "bias", (rank,))
    return Factorization(manifest, models, vectors, projection, bias, _quantiles(path, arrays))


def save_clusters(path: Path, artifact: Clusters) -> None:
    """Write `path` whole or not at all; raises ArtifactError."""
    arrays = {
        "centroids": artifact.centroids.astype(np.float32),
        "names": np.asarray(artifact.names),
        "clusterings": np.asarray(artifact.clusterings),
    }
    if artifact.bias is not None:
        arrays["bias"] = artifact.bias.astype(np.float32)
    _save(path, artifact.manifest, arrays)


def load_clusters(path: Path) -> Clusters:
    """Read a `clusters` artifact; raises ArtifactError, naming the file and what is wrong."""
    manifest, arrays = _load(path, "clusters")
    centroids = _floats(path, arrays, "centroids", (None, manifest.dimensions))
    k = len(centroids)
    bias = _floats(path, arrays, "bias", (k,)) if "bias" in arrays else None
    names = tuple(str(name) for name in arrays.get("names", np.arange(k)).ravel())
    clusterings = _integer(path, arrays, "clusterings", 1)
    if not 0 < k <= CLUSTERS_MAX:
        raise ArtifactError(f"{path}: {k} clusters, expected 1 to {CLUSTERS_MAX}")
    if len(names) != k:
        raise ArtifactError(f"{path}: {len(names)} names for {k} clusters")
    if clusterings < 1 or k % clusterings or (bias is not None and clusterings > 1):
        raise ArtifactError(f"{path}: {k} clusters do not make {clusterings} clusterings")
    return Clusters(manifest, centroids, bias, names, clusterings)


def _save(path: Path, manifest: Manifest, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
    def write(file: IO[bytes]) -> None:
        np.savez(file, allow_pickle=False, manifest=np.asarray(manifest.model_dump_json()), **arrays)

    write_whole(path, write)


def kind_of(path: Path) -> Kind:
    """Which kind of artifact `path` is; raises ArtifactError."""
    return _load(path, None)[0].kind


def _load(path: Path, kind: Kind | None) -> tuple[Manifest, dict[str, npt.NDArray[Any]]]:
    try:
        if (size := path.stat().st_size) > FILE_BYTES_MAX:
            raise ArtifactError(f"{path}: {size} bytes, at most {FILE_BYTES_MAX} are read")
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except FileNotFoundError:
        raise ArtifactError(f"{path}: no such file; `semroute fit {kind or 'KIND'}` writes it") from None
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be read: {error.strerror or error}") from None
    # What numpy and the zip library raise for damaged bytes: of a format or encryption they cannot read too.
    except (ValueError, AttributeError, TypeError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error):
        raise ArtifactError(f"{path}: not an artifact of `semroute fit`") from None
    try:
        manifest = Manifest.model_validate_json(str(arrays.pop("manifest")))
    except (KeyError, ValidationError):
        raise ArtifactError(f"{path}: not an artifact of `semroute fit`: no manifest in it") from None
    if manifest.format != FORMAT:
        raise ArtifactError(f"{path}: format {manifest.format} is not {FORMAT}, the one this version reads")
    if kind is not None and manifest.kind != kind:
        raise ArtifactError(f"{path}: is a {manifest.kind} artifact, expected {kind}")
    return manifest, arrays


def _quantiles(path: Path, arrays: Mapping[str, npt.NDArray[Any]]) -> tuple[float, ...]:
    found = _floats(path, arrays, "quantiles", (QUANTILES,))
    if (np.diff(found) < 0.0).any() or found[0] < 0.0 or found[-1] > 1.0:
        raise ArtifactError(f"{path}: quantiles do not ascend within 0..1")
    return tuple(found.tolist())


def _integer(path: Path, arrays: Mapping[str, npt.NDArray[Any]], name: str, default: int) -> int:
    found = arrays.get(name, np.asarray(default))
    if not isinstance(found, np.ndarray) or found.dtype.kind not in "iu" or found.shape:
        raise ArtifactError(f"{path}: {name} is not an integer")
    return int(found)


def _floats(
    path: Path, arrays: Mapping[str, npt.NDArray[Any]], name: str, shape: tuple[int | None, ...]
) -> Floats:
    """The array of that name as float32, of the given shape (None: any length) and finite."""
    if name not in arrays:
        raise ArtifactError(f"{path}: no array {name!r} in it")
    found = np.asarray(arrays[name])
    wanted = tuple(
        actual if expected is None else expected for actual, expected in zip(found.shape, shape, strict=False)
    )
    if found.dtype.kind != "f" or found.ndim != len(shape) or found.shape != wanted:
        expected = " x ".join("any" if length is None else str(length) for length in shape)
        raise ArtifactError(f"{path}: {name} is {found.dtype} of shape {found.shape}, expected {expected}")
    if not np.isfinite(found).all():
        raise ArtifactError(f"{path}: {name} holds numbers that are not finite")
    return np.ascontiguousarray(found, dtype=np.float32)
