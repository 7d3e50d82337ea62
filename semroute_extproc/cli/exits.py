"""The one place where errors become exit statuses, for every command."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterable
from typing import NoReturn, ParamSpec, TypeVar

import click

from semroute_extproc.errors import BundleError, ConfigError, EndpointError, SemrouteError
from semroute_extproc.errors import Exit as Exit

P = ParamSpec("P")
R = TypeVar("R")

STATUS = {ConfigError: Exit.CONFIG, BundleError: Exit.CONFIG, EndpointError: Exit.UNAVAILABLE}
"""Error to exit status; that of every other one is `Exit.DATA`."""


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
        except BrokenPipeError:
            raise  # click ends quietly
        except OSError as error:
            refuse([str(error)], Exit.UNAVAILABLE)

    return run


def refuse(problems: Iterable[str], status: Exit) -> NoReturn:
    """Print one line per problem on standard error and exit."""
    for problem in problems:
        click.echo(problem, err=True)
    sys.exit(status)
