"""The one place where errors become exit statuses, for every command."""

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
"""Error to exit status; every other error gives `Exit.DATA`."""

LAB_EXTRA = "semroute.lab-extra"  # in click's context: the extra of semroute-lab that a command needs


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
            extra = click.get_current_context().meta.get(LAB_EXTRA, "")
            refuse([missing(error, extra)], Exit.UNAVAILABLE)
        except BrokenPipeError:
            raise  # click ends quietly
        except OSError as error:
            refuse([str(error)], Exit.UNAVAILABLE)

    return run


def missing(error: ModuleNotFoundError, extra: str) -> str:
    """Name the missing package and the extra that installs it; raises `error` for our own modules."""
    if (error.name or "").startswith("semroute"):
        raise error
    if error.name == "transformers":
        extra = "bartscore"
    return f"the Python package {error.name!r} is missing" + (f": {install(extra)}" if extra else "")


def install(extra: str) -> str:
    """The command that installs semroute-lab with an extra."""
    return f"pip install 'semroute-lab[{extra}]'"


def refuse(problems: Iterable[str], status: Exit) -> NoReturn:
    """Print one line per problem on standard error and exit."""
    for problem in problems:
        click.echo(problem, err=True)
    sys.exit(status)
