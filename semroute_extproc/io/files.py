"""Small JSON files, read with errors that name the file."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from semroute_extproc.errors import ArtifactError

M = TypeVar("M", bound=BaseModel)


def read_json(path: Path, model: type[M], bytes_max: int, written_by: str) -> M:
    """Read and validate a JSON file in the model's default `format`; raises ArtifactError."""
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
