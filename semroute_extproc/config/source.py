"""Reads the configuration: a YAML file and the environment.

An error shows its location: `file:line:col: path: message`, the source line and a caret.
"""

import hashlib
import io
import os
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.composer import Composer
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import AliasEvent, ScalarEvent

from semroute_extproc.config import models
from semroute_extproc.errors import ConfigError
from semroute_extproc.io.files import read_file
from semroute_extproc.settings.base import Problem, did_you_mean, redacted
from semroute_extproc.settings.process import Admin

ENVIRONMENT_PREFIX = "SEMROUTE__"
"""`SEMROUTE__SERVER__LISTEN=unix:/run/x.sock` sets `server.listen`; values are read as YAML."""

FILE_BYTES_MAX = 1024 * 1024  # Largest file; a ConfigMap has the same limit
NODES_MAX = 20_000  # Values in a file, counted wherever an alias repeats them; takes seconds to read
DEPTH_MAX = 64  # Levels of a value within values
SCALAR_CHARACTERS_MAX = 32_768  # Longest single value
PROBLEMS_MAX = 100  # Problems of one file that are reported
LINE_CHARACTERS_MAX = 500  # Longest source line that an error shows
REQUIRED = "is required"  # the problem with a setting that is missing

SECRETS = (
    *(("controllers", "store"), ("admin", "token")),
    *(("server", "secret"), ("telemetry", "decision_log", "key")),
)
"""Settings whose values, at any level, are masked in every source line that an error shows."""


class _BoundedComposer(Composer):
    """Refuses a document that is too large or too deep before it is built."""

    warn_double_anchors = False  # The warning would print lines of the file.

    def __init__(self, loader: Any = None) -> None:
        super().__init__(loader)
        self.nodes = self.level = 0
        self.sizes: dict[str, int] = {}  # by anchor

    def compose_node(self, parent: Any, index: Any) -> Any:
        event, before, problem = self.parser.peek_event(), self.nodes, ""
        # An alias without a size is within the value that it repeats.
        alias = isinstance(event, AliasEvent)
        self.nodes += self.sizes.get(event.anchor, NODES_MAX) if alias else 1
        self.level += 1
        if self.nodes > NODES_MAX:
            problem = f"more than {NODES_MAX} values, counted wherever an alias repeats them"
        elif self.level > DEPTH_MAX:
            problem = "nested too deeply"
        elif isinstance(event, ScalarEvent) and len(event.value) > SCALAR_CHARACTERS_MAX:
            problem = f"a value of more than {SCALAR_CHARACTERS_MAX} characters"
        elif parent is not None and index is None and not isinstance(event, ScalarEvent):
            problem = "a key must be text, not a mapping or a list"
        if problem:
            raise MarkedYAMLError(problem=problem, problem_mark=event.start_mark)
        node = super().compose_node(parent, index)
        self.level -= 1
        if event.anchor is not None and not alias:
            self.sizes[event.anchor] = self.nodes - before
        return node


