"""The question within a user turn, without what an application put around it. Pure.

Coding agents, chat front ends and retrieval templates put blocks, labels and documents around a request. The
names and phrases that tell them are in envelopes.toml. Work is linear in the text and bounded by the
constants below. Where the structure is not clear, or little would be left, the whole text is kept.
"""

from __future__ import annotations

import dataclasses
import re
import tomllib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from semroute_extproc.settings.text import Envelopes

PLAIN_MAX = 200  # characters of a line that has no envelope
TAGS_MAX = 2_048  # tags that are read
NESTING_MAX = 3  # levels of blocks with the request: `<task>` within `<user_message>`
JSON_MAX = 262_144  # characters of JSON that is decoded
READ_MAX = 65_536  # characters in which labels and paragraphs are looked for, half at each end
LINES_MAX = 1_024  # and lines of them
LABEL_MAX = 48  # characters of a label
LEAD_MAX = 120  # of a line before the question ("Here is the question:")
BLOCK_MIN = 400  # of an unknown block that is left out
QUESTION_MIN = 8  # of what may replace the whole text
REQUEST_MAX = 600  # of a paragraph that asks for something
TAIL_MIN = 40  # of an instruction after a document that does not refer to it
BRIEF_MAX = 200  # of a request that only the context after it shows
DOCUMENT_MIN = 500  # of a text that may be a document with a request
CODE_MIN = 3_000  # the same with code or formulas, or with several questions
FORMAT_MAX = 2_000  # of a text whose sentences about the answer's form are removed
MATERIAL_MIN = 3  # times the length of a request that its document has
CJK_END = 12  # characters at the ends of a Chinese, Japanese or Korean paragraph that show a request

_TAG = re.compile(r"<(/?)([^\W\d][\w.:-]{0,63})(?:\s[^<>]{0,512})?>")
_BRACKET = re.compile(r"\[(/?)([^\W\d][\w-]{2,31})\]")
_WORD = re.compile(r"[^\W\d_]+")
_CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z])")
_FIRST_WORD = re.compile(r"[\W\d_]{0,8}([^\W\d_][\w']{0,31})")
_LAST_WORD = re.compile(r"([^\W\d_]{2,24})(?: (?:is|are)(?: as follows| below)?)?$")
_LIST_ITEM = re.compile(r"\s*(?:[-*•·]|\(?\d{1,2}[.)、])")
SENTENCE = re.compile(r"[^\n.!?。！？]+(?:[.!?。！？]+|\n+|$)|[\n.!?。！？]+")
_DECORATION = " \t>#*=<[({|})]\"'`_~-"
_OPENERS = ("#", "**", "<<", "<|", "[", "==", "--", "【")
_CODE_MARKS = frozenset("_={}<>;")
_QUESTION_MARKS = ("?", "？", "؟")
_RANK = {"ask": "ask", "user": "ask", "": "", "instruction": "task", "input": "task"}


class LeftOut(NamedTuple):
    """Text that is not judged."""

    kind: str  # `block`, `template`, `document`, `format` or `unread`
    characters: int


class Unwrapped(NamedTuple):
    """A user turn without its envelope."""

    question: str  # empty if the turn has only context
    left_out: tuple[LeftOut, ...] = ()
    frame: str = ""  # the turn without its blocks of context, if it has blocks or labels at all


