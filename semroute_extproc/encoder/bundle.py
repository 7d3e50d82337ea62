"""Load and check a bundle: a directory whose `bundle.json` lists the SHA-256 of every file it uses."""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from semroute_extproc.encoder.manifest import Device, Manifest
from semroute_extproc.errors import BundleError
from semroute_extproc.io.files import read_arrays, read_file, read_json
from semroute_extproc.request.signals import FloatArray
from semroute_extproc.request.text import SURFACE_NAMES

DEFAULT_BUNDLE, MULTILINGUAL_BUNDLE = "semroute-minilm", "semroute-use"
"""The shipped bundles: for English, and for its other languages."""

DEFAULT = ""  # Key of the bundle for languages without their own
FILE_BYTES_MAX = 16 * 1024 * 1024  # of `bundle.json`
PART_BYTES_MAX = 2 * 1024**3  # of any other file of a bundle; protobuf, and so ONNX, has the same limit
GPU_GRAPH_MISSING = "no such file; the shipped graph for a GPU comes with semroute-extproc[gpu]"
_LOCATION = re.compile(rb"\x0a\x08location\x12(.)(.{0,127})", re.DOTALL)
"""In an ONNX file (protobuf): the length and the path of a file that has the values of a tensor."""


@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle whose files have been checked."""

    path: Path
    manifest: Manifest
    centroids: FloatArray  # shape (k, d), rows L2-normalized

    @property
    def revision(self) -> str:
        """See `Manifest.revision`."""
        return self.manifest.revision

    @property
    def model_version(self) -> str:
        """The revision as a decimal number, because Triton's versions are numbers."""
        return str(int(self.revision, 16))

    def graph(self, device: Device) -> Path:
        """The ONNX graph for `device`; BundleError if the bundle has none."""
        name = self.manifest.graphs.get(device)
        if name is None:
            raise BundleError(f"{self.path / 'bundle.json'}: no graph for device {device!r}")
        return self.path / name


def default_bundle() -> Path:
    """The shipped bundle for languages without one of their own."""
    return _shipped(DEFAULT_BUNDLE)


def language_bundles() -> dict[str, Path]:
    """Language to the shipped bundle that reads it, the default's languages left out; raises BundleError.

    An image may leave the multilingual bundle out.
    """
    path = _shipped(MULTILINGUAL_BUNDLE)
    if not path.is_dir():
        return {}
    default = read_manifest(default_bundle()).languages
    return {language: path for language in read_manifest(path).languages if language not in default}


def _shipped(name: str) -> Path:
    """The bundle's directory: inside an installed package, or next to it in a checkout."""
    installed, checkout = (folder / "models" / name for folder in Path(__file__).resolve().parents[1:3])
    return installed if installed.is_dir() else checkout


def load(path: Path, devices: tuple[Device, ...] = ("cpu", "cuda")) -> Bundle:
    """Read and check the bundle in `path`; BundleError names a file that is missing, altered or invalid.

    Checks only the graphs of `devices`, because an image for one device may lack the other's graph.
    """
    manifest = read_manifest(path)
    unused = {name for device, name in manifest.graphs.items() if device not in devices}
    for name in (manifest.unknown.centroids, "tokenizer.json", *manifest.graphs.values()):
        if name not in manifest.files and name not in unused:
            raise BundleError(f"{path / 'bundle.json'}: {name} has no checksum in files")
    for name, entry in manifest.files.items():
        if name in unused:
            continue
        if name == manifest.graphs.get("cuda") and not (path / name).exists():
            raise BundleError(f"{path / name}: {GPU_GRAPH_MISSING}")
        try:
            content = read_file(path / name, PART_BYTES_MAX)
        except OSError as error:
            raise BundleError(f"{path / name}: {error.strerror}") from None
        if (digest := hashlib.sha256(content).hexdigest()) != entry.sha256:
            raise BundleError(f"{path / name}: sha256 is {digest}, bundle.json says {entry.sha256}")
        for found in _LOCATION.finditer(content) if name in manifest.graphs.values() else ():
            if (part := found[2][: found[1][0]].decode("utf-8", "replace")) not in manifest.files:
                raise BundleError(f"{path / name}: reads {part}, which has no checksum in bundle.json")
    return Bundle(path, manifest, _centroids(path / manifest.unknown.centroids, manifest.encoder.dimensions))


def load_each(paths: Mapping[str, Path], devices: tuple[Device, ...]) -> dict[str, Bundle]:
    """Language to checked bundle; a bundle of several languages is loaded once. Raises BundleError."""
    loaded = {path: load(path, devices) for path in dict.fromkeys(paths.values())}
    return {language: loaded[path] for language, path in paths.items()}


def read_manifest(path: Path) -> Manifest:
    """Read `bundle.json` alone; raises BundleError."""
    file = path / "bundle.json"
    manifest = read_json(file, Manifest, FILE_BYTES_MAX, f"is {path} a bundle?", BundleError)
    if manifest.surface != SURFACE_NAMES:
        raise BundleError(f"{file}: surface: the features must be {SURFACE_NAMES}")
    return manifest


def _centroids(file: Path, dimensions: int) -> FloatArray:
    try:
        [centroids] = read_arrays(file, PART_BYTES_MAX).values()
    except (OSError, ValueError, EOFError) as error:
        raise BundleError(f"{file}: {error}") from None
    if centroids.ndim != 2 or centroids.shape[1] != dimensions:
        raise BundleError(f"{file}: shape {centroids.shape} is not (k, {dimensions})")
    return np.asarray(centroids, dtype=np.float32)
