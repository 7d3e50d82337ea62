"""Shared by the commands: options, and progress bars on standard error, shown on a terminal only."""

import functools
import glob
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])
T = TypeVar("T")

EXISTING = click.Path(exists=True, dir_okay=False, path_type=Path)


class _Table(click.Path):
    def convert(self, value: Any, param: click.Parameter | None, context: click.Context | None) -> Any:
        return (
            Path(value) if glob.glob(str(value), recursive=True) else super().convert(value, param, context)
        )


TABLE = _Table(exists=True, path_type=Path)  # A file, a folder of files, or a pattern
FILE = click.Path(dir_okay=False, path_type=Path)
DIRECTORY = click.Path(file_okay=False, path_type=Path)
EXISTING_DIRECTORY = click.Path(exists=True, file_okay=False, path_type=Path)

option = click.option
shown = functools.partial(click.option, show_default=True)  # An option whose help shows its default

seed = shown("--seed", type=click.IntRange(0), default=0)
_bootstrap_help = "Bootstrap replicates for the intervals; 0: no intervals."
bootstrap = shown(
    "--bootstrap", "replicates", type=click.IntRange(0, 100_000), default=1000, help=_bootstrap_help
)
bundle = option("--bundle", type=DIRECTORY, help="Bundle that encodes the texts; default: the shipped one.")
split = option("--split", "splits", multiple=True, help="Use only rows of this split; repeatable.")
text_column = option("--text-column", help="Column of the texts; default: prompt, text, question …")
options_column = option("--options-column", help="Column with a JSON list of options to append to the text.")
judge_strategy = option("--strategy", help="With --judge: name of the judge strategy, if there are several.")


def stacked(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """Combine decorators into one; the help lists them in the order given."""
    return lambda command: functools.reduce(lambda done, each: each(done), reversed(options), command)


@contextmanager
def progress(what: str, total: int) -> Iterator[Callable[..., None]]:
    """A function to call after each of `total` steps, or with how many."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    hidden = not console.is_terminal or not total
    with Progress(*columns, console=console, transient=True, disable=hidden) as bar:
        task = bar.add_task(what, total=total)
        yield lambda steps=1.0: bar.advance(task, steps)


def tracked(items: Iterable[T], total: int, what: str) -> Iterator[T]:
    """The items, with a bar."""
    with progress(what, total) as advance:
        for item in items:
            yield item
            advance()
