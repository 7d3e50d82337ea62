"""Files that strategies name: found beside the configuration, and told by place when they are not right."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from builders import BUNDLE, MANIFEST
from semroute_lab.common.writing import write_artifact, write_json

from semroute_extproc.config import source as config_source
from semroute_extproc.errors import ConfigError
from semroute_extproc.serve import build
from semroute_extproc.strategies import registry
from semroute_extproc.strategies.artifact import ArtifactManifest
from semroute_extproc.strategies.clusters import ClustersArtifact
from semroute_extproc.strategies.profiles import Profile

YAML = """\
pools:
  a: {cluster: a, model: m-a, price: {input: 1, output: 1}}
  b: {cluster: b, model: m-b, price: {input: 2, output: 2}}
default_pool: a
models: {auto: {policy: p}}
policies: {p: {otherwise: {strategy: s}}}
strategies:
  s:
    kind: clusters
    artifact: fitted/c.npz
    profiles: profiles
"""


def artifact(revision: str = MANIFEST.revision, dimensions: int = 4) -> ClustersArtifact:
    manifest = ArtifactManifest(
        kind="clusters", bundle="test", revision=revision, dimensions=dimensions, rows=9
    )
    return ClustersArtifact(manifest, np.eye(2, dimensions, dtype=np.float32), None, ("one", "two"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "fitted").mkdir()
    (tmp_path / "profiles").mkdir()
    (tmp_path / "semroute.yaml").write_text(YAML)
    write_artifact(tmp_path / "fitted" / "c.npz", artifact())
    profile = Profile(model="m-a", clusters=artifact().digest, answers=(5, 5), errors=(1, 2))
    write_json(tmp_path / "profiles" / "m-a.json", profile)
    return tmp_path


def problems(folder: Path) -> list[str]:
    loaded = config_source.load(folder / "semroute.yaml", {})
    with pytest.raises(ConfigError) as error:
        build.make_policies(loaded, BUNDLE)
    return error.value.problems


def test_relative_paths_are_meant_from_the_configurations_folder(
    folder: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    loaded = config_source.load(folder / "semroute.yaml", {})
    files, found = registry.read_files(loaded.config.strategies)
    assert not found
    assert set(files["s"]["profiles"]()) == {"m-a"}
    assert set(build.make_policies(loaded, BUNDLE)) == {"p"}


def test_a_missing_artifact_is_told_at_its_line(folder: Path) -> None:
    (folder / "fitted" / "c.npz").unlink()
    [problem] = problems(folder)
    assert "semroute.yaml:10:5: strategies.s.artifact: " in problem
    assert f"{folder}/fitted/c.npz: no such file" in problem


def test_a_stale_artifact_is_told_with_both_bundles(folder: Path) -> None:
    write_artifact(folder / "fitted" / "c.npz", artifact("a" * 12))
    [problem] = problems(folder)
    assert "was fitted on bundle test aaaaaaaaaaaa" in problem
    assert f"test {MANIFEST.revision}" in problem


def test_a_missing_directory_of_profiles_and_a_bad_profile_are_told(folder: Path) -> None:
    (folder / "profiles" / "m-a.json").write_text("{}")
    assert "m-a.json: " in problems(folder)[0]
    (folder / "profiles" / "m-a.json").unlink()
    (folder / "profiles").rmdir()
    assert "no such directory" in problems(folder)[0]


def test_a_file_that_is_replaced_changes_the_fingerprint(folder: Path) -> None:
    config = config_source.load(folder / "semroute.yaml", {}).config
    before = registry.fingerprint(config.strategies)
    assert registry.fingerprint(config.strategies) == before
    write_artifact(folder / "fitted" / "c.npz", artifact(dimensions=5))
    assert registry.fingerprint(config.strategies) != before
