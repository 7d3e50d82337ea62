"""Requests that an application makes by itself: the title of a chat, its summary, a search query, … Pure.

A user may ask for such things too, so words are not enough: the system prompt of a first request says it,
or the user turn has the structure of a template. The phrases are in envelopes.toml.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

from semroute_extproc.request.envelope import READ_MAX, SENTENCE, SHIPPED, Marks, Unwrapped

SYSTEM_MAX = 400  # characters of the system prompt that may say it
ENDS_MAX = 600  # and at each end of the user turn
TEMPLATE_MIN = 200  # characters of a template without labels, sent after an answer
SYSTEMS_MAX = 256  # starts of system prompts whose kind is remembered

_SPEAKER = re.compile(r"^[^\w\n]{0,6}(\w{2,20})[^\w\n]{0,4}[:：\n]", re.MULTILINE)


def kind(system: str, turn: str, unwrapped: Unwrapped, later: bool, marks: Marks = SHIPPED) -> str:
    """The kind of a request, or "".

    `turn` is the last user turn. `later` is whether the assistant has answered before; then the system prompt
    does not speak of this turn alone.
    """
    if not later and (found := _of_system(system[:SYSTEM_MAX], marks)):
        return found
    unlabelled = later and len(turn) >= TEMPLATE_MIN  # "summarize the conversation so far"
    frame = unwrapped.frame or (turn if unlabelled else "")
    if not frame or not _search(_ends(frame), [True] * len(marks.tasks), marks):
        return ""
    speakers = {marks.kinds.get(name.lower()) for name in _SPEAKER.findall(turn[:READ_MAX])}
    if unlabelled or not speakers.isdisjoint({"user", "assistant"}):
        return _search(_ends(frame), [True] * len(marks.tasks), marks)
    if unwrapped.question != turn:
        frame = frame.replace(unwrapped.question, "", 1)  # a user may ask for a title
    return _search(_ends(frame), [not task.log for task in marks.tasks], marks)


def _ends(text: str) -> str:
    return (text if len(text) <= 2 * ENDS_MAX else f"{text[:ENDS_MAX]}\n{text[-ENDS_MAX:]}").lower()


@lru_cache(maxsize=SYSTEMS_MAX)
def _of_system(start: str, marks: Marks) -> str:
    return _search(start.lower(), [task.system for task in marks.tasks], marks)


def _search(text: str, counts: Sequence[bool], marks: Marks) -> str:
    """The kind that a sentence of a lower-case text asks for; `task` only where it counts."""
    for each, count in zip(marks.tasks, counts, strict=True):
        task = each.task if count else ()
        if any(map(text.__contains__, each.alone + task)):
            for sentence in SENTENCE.findall(text):
                if any(map(sentence.__contains__, each.alone)):
                    return each.kind
                if any(map(sentence.__contains__, task)) and re.search(marks.about, sentence):
                    return each.kind
    return ""
