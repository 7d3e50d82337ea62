"""Exit statuses of every command, in one table, and the one place where errors become them.

The numbers above 2 are those of sysexits.h.
"""

from __future__ import annotations

import enum
import functools
import sys
from collections.abc import Callable
from typing import NoReturn, ParamSpec, TypeVar

import click

from semroute_extproc.errors import (
    ArtifactError,
    BundleError,
    ConfigError,
    DataError,
    EndpointError,
    SemrouteError,
)

P = ParamSpec("P")
R = TypeVar("R")


class Exit(enum.IntEnum):
    """What a command's exit status means; docs/errors.md shows this table."""

    OK = 0
    """Done."""
    ROWS = 1
    """Done, but some rows were bad, or a check found a difference."""
    USAGE = 2
    """Wrong usage of the command line."""
    DATA = 65
    """An input file cannot be used: data, artifact, profile or calibration."""
    UNAVAILABLE = 69
    """Something that is needed is not there: a Python package, an endpoint, a socket."""
    CONFIG = 78
    """The configuration, the bundle or the device it asks for cannot be used. Do not restart."""


STATUS: dict[type[SemrouteError], Exit] = {
    ConfigError: Exit.CONFIG,
    BundleError: Exit.CONFIG,
    ArtifactError: Exit.DATA,
    DataError: Exit.DATA,
    EndpointError: Exit.UNAVAILABLE,
}
"""Error to exit status."""


def exit_statuses(command: Callable[P, R]) -> Callable[P, R]:
    """Decorate a command's function: an error becomes one line per problem and an exit status."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return command(*args, **kwargs)
        except SemrouteError as error:
            problems = error.problems if isinstance(error, ConfigError) else [str(error)]
            refuse(problems, STATUS.get(type(error), Exit.DATA))
        except ModuleNotFoundError as error:
            if (error.name or "").startswith("semroute"):
                raise
            refuse([f"the Python package {error.name!r} is missing"], Exit.UNAVAILABLE)
        except OSError as error:
            refuse([str(error)], Exit.UNAVAILABLE)

    return run


def refuse(problems: list[str], status: Exit) -> NoReturn:
    """Print one line per problem on standard error and exit."""
    for problem in problems:
        click.echo(problem, err=True)
    sys.exit(status)
