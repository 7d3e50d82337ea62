"""The question within a user turn, without what an application put around it. Pure.

Coding agents, chat front ends and retrieval templates surround a request with blocks, labels and documents.
The names and phrases are in envelopes.toml. Work is linear in the text: every loop and pattern is bounded by
a constant below. If nothing or little would be left, or the structure is not clear, the whole text is kept.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

TAGS_MAX = 4_096  # a text with more tags is markup and is not unwrapped
NESTING_MAX = 3  # levels of blocks that carry the request: `<task>` within `<user_message>`
READ_MAX = 65_536  # characters that are searched for labels and paragraphs: half at each end
LINES_MAX = 1_024  # and lines of them
JSON_MAX = 262_144  # longer JSON is not decoded
LABEL_MAX = 48  # characters of a label with its decoration
LEAD_MAX = 120  # of a line that introduces the next paragraph ("Here is the question:")
BLOCK_MIN = 400  # an unknown block is kept unless it is longer than this and stands on its own lines
DOCUMENT_MIN = 500  # a shorter text without labels is all read
CODE_MIN = 3_000  # and so is one with code or formulas up to this length
REQUEST_MAX = 600  # a paragraph that asks for something is not longer
MATERIAL_MIN = 3  # times its length that the rest must have
QUESTION_MIN = 8  # characters of a question that may replace the whole text

_TAG = re.compile(r"<(/?)([^\W\d][\w.:-]{0,63})(?:\s[^<>]{0,512})?>")
_BRACKET = re.compile(r"\[(/?)([^\W\d][\w-]{2,31})\]")
_WORD = re.compile(r"[^\W\d_]+")
_CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z])")
_FIRST_WORD = re.compile(r"[\W\d_]*([^\W\d_][\w']*)")
_INLINE = re.compile(r"(\w[\w']*)(?: (?:is|are)(?: as follows| below)?)?[ ]?[:：]\s*(?=\S)")
_SENTENCE = re.compile(r"[^\n.!?。！？]*(?:[.!?。！？]+(?=\s|$|[^\x00-\x7f])|[.!?]+|[。！？]+|\n+|$)")
_DECORATION = " \t>#*=<[({|})]\"'`_~-"
_OPENERS = ("#", "**", "<<", "<|", "[", "==", "--")
_QUESTION_MARKS = ("?", "？", "؟", ";")


class LeftOut(NamedTuple):
    """Text that is not judged: `block`, `template`, `document`, `format` or `unread`, and its characters."""

    kind: str
    characters: int


class Unwrapped(NamedTuple):
    """What is judged of a turn; empty if the turn has context alone."""

    question: str
    left_out: tuple[LeftOut, ...] = ()


@dataclass(frozen=True)
class Known:
    """The names and phrases that mark an envelope."""

    names: Mapping[str, str]  # of tags, JSON members and labels, to their kind
    tags_only: frozenset[str]
    said: frozenset[str]
    headings: tuple[str, ...]
    format: tuple[str, ...]
    role: tuple[str, ...]
    rules: tuple[str, ...]
    request: frozenset[str]
    request_inside: tuple[str, ...]
    refers: tuple[str, ...]

    def kind(self, name: str) -> str:
        """The kind of a name: `ask`, `instruction`, `input`, `user`, `answer`, `context`, … or ""."""
        words = _WORD.findall(_CAMEL.sub(" ", name).lower())
        if kind := self.names.get("_".join(words)):
            return kind
        if len(words) < 2:
            return ""
        kinds = [self.names.get(word, "") for word in words]
        if kinds[0] == "user" and words[-1] in self.said:
            return "ask"
        if "context" in kinds:
            return "context"
        return kinds[-1] if kinds[-1] not in ("markup", "user", "assistant") else ""


def _known(data: Mapping[str, Any]) -> Known:
    names = {}
    for kind, words in reversed(data["names"].items()):
        names.update(dict.fromkeys(words.split(), kind))
    phrases = data["phrases"]
    return Known(
        names,
        frozenset(data["labels"]["tags_only"].split()),
        frozenset(data["labels"]["said"].split()),
        *(tuple(phrases[name]) for name in ("headings", "format", "role", "rules")),
        frozenset(phrases["request"].split()),
        tuple(phrases["request_inside"].split()),
        tuple(phrases["refers"]),
    )


SHIPPED = _known(tomllib.loads(Path(__file__).with_name("envelopes.toml").read_text("utf-8")))


def unwrap(text: str, known: Known = SHIPPED) -> Unwrapped:
    """The question of a user turn's text, and what was left out."""
    if "\n" not in text and "<" not in text and "[" not in text and text[:1] != "{" and len(text) < DOCUMENT_MIN:
        return Unwrapped(text)
    question, left = _unblocked(text, known, NESTING_MAX)
    if not question:
        return Unwrapped("", tuple(left))
    read = question if len(question) <= READ_MAX else f"{question[:READ_MAX // 2]}\n{question[-READ_MAX // 2:]}"
    if len(read) < len(question):
        left.append(LeftOut("unread", len(question) - len(read)))
    for kind, step in (("template", _labelled), ("template", _without_role), ("document", _request), ("format", _plain)):
        found = step(read, known).strip()
        if len(found) < len(read.strip()):
            left.append(LeftOut(kind, len(read) - len(found)))
            read = found
    if len(read) < min(QUESTION_MIN, len(text)) and len(text) > 2 * QUESTION_MIN and not left[0].kind == "block":
        return Unwrapped(text)
    return Unwrapped(read, tuple(left))