@dataclass(frozen=True, eq=False)
class Known:
    """The names and phrases that mark an envelope; see envelopes.toml."""

    names: dict[str, str]
    markup: frozenset[str]
    said: frozenset[str]
    tags_only: frozenset[str]
    request: frozenset[str]
    request_inside: tuple[str, ...]
    refers: tuple[str, ...]
    headings: tuple[str, ...]
    format: tuple[str, ...]
    role: tuple[str, ...]
    rules: tuple[str, ...]
    own: re.Pattern[str]

    def kind(self, name: str, tag: bool = False) -> str:
        """The kind of a name: `ask`, `user`, `instruction`, `input`, `answer`, `assistant`, `context` or ""."""
        lower = name.lower()
        if (tag and lower in self.markup) or (not tag and lower in self.tags_only):
            return ""
        if kind := self.names.get(lower):
            return kind
        words = _WORD.findall(_CAMEL.sub(" ", name).lower())
        if kind := self.names.get("_".join(words)):
            return kind
        kinds = [self.names.get(word, "") for word in words]
        if len(words) < 2:
            return "" if lower.isascii() else self.names.get(lower[-2:], "")
        if kinds[0] == "user" and words[-1] in self.said:
            return "ask"
        if tag and "context" in kinds:
            return "context"
        return kinds[-1] if kinds[-1] not in ("user", "assistant") else ""

    def extended(self, more: Envelopes) -> Known:
        """These names and those of the configuration, which take precedence."""
        added = {name: kind for kind in ("ask", "context") for name in getattr(more, kind)}
        return dataclasses.replace(self, names={**self.names, **added}) if added else self


def _shipped(data: dict[str, Any]) -> Known:
    lists = {name: words.split() for name, words in data["names"].items()}
    markup = frozenset(lists.pop("markup"))
    names = {word: kind for kind, words in reversed(lists.items()) for word in words}
    phrases = {
        name: frozenset(value.split()) if isinstance(value, str) else tuple(value)
        for name, value in data["phrases"].items()
    }
    phrases["request_inside"] = tuple(phrases["request_inside"])
    return Known(names, markup, own=re.compile(data["patterns"]["own"]), **phrases)


SHIPPED = _shipped(tomllib.loads(Path(__file__).with_name("envelopes.toml").read_text("utf-8")))


