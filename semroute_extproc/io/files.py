"""Small JSON files, read with errors that name the file."""

from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from semroute_extproc.errors import ArtifactError, SemrouteError

M = TypeVar("M", bound=BaseModel)


def read_json(
    path: Path, model: type[M], bytes_max: int, missing: str, problem: type[SemrouteError] = ArtifactError
) -> M:
    """Read and validate a JSON file in the model's default `format`; raises `problem`.

    `missing` says what to do without such a file.
    """
    try:
        if path.stat().st_size > bytes_max:
            raise problem(f"{path}: more than {bytes_max} bytes")
        found = model.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise problem(f"{path}: no such file; {missing}") from None
    except OSError as error:
        raise problem(f"{path}: cannot be read: {error.strerror or error}") from None
    except ValidationError as error:
        first = error.errors()[0]
        place, what = ".".join(map(str, first["loc"])), first["msg"].removeprefix("Value error, ")
        raise problem(": ".join(filter(None, (str(path), place, what)))) from None
    wanted, actual = model.model_fields["format"].default, getattr(found, "format", None)
    if actual != wanted:
        raise problem(f"{path}: format {actual} is not {wanted}, the one this version reads")
    return found
