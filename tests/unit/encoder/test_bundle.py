"""The shipped bundle, and bundles that are damaged."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from semroute_extproc.encoder import bundle
from semroute_extproc.errors import BundleError

SHIPPED = bundle.default_bundle()
DOMAINS = (
    "biology business chemistry computer_science economics engineering health history law math other "
    "philosophy physics psychology"
).replace("_", " ")


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy that a test may damage; its graphs are links, because they are large and only read."""
    target = tmp_path / "bundle"
    target.mkdir()
    for file in SHIPPED.iterdir():
        if file.suffix == ".onnx":
            (target / file.name).symlink_to(file)
        else:
            shutil.copy(file, target / file.name)
    return target


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    manifest = json.loads((path / "bundle.json").read_text())
    change(manifest)
    (path / "bundle.json").write_text(json.dumps(manifest))


def test_the_shipped_bundle_is_whole() -> None:
    loaded = bundle.load(SHIPPED)
    assert " ".join(loaded.manifest.domain.labels) == DOMAINS
    assert loaded.centroids.shape[1] == loaded.manifest.encoder.dimensions
    assert np.allclose(np.linalg.norm(loaded.centroids, axis=1), 1.0, atol=1e-3)
    assert loaded.graph("cpu").is_file()
    assert loaded.graph("cuda").is_file()


def test_every_file_that_serving_reads_has_a_checksum() -> None:
    manifest = bundle.read_manifest(SHIPPED)
    read = {*manifest.graphs.values(), manifest.unknown.centroids, "tokenizer.json"}
    assert read <= set(manifest.files)


@pytest.mark.parametrize("name", ["tokenizer.json", "centroids.npy", "model.int8.onnx"])
def test_an_altered_file_is_refused_by_name(copy: Path, name: str) -> None:
    file = copy / name
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.unlink()
    file.write_bytes(content)
    with pytest.raises(BundleError, match=f"{name}: sha256 is"):
        bundle.load(copy)


def test_a_missing_file_is_refused_by_name(copy: Path) -> None:
    (copy / "tokenizer.json").unlink()
    with pytest.raises(BundleError, match=r"tokenizer\.json: No such file"):
        bundle.load(copy)


def test_the_graph_of_a_device_that_is_not_used_may_be_left_out(copy: Path) -> None:
    (copy / "model.fp16.onnx").unlink()
    bundle.load(copy, ("cpu",))
    with pytest.raises(BundleError, match=r"model\.fp16\.onnx: no such file.*semroute-extproc\[gpu\]"):
        bundle.load(copy, ("cuda",))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(format=2), "format 2 is not 1"),
        (lambda m: m.update(surface=["length"]), "surface: the features must be"),
        (lambda m: m["domain"].update(temperature=0), "domain.temperature"),
        (lambda m: m["difficulty"].update(quantiles=[0.5] * 3), "difficulty.quantiles"),
        (lambda m: m["difficulty"]["quantiles"].reverse(), "quantiles must ascend"),
        (lambda m: m["files"].pop("tokenizer.json"), "tokenizer.json has no checksum"),
        (lambda m: m["files"].pop("model.int8.onnx"), "model.int8.onnx has no checksum"),
        (lambda m: m.pop("encoder"), "encoder"),
        (lambda m: m["encoder"].update(dimensions=3), r"is not \(k, 3\)"),
    ],
)
def test_a_manifest_that_is_not_understood_is_refused_with_the_place(
    copy: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    edit(copy, change)
    with pytest.raises(BundleError, match=message):
        bundle.load(copy)


def test_a_folder_that_is_no_bundle_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"bundle\.json: no such file"):
        bundle.load(tmp_path)