# Blocks: tags and JSON members.


def _unblocked(text: str, known: Known, levels: int) -> tuple[str, list[LeftOut]]:
    """The text without its blocks of context, or within its blocks that carry the request."""
    if text[:1] in "{\n\t " and len(text) <= JSON_MAX and text.lstrip()[:1] == "{":
        if (asked := _of_json(text, known)) is not None:
            return asked, [LeftOut("block", len(text) - len(asked))]
    asks: list[str] = []
    tasks: list[str] = []
    free: list[str] = []
    cursor, fenced, end = 0, False, len(text)
    for start, inside, outside, stop, name in _pairs(text):
        if start < cursor:
            continue
        between = text[cursor:start]
        fenced ^= between.count("```") % 2 == 1
        kind = known.kind(name)
        whole = stop - start >= 0.9 * len(text.strip())
        own = _alone(text, start, stop) and outside - inside > BLOCK_MIN
        if fenced or kind == "markup" or not (kind or whole or own):
            free.append(between)
            cursor = start
            continue
        free.append(between)
        cursor = stop
        content = text[inside:outside]
        if kind in ("ask", "user") or (whole and not kind):
            asks.append(content)
        elif kind in ("instruction", "input"):
            tasks.append(content)
    free.append(text[cursor:end])
    rest = _without_headings("".join(free), known)
    picked = asks or ([rest] if _is_written(rest) else tasks)
    question = "\n".join(part.strip() for part in picked if _is_written(part))
    if asks and levels > 1 and ("<" in question or question[:1] == "{"):
        question = _unblocked(question, known, levels - 1)[0] or question
    if asks and len(question) < QUESTION_MIN and len(rest) > len(question) and not cursor:
        question = text
    left = len(text) - len(question)
    return question, [LeftOut("block", left)] if cursor and left > 0 else []


def _pairs(text: str) -> Iterator[tuple[int, int, int, int, str]]:
    """Start of the opening tag, its end, start and end of the closing tag, and the name; outer pairs first."""
    found: list[tuple[int, int, int, int, str]] = []
    for pattern, mark in ((_TAG, "</"), (_BRACKET, "[/")):
        opened: dict[str, list[tuple[int, int]]] = {}
        if mark not in text:
            continue
        for count, match in enumerate(pattern.finditer(text)):
            if count == TAGS_MAX:
                return
            name = match[2]
            if not match[1]:
                opened.setdefault(name, []).append(match.span())
            elif places := opened.get(name):
                start, inside = places.pop()
                found.append((start, inside, *match.span(), name))
    yield from sorted(found)


def _alone(text: str, start: int, stop: int) -> bool:
    """Whether a block begins and ends its lines."""
    return (start == 0 or text[start - 1] == "\n") and (stop == len(text) or text[stop] == "\n")


