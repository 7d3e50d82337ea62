"""Completion in a shell, and hints that can be pasted into one."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.shell_completion import ShellComplete, get_completion_class

from semroute_extproc.cli import main
from semroute_extproc.cli.envoy_file import FILES

ROOT = Path(__file__).parents[3]
ASK = """\
eval "$(_SEMROUTE_COMPLETE=bash_source semroute)"
for words in "$@"; do
  COMP_WORDS=(semroute $words); [[ $words == *" " || -z $words ]] && COMP_WORDS+=("")
  COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); COMPREPLY=()
  _semroute_completion semroute
  echo "${COMPREPLY[@]}"
done
"""


@pytest.fixture
def bash(tmp_path: Path) -> Path:
    """A folder with the command `semroute`."""
    file = tmp_path / "semroute"
    file.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m semroute_extproc "$@"\n')
    file.chmod(0o755)
    return tmp_path


def asked(folder: Path, *lines: str) -> list[list[str]]:
    """What bash completes each line to."""

    environment = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"}
    command = ["bash", "-c", ASK, "bash", *lines]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=150)
    return [line.split() for line in done.stdout.splitlines()]


def test_bash_completes_commands_options_and_choices(bash: Path) -> None:
    every, some, options, choices = asked(bash, "", "s", "logs --", "envoy --for ")
    assert every == main.list_commands(click.Context(main))
    assert some == [name for name in every if name.startswith("s")]
    assert {"--follow", "--pool", "--reason", "--id", "--json", "--config"} <= {*options}
    assert choices == list(FILES)


@pytest.mark.parametrize("name", main.list_commands(click.Context(main)))
def test_every_command_completes_its_options(name: str) -> None:
    completions = ShellComplete(main, {}, "semroute", "_SEMROUTE_COMPLETE").get_completions([name], "--")
    assert "--help" in {each.value for each in completions}


def test_completing_a_command_imports_no_plug_in() -> None:
    code = "import sys; from click.shell_completion import ShellComplete as S; "
    code += "from semroute_extproc.cli import main; S(main, {}, 'semroute', 'X').get_completions([], ''); "
    code += "print(sorted({'numpy', 'sklearn', 'semroute_demo', 'semroute_lab'} & {*sys.modules}))"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown == "[]\n"


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_have_a_script(shell: str) -> None:
    made = get_completion_class(shell)
    assert made is not None
    assert "_SEMROUTE_COMPLETE" in made(main, {}, "semroute", "_SEMROUTE_COMPLETE").source()


def hints() -> set[str]:
    """Every command in messages, helps and pages: what stands between backticks, or in a block of code."""
    folders = [ROOT / "semroute_extproc", *(ROOT / "lab").glob("semroute_*")]
    kinds = ("*.py", "*.toml", "*.txt", "*.html", "*.yaml")
    files = [file for folder in folders for kind in kinds for file in folder.rglob(kind)]
    files += [*(ROOT / "docs").glob("*.md"), ROOT / "README.md"]
    found = set[str]()
    for file in files:
        text = re.sub(r'"\n\s*f?"', "", file.read_text())  # a message in several pieces
        found |= {" ".join(each.split()) for each in re.findall(r"`(semroute [a-z][^`]*)`", text)}
        found |= {each.strip() for each in re.findall(r"^ {0,6}(semroute [a-z][^\n\\]*)$", text, re.M)}
    cut = {re.split(r" [>|#] ?|  |;|&&|\\n", each)[0] for each in found}
    return {each for each in cut if not re.match(r"semroute (is |\w+ ?[{…])|semroute eval …", each)}


@pytest.mark.parametrize("hint", sorted(hints()))
def test_a_hint_works_when_it_is_pasted(hint: str) -> None:
    """Its command and its options exist; a placeholder in capitals or braces stands for a value."""
    try:
        words = shlex.split(hint)[1:]
    except ValueError:  # a quotation mark that a later line closes
        words = hint.split()[1:]
    command: click.Command = main
    while words and isinstance(command, click.Group):
        name = words.pop(0)
        found = command.get_command(click.Context(command), name)
        assert found is not None, f"{name!r} is no command"
        command = found
    options = {name for each in command.params for name in (*each.opts, *each.secondary_opts)}
    options |= {"--help", "-h"}
    assert {word.partition("=")[0] for word in words if re.fullmatch(r"--?[a-z].*", word)} <= options
