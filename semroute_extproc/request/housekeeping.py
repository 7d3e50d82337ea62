"""Requests that an application makes by itself: the title of a chat, its summary, a search query, … Pure.

A user may ask for such things too, so words are not enough: the system prompt of a first request says it,
or the user turn has the structure of a template. The phrases are in housekeeping.toml.
"""

from __future__ import annotations

import dataclasses
import re
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from semroute_extproc.request.envelope import READ_MAX, SENTENCE
from semroute_extproc.request.envelope import SHIPPED as ENVELOPES
from semroute_extproc.settings.text import Envelopes

SYSTEM_MAX = 400  # characters of the system prompt that may say it
ENDS_MAX = 600  # and at each end of the user turn
TEMPLATE_MIN = 200  # characters of a template without labels, sent after an answer
SYSTEMS_MAX = 256  # starts of system prompts whose kind is remembered

_SPEAKER = re.compile(r"^[^\w\n]{0,6}(\w{2,20})[^\w\n]{0,4}[:：\n]", re.M)


class Task(NamedTuple):
    """How to recognize one kind."""

    kind: str
    alone: tuple[str, ...]  # enough in any sentence
    task: tuple[str, ...] = ()  # in a sentence about the conversation
    log: bool = False  # a user turn must have a chat log; else labels or blocks are enough
    system: bool = False  # `task` counts in a system prompt too


@dataclass(frozen=True, eq=False)
class Housekeeping:
    """The kinds that are recognized; of several, the first counts."""

    about: re.Pattern[str]  # the conversation, or a message of it
    tasks: tuple[Task, ...]

    def extended(self, more: Envelopes) -> Housekeeping:
        """These kinds after those of the configuration."""
        added = tuple(Task(kind, phrases) for kind, phrases in more.housekeeping.items())
        return dataclasses.replace(self, tasks=added + self.tasks) if added else self

    def kind(self, system: str, turn: str, frame: str, later: bool) -> str:
        """The kind of a request, or "".

        `frame` is the last user turn without its context (`envelope.Unwrapped`); `later` says that an
        assistant has answered before, so that the system prompt is not about this turn alone.
        """
        if not later and (kind := _of_system(self, system[:SYSTEM_MAX])):
            return kind
        if later and len(turn) >= TEMPLATE_MIN:
            frame = frame or turn  # "summarize the conversation so far" needs no labels
        if not frame:
            return ""
        ends = frame if len(frame) <= 2 * ENDS_MAX else f"{frame[:ENDS_MAX]}\n{frame[-ENDS_MAX:]}"
        ends = ends.lower()
        if not self._search(ends, lambda _: True):
            return ""
        speakers = (ENVELOPES.names.get(name.lower()) for name in _SPEAKER.findall(turn[:READ_MAX]))
        logged = (later and len(turn) >= TEMPLATE_MIN) or any(
            name in ("user", "assistant") for name in speakers
        )
        return self._search(ends, lambda task: logged or not task.log)

    def _search(self, text: str, counts: Callable[[Task], bool]) -> str:
        """The kind that a sentence of a lower-case text asks for; `task` only where `counts` says so."""
        for each in self.tasks:
            task = each.task if counts(each) else ()
            if not any(map(text.__contains__, each.alone + task)):
                continue
            for match in SENTENCE.finditer(text):
                sentence = match[0]
                if any(map(sentence.__contains__, each.alone)):
                    return each.kind
                if any(map(sentence.__contains__, task)) and self.about.search(sentence):
                    return each.kind
        return ""


@lru_cache(maxsize=SYSTEMS_MAX)
def _of_system(known: Housekeeping, start: str) -> str:
    return known._search(start.lower(), lambda task: task.system)


def _shipped() -> Housekeeping:
    data = tomllib.loads(Path(__file__).with_name("housekeeping.toml").read_text("utf-8"))
    tasks = (
        Task(kind, **{key: tuple(v) if isinstance(v, list) else v for key, v in rule.items()})
        for kind, rule in data["kinds"].items()
    )
    return Housekeeping(re.compile(data["about"]), tuple(tasks))


SHIPPED = _shipped()