@dataclass(frozen=True, slots=True)
class Source:
    """The parsed file with its positions, and the paths the environment has set."""

    name: str
    lines: list[str]
    document: CommentedMap
    from_environment: Mapping[tuple[str, ...], str]
    unknown: Collection[tuple[str | int, ...]] = ()  # Paths that are no settings: a secret may be misplaced

    def locate(self, problem: Problem) -> str:
        """`file:line:col: path: message`, the source line and a caret below it."""
        line, column, shown = self._place(problem.path)
        path = ".".join(shown)
        for end in range(len(shown), 0, -1):
            place, variables = tuple(shown[:end]), self.from_environment
            # A variable that created a section is the source of the whole and of what is missing there.
            of_section = end == len(shown) or problem.message == REQUIRED
            if variable := variables.get(place) or (of_section and variables.get((*place, ""))):
                return redacted(f"{variable} (environment): {path}: {problem.message}")
        text = self._masked(self.lines[line]) if line < len(self.lines) else ""
        if problem.path in self.unknown or any(problem.path[: len(path)] == path for path in SECRETS):
            end = column + len(shown[-1])
            text = text[:end] + re.sub(r"\w", "*", text[end:])
        head = redacted(f"{self.name}:{line + 1}:{column + 1}: {path or 'configuration'}: {problem.message}")
        shows = text.strip() and len(text) <= LINE_CHARACTERS_MAX
        return f"{head}\n    {text}\n    {' ' * column}^" if shows else head

    def _masked(self, text: str) -> str:
        """A line with its secrets masked; its length is kept so that the caret still fits."""
        for path in (*SECRETS, *self.unknown):
            node: Any = self.document
            for part in path:
                node = node.get(part) if isinstance(node, dict) else None
            for secret in _scalars(node):
                text = text.replace(secret, "*" * len(secret))
        return redacted(text)

    def _place(self, path: tuple[str | int, ...]) -> tuple[int, int, list[str]]:
        """Line and column of the deepest node of `path` in the file, and the path as it was written.

        Union tags and pydantic's `[key]` are in an error's path but not in the file, so they are dropped.
        """
        node: Any = self.document
        position = [0, 0]
        shown: list[str] = []
        for index, part in enumerate(path):
            last = index == len(path) - 1 and part != "[key]"
            known = range(len(node)) if isinstance(node, CommentedSeq) else node
            if isinstance(node, CommentedMap | CommentedSeq) and part in known:
                # Keys that the environment added have no position.
                position = (node.lc.data or {}).get(part, position)
                node = node[part]
            elif not last:
                continue
            shown.append(str(part))
        return position[0], position[1], shown


@dataclass(frozen=True, slots=True)
class Loaded:
    """A checked configuration, with the positions of its settings."""

    config: models.Config
    sha256: str
    source: Source

    def error(self, problems: list[Problem]) -> ConfigError:
        """The given problems, with their locations in the file."""
        return ConfigError([self.source.locate(problem) for problem in problems])


def load(path: Path, environment: Mapping[str, str] | None = None, folder: Path | None = None) -> Loaded:
    """Read the file, merge the environment and validate; raises ConfigError with every problem.

    Files that it names are relative to `folder`, by default its own.
    """
    text, document = _read(path, whole=True)
    variables = _overlay(document, os.environ if environment is None else environment)
    source = Source(str(path), text.splitlines(), document, variables)
    try:
        plain = _plain(document)
        context = {**models.names_in(plain), "folder": folder or path.absolute().parent}
        config = models.Config.model_validate(plain, context=context)
    except ValidationError as error:
        found = error.errors(include_input=False)[:PROBLEMS_MAX]
        unknown = {tuple(detail["loc"]) for detail in found if detail["type"] == "extra_forbidden"}
        source = replace(source, unknown=unknown)
        raise ConfigError([source.locate(_problem(detail)) for detail in found]) from None
    loaded = Loaded(config, hashlib.sha256(config.model_dump_json().encode()).hexdigest(), source)
    if problems := list(models.contradictions(config)):
        raise loaded.error(problems)
    return loaded


def load_admin(path: Path) -> Admin:
    """The section `admin`, even if other sections are invalid; raises ConfigError."""
    _, document = _read(path)
    _overlay(document, os.environ)
    try:
        return Admin.model_validate(_plain(document.get("admin") or {}))
    except ValidationError:
        return load(path).config.admin  # It raises the error with its location.


def digest(path: Path) -> bytes:
    """A hash of the file's content; empty if it cannot be read."""
    try:
        return hashlib.sha256(read_file(path, FILE_BYTES_MAX)).digest()
    except OSError:
        return b""


def _read(path: Path, whole: bool = False) -> tuple[str, CommentedMap]:
    """The text of a file, and its YAML mapping with positions; `whole` refuses a file that was cut off."""
    text, documents = read_documents(path, whole)
    if len(documents) != 1 or not isinstance(documents[0], CommentedMap):
        raise ConfigError([f"{path}:1:1: expected a mapping of settings"])
    return text, documents[0]


