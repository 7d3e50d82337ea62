"""Profiles: counts by cluster, whole files, and errors that name the file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from semroute_extproc.errors import ArtifactError
from semroute_extproc.strategies.artifact import ArtifactManifest, write_artifact
from semroute_extproc.strategies.clusters import ClustersArtifact, read_clusters
from semroute_extproc.strategies.profiles import Profile, read_profile, write_profile

MANIFEST = ArtifactManifest(kind="clusters", bundle="test", revision="0" * 12, dimensions=2, rows=4)
HARD = ClustersArtifact(MANIFEST, np.eye(2, dtype=np.float32), None, ("right", "up"))
SOFT = ClustersArtifact(
    MANIFEST, np.zeros((2, 2), dtype=np.float32), np.log([3.0, 1.0]).astype(np.float32), ("a", "b")
)


def profile(**changes: object) -> Profile:
    values = {"model": "m", "clusters": "0" * 12, "answers": (2.0, 1.0), "errors": (1.0, 0.0)}
    return Profile.model_validate({**values, **changes})


def test_a_profile_is_read_as_it_was_written(tmp_path: Path) -> None:
    write_profile(tmp_path / "m.json", profile(output_tokens=(5.0, None)))
    assert read_profile(tmp_path / "m.json") == profile(output_tokens=(5.0, None))
    assert [file.name for file in tmp_path.iterdir()] == ["m.json"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"errors": [3, 0]}, "cluster 0: 3 errors in 2 answers"),
        ({"errors": [1]}, "1 errors for 2 clusters"),
        ({"answers": [0, 0], "errors": [0, 0]}, "no answers at all"),
        ({"output_tokens": [1]}, "1 output_tokens for 2 clusters"),
        ({"clusters": "x"}, "clusters: "),
        ({"format": 2}, "format 2 is not 1"),
        ({"answers": [float("nan"), 1]}, "answers.0: Input should be a finite number"),
        ({"answers": [float("inf"), 1]}, "answers.0: Input should be a finite number"),
    ],
)
def test_a_wrong_profile_is_refused_by_name(tmp_path: Path, change: dict[str, object], message: str) -> None:
    file = tmp_path / "m.json"
    file.write_text(json.dumps({**profile().model_dump(), **change}))
    with pytest.raises(ArtifactError, match=message) as error:
        read_profile(file)
    assert str(file) in str(error.value)


def test_a_missing_profile_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"m\.json: no such file"):
        read_profile(tmp_path / "m.json")


def test_clusters_are_read_as_they_were_written(tmp_path: Path) -> None:
    for artifact in (HARD, SOFT):
        write_artifact(tmp_path / "c.npz", artifact)
        found = read_clusters(tmp_path / "c.npz")
        assert (found.manifest, found.names, found.digest) == (MANIFEST, artifact.names, artifact.digest)
    assert HARD.digest != SOFT.digest
