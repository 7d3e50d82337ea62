"""Reads files with bounds: regular files only, so that no FIFO, device or socket is waited for."""

import os
import stat
from pathlib import Path
from threading import Lock
from typing import IO, Any, TypeVar

import numpy as np
from pydantic import BaseModel, ValidationError

from semroute_extproc.errors import ArtifactError, SemrouteError

M = TypeVar("M", bound=BaseModel)

_NUMPY = Lock()
"""numpy reads headers with `ast.literal_eval`, which fails in two threads at once on CPython before
gh-106905: `SystemError: AST constructor recursion depth mismatch`."""


def open_file(path: Path, bytes_max: int) -> IO[bytes]:
    """Open a regular file of at most `bytes_max` bytes; raises OSError, at once for anything else."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(None, "not a regular file", str(path))
    # Without blocking, in case a FIFO has replaced the file.
    file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb")
    if os.fstat(file.fileno()).st_size > bytes_max:
        file.close()
        raise OSError(None, f"more than {bytes_max} bytes", str(path))
    return file


def read_file(path: Path, bytes_max: int) -> bytes:
    """The content of a regular file of at most `bytes_max` bytes; raises OSError."""
    with open_file(path, bytes_max) as file:
        return file.read(bytes_max)


def read_arrays(path: Path, bytes_max: int) -> dict[str, Any]:
    """The arrays of an `.npz` file by name, or under "" the array of an `.npy` file.

    `bytes_max` limits the file and what it decompresses to. Raises OSError, and what numpy raises.
    """
    with _NUMPY, open_file(path, bytes_max) as file:
        found = np.load(file, allow_pickle=False)
        if isinstance(found, np.ndarray):
            return {"": found}
        if sum(each.file_size for each in found.zip.infolist()) > bytes_max:
            raise OSError(None, f"more than {bytes_max} bytes when decompressed", str(path))
        return {name: found[name] for name in found.files}


def read_json(
    path: Path, model: type[M], bytes_max: int, missing: str, problem: type[SemrouteError] = ArtifactError
) -> M:
    """Read and validate a JSON file in the model's default `format`; raises `problem`.

    `missing` says what to do without such a file.
    """
    try:
        found = model.model_validate_json(read_file(path, bytes_max))
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
