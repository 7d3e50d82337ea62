"""Load and check a bundle: an encoder with its heads, tokenizer, calibration and centroids.

A bundle is a directory whose `bundle.json` describes it and carries the SHA-256 of every other
file that serving reads; a file that does not match is refused by name.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from semroute_extproc.errors import BundleError
from semroute_extproc.request.text import SURFACE_NAMES

FORMAT = 1
"""The bundle format this package reads."""

DEFAULT_BUNDLE = "semroute-minilm"
"""The shipped bundle that reads every language that has none of its own."""

LANGUAGE_BUNDLES = {"zh": "semroute-bge-zh"}
"""Language to the shipped bundle of its own."""

Device = Literal["cpu", "cuda"]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class EncoderSpec(_Model):
    """Where the weights come from, and how text is framed for them."""

    base: str
    base_sha256: str
    dimensions: int = Field(gt=0)
    window: int = Field(ge=8, le=8192)
    """Most ids of one input, [CLS] and [SEP] included."""
    cls_id: int
    sep_id: int
    pad_id: int
    unk_id: int


class LabelHead(_Model):
    """A classification head: its labels, and the temperature its logits are divided by."""

    labels: tuple[str, ...] = Field(min_length=2)
    temperature: float = Field(gt=0)


class DifficultyHead(_Model):
    """p = sigmoid(scale · logit + shift); `quantiles` are p at 0, 1, … 100 % of reference traffic."""

    scale: float = Field(gt=0)
    shift: float
    quantiles: tuple[float, ...] = Field(min_length=101, max_length=101)

    @model_validator(mode="after")
    def _ascending(self) -> DifficultyHead:
        if list(self.quantiles) != sorted(self.quantiles):
            raise ValueError("quantiles must ascend")
        return self


class UnknownSpec(_Model):
    """When the bundle abstains."""

    centroids: str
    threshold: float = Field(ge=-1, le=1)
    unk_share_max: float = Field(ge=0, le=1)


class FileEntry(_Model):
    """One file of the bundle."""

    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    bytes: int = Field(ge=0)


class Manifest(_Model):
    """`bundle.json`."""

    format: int
    name: str
    version: str
    description: str = ""
    encoder: EncoderSpec
    graphs: dict[Device, str]
    surface: tuple[str, ...]
    domain: LabelHead
    task: LabelHead | None = None
    difficulty: DifficultyHead
    unknown: UnknownSpec
    languages: tuple[str, ...] = ("en",)
    """Languages it was trained on; text in another is unknown."""
    files: dict[str, FileEntry]

    @cached_property
    def revision(self) -> str:
        """Twelve hexadecimal digits that change whenever any served file or setting does."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:12]


@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle whose every file was checked."""

    path: Path
    manifest: Manifest
    centroids: npt.NDArray[np.float32]
    """Shape (k, d), rows L2-normalised."""

    @property
    def encoder(self) -> EncoderSpec:
        """How text is framed, and the size of the embedding."""
        return self.manifest.encoder

    @property
    def domain(self) -> LabelHead:
        """The domain head."""
        return self.manifest.domain

    @property
    def task(self) -> LabelHead | None:
        """The task head, where the bundle has one."""
        return self.manifest.task

    @property
    def difficulty(self) -> DifficultyHead:
        """The difficulty head."""
        return self.manifest.difficulty

    @property
    def unknown(self) -> UnknownSpec:
        """The abstention rule."""
        return self.manifest.unknown

    @property
    def revision(self) -> str:
        """The manifest's."""
        return self.manifest.revision

    def device(self, wanted: Device) -> Device:
        """`wanted`, or the CPU where the bundle has no graph for it."""
        return wanted if wanted in self.manifest.graphs else "cpu"

    def graph(self, device: Device) -> Path:
        """The ONNX graph for `device`; BundleError if the bundle has none."""
        name = self.manifest.graphs.get(device)
        if name is None:
            raise BundleError(f"{self.path / 'bundle.json'}: no graph for device {device!r}")
        return self.path / name


def default_bundle() -> Path:
    """The shipped bundle for every language."""
    return _shipped(DEFAULT_BUNDLE)


def language_bundles() -> dict[str, Path]:
    """The shipped bundles of single languages; one that was left out of an image is not missed."""
    paths = {language: _shipped(name) for language, name in LANGUAGE_BUNDLES.items()}
    return {language: path for language, path in paths.items() if path.is_dir()}


def _shipped(name: str) -> Path:
    """Beside the package in a checkout, inside it once installed."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "models" / name
    return installed if installed.is_dir() else package.parent / "models" / name


def load(path: Path, devices: tuple[Device, ...] = ("cpu", "cuda")) -> Bundle:
    """Read and check the bundle in `path`.

    Only the graphs of `devices` are checked, so that an image for one device may leave out the
    other's. Raises BundleError, naming the file, when one is missing, altered or not understood.
    """
    manifest = read_manifest(path)
    unused = {name for device, name in manifest.graphs.items() if device not in devices}
    for name, entry in manifest.files.items():
        if name not in unused:
            _check(path / name, entry)
    graphs = [name for name in manifest.graphs.values() if name not in unused]
    for name in (manifest.unknown.centroids, "tokenizer.json", *graphs):
        if name not in manifest.files:
            raise BundleError(f"{path / 'bundle.json'}: {name} has no checksum in files")
    return Bundle(path=path, manifest=manifest, centroids=_centroids(path, manifest))


def read_manifest(path: Path) -> Manifest:
    """Read `bundle.json` alone; raises BundleError."""
    file = path / "bundle.json"
    try:
        manifest = Manifest.model_validate_json(file.read_bytes())
    except FileNotFoundError:
        raise BundleError(f"{file}: no such file (is {path} a bundle?)") from None
    except OSError as error:
        raise BundleError(f"{file}: {error.strerror}") from None
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise BundleError(f"{file}: {place}: {first['msg']}") from None
    if manifest.format != FORMAT:
        raise BundleError(f"{file}: format {manifest.format} is not {FORMAT}, the one this version reads")
    if manifest.surface != SURFACE_NAMES:
        raise BundleError(f"{file}: surface: was trained on other surface features than {SURFACE_NAMES}")
    return manifest


def _check(file: Path, entry: FileEntry) -> None:
    try:
        with file.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise BundleError(f"{file}: {error.strerror}") from None
    if digest != entry.sha256:
        raise BundleError(f"{file}: sha256 is {digest}, bundle.json says {entry.sha256}")


def _centroids(path: Path, manifest: Manifest) -> npt.NDArray[np.float32]:
    file = path / manifest.unknown.centroids
    try:
        centroids = np.load(file, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise BundleError(f"{file}: {error}") from None
    if centroids.ndim != 2 or centroids.shape[1] != manifest.encoder.dimensions:
        raise BundleError(f"{file}: shape {centroids.shape} is not (k, {manifest.encoder.dimensions})")
    return np.asarray(centroids, dtype=np.float32)


def write_manifest(path: Path, manifest: Manifest) -> None:
    """Write `bundle.json`, readable and with a final newline."""
    text = json.dumps(manifest.model_dump(mode="json", exclude_none=True), indent=2, ensure_ascii=False)
    (path / "bundle.json").write_text(text + "\n")
