"""Profiles: errors that name the file, and directories in which what is wrong changes nothing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from semroute_lab.common.writing import write_json

from semroute_extproc.errors import ArtifactError
from semroute_extproc.strategies.artifact import ArtifactManifest
from semroute_extproc.strategies.clusters import ClustersArtifact
from semroute_extproc.strategies.profiles import (
    Profile,
    ProfileDirectory,
    is_thin,
    read_profile,
    thin_warning,
)

MANIFEST = ArtifactManifest(kind="clusters", bundle="test", revision="0" * 12, dimensions=4, rows=10)
CLUSTERS = ClustersArtifact(MANIFEST, np.eye(4, dtype=np.float32), None, ("a", "b", "c", "d"))
OTHERS = ClustersArtifact(MANIFEST, 2 * np.eye(4, dtype=np.float32), None, ("a", "b", "c", "d"))


def profile(model: str = "m", wrong: float = 1.0, answers: float = 20.0, digest: str = "") -> Profile:
    return Profile(
        model=model, clusters=digest or CLUSTERS.digest, answers=(answers,) * 4, errors=(wrong,) * 4
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    found = tmp_path / "profiles"
    found.mkdir()
    return found


def test_every_json_file_is_a_profile(folder: Path) -> None:
    write_json(folder / "a.json", profile("m1"))
    write_json(folder / "b.json", profile("m2"))
    (folder / "README.md").write_text("x")
    (folder / "m1.answers.jsonl").write_text("{")
    (folder / ".c.json.part").write_text("{")
    (folder / ".hidden.json").write_text("{")
    subject = ProfileDirectory(folder, CLUSTERS.digest)
    assert set(subject()) == {"m1", "m2"}
    assert subject.problems == ()


def test_the_mapping_is_another_object_only_if_something_changed(folder: Path) -> None:
    write_json(folder / "a.json", profile())
    subject = ProfileDirectory(folder, CLUSTERS.digest)
    before = subject()
    assert not subject.refresh()
    assert subject() is before
    write_json(folder / "a.json", profile(wrong=2.0))
    assert subject.refresh()
    assert subject() is not before
    assert subject()["m"].errors == (2.0,) * 4


@pytest.mark.parametrize("text", ["", "{", '{"format": 1, "model": "m"', '{"format": 9}', "[]", "\x00" * 10])
def test_a_bad_file_keeps_what_it_said_when_it_was_good(folder: Path, text: str) -> None:
    write_json(folder / "a.json", profile())
    write_json(folder / "b.json", profile("other"))
    subject = ProfileDirectory(folder, CLUSTERS.digest)
    (folder / "a.json").write_text(text)
    assert subject.refresh()
    assert set(subject()) == {"m", "other"}
    [problem] = subject.problems
    assert str(folder / "a.json") in problem
    write_json(folder / "a.json", profile(wrong=3.0))
    assert subject.refresh()
    assert (subject()["m"].errors[0], subject.problems) == (3.0, ())


def test_a_file_that_is_written_slowly_counts_once_it_is_whole(folder: Path) -> None:
    subject = ProfileDirectory(folder, CLUSTERS.digest)
    write_json(folder.parent / "whole", profile())
    text = (folder.parent / "whole").read_text()
    (folder / "a.json").write_text(text[:50])
    assert subject.refresh()
    assert subject() == {}
    assert len(subject.problems) == 1
    (folder / "a.json").write_text(text)
    assert subject.refresh()
    assert set(subject()) == {"m"}


def test_a_profile_of_other_clusters_is_refused_with_both_named(folder: Path) -> None:
    write_json(folder / "a.json", profile(digest=OTHERS.digest))
    subject = ProfileDirectory(folder, CLUSTERS.digest)
    assert subject() == {}
    [problem] = subject.problems
    assert OTHERS.digest in problem
    assert CLUSTERS.digest in problem


def test_two_files_of_one_model_are_a_problem_and_the_first_by_name_counts(folder: Path) -> None:
    write_json(folder / "a.json", profile(wrong=1.0))
    write_json(folder / "b.json", profile(wrong=2.0))
    subject = ProfileDirectory(folder, CLUSTERS.digest)
    assert subject()["m"].errors[0] == 1.0
    assert "another file" in subject.problems[0]


def test_a_removed_file_takes_its_model_away_and_a_lost_directory_nobody(folder: Path) -> None:
    write_json(folder / "a.json", profile("m1"))
    write_json(folder / "b.json", profile("m2"))
    subject = ProfileDirectory(folder, CLUSTERS.digest)
    (folder / "a.json").unlink()
    assert subject.refresh()
    assert set(subject()) == {"m2"}
    folder.rename(folder.parent / "away")
    assert subject.refresh()
    assert set(subject()) == {"m2"}
    assert "cannot be read" in subject.problems[0]


def test_a_directory_that_is_not_there_is_an_error(folder: Path) -> None:
    with pytest.raises(ArtifactError, match="no such directory"):
        ProfileDirectory(folder / "nowhere", CLUSTERS.digest)


def test_a_thin_profile_says_how_thin() -> None:
    thin = Profile(model="m", clusters="0" * 12, answers=(50, 3, 0, 20), errors=(10, 1, 0, 5))
    assert is_thin(thin)
    assert not is_thin(profile())
    assert "2 of 4 clusters have fewer than 10 answers" in thin_warning(thin)
    assert "overall error of 0.22" in thin_warning(thin)


# One file.


def valid(**changes: object) -> Profile:
    values = {"model": "m", "clusters": "0" * 12, "answers": (2.0, 1.0), "errors": (1.0, 0.0)}
    return Profile.model_validate({**values, **changes})


def test_a_profile_is_read_as_it_was_written(tmp_path: Path) -> None:
    write_json(tmp_path / "m.json", valid(output_tokens=(5.0, None)))
    assert read_profile(tmp_path / "m.json") == valid(output_tokens=(5.0, None))
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
    file.write_text(json.dumps({**valid().model_dump(), **change}))
    with pytest.raises(ArtifactError, match=message) as error:
        read_profile(file)
    assert str(file) in str(error.value)


def test_a_missing_profile_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"m\.json: no such file"):
        read_profile(tmp_path / "m.json")
