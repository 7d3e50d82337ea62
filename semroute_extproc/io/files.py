"""Small files of ours: written whole or not at all, read with errors that name the file."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import IO, TypeVar

from pydantic import BaseModel, ValidationError

from semroute_extproc.errors import ArtifactError

M = TypeVar("M", bound=BaseModel)


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
    """Write a model as readable JSON, whole or not at all; raises ArtifactError."""
    text = json.dumps(model.model_dump(mode="json"), ensure_ascii=False, indent=1, allow_nan=False)
    write_whole(path, lambda file: file.write(f"{text}\n".encode()))


def read_json(path: Path, model: type[M], bytes_max: int, written_by: str) -> M:
    """Read and check a file of `write_json`, of the model's default `format`; raises ArtifactError."""
    try:
        if path.stat().st_size > bytes_max:
            raise ArtifactError(f"{path}: more than {bytes_max} bytes")
        found = model.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise ArtifactError(f"{path}: no such file; `semroute {written_by}` writes it") from None
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be read: {error.strerror or error}") from None
    except ValidationError as error:
        first = error.errors()[0]
        place, problem = ".".join(map(str, first["loc"])), first["msg"].removeprefix("Value error, ")
        raise ArtifactError(": ".join(filter(None, (str(path), place, problem)))) from None
    wanted, actual = model.model_fields["format"].default, getattr(found, "format", None)
    if actual != wanted:
        raise ArtifactError(f"{path}: format {actual} is not {wanted}, the one this version reads")
    return found