def unwrap(text: str, known: Known = SHIPPED) -> Unwrapped:
    """The question of a user turn's text, and what was left out."""
    if len(text) < PLAIN_MAX and not any(mark in text for mark in "\n<[{"):
        return Unwrapped(text)
    question, frame = _outside(text, known, NESTING_MAX)
    left, framed = [LeftOut("block", len(text) - len(question))], frame is not text
    if not question:
        return Unwrapped("", tuple(left), frame)
    read = question
    if len(question) > READ_MAX:
        read = f"{question[: READ_MAX // 2]}\n{question[-READ_MAX // 2 :]}"
        left.append(LeftOut("unread", len(question) - len(read)))
    labelled, found = _labelled(read, known, framed)
    left.append(LeftOut("template", len(read) - len(found)))
    for kind, step in (("template", _without_role), ("document", _request), ("format", _plain)):
        read, found = found, step(found, known).strip()
        left.append(LeftOut(kind, len(read) - len(found)))
    kept = tuple(each for each in left if each.characters > 1)
    if not (framed or labelled or any(each.kind == "template" for each in kept)):
        frame = ""
    if len(found) < min(QUESTION_MIN, len(text) // 2) and not framed and not labelled:
        return Unwrapped(text, (), frame)
    return Unwrapped(found if kept else text, kept, frame)


def _outside(text: str, known: Known, levels: int) -> tuple[str, str]:
    """The text within its blocks that carry the request, else outside its blocks; and all but context."""
    pieces = _pieces(text, known)
    if len(pieces) == 1 and not known.own.match(text):
        return text, text
    ranked: dict[str, list[str]] = {"ask": [], "": [], "task": [], "context": []}
    for kind, piece in pieces:
        rank = _RANK.get(kind, "context")
        if not rank:
            piece = "" if known.own.match(piece) else _without_headings(piece, known)
        if piece and not piece.isspace():
            ranked[rank].append(piece.strip("\n"))
    frame = "\n".join(ranked["task"] + ranked[""] + ranked["ask"])
    asked = "\n".join(ranked["ask"])
    if asked and levels > 1:
        asked = _outside(asked, known, levels - 1)[0]
    question = asked or "\n\n".join(ranked[""] or ranked["task"])
    return question.strip(), frame


def _without_headings(piece: str, known: Known) -> str:
    """Text before or after a block, without the lines that introduce the block."""
    while (start := piece.lstrip()).startswith(known.headings):
        piece = start.partition("\n")[2]
    return piece


def _pieces(text: str, known: Known) -> list[tuple[str, str]]:
    """The text in its order: blocks with their kind, and the text between them with the kind ""."""
    if text[:64].lstrip()[:1] == "{" and len(text) <= JSON_MAX:
        members = [(known.kind(name, tag=True) or "context", value) for name, value in _json(text)]
        if any(_RANK.get(kind) for kind, _ in members):
            return [*members, ("", "")]
    pieces, cursor, placed, fenced = [], 0, 0, False
    for start, inside, outside, stop, name in sorted(_pairs(text)):
        if start < cursor:
            continue
        fenced ^= text.count("```", cursor, start) % 2 == 1
        cursor = start
        kind = known.kind(name, tag=True)
        if not kind and name.lower() not in known.markup:
            if stop - start >= len(text.strip()):
                kind = "ask"  # all is in one block: what counts is within it
            elif (
                outside - inside > BLOCK_MIN
                and text[start - 1 : start] in "\n"
                and text[stop : stop + 1] in "\n"
            ):
                kind = "context"
        if kind and not fenced:
            pieces += [("", text[placed:start]), (kind, text[inside:outside])]
            cursor = placed = stop
    return [*pieces, ("", text[placed:])]


def _pairs(text: str) -> Iterator[tuple[int, int, int, int, str]]:
    """Start and end of each opening tag, start and end of its closing tag, and the name."""
    for pattern, closing in ((_TAG, "</"), (_BRACKET, "[/")):
        opened: dict[str, list[tuple[int, int]]] = {}
        for match, _ in zip(pattern.finditer(text), range(TAGS_MAX * (closing in text)), strict=False):
            if not match[1]:
                opened.setdefault(match[2], []).append(match.span())
            elif places := opened.get(match[2]):
                yield (*places.pop(), *match.span(), match[2])


def _json(text: str) -> Iterable[tuple[str, str]]:
    """The members of a JSON object that are strings; none if it cannot be read."""
    try:
        members = msgspec.json.decode(text, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeEncodeError, RecursionError):
        return []
    return [(name, value) for name, value in members.items() if isinstance(value, str)]


class _Section(NamedTuple):
    """A label and the text after it."""

    kind: str
    name: str
    lines: list[str]
    lead: bool  # the label is a sentence, so only the paragraph after it belongs to it

    @property
    def text(self) -> str:
        return "\n".join(self.lines).strip()


def _labelled(text: str, known: Known, framed: bool) -> tuple[bool, str]:
    """Whether a text has labels, and its question; the text itself if the labels do not show it.

    `framed` is whether blocks of context were around it.
    """
    lines = text.split("\n")
    if len(lines) > LINES_MAX:
        lines = lines[: LINES_MAX // 2] + lines[-LINES_MAX // 2 :]
    sections = _sections(lines, known)
    kinds = [section.kind for section in sections if section.kind]
    found = _asked(sections, kinds, known) if kinds else ""
    if not found and (framed or _is_document(text) or text[:64].lower().startswith(known.role)):
        found = _inline(lines, known)
    if not found and kinds:
        found = _around(sections, kinds, framed, _is_document(text), known)
    return bool(kinds), found or text


def _asked(sections: Sequence[_Section], kinds: Sequence[str], known: Known) -> str:
    """What labels say is the question: the last without an answer, or several without any answer."""
    head, several = sections[0].text, {*kinds}
    if kinds[0] == "context" and _asks(head, known, at_end=True) > 3:
        return head
    asked = [i for i, section in enumerate(sections) if section.kind in ("ask", "user") and section.text]
    if len(asked) > 1 and "user" in several and several.isdisjoint({"assistant", "ask", "context", "answer"}):
        asked = []  # notes about users
    open_ = [i for i in asked if not _answered(sections, i)]
    if "context" in several:  # a document may have labels too
        first = [section.kind for section in sections].index("context")
        open_ = [i for i in open_ if i < first or i >= len(sections) - 3]
    if plain := [i for i in open_ if not sections[i].lead]:
        if len(plain) < len(asked) or not several.isdisjoint({"context", "assistant"}):
            plain = plain[-1:]
        return "\n".join(sections[i].text for i in plain)
    if open_:  # the same sentence again introduces the next example
        return sections[open_[-1 if sections[open_[0]].name == sections[open_[-1]].name else 0]].text
    if len(asked) == 1 and (not head or head.lower().startswith(known.role + known.rules)):
        return sections[asked[0]].text
    tasks = [section.text for section in sections if section.kind == "instruction" and section.text]
    inputs = [
        i for i, section in enumerate(sections) if section.kind == "input" and not _answered(sections, i)
    ]
    if inputs and not asked and (tasks or "answer" in several):
        return f"{tasks[-1] if tasks else head}\n{sections[inputs[-1]].text}"
    return ""


def _around(
    sections: Sequence[_Section], kinds: Sequence[str], framed: bool, document: bool, known: Known
) -> str:
    """The question outside the labelled sections: after a template, before "Answer:", around context."""
    written = [section for section in sections if section.text]
    last = _paragraphs(written[-1].text) if written else [""]
    if framed and kinds[0] == "instruction" and not sections[0].text and len(last) > 1:
        return last[-1]
    free = "\n".join(section.text for section in sections if not section.kind and section.text)
    if kinds[0] == "context" and sections[0].text == free and QUESTION_MIN <= len(free) <= BRIEF_MAX:
        if len(free) * MATERIAL_MIN < sum(map(len, sections[-1].lines)):
            return free
    if not document:
        return ""
    if written and written[-1].kind != "answer" and sections[-1].kind == "answer" and not sections[-1].text:
        return last[-1]
    asks = "context" in kinds and any(_asks(part, known, at_end=False) for part in _paragraphs(free))
    if len(last) > 1 and written[-1].kind == "context" and _asks(last[-1], known, at_end=True) > 3:
        return f"{free}\n{last[-1]}"
    return free if asks else ""


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
    """Kind and name of a line's label, the text after it, and whether the label is a sentence."""
    stripped = line.strip()
    if not stripped or line.startswith(("    ", "\t")):  # code is indented
        return "", "", "", False
    head, colon, _ = line[:LABEL_MAX].replace("：", ":").partition(":")
    if colon or (len(stripped) < LABEL_MAX and stripped.startswith(_OPENERS)):
        name = (head if colon else stripped).strip(_DECORATION + "【】").lower().partition(",")[0]
        name = name.rstrip("0123456789 #([])")
        if name and name.count(" ") < 3 and (kind := known.kind(name)):
            return kind, name, line[len(head) + 1 :].lstrip(' *_"') if colon else "", False
    if stripped[-1] in ":：" and len(stripped) <= LEAD_MAX and _CODE_MARKS.isdisjoint(stripped):
        words = _WORD.findall(stripped.lower())
        kind = known.names.get(words[-1], "") if len(words) > 2 and words[-1] not in known.tags_only else ""
        if kind in ("ask", "user", "instruction", "context"):
            return kind, stripped, "", True
    return "", "", "", False


def _answered(sections: Sequence[_Section], index: int) -> bool:
    """Whether an answer follows a question; options "A: …", "B: …" are none."""
    following = sections[index + 1] if index + 1 < len(sections) else None
    if following is None or following.kind not in ("answer", "assistant"):
        return False
    return bool(following.text) and (following.name != "a" or sections[index].name == "q")


def _inline(lines: Sequence[str], known: Known) -> str:
    """The question after a label within one of the first or last lines; else ""."""
    written = [line for line in (*lines[: LINES_MAX // 8], *lines[-LINES_MAX // 8 :]) if line.strip()]
    for line in (*reversed(written[-3:]), *written[:3]):
        before, colon, question = line[: 4 * REQUEST_MAX].replace("：", ":").partition(":")
        word = _LAST_WORD.search(before[-LABEL_MAX:].lower().rstrip()) if colon else None
        if word and known.kind(word[1]) == "ask" and question.strip():
            return line[len(before) + 1 :].strip()
    return ""


def _paragraphs(text: str) -> list[str]:
    """Paragraphs, or lines if the text is a single paragraph."""
    parts = [part for part in text.split("\n\n") if part.strip()]
    return (parts if len(parts) > 1 else [part for part in text.split("\n") if part.strip()]) or [text]


def _without_role(text: str, known: Known) -> str:
    """The text without the paragraphs at its start that give the model a role and rules."""
    if not text[:64].lstrip().lower().startswith(known.role):
        return text
    first, *rest = _paragraphs(text)
    while len(rest) > 1 and rest[0][:64].lstrip().lower().startswith(known.rules):
        del rest[0]
    sentences = (sentence[0].strip() for sentence in SENTENCE.finditer(first[: 4 * REQUEST_MAX]))
    if any(_asks(each, known, at_end=False) for each in sentences if not each.lower().startswith(known.role)):
        return text  # the role comes with its request
    asks = sum(map(len, rest)) < BRIEF_MAX or any(_asks(part, known, at_end=False) for part in rest)
    return "\n\n".join(rest) if rest and asks else text


def _is_document(text: str) -> bool:
    """Whether a text is long enough to be a document with a request, not one problem with its code."""
    if len(text) < DOCUMENT_MIN:
        return False
    coded = "```" in text or "\\" in text or "$" in text or text.count(";\n") + text.count("{\n") > 2
    return not coded or len(text) >= CODE_MIN


def _request(text: str, known: Known) -> str:
    """The paragraphs of a long text that ask for something; the text itself if none or many do."""
    if not _is_document(text):
        return text
    parts = _paragraphs(text)
    if len(parts) > LINES_MAX:
        parts = parts[: LINES_MAX // 2] + parts[-LINES_MAX // 2 :]
    scores = [_asks(part, known, index in (0, len(parts) - 1)) for index, part in enumerate(parts)]
    most = max(scores)
    best = [index for index, score in enumerate(scores) if score == most]
    if most < 4 and (most < 3 or best != [len(parts) - 1] or len(parts[-1]) < TAIL_MIN):
        return text
    if len(text) < CODE_MIN and sum(score > 2 for score in scores) > 2:
        return text
    if any(map(_LIST_ITEM.match, (parts[best[-1]], *parts[1 : 2 * (best[0] == 0)]))):
        return text  # a list of requirements, not a document
    found = "\n".join(parts[index] for index in best)
    return found if len(best) < 3 and len(found) * MATERIAL_MIN <= len(text) else text


def _asks(part: str, known: Known, at_end: bool) -> int:
    """How clearly a paragraph asks for something: from 0 to 6."""
    if len(part) > REQUEST_MAX:
        return 0
    lower = part.strip().lower()
    score = 2 * lower.endswith(_QUESTION_MARKS)
    if not lower.startswith(known.rules):
        first = _FIRST_WORD.match(lower)
        ends = "" if lower.isascii() else f"{lower[:CJK_END]} {lower[-CJK_END:]}"
        begins = first is not None and first[1] in known.request
        score += 2 * (begins or any(map(ends.__contains__, known.request_inside)))
    return score and score + at_end + any(map(lower.__contains__, known.refers))


def _plain(text: str, known: Known) -> str:
    """The text without the sentences about the form of the answer."""
    lower = text[:FORMAT_MAX].lower()
    if len(text) > FORMAT_MAX or not any(map(lower.__contains__, known.format)):
        return text
    sentences = (sentence[0] for sentence in SENTENCE.finditer(text))
    plain = "".join(each for each in sentences if not any(map(each.lower().__contains__, known.format)))
    return plain if len(plain.strip()) >= QUESTION_MIN else text