def read_documents(path: Path, whole: bool = False) -> tuple[str, list[Any]]:
    """The text of a YAML or JSON file, and its documents with positions; raises ConfigError."""
    try:
        text = (raw := read_file(path, FILE_BYTES_MAX)).decode()
        if whole and (cut := _cut_off(text)):
            raise ConfigError([f"{path}:{text.count(chr(10)) + 1}: {cut}: is the file cut off?"])
        documents = list(_parser("rt").load_all(raw))
    except OSError as error:
        raise ConfigError([f"{path}: {error.strerror}"]) from None
    except UnicodeDecodeError as error:
        raise ConfigError([f"{path}: not UTF-8 at byte {error.start}"]) from None
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
        # The library quotes keys, values and aliases, of which any may be a secret.
        problem = re.split(r""" ?["'].{2}""", error.problem or error.context or "not YAML", maxsplit=1)[0]
        raise ConfigError([f"{path}{place}: {problem}"]) from None
    except (YAMLError, ValueError, RecursionError) as error:
        raise ConfigError([f"{path}: not YAML: {type(error).__name__}"]) from None
    return text, documents


def as_yaml(settings: Any) -> str:
    """Settings as a person writes them."""
    file = io.StringIO()
    YAML().dump(settings, file)
    return file.getvalue()


def _parser(kind: str) -> YAML:
    yaml = YAML(typ=kind, pure=True)
    yaml.Composer = _BoundedComposer
    return yaml


def _cut_off(text: str) -> str:
    """What the end of a complete file has and this one lacks; empty if nothing is missing."""
    if re.search(r"^---(\s|$)", text, re.MULTILINE) and text.split("\n")[-2:] != ["...", ""]:
        return "begins with a line `---` and does not end with a line `...`"
    # A JSON document that is cut off cannot be read.
    return "" if text.endswith("\n") or text.lstrip().startswith("{") else "does not end with a line break"


def _overlay(document: CommentedMap, environment: Mapping[str, str]) -> dict[tuple[str, ...], str]:
    """Write the environment's settings into the document; returns path to variable.

    A path that ends with an empty name is a section that the variable created to set one of its settings.

    Raises ConfigError for a variable that names an item of a list.
    """
    written: dict[tuple[str, ...], str] = {}
    for variable, text in sorted(environment.items()):
        if not variable.startswith(ENVIRONMENT_PREFIX):
            continue
        node: Any = document
        path: list[str] = []
        *parents, last = variable.removeprefix(ENVIRONMENT_PREFIX).split("__")
        for part in parents:
            key = _existing_key(node, part)
            path.append(str(key))
            if isinstance(node.get(key), list):
                problem = "a variable can set a whole list, not one of its items"
                raise ConfigError([f"{variable} (environment): {'.'.join(path)}: {problem}"])
            if not isinstance(node.get(key), dict):
                node[key] = CommentedMap()
                written[*path, ""] = variable
            node = node[key]
        key = _existing_key(node, last)
        try:
            node[key] = _parser("safe").load(text)
        except (YAMLError, ValueError, RecursionError):
            node[key] = text
        written[*path, str(key)] = variable
    return written


def _existing_key(node: Mapping[Any, Any], part: str) -> Any:
    """The key for a part of a variable's name: LLAMA_3_1 is `llama-3.1` unless `llama_3_1` exists."""
    wanted = part.lower()
    names = {str(key).lower(): key for key in node}
    spelled = {re.sub("[^a-z0-9]", "_", name): key for name, key in names.items()}
    return names.get(wanted, spelled.get(wanted, wanted))


def _plain(node: Any) -> Any:
    if isinstance(node, dict):
        return {key: _plain(value) for key, value in node.items()}
    if isinstance(node, list):
        return [_plain(value) for value in node]
    return node


def _scalars(node: Any) -> Iterator[str]:
    """Every value at or below a node, as text."""
    if isinstance(node, dict | list):
        for inner in node.values() if isinstance(node, dict) else node:
            yield from _scalars(inner)
    elif node is not None:
        with suppress(ValueError):  # of an integer with too many digits
            yield str(node)


def _problem(detail: Any) -> Problem:
    path = tuple(detail["loc"])
    if detail["type"] == "extra_forbidden":
        hint = did_you_mean(str(path[-1]), _all_settings()) or "; `semroute schema` lists the settings"
        return Problem(path, "unknown setting" + hint)
    message = REQUIRED if detail["type"] == "missing" else detail["msg"].removeprefix("Value error, ")
    return Problem(path, message[0].lower() + message[1:])


@cache
def _all_settings() -> set[str]:
    """The name of every setting, at any level."""
    schema = models.Config.model_json_schema()
    return {name for each in (schema, *schema["$defs"].values()) for name in each.get("properties", ())}
