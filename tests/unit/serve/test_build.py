"""What is built from a configuration: each bundle is loaded, opened and queued once for its languages."""

from __future__ import annotations

from pathlib import Path
from shutil import copytree, ignore_patterns
from typing import Any

import pytest
from builders import BUNDLE, MANIFEST, config
from pydantic import ValidationError

from semroute_extproc.config import source
from semroute_extproc.config.models import Config
from semroute_extproc.encoder import bundle, cuda
from semroute_extproc.encoder.bundle import DEFAULT, Bundle
from semroute_extproc.errors import BundleError, ConfigError
from semroute_extproc.serve import build


class Model:
    """Enough of a model for a queue that is never asked anything."""

    provider = "fake"
    emit: Any = None

    def __init__(self, own: Bundle, device: str) -> None:
        self.bundle, self.device = own, device


def bundle_at(path: str, *devices: str) -> Bundle:
    graphs = {device: f"{device}.onnx" for device in devices}
    return Bundle(Path(path), MANIFEST.model_copy(update={"graphs": graphs}), BUNDLE.centroids)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """The bundles and devices of the models that are opened, in order."""
    found: list[tuple[str, str]] = []

    def open_model(own: Bundle, device: str) -> Model:
        found.append((own.path.name, device))
        return Model(own, device)

    monkeypatch.setattr(cuda, "open_model", open_model)
    return found


BUNDLES = {
    "de": bundle_at("other", "cpu"),
    "fr": bundle_at("other", "cpu"),
    "ko": bundle_at("third", "cpu", "cuda"),
    DEFAULT: bundle_at("default", "cpu", "cuda"),
}


def test_a_bundle_of_several_languages_is_opened_once(opened: list[tuple[str, str]]) -> None:
    models = cuda.open_each(BUNDLES, "cpu")
    assert list(models) == list(BUNDLES)
    assert models["de"] is models["fr"]
    assert sorted(opened) == [("default", "cpu"), ("other", "cpu"), ("third", "cpu")]


def test_a_bundle_without_a_graph_for_the_device_runs_on_the_cpu(opened: list[tuple[str, str]]) -> None:
    cuda.open_each(BUNDLES, "cuda")
    assert sorted(opened) == [("default", "cuda"), ("other", "cpu"), ("third", "cuda")]


def test_the_default_bundle_is_opened_on_the_device_although_a_language_has_it_too(
    opened: list[tuple[str, str]],
) -> None:
    default = bundle_at("default", "cpu")
    cuda.open_each({"de": default, DEFAULT: default}, "cuda")
    assert opened == [("default", "cuda")]


async def test_the_languages_of_a_bundle_share_one_queue(opened: list[tuple[str, str]]) -> None:
    settings = config()
    classifier = build.make_classifier(settings, cuda.open_each(BUNDLES, "cpu"))
    assert [description["language"] for description in classifier.describe()] == ["any", "de fr", "ko"]
    assert classifier.bundle is BUNDLES[DEFAULT]
    await classifier.close()


def test_the_bundles_of_the_configuration_replace_the_shipped_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[dict[str, Path], tuple[str, ...]]] = []

    def load_each(paths: dict[str, Path], devices: tuple[str, ...]) -> dict[str, Bundle]:
        asked.append((paths, devices))
        return {}

    monkeypatch.setattr(bundle, "load_each", load_each)
    monkeypatch.setattr(bundle, "language_bundles", lambda: {"pl": Path("shipped")})
    build.load_bundles(config(encoder={"bundle": "d", "by_language": {"de": "x", "fr": "x"}}))
    build.load_bundles(config(encoder={"by_language": {}}))
    build.load_bundles(config(encoder={"device": "cuda"}))
    default = {DEFAULT: bundle.default_bundle()}
    assert asked == [
        ({"de": Path("x"), "fr": Path("x"), DEFAULT: Path("d")}, ("cpu", "cpu")),
        (default, ("cpu", "cpu")),
        ({"pl": Path("shipped"), **default}, ("cuda", "cpu")),
    ]


def test_a_sidecar_that_leaves_graphs_to_a_server_needs_none(tmp_path: Path) -> None:
    lean = tmp_path / "lean"
    copytree(bundle.default_bundle(), lean, ignore=ignore_patterns("*.onnx"))

    def encoder(fallback: str) -> Config:
        remote = {"url": "http://encoder:8001", "fallback": fallback}
        return config(encoder={"bundle": str(lean), "by_language": {}, "remote": remote})

    [opened] = build.open_models(encoder("policy")).values()
    assert isinstance(opened, Bundle)
    with pytest.raises(BundleError, match=r"onnx: No such file"):
        build.open_models(encoder("local"))


def test_at_most_64_languages_have_a_bundle() -> None:
    codes = [f"{a}{b}" for a in "abcde" for b in "abcdefghijklm"]
    assert config(encoder={"by_language": dict.fromkeys(codes[:64], "x")}).encoder.by_language
    with pytest.raises(ValidationError, match="by_language"):
        config(encoder={"by_language": dict.fromkeys(codes, "x")})


def loaded_with(tmp_path: Path, tokenizer: Path) -> source.Loaded:
    file = tmp_path / "semroute.yaml"
    pool = f"{{cluster: c, model: m, tokenizer: {tokenizer}}}"
    file.write_text(f"pools:\n  small: {pool}\n  large: {pool}\ndefault_pool: small\n")
    return source.load(file)


def test_pools_with_one_tokenizer_share_it_and_read_it_without_its_own_limit(tmp_path: Path) -> None:
    path = Path(__file__).parents[3] / "models" / "semroute-minilm" / "tokenizer.json"
    found = build.make_counter(loaded_with(tmp_path, path)).tokenizers
    assert found["small"] is found["large"]
    assert len(found["small"].encode("word " * 1_000)) > 1_000


@pytest.mark.parametrize("content", [None, "{}"])
def test_a_tokenizer_that_cannot_be_read_is_told_with_its_place(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(ConfigError) as caught:
        build.make_counter(loaded_with(tmp_path, Path("tokenizer.json")))
    assert len(caught.value.problems) == 2
    assert all("tokenizer: cannot be read" in problem for problem in caught.value.problems)