def test_a_half_written_manifest_is_refused(copy: Path) -> None:
    text = (copy / "bundle.json").read_text()
    (copy / "bundle.json").write_text(text[: len(text) // 2])
    with pytest.raises(BundleError, match=r"bundle\.json"):
        bundle.load(copy)


def test_the_revision_changes_with_any_served_file(copy: Path) -> None:
    before = bundle.load(copy).revision
    edit(copy, lambda m: m["domain"].update(temperature=9.0))
    assert bundle.load(copy).revision != before


def named(copy: Path, folder: Path, name: str, *languages: str) -> Path:
    """A folder with a bundle's manifest alone, for other languages."""
    target = folder / name
    target.mkdir(parents=True)
    shutil.copy(copy / "bundle.json", target)
    edit(target, lambda m: m.update(name=name, languages=list(languages)))
    return target


@pytest.fixture
def shipped(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The folder of the shipped bundles; it is empty."""
    folder = tmp_path / "models"
    monkeypatch.setattr(bundle, "_shipped", lambda name: folder / name)
    return folder


def test_an_image_may_leave_the_multilingual_bundle_out(shipped: Path) -> None:
    named(SHIPPED, shipped, bundle.DEFAULT_BUNDLE, "en")
    assert bundle.language_bundles() == {}


def test_the_multilingual_bundle_reads_its_languages_but_those_of_the_default(shipped: Path) -> None:
    named(SHIPPED, shipped, bundle.DEFAULT_BUNDLE, "en")
    path = named(SHIPPED, shipped, bundle.MULTILINGUAL_BUNDLE, "de", "en", "zh")
    assert bundle.language_bundles() == {"de": path, "zh": path}


def test_a_multilingual_bundle_without_a_manifest_is_refused(shipped: Path) -> None:
    named(SHIPPED, shipped, bundle.DEFAULT_BUNDLE, "en")
    (shipped / bundle.MULTILINGUAL_BUNDLE).mkdir()
    with pytest.raises(BundleError, match=r"semroute-use.bundle\.json: no such file"):
        bundle.language_bundles()


def test_a_bundle_of_several_languages_is_loaded_once(copy: Path) -> None:
    found = bundle.load_each({"de": copy, "": SHIPPED, "fr": copy}, ("cpu",))
    assert found["de"] is found["fr"]
    assert [found[language].path for language in ("de", "", "fr")] == [copy, SHIPPED, copy]


def test_a_damaged_bundle_of_a_language_is_refused_by_name(copy: Path) -> None:
    (copy / "centroids.npy").unlink()
    with pytest.raises(BundleError, match=r"centroids\.npy"):
        bundle.load_each({"": SHIPPED, "de": copy}, ("cpu",))


def test_a_file_that_only_a_graph_reads_is_checked_too(copy: Path) -> None:
    (copy / "table.bin").write_bytes(b"rows")
    entry = {"sha256": hashlib.sha256(b"rows").hexdigest(), "bytes": 4}
    edit(copy, lambda m: m["files"].update({"table.bin": entry}))
    bundle.load(copy, ("cpu",))
    (copy / "table.bin").write_bytes(b"sour")
    with pytest.raises(BundleError, match=r"table\.bin: sha256 is"):
        bundle.load(copy, ("cpu",))


def with_graph(copy: Path, location: str) -> None:
    """Replace the graph with one whose weights are in another file, with the right checksum of its own."""
    onnx = pytest.importorskip("onnx", reason="writes a graph, which the sidecar never does")
    helper, numpy_helper = onnx.helper, onnx.numpy_helper
    weights = numpy_helper.from_array(np.ones(300, dtype=np.float32), "w")
    weights.ClearField("raw_data")
    weights.data_location = onnx.TensorProto.EXTERNAL
    weights.external_data.add(key="location", value=location)
    out = helper.make_tensor_value_info("w", onnx.TensorProto.FLOAT, [300])
    model = helper.make_model(helper.make_graph([], "g", [], [out], [weights]))
    name = bundle.read_manifest(copy).graphs["cpu"]
    (copy / name).unlink()
    (copy / name).write_bytes(model.SerializeToString())
    digest = hashlib.sha256((copy / name).read_bytes()).hexdigest()
    edit(copy, lambda manifest: manifest["files"][name].update(sha256=digest))


@pytest.mark.parametrize("location", ["weights.bin", "../weights.bin", "w" * 200])
def test_weights_in_a_file_without_a_checksum_are_refused(copy: Path, location: str) -> None:
    with_graph(copy, location)
    with pytest.raises(BundleError, match=r"reads .*w.*, which has no checksum in bundle\.json"):
        bundle.load(copy, ("cpu",))


def test_weights_in_a_file_with_a_checksum_are_accepted_unless_they_are_altered(copy: Path) -> None:
    with_graph(copy, "weights.bin")
    weights = np.ones(300, dtype=np.float32).tobytes()
    (copy / "weights.bin").write_bytes(weights)
    entry = {"sha256": hashlib.sha256(weights).hexdigest(), "bytes": len(weights)}
    edit(copy, lambda manifest: manifest["files"].update({"weights.bin": entry}))
    bundle.load(copy, ("cpu",))
    (copy / "weights.bin").write_bytes(weights[::-1])
    with pytest.raises(BundleError, match=r"weights\.bin: sha256 is"):
        bundle.load(copy, ("cpu",))


def test_a_file_that_is_a_device_is_refused_at_once(copy: Path) -> None:
    (copy / "tokenizer.json").unlink()
    (copy / "tokenizer.json").symlink_to("/dev/zero")
    with pytest.raises(BundleError, match=r"tokenizer\.json: not a regular file"):
        bundle.load(copy, ("cpu",))
