"""Reads the configuration: a YAML file and the environment.

An error shows its location: `file:line:col: path: message`, the source line and a caret.
"""

import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from semroute_extproc.config import models
from semroute_extproc.config.models import Config
from semroute_extproc.errors import ConfigError
from semroute_extproc.settings.base import Problem, did_you_mean

ENVIRONMENT_PREFIX = "SEMROUTE__"
"""`SEMROUTE__SERVER__LISTEN=unix:/run/x.sock` sets `server.listen`; values are read as YAML."""

FILE_BYTES_MAX = 4 * 1024 * 1024  # Largest configuration file

SECRETS = (("controllers", "session", "remote", "url"), ("controllers", "session", "remote", "key"))
"""Settings whose values are masked in every source line that an error shows."""


@dataclass(frozen=True, slots=True)
class Source:
    """The parsed file with its positions, and the paths the environment has set."""

    name: str
    lines: list[str]
    document: CommentedMap
    from_environment: Mapping[tuple[str, ...], str]

    def locate(self, problem: Problem) -> str:
        """`file:line:col: path: message`, the source line and a caret below it."""
        line, column, shown = self._place(problem.path)
        path = ".".join(shown)
        for end in range(len(shown), 0, -1):
            if variable := self.from_environment.get(tuple(shown[:end])):
                return f"{variable} (environment): {path}: {problem.message}"
        text = self._masked(self.lines[line]) if line < len(self.lines) else ""
        head = f"{self.name}:{line + 1}:{column + 1}: {path or 'configuration'}: {problem.message}"
        return f"{head}\n    {text}\n    {' ' * column}^" if text.strip() else head

    def _masked(self, text: str) -> str:
        """A line with its secrets masked; its length is kept so that the caret still fits."""
        for path in SECRETS:
            node: Any = self.document
            for part in path:
                node = node.get(part) if isinstance(node, dict) else None
            secret = str(node or "")
            text = text.replace(secret, "*" * len(secret))
        return text

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

    config: Config
    sha256: str
    source: Source

    def error(self, problems: list[Problem]) -> ConfigError:
        """The given problems, with their locations in the file."""
        return ConfigError([self.source.locate(problem) for problem in problems])


def load(path: Path, environment: Mapping[str, str] | None = None) -> Loaded:
    """Read the file, merge the environment and validate; raises ConfigError with every problem."""
    text, document = _read(path)
    variables = _overlay(document, os.environ if environment is None else environment)
    source = Source(str(path), text.splitlines(), document, variables)
    try:
        plain = _plain(document)
        context = {**models.names_in(plain), "folder": path.absolute().parent}
        config = Config.model_validate(plain, context=context)
    except ValidationError as error:
        raise ConfigError([source.locate(_problem(detail)) for detail in error.errors()]) from None
    except RecursionError:
        raise ConfigError([f"{path}: nested too deeply"]) from None
    loaded = Loaded(config, hashlib.sha256(config.model_dump_json().encode()).hexdigest(), source)
    if problems := list(models.contradictions(config)):
        raise loaded.error(problems)
    return loaded


def without_cluster(loaded: Loaded, envoy: Path) -> list[Problem]:
    """Pools without their clusters in Envoy's bootstrap; raises ConfigError if that cannot be read."""
    _, bootstrap = _read(envoy)
    static, dynamic = bootstrap.get("static_resources"), bootstrap.get("dynamic_resources")
    if isinstance(dynamic, dict) and ("cds_config" in dynamic or "ads_config" in dynamic):
        raise ConfigError([f"{envoy}: its clusters are dynamic (cds_config); this file does not list them"])
    clusters = static.get("clusters") if isinstance(static, dict) else None
    if not isinstance(clusters, list):
        raise ConfigError([f"{envoy}: not a bootstrap: it has no static_resources.clusters"])
    names = [str(cluster.get("name")) for cluster in clusters if isinstance(cluster, dict)]
    failover = loaded.config.controllers.failover
    suffixes = ("", failover.cluster_suffix) if failover else ("",)
    wanted = [(name, pool.cluster + end) for name, pool in loaded.config.pools.items() for end in suffixes]
    return [
        Problem(("pools", name, "cluster"), f"{envoy} has no cluster {each!r}" + did_you_mean(each, names))
        for name, each in wanted
        if each not in names
    ]


def digest(path: Path) -> bytes:
    """A hash of the file's content; empty if it cannot be read."""
    try:
        return hashlib.sha256(path.read_bytes()).digest()
    except OSError:
        return b""


def _read(path: Path) -> tuple[str, CommentedMap]:
    """The text of a file, and its YAML mapping with positions."""
    try:
        if len(raw := path.read_bytes()) > FILE_BYTES_MAX:
            raise ConfigError([f"{path}: larger than {FILE_BYTES_MAX} bytes"])
        text = raw.decode()
        document = YAML(typ="rt").load(raw)
    except OSError as error:
        raise ConfigError([f"{path}: {error.strerror}"]) from None
    except UnicodeDecodeError as error:
        raise ConfigError([f"{path}: not UTF-8 at byte {error.start}"]) from None
    except RecursionError:
        raise ConfigError([f"{path}: nested too deeply"]) from None
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
        raise ConfigError([f"{path}{place}: {error.problem or error.context or 'not YAML'}"]) from None
    except (YAMLError, ValueError) as error:
        raise ConfigError([f"{path}: not YAML: {str(error).splitlines()[0]}"]) from None
    if not isinstance(document, CommentedMap):
        raise ConfigError([f"{path}:1:1: expected a mapping of settings"])
    return text, document


def _overlay(document: CommentedMap, environment: Mapping[str, str]) -> dict[tuple[str, ...], str]:
    """Write the environment's settings into the document; returns path to variable.

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
                written[tuple(path)] = variable
            node = node[key]
        key = _existing_key(node, last)
        try:
            node[key] = YAML(typ="safe").load(text)
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


def _problem(detail: Any) -> Problem:
    path = tuple(detail["loc"])
    if detail["type"] == "extra_forbidden":
        names = _setting_names(Config.model_json_schema())
        hint = did_you_mean(str(path[-1]), names) or "; `semroute schema` lists the settings"
        return Problem(path, "unknown setting" + hint)
    message = "is required" if detail["type"] == "missing" else detail["msg"].removeprefix("Value error, ")
    return Problem(path, message[0].lower() + message[1:])


def _setting_names(schema: Any) -> Iterator[str]:
    """The name of every setting in a JSON schema, at any level."""
    if isinstance(schema, dict):
        yield from schema.get("properties", ())
        schema = list(schema.values())
    for inner in schema if isinstance(schema, list) else ():
        yield from _setting_names(inner)
