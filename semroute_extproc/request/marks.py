"""Names and phrases that show what surrounds a request, read from envelopes.toml. Pure."""

import re
from pathlib import Path
from typing import Self

import msgspec

from semroute_extproc.settings.text import Envelopes

WORD = re.compile(r"[^\W\d_]+")
_CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z])")


class Task(msgspec.Struct, frozen=True):
    """How to recognize one kind of housekeeping; see envelopes.toml."""

    kind: str
    alone: tuple[str, ...] = ()
    task: tuple[str, ...] = ()
    log: bool = False
    system: bool = False
    about: str = ""


class Marks(msgspec.Struct, eq=False):
    """The names and phrases of envelopes.toml."""

    names: dict[str, tuple[str, ...]]
    said: frozenset[str]
    tags_only: frozenset[str]
    markup: frozenset[str]
    request: frozenset[str]
    request_inside: tuple[str, ...]
    refers: tuple[str, ...]
    headings: tuple[str, ...]
    options: tuple[str, ...]
    format: tuple[str, ...]
    courtesy: frozenset[str]
    mail: str
    role: tuple[str, ...]
    rules: tuple[str, ...]
    makes: tuple[str, ...]
    own: str
    about: str
    tasks: tuple[Task, ...]
    kinds: dict[str, str] = msgspec.field(default_factory=dict)

    def __post_init__(self) -> None:
        for kind, names in self.names.items():
            for name in names:
                self.kinds.setdefault(name, kind)

    def extended(self, more: Envelopes) -> Self:
        """These marks and those of the configuration, which take precedence."""
        tasks = tuple(Task(kind, phrases) for kind, phrases in more.housekeeping.items()) + self.tasks
        added = {name: kind for kind in ("ask", "context") for name in getattr(more, kind)}
        markup, tags_only = self.markup - added.keys(), self.tags_only - added.keys()
        kinds = self.kinds | added
        return msgspec.structs.replace(self, tasks=tasks, kinds=kinds, markup=markup, tags_only=tags_only)

    def kind(self, name: str, tag: bool = False, json: bool = False) -> str:
        """The kind of a name of a tag, of a member of JSON, or of a label: a key of `names`, or ""."""
        lower = name.lower()
        if lower in (self.markup if tag else self.tags_only):
            return ""
        if known := self.kinds.get(f"<{lower}>" * tag or f"{{{lower}}}" * json) or self.kinds.get(lower):
            return known
        words = WORD.findall(_CAMEL.sub(" ", name).lower())
        if known := self.kinds.get("_".join(words)):
            return known
        if len(words) < 2:  # a Chinese or Japanese label is one word
            return "" if lower.isascii() else self.kinds.get(lower[-2:], "")
        if len(words) > 3 and not tag:
            return ""
        kinds = [self.kinds.get(word, "") for word in words]
        if kinds[0] == "user" and words[-1] in self.said:
            return "ask"
        return "context" if tag and "context" in kinds else kinds[-1]


SHIPPED = msgspec.toml.decode(Path(__file__).with_name("envelopes.toml").read_bytes(), type=Marks)
