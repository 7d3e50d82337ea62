"""Command line options that several commands share."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])

EXISTING = click.Path(exists=True, dir_okay=False, path_type=Path)
FILE = click.Path(dir_okay=False, path_type=Path)
DIRECTORY = click.Path(file_okay=False, path_type=Path)

shown = functools.partial(click.option, show_default=True)  # An option whose help has its default
option = click.option

seed = shown("--seed", type=click.IntRange(0), default=0)
bootstrap = shown(
    "--bootstrap",
    "replicates",
    type=click.IntRange(0, 100_000),
    default=1000,
    help="Bootstrap replicates of the intervals; 0 for none.",
)
bundle = option("--bundle", type=DIRECTORY, help="Bundle that reads the texts; by default the shipped one.")
split = option("--split", "splits", multiple=True, help="Only rows of this split; may be repeated.")
text_column = option("--text-column", help="Column of the texts; by default prompt, text, question …")
options_column = option("--options-column", help="Column with a JSON list of options to append to the text.")
judge_strategy = option("--strategy", help="With --judge: its strategy's name, if there are several.")


def stacked(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """One decorator of several, in the order of the help."""
    return lambda command: functools.reduce(lambda done, each: each(done), reversed(options), command)
