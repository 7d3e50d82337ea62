"""Writes the artifacts that strategies read."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from semroute_extproc.io.files import write_whole
from semroute_extproc.strategies.artifact import Artifact


def write_artifact(path: Path, artifact: Artifact) -> None:
    """Write `path` whole or not at all; raises ArtifactError."""
    arrays: dict[str, Any] = {"manifest": np.asarray(artifact.manifest.model_dump_json())}
    for name in (field.name for field in dataclasses.fields(artifact) if field.name != "manifest"):
        if (value := getattr(artifact, name)) is not None:
            arrays[name] = value.astype(np.float32) if isinstance(value, np.ndarray) else np.asarray(value)
    write_whole(path, lambda file: np.savez(file, allow_pickle=False, **arrays))
