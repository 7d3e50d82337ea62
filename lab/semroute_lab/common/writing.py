"""Writes the files that strategies read, atomically."""

import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np
from pydantic import BaseModel

from semroute_extproc.errors import ArtifactError
from semroute_extproc.strategies.artifact import Artifact


def write_whole(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Write a temporary file and rename it, so no reader sees a partial file; raises ArtifactError."""
    part = path.with_name(f".{path.name}.part")
    try:
        with part.open("wb") as file:
            write(file)
        os.replace(part, path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise ArtifactError(f"{path}: cannot be written: {error.strerror or error}") from None


def write_json(path: Path, model: BaseModel) -> None:
    """Write a model as indented JSON, atomically; raises ArtifactError."""
    text = json.dumps(model.model_dump(mode="json"), ensure_ascii=False, indent=1, allow_nan=False)
    write_whole(path, lambda file: file.write(f"{text}\n".encode()))


def write_artifact(path: Path, artifact: Artifact) -> None:
    """Write an artifact atomically; raises ArtifactError."""
    arrays: dict[str, Any] = {"manifest": np.asarray(artifact.manifest.model_dump_json())}
    for name in (field.name for field in dataclasses.fields(artifact) if field.name != "manifest"):
        if (value := getattr(artifact, name)) is not None:
            arrays[name] = value.astype(np.float32) if isinstance(value, np.ndarray) else np.asarray(value)
    write_whole(path, lambda file: np.savez(file, allow_pickle=False, **arrays))