def _of_json(text: str, known: Known) -> str | None:
    """The member of a JSON object that carries the request; None if there is none."""
    try:
        members = msgspec.json.decode(text, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeEncodeError, RecursionError):
        return None
    for wanted in (("ask", "user"), ("instruction", "input")):
        for name, value in members.items():
            if isinstance(value, str) and _is_written(value) and known.kind(name) in wanted:
                return value
    turns = members.get("messages")
    for turn in reversed(turns) if isinstance(turns, list) else ():
        if isinstance(turn, dict) and turn.get("role") == "user" and isinstance(turn.get("content"), str):
            return str(turn["content"])
    return None


def _without_headings(text: str, known: Known) -> str:
    """The text without the lines by which an application introduces its blocks."""
    lines = text.split("\n")
    if len(lines) > LINES_MAX:
        return text
    kept = [line for line in lines if not line[:64].lower().lstrip().startswith(known.headings)]
    return "\n".join(kept)


# Labels: "Question:", "## Context", "User:".


class _Section(NamedTuple):
    kind: str
    name: str
    lines: list[str]
    lead: bool  # introduced by a whole line, so it ends with its paragraph

    @property
    def text(self) -> str:
        return "\n".join(self.lines).strip()


def _labelled(text: str, known: Known) -> str:
    """The question of a text with labels; the text itself if it has none that tell."""
    lines = text.split("\n")
    if len(lines) > LINES_MAX:
        lines = lines[: LINES_MAX // 2] + lines[-LINES_MAX // 2 :]
    sections = _sections(lines, known)
    labelled = {section.kind for section in sections}
    asked = [index for index, section in enumerate(sections) if section.kind in ("ask", "user") and section.text]
    if "user" in labelled and not labelled & {"assistant", "ask", "context", "answer"} and len(asked) > 1:
        asked = []
    if asked:
        open_ = [index for index in asked if not _answered(sections, index)]
        if not open_:
            return text
        if sections[open_[0]].lead:
            open_ = open_[:1]
        elif len(open_) < len(asked) or labelled & {"context", "assistant"}:
            open_ = open_[-1:]
        return "\n".join(sections[index].text for index in open_)
    free = "\n".join(section.text for section in sections if not section.kind and section.text)
    tasks = [section.text for section in sections if section.kind == "instruction" and section.text]
    inputs = [index for index, section in enumerate(sections) if section.kind == "input" and section.text]
    open_ = [index for index in inputs if not _answered(sections, index)]
    if open_ and (tasks or "answer" in labelled):
        head = tasks[-1] if tasks else sections[0].text if not sections[0].kind else ""
        return f"{head}\n{sections[open_[-1]].text}"
    if tasks:
        return "\n".join(tasks)
    if inline := _inline(lines, known):
        return inline
    before = [section for section in sections if section.text]
    if before and before[-1].kind != "answer" and sections[-1].kind == "answer" and not sections[-1].text:
        return _paragraphs(before[-1].text)[-1]  # what stands before "Answer:"
    if "context" in labelled and len(free) >= QUESTION_MIN:
        tail = _paragraphs(before[-1].text)[-1]
        asks = before[-1].kind == "context" and tail != before[-1].text and _asks(tail, known, at_end=True) > 2
        return f"{free}\n{tail}" if asks else free
    return text


def _sections(lines: Sequence[str], known: Known) -> list[_Section]:
    """The text before the first label, then one section for each label."""
    sections = [_Section("", "", [], lead=False)]
    for line in lines:
        kind, name, rest, lead = _label(line, known)
        last = sections[-1]
        if kind:
            sections.append(_Section(kind, name, [rest], lead))
        elif last.lead and last.text and (not line.strip() or line.rstrip()[-1:] in (":", "：")):
            sections.append(_Section("", "", [line], lead=False))
        else:
            last.lines.append(line)
    return sections


def _label(line: str, known: Known) -> tuple[str, str, str, bool]:
    """Kind and name of a line's label, the text after it, and whether the whole line introduces a paragraph."""
    start = line[:LABEL_MAX].replace("：", ":")
    head, colon, _ = start.partition(":")
    stripped = line.strip()
    if colon or stripped.startswith(_OPENERS):
        name = (head if colon else stripped).strip(_DECORATION)
        if name and len(name) < LABEL_MAX and (colon or len(stripped) < LABEL_MAX):
            name = name.lower().rstrip("0123456789 #([])")
            kind = known.kind(name) if name.count(" ") < 4 and name not in known.tags_only else ""
            if kind and kind != "markup":
                return kind, name, line[len(head) + 1 :].lstrip(" *_\"") if colon else "", False
    if stripped[-1:] in (":", "：") and len(stripped) <= LEAD_MAX:
        words = [word for word in _WORD.findall(stripped.lower()) if word not in known.tags_only]
        kinds = [known.names[word] for word in words if known.names.get(word) in ("ask", "instruction", "context")]
        if kinds and len(words) > 2:
            return kinds[-1], "", "", True
    return "", "", "", False


def _answered(sections: Sequence[_Section], index: int) -> bool:
    """Whether an answer follows a question; options "A: …", "B: …" are none."""
    following = sections[index + 1] if index + 1 < len(sections) else None
    if following is None or following.kind not in ("answer", "assistant"):
        return False
    return bool(following.text) and (following.name != "a" or sections[index].name == "q")


def _inline(lines: Sequence[str], known: Known) -> str:
    """The question after a label within one of the first or last lines; empty if there is none."""
    written = [line for line in lines if line.strip()]
    for line in (*reversed(written[-3:]), *written[:3]):
        for match in _INLINE.finditer(line[: 4 * REQUEST_MAX]):
            word = match[1].lower()
            if known.names.get(word) == "ask" and len(word) > 1 and word not in known.tags_only:
                return line[match.end() :]
    return ""


# Paragraphs.


def _paragraphs(text: str) -> list[str]:
    """Paragraphs, or lines if the text is a single paragraph."""
    parts = [part for part in text.split("\n\n") if part.strip()]
    return parts if len(parts) > 1 else [part for part in text.split("\n") if part.strip()]


def _without_role(text: str, known: Known) -> str:
    """The text without the paragraphs at its start that give the model a role and rules."""
    if not text[:64].lstrip().lower().startswith(known.role):
        return text
    parts = _paragraphs(text)
    first = 1
    while first < len(parts) - 1 and parts[first][:64].lstrip().lower().startswith(known.rules):
        first += 1
    return "\n\n".join(parts[first:]) or text


def _request(text: str, known: Known) -> str:
    """The paragraph of a long text that asks for something; the text itself if none or several do."""
    coded = "```" in text or "\\" in text or "$" in text
    if len(text) < (CODE_MIN if coded else DOCUMENT_MIN):
        return text
    parts = _paragraphs(text)[:LINES_MAX]
    if len(parts) < 2:
        return text
    scored = [(_asks(part, known, index in (0, len(parts) - 1)), index) for index, part in enumerate(parts)]
    most = max(scored)[0]
    best = [parts[index] for score, index in scored if score == most]
    if most < 3 or len(best) > 2 or sum(map(len, best)) * MATERIAL_MIN > len(text):
        return text
    return "\n".join(best)


def _asks(part: str, known: Known, at_end: bool) -> int:
    """How clearly a paragraph asks for something: from 0 to 6."""
    if len(part) > REQUEST_MAX:
        return 0
    lower = part.strip().lower()
    first = _FIRST_WORD.match(lower)
    marked = 2 * lower.endswith(_QUESTION_MARKS)
    begins = 2 * (bool(first and first[1] in known.request) or (not lower.isascii() and any(map(lower.__contains__, known.request_inside))))
    refers = any(map(lower.__contains__, known.refers))
    return (marked + begins + refers + at_end) if marked or begins else 0


def _plain(text: str, known: Known) -> str:
    """The text without the sentences about the form of the answer."""
    lower = text[:READ_MAX].lower()
    if not any(map(lower.__contains__, known.format)):
        return text
    kept = [
        sentence[0]
        for sentence in _SENTENCE.finditer(text)
        if not any(map(sentence[0].lower().__contains__, known.format)) or len(sentence[0]) > REQUEST_MAX
    ]
    plain = "".join(kept)
    return plain if len(plain.strip()) >= QUESTION_MIN else text


def _is_written(text: str) -> bool:
    return bool(text) and not text.isspace()
