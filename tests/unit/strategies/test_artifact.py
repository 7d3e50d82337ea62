"""Artifacts: read as written, refused by name when something is wrong."""

from __future__ import annotations

import contextlib
import dataclasses
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from semroute_lab.common.writing import write_artifact

from semroute_extproc.errors import ArtifactError
from semroute_extproc.strategies.artifact import ArtifactFile, ArtifactManifest
from semroute_extproc.strategies.clusters import ClustersArtifact, read_clusters
from semroute_extproc.strategies.factorization import FactorizationArtifact, read_factorization
from semroute_extproc.strategies.similarity import SimilarityArtifact, read_similarity

QUANTILES = tuple(n / 100 for n in range(101))


def manifest(kind: Any, **changes: Any) -> ArtifactManifest:
    return ArtifactManifest(
        **{"kind": kind, "bundle": "b", "revision": "0" * 12, "dimensions": 2, "rows": 3, **changes}
    )


SIMILARITY = SimilarityArtifact(
    manifest("similarity"),
    np.asarray([[1, 0], [0, 1], [0.6, 0.8]], dtype=np.float32),
    None,
    np.asarray([1, 0, 0.5], dtype=np.float32),
    10.0,
    2,
    QUANTILES,
)
FACTORIZATION = FactorizationArtifact(
    manifest("factorization"),
    ("strong", "weak"),
    np.eye(2, 3, dtype=np.float32),
    np.ones((3, 2), dtype=np.float32),
    np.zeros(3, dtype=np.float32),
    QUANTILES,
)
CLUSTERS = ClustersArtifact(manifest("clusters"), np.eye(2, dtype=np.float32), None, ("a", "b"))


SOFT = dataclasses.replace(CLUSTERS, bias=np.log([3.0, 1.0]).astype(np.float32))


@pytest.mark.parametrize(
    ("artifact", "load"),
    [
        (SIMILARITY, read_similarity),
        (FACTORIZATION, read_factorization),
        (CLUSTERS, read_clusters),
        (SOFT, read_clusters),
    ],
)
def test_an_artifact_is_read_as_it_was_written(
    tmp_path: Path, artifact: Any, load: Callable[..., Any]
) -> None:
    file = tmp_path / "a.npz"
    write_artifact(file, artifact)
    found = load(file)
    assert found.manifest == artifact.manifest
    assert getattr(found, "names", None) == getattr(artifact, "names", None)
    assert digest(found) == digest(artifact)
    assert ArtifactFile(file).manifest.kind == artifact.manifest.kind
    assert [each.name for each in tmp_path.iterdir()] == ["a.npz"]


def digest(artifact: SimilarityArtifact | FactorizationArtifact | ClustersArtifact) -> str:
    pair = isinstance(artifact, FactorizationArtifact)
    return artifact.pair_digest("strong", "weak") if pair else artifact.digest


def test_an_artifact_of_another_kind_is_refused(tmp_path: Path) -> None:
    write_artifact(tmp_path / "a.npz", CLUSTERS)
    with pytest.raises(ArtifactError, match=r"a\.npz: is a clusters artifact, expected similarity"):
        read_similarity(tmp_path / "a.npz")


def test_a_missing_artifact_says_which_command_writes_it(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no such file; `semroute fit clusters` writes it"):
        read_clusters(tmp_path / "a.npz")


@pytest.mark.parametrize("content", [b"", b"not a zip", b"PK\x03\x04 half a zip"])
def test_what_is_no_artifact_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(ArtifactError, match=r"a\.npz: (not an artifact|cannot be read)"):
        read_clusters(tmp_path / "a.npz")


@pytest.mark.parametrize("write", [np.savez, np.savez_compressed])
def test_damage_anywhere_in_the_file_is_refused_or_harmless(
    tmp_path: Path, write: Callable[..., None]
) -> None:
    write_artifact(tmp_path / "a.npz", SIMILARITY)
    with np.load(tmp_path / "a.npz") as whole:
        write(tmp_path / "b.npz", **{name: whole[name] for name in whole.files})
    good = (tmp_path / "b.npz").read_bytes()
    rng = random.Random(0)
    for _ in range(500):
        damaged = bytearray(good)
        damaged[rng.randrange(len(good))] ^= 1 << rng.randrange(8)
        (tmp_path / "a.npz").write_bytes(damaged)
        with contextlib.suppress(ArtifactError):
            read_similarity(tmp_path / "a.npz")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"embeddings": np.ones((3, 4), dtype=np.float32)}, r"shape \(3, 4\), expected any x 2"),
        ({"wins": np.ones(2, dtype=np.float32)}, r"wins is float32 of shape \(2,\), expected 3"),
        ({"wins": np.full(3, np.nan, dtype=np.float32)}, "not finite"),
        ({"wins": np.full(3, 2.0, dtype=np.float32)}, "wins outside 0..1"),
        ({"gamma": np.asarray(0.5)}, "gamma below 1"),
        ({"quantiles": np.linspace(1, 0, 101)}, "quantiles do not ascend"),
        ({"quantiles": np.linspace(0, 1, 11)}, "expected 101"),
        ({"manifest": np.asarray("{}")}, "no manifest in it"),
        ({"embeddings": np.asarray([None], dtype=object)}, "not an artifact"),
        ({"neighbors": np.asarray([1, 2])}, "neighbors is not an integer"),
        ({"neighbors": np.asarray(np.nan)}, "neighbors is not an integer"),
    ],
)
def test_an_array_of_the_wrong_shape_or_range_is_named(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    file = tmp_path / "a.npz"
    write_artifact(file, SIMILARITY)
    with np.load(file) as whole:
        arrays = {**{name: whole[name] for name in whole.files}, **change}
    np.savez(file, **arrays)
    with pytest.raises(ArtifactError, match=message):
        read_similarity(file)


def test_the_digest_changes_with_every_array_that_scores() -> None:
    assert SOFT.digest != CLUSTERS.digest


def test_membership_of_a_learned_map_is_a_softmax_and_of_clusterings_their_mean() -> None:
    x = np.asarray([[1.0, 0.0]], dtype=np.float32)
    soft = dataclasses.replace(SOFT, centroids=np.zeros((2, 2), dtype=np.float32))
    assert soft.membership(x)[0] == pytest.approx([0.75, 0.25])
    twice = ClustersArtifact(
        CLUSTERS.manifest, np.eye(2, dtype=np.float32)[[0, 1, 1, 0]], None, tuple("abcd"), 2
    )
    assert twice.membership(x)[0] == pytest.approx([0.5, 0, 0, 0.5])
