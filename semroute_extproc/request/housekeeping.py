"""Requests that an application makes by itself: the title of a chat, its summary, a search query, … Pure.

A user may ask for such things too, so words are not enough: the system prompt of a first request says it,
or the user turn has the structure of a template. The phrases are in envelopes.toml.
"""

import re
from collections.abc import Sequence
from functools import lru_cache

from semroute_extproc.request.envelope import READ_MAX, SENTENCE, Unwrapped, both_ends, instructs
from semroute_extproc.request.marks import SHIPPED, Marks

SYSTEM_MAX, SENTENCES_MAX = 400, 2  # characters and sentences of the system prompt that may say it
ENDS_MAX = 600  # and at each end of the user turn
TEMPLATE_MIN = 150  # characters of a template without labels, sent after an answer
SYSTEMS_MAX = 256  # starts of system prompts whose kind is remembered

_WRAPPED = re.compile(r"\n\s{0,8}(?=[a-z])")  # a line break within a sentence
_SPEAKER = re.compile(r"^[^\w\n]{0,6}(\w{2,20})[^\w\n]{0,4}[:：\n]", re.MULTILINE)


def kind(system: str, turn: str, unwrapped: Unwrapped, later: bool, marks: Marks = SHIPPED) -> str:
    """The kind of a request, or "".

    `turn` is the last user turn. `later` is whether the assistant has answered before; then the system prompt
    does not speak of this turn alone.
    """
    if found := _of_system(system[:SYSTEM_MAX], later, marks):
        return found
    unlabeled = later and len(unwrapped.question) >= TEMPLATE_MIN  # "summarize the conversation so far"
    frame = unwrapped.frame or (turn if unlabeled else "")
    if not frame:
        return ""
    sentences = SENTENCE.findall(_WRAPPED.sub(" ", both_ends(frame, ENDS_MAX)).lower())
    if not (found := _search(sentences, [True] * len(marks.tasks), marks)):
        return ""
    speakers = {marks.kinds.get(name.lower()) for name in _SPEAKER.findall(turn[:READ_MAX])}
    if unlabeled or not speakers.isdisjoint({"user", "assistant"}):
        return found
    if frame.strip() == unwrapped.question != turn and not instructs(frame, marks):
        return ""  # a user may ask for a title, and the client added context
    return _search(sentences, [not task.log for task in marks.tasks], marks)


@lru_cache(maxsize=SYSTEMS_MAX)
def _of_system(start: str, later: bool, marks: Marks) -> str:
    sentences = SENTENCE.findall(_WRAPPED.sub(" ", start.strip()).lower())[:SENTENCES_MAX]
    return _search(sentences, [task.system and not later for task in marks.tasks], marks, marks.makes)


def _search(
    sentences: Sequence[str], counts: Sequence[bool], marks: Marks, verbs: Sequence[str] = ("",)
) -> str:
    """The kind that lower-case sentences ask for; `task` only where it counts, with one of `verbs`."""
    text = "\n".join(sentences)
    for each, count in zip(marks.tasks, counts, strict=True):
        task = each.task if count else ()
        if any(map(text.__contains__, each.alone + task)):
            for sentence in sentences:
                if any(map(sentence.__contains__, each.alone)):
                    return each.kind
                matches = any(map(sentence.__contains__, task)) and any(map(sentence.__contains__, verbs))
                if matches and re.search(each.about or marks.about, sentence):
                    return each.kind
    return ""
