"""The file that `semroute fit` writes and strategies read: one `.npz` for each artifact.

It holds plain arrays and the string `manifest`, JSON of `ArtifactManifest`. Reading it executes no code.
"""

import hashlib
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import Field, ValidationError

from semroute_extproc.encoder.signals import Signals
from semroute_extproc.errors import ArtifactError
from semroute_extproc.io.files import read_arrays
from semroute_extproc.settings.base import QUANTILES, Model

FORMAT = 1  # of artifacts that this package reads and writes
FILE_BYTES_MAX = 1024**3  # of an artifact, also when decompressed
# What numpy and zipfile raise for damaged bytes, and for formats or encryption they cannot read.
_BROKEN = (ValueError, AttributeError, TypeError, EOFError, RuntimeError, MemoryError)
DAMAGED = (*_BROKEN, zipfile.BadZipFile, zlib.error, TokenError, SyntaxError)
Floats = npt.NDArray[np.float32]


class ArtifactManifest(Model):
    """The kind of an artifact, and the data and the bundle it was fitted with."""

    format: int = FORMAT
    kind: str  # of the strategy
    bundle: str  # name of the bundle whose `neighbors` embedding it was fitted on
    revision: str  # `Bundle.revision` of that bundle, twelve hexadecimal digits
    dimensions: int = Field(gt=0)  # length of the embedding
    rows: int = Field(ge=0)  # labeled prompts it was fitted on
    seed: int = 0
    data: str = ""  # name of the file of those prompts, without its directory
    data_sha256: str = ""
    license: str = ""  # the operator's statement of the data's license

    def embedding(self, signals: Signals) -> Floats | None:
        """A text's embedding (d,); None for a text that another bundle read."""
        x = signals.neighbors
        if x is None or signals.revision != self.revision or x.shape != (self.dimensions,):
            return None
        return x


@dataclass(frozen=True)
class Artifact:
    """Content that a strategy reads: float32 arrays, names and numbers; None for an omitted array."""

    manifest: ArtifactManifest


def digest_of(*arrays: npt.NDArray[Any] | None) -> str:
    """Twelve hexadecimal digits of a hash of the arrays that are present."""
    found = hashlib.sha256()
    for array in arrays:
        if array is not None:
            found.update(array.tobytes())
    return found.hexdigest()[:12]


class ArtifactFile:
    """An artifact's arrays, validated when read; every method raises ArtifactError."""

    def __init__(self, path: Path, kind: str | None = None) -> None:
        """Read `path`; if `kind` is given, the artifact must be of that kind."""
        self._path = path
        try:
            self.arrays = read_arrays(path, FILE_BYTES_MAX)
            self.manifest = ArtifactManifest.model_validate_json(str(self.arrays.pop("manifest")))
        except FileNotFoundError:
            raise self.error(f"no such file; `semroute fit {kind or 'KIND'}` writes it") from None
        except OSError as error:
            raise self.error(f"cannot be read: {error.strerror or error}") from None
        except (KeyError, ValidationError):
            raise self.error("not an artifact of `semroute fit`: no manifest in it") from None
        except DAMAGED:
            raise self.error("not an artifact of `semroute fit`") from None
        if self.manifest.format != FORMAT:
            raise self.error(f"format {self.manifest.format} is not {FORMAT}, the one this version reads")
        if kind is not None and self.manifest.kind != kind:
            raise self.error(f"is a {self.manifest.kind} artifact, expected {kind}")

    def error(self, message: str) -> ArtifactError:
        """An error that names the file."""
        return ArtifactError(f"{self._path}: {message}")

    def floats(self, name: str, *shape: int | None) -> Floats:
        """The array as float32: of that shape (None: any length) and finite."""
        if name not in self.arrays:
            raise self.error(f"has no array {name!r}")
        found = np.asarray(self.arrays[name])
        lengths = zip(shape, found.shape, strict=False)
        fits = found.ndim == len(shape) and all(wanted in (None, length) for wanted, length in lengths)
        if found.dtype.kind != "f" or not fits:
            expected = " x ".join("any" if length is None else str(length) for length in shape)
            raise self.error(f"{name} is {found.dtype} of shape {found.shape}, expected {expected}")
        if not np.isfinite(found).all():
            raise self.error(f"{name} contains numbers that are not finite")
        return np.ascontiguousarray(found, dtype=np.float32)

    def integer(self, name: str, default: int) -> int:
        """A number."""
        found = self.arrays.get(name, np.asarray(default))
        if not isinstance(found, np.ndarray) or found.dtype.kind not in "iu" or found.shape:
            raise self.error(f"{name} is not an integer")
        return int(found)

    def names(self, name: str, default: int = 0) -> tuple[str, ...]:
        """A list of names; if absent, 0, 1, … `default` - 1."""
        return tuple(str(each) for each in self.arrays.get(name, np.arange(default)).ravel())

    def quantiles(self) -> tuple[float, ...]:
        """The quantiles of a probability."""
        found = self.floats("quantiles", QUANTILES)
        if (np.diff(found) < 0.0).any() or found[0] < 0.0 or found[-1] > 1.0:
            raise self.error("quantiles do not ascend within 0..1")
        return tuple(found.tolist())
