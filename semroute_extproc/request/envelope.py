"""The question within a user turn, without what an application put around it. Pure.

Coding agents, chat front ends and retrieval templates put blocks, labels and documents around a request. The
names and phrases that show them are the `Marks`. Work is linear in the text and bounded by the constants
below. Where the structure is not clear, or too little would be left, the whole text is kept.
"""

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import msgspec

from semroute_extproc.request.marks import SHIPPED, WORD, Marks

PLAIN_MAX = 200  # characters of a line without an envelope
TAGS_MAX, OPENERS_MAX = 2_048, 8_192  # tags that are read; text with more "<" has none
NESTING_MAX = 3  # levels of blocks with the request: `<task>` within `<user_message>`
HEADINGS_MAX = 4  # lines before or after a block that introduce it
JSON_MAX, MEMBERS_MAX = 262_144, 256  # characters of JSON that is decoded, and members that are read
READ_MAX, LINES_MAX = 65_536, 1_024  # characters and lines searched for labels and requests, half at each end
LABEL_MAX, LEAD_MAX = 48, 120  # characters of a label, and of a line that introduces the next paragraph
BLOCK_MIN = 400  # characters from which an unknown block is left out
QUESTION_MIN = 8  # characters of a question that may replace the whole text
REQUEST_MAX = 600  # characters of a paragraph that may be the request
BRIEF_MAX = 200  # characters of a request that only the context after it reveals
TAIL_MIN = 24  # characters of an instruction after a document, without a reference to it
DOCUMENT_MIN, CODE_MIN = 500, 3_000  # characters of a document; of one with code, formulas or many questions
MATERIAL_MIN = 3  # a document is at least so many times as long as its request
OPTION_MAX = 600  # characters between the starts of the first two options of a question
FORMAT_MAX = 2_000  # characters of a text in which sentences about the answer's format are left out
EDGE = 12  # characters at the start and end that show a Chinese, Japanese or Korean request

SENTENCE = re.compile(r"[^\n.!?。！？]+(?:[.!?。！？]+|\n+|$)|[\n.!?。！？]+")
_TAG = re.compile(r"<(/?)([^\W\d][\w.:-]{0,63})(?:\s[^<>]{0,512})?>")
_BRACKET = re.compile(r"\[(/?)([^\W\d][\w-]{2,31})\]")
_FIRST_WORD = re.compile(r"[\W\d_]{0,8}([^\W\d_][\w']{0,31})")
_LAST_WORD = re.compile(r"([^\W\d_]{2,24})(?: (?:is|are)(?: as follows| below)?)?$")
_TURN = re.compile(
    r"<\|(?:im_start|start_header_id)\|>\s?(\w{1,20})(?:<\|end_header_id\|>)?|<\|[\w-]{1,30}\|>"
)
_LIST_ITEM = re.compile(r"\s{0,8}(?:[-*•·]\s|\(?\d{1,2}[.)、])")
_FIRST_OPTION = re.compile(r"(?:\n\s{0,8}|\()(?:A[).:、．]|1\))")  # of a multiple-choice question
_SECOND_OPTION = re.compile(r"(?:\n\s{0,8}|\()(?:B[).:、．]|2\))")
_TIME = re.compile(r"[\[(]?[\d:./, T-]{4,24}[])]?\s{0,4}")  # at the start of a line of a log
_DECORATION = " \t>#*=<[({|})]\"'`_~-【】"
_BOXED = re.compile(r"\\boxed\{[^{}\n]{0,80}\}")  # its dots do not end a sentence
_COURTEOUS = " \t\n.!?:;()-_*~'\"…，！。？^"  # around the words of a courtesy
_OPENERS = ("#", "**", "<<", "<|", "[", "==", "--", "【")
QUESTION_MARKS = ("?", "？", "؟")
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


def unwrap(text: str, marks: Marks = SHIPPED) -> Unwrapped:
    """The question of a user turn's text, and what was left out."""
    if len(text) < PLAIN_MAX and not any(mark in text for mark in "\n<[{"):
        return Unwrapped(text)
    question, frame = _outside(text, marks, NESTING_MAX)
    framed = frame is not text
    if not question:
        return Unwrapped("", (LeftOut("block", len(text)),), frame)
    found = both_ends(question, READ_MAX // 2)
    left = [LeftOut("block", len(text) - len(question)), LeftOut("unread", len(question) - len(found))]
    if "<|" in found:  # the tokens of a chat template become labels
        found = _TURN.sub(lambda token: f"\n{token[1]}:\n" if token[1] else "\n", found)
    shorter = re.sub(marks.mail, "", found) if 0 < found.count("\n") < LINES_MAX else found
    labeled, shorter = _labeled(shorter, marks, framed)
    left.append(LeftOut("template", len(found) - len(shorter)))
    for kind, step in (("template", _without_role), ("document", _request), ("format", _plain)):
        found, shorter = shorter, step(shorter, marks).strip()
        left.append(LeftOut(kind, len(found) - len(shorter)))
    kept = tuple(each for each in left if each.characters > 1)
    frame = frame if framed or labeled or any(each.kind == "template" for each in kept) else ""
    if not kept or (len(shorter) < min(QUESTION_MIN, len(text) // 2) and not (framed or labeled)):
        return Unwrapped(text, (), frame)
    return Unwrapped(shorter, kept, frame)


def _outside(text: str, marks: Marks, levels: int) -> tuple[str, str]:
    """The text in blocks with the request, or else outside of blocks; and all text except context."""
    pieces, client = _pieces(text, marks), False
    if len(pieces) == 1 and not re.match(marks.own, text):
        return text, text
    ranked: dict[str, list[str]] = {"ask": [], "": [], "task": [], "context": []}
    for kind, piece in pieces:
        if not kind and re.match(marks.own, piece):
            client, piece = True, ""
        for _ in range(HEADINGS_MAX * (not kind)):
            if (start := piece.lstrip()).startswith(marks.headings):
                client, piece = True, start.partition("\n")[2]
        if piece.strip():
            ranked[_RANK.get(kind, "context")].append(piece.strip("\n"))
    outside = "\n".join(ranked["task"] + ranked[""])
    if ranked["ask"]:
        asked = "\n".join(ranked["ask"])
        return (_outside(asked, marks, levels - 1)[0] if levels > 1 else asked).strip(), outside
    while len(ranked[""]) > 1 and instructs(ranked[""][0], marks):
        del ranked[""][0]
    # Instructions are the request if there is no other text, and they are not the client's own.
    return "\n\n".join(ranked[""] or ranked["task"] * (not client)).strip(), outside


def instructs(piece: str, marks: Marks) -> bool:
    """Whether text before a block is a template: it begins with a role, or with the label of a task."""
    start = piece[:LEAD_MAX].lstrip()
    return start.lower().startswith(marks.role) or _label(start.partition("\n")[0], marks)[0] == "instruction"


def _pieces(text: str, marks: Marks) -> list[tuple[str, str]]:
    """The text in its order: blocks with their kind, and the text between them with the kind ""."""
    body = text.partition("\n")[2].rstrip("`\n ") if text.startswith("```") else text
    if body[:64].lstrip()[:1] == "{" and len(text) <= JSON_MAX:
        members = [(marks.kind(name, json=True) or "context", value) for name, value in _json(body)]
        if any(_RANK.get(kind) for kind, _ in members):
            return [*members, ("", "")]
    pieces, cursor, placed, fenced, whole = [], 0, 0, False, len(text.strip())
    for start, inside, outside, stop, name in sorted(_pairs(text)):
        if start < cursor:
            continue
        fenced ^= text.count("```", cursor, start) % 2 == 1
        cursor, kind = start, marks.kind(name, tag=True)
        if not kind and name.lower() not in marks.markup:
            lines = text[start - 1 : start] in "\n" and text[stop : stop + 1] in "\n"
            if stop - start >= whole:
                kind = "ask"  # the whole text is one block, so its content counts
            elif lines and outside - inside > BLOCK_MIN:
                kind = "context"
        if kind and not fenced:
            pieces += [("", text[placed:start]), (kind, text[inside:outside])]
            cursor = placed = stop
    return [*pieces, ("", text[placed:])]


def _pairs(text: str) -> Iterator[tuple[int, int, int, int, str]]:
    """Start and end of each opening tag, start and end of its closing tag, and the name."""
    for pattern, opening in ((_TAG, "<"), (_BRACKET, "[")):
        opened: dict[str, list[tuple[int, int]]] = {}
        if f"{opening}/" in text and text.count(opening) <= OPENERS_MAX:
            for match, _ in zip(pattern.finditer(text), range(TAGS_MAX), strict=False):
                if not match[1]:
                    opened.setdefault(match[2], []).append(match.span())
                elif places := opened.get(match[2]):
                    yield (*places.pop(), *match.span(), match[2])


def _json(text: str) -> list[tuple[str, str]]:
    """The members of a JSON object that are strings; none if it cannot be read."""
    try:
        members = [*msgspec.json.decode(text, type=dict[str, msgspec.Raw]).items()][:MEMBERS_MAX]
        strings = [(name, raw) for name, raw in members if len(name) <= LEAD_MAX and bytes(raw)[:1] == b'"']
        return [(name, msgspec.json.decode(raw, type=str)) for name, raw in strings]
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return []


class _Section(NamedTuple):
    """A label's kind, whether it is a sentence ("Here is the question:"), and the text after it."""

    kind: str
    lead: bool
    text: str


def _labeled(text: str, marks: Marks, framed: bool) -> tuple[bool, str]:
    """Whether a text has labels, and its question; the text itself if the labels do not show it.

    `framed` is whether blocks of context were around it.
    """
    lines = _ends(text.split("\n"))
    parts: list[tuple[str, bool, list[str]]] = [("", False, [])]
    for line in lines:
        kind, rest, lead = _label(line, marks)
        last, of_paragraph, body = parts[-1]
        if kind == "option" and last != "q":
            kind = ""  # "A: …" answers "Q: …" alone
        ends = not line.strip() or line.endswith((":", "："))
        if kind or (ends and of_paragraph and any(map(str.strip, body))):
            parts.append((kind, lead, [rest if kind else line]))
        else:
            body.append(line)
    sections = [_Section(kind, lead, "\n".join(body).strip()) for kind, lead, body in parts]
    kinds = [section.kind for section in sections if section.kind]
    found, document = _asked(sections, kinds, marks) if kinds else "", _is_document(text, marks)
    if not found and (framed or document or text[:64].lower().startswith(marks.role)):
        found = _inline(lines, marks)
    if not found and kinds:
        found = _around(sections, kinds, document, marks)
    return bool(kinds), found or text


def _label(line: str, marks: Marks) -> tuple[str, str, bool]:
    """The kind of a line's label, the text after it, and whether the label is a sentence."""
    stripped = line.strip()
    if not stripped or line.startswith(("    ", "\t")):  # code is indented
        return "", "", False
    if line[0] in "[(0123456789":
        line = _TIME.sub("", line[:LEAD_MAX]) + line[LEAD_MAX:]
    head, colon, _ = line[:LABEL_MAX].replace("：", ":").partition(":")
    if colon or (len(stripped) < LABEL_MAX and stripped.startswith(_OPENERS)):
        name = (head if colon else stripped).strip(_DECORATION).partition(",")[0].rstrip("0123456789 #([])")
        if name and (kind := marks.kind(name)):
            return kind, line[len(head) + 1 :].strip(' *_"') if colon else "", False
    if stripped.endswith((":", "：")) and len(stripped) <= LEAD_MAX and (words := WORD.findall(stripped)[2:]):
        kinds = [marks.kinds.get(word, "") * (word not in marks.tags_only) for word in map(str.lower, words)]
        if "context" in kinds or kinds[-1] in ("ask", "user", "instruction"):
            return "context" if "context" in kinds else kinds[-1], "", True
    return "", "", False


def _asked(sections: Sequence[_Section], kinds: Sequence[str], marks: Marks) -> str:
    """What labels say is the question: the last without an answer, or all of several that have none."""
    head, stub = sections[0].text, sections[-1].kind == "answer" and not sections[-1].text
    if kinds[0] == "context" and len(head) <= REQUEST_MAX and head.endswith(QUESTION_MARKS):
        return head
    answered = [bool(each.text) and each.kind in ("answer", "assistant", "option") for each in sections[1:]]
    open_ = [not each for each in (*answered, False)]
    asked = [i for i, section in enumerate(sections) if section.kind in ("ask", "user", "q") and section.text]
    chosen = [i for i in asked if open_[i]]
    if len(asked) == 1 and head.lower().startswith(marks.rules):
        chosen = asked  # the application has written the start of the answer
    if "context" in kinds:  # a document may have labels too
        first = [section.kind for section in sections].index("context")
        chosen = [i for i in chosen if i < first or i >= len(sections) - 3]
    if chosen:
        others = len(chosen) < len(asked) or not {"context", "assistant"}.isdisjoint(kinds)
        if others or sections[chosen[0]].lead:
            chosen = chosen[-1:]
        parts = "\n".join(sections[i].text for i in chosen).split("\n\n")
        while len(parts) > 1 and parts[-1].lower().startswith(marks.rules):
            del parts[-1]  # "Answer in one sentence."
        return "\n\n".join(parts)
    tasks = [section.text for section in sections if section.kind == "instruction" and section.text]
    kind = "input" if "input" in kinds or not stub else "context"  # "Text: …", "Label: …"
    inputs = [section.text for i, section in enumerate(sections) if section.kind == kind and open_[i]]
    if kind == "context" and sum(section.kind == kind for section in sections) < 2 * len(inputs):
        inputs = []  # no example was answered
    if asked or not ((inputs and "answer" in kinds) or (tasks and stub)):
        return ""
    return "\n".join((tasks[-1:] or [head]) + inputs[-1:])


def _inline(lines: Sequence[str], marks: Marks) -> str:
    """The question after a label within one of the first or last lines; else ""."""
    written = [line for line in lines if line.strip()]
    for line in (*reversed(written[-3:]), *written[:3]):
        before, _, question = line[: 4 * REQUEST_MAX].replace("：", ":").partition(":")
        word = _LAST_WORD.search(before[-LABEL_MAX:].lower().rstrip())
        if word and question.strip() and marks.kind(word[1]) == "ask":
            return line[len(before) + 1 :].strip()
    return ""


def _around(sections: Sequence[_Section], kinds: Sequence[str], document: bool, marks: Marks) -> str:
    """The question outside the labeled sections: around context, or before "Answer:"; else ""."""
    free = "\n".join(section.text for section in sections if not section.kind and section.text)
    brief = QUESTION_MIN <= len(free) <= BRIEF_MAX and len(free) * MATERIAL_MIN < len(sections[-1].text)
    if not document:
        return free if brief and kinds == ["context"] and not _has_options(sections[-1].text, marks) else ""
    written = [section for section in sections if section.text] or [sections[-1]]
    last = _paragraphs(written[-1].text)
    tasks = [section.text for section in written if section.kind == "instruction"]
    if sections[-1].kind == "answer" and not sections[-1].text:
        return last[-1] if written[-1].kind != "answer" else ""
    if "context" not in kinds or tasks:
        return tasks[-1] if tasks and "context" in kinds else ""
    if len(last) > 1 and written[-1].kind == "context" and _asks(last[-1], marks, at_end=True) > 3:
        return f"{free}\n{last[-1]}"
    brief = brief and kinds == ["context"]
    return free if brief or any(_asks(part, marks, at_end=False) for part in _paragraphs(free)) else ""


def both_ends(text: str, characters: int) -> str:
    """The text, or if it is longer, this many characters at each end."""
    return text if len(text) <= 2 * characters else f"{text[:characters]}\n{text[-characters:]}"


def _ends(parts: list[str]) -> list[str]:
    return parts if len(parts) <= LINES_MAX else parts[: LINES_MAX // 2] + parts[-LINES_MAX // 2 :]


def _paragraphs(text: str) -> list[str]:
    """Paragraphs, or lines if the text is a single paragraph."""
    parts = [part for part in text.split("\n\n") if part.strip()]
    return _ends(parts if len(parts) > 1 else [part for part in text.split("\n") if part.strip()] or [text])


def _without_role(text: str, marks: Marks) -> str:
    """The text without the paragraphs at its start that give the model a role and rules."""
    if not text[:64].lstrip().lower().startswith(marks.role):
        return text
    first, *rest = _paragraphs(text)
    while len(rest) > 1 and rest[0][:64].lstrip().lower().startswith(marks.rules):
        del rest[0]
    sentences = [sentence[0].strip() for sentence in SENTENCE.finditer(first[: 4 * REQUEST_MAX])]
    if any(_asks(each, marks, at_end=False) for each in sentences if not each.lower().startswith(marks.role)):
        return text  # the role comes with its request
    asks = sum(map(len, rest)) < BRIEF_MAX or any(_asks(part, marks, at_end=False) for part in rest)
    return "\n\n".join(rest) if rest and asks else text


def _is_document(text: str, marks: Marks) -> bool:
    """Whether a text may be a document with a request, and not a single problem with code or options."""
    if len(text) < DOCUMENT_MIN:
        return False
    coded = "```" in text or "\\" in text or "$" in text or text.count(";\n") + text.count("{\n") > 2
    return len(text) >= CODE_MIN or not (coded or _has_options(text, marks))


def _has_options(text: str, marks: Marks) -> bool:
    """Whether a text offers answers to choose from."""
    if first := _FIRST_OPTION.search(text):
        return _SECOND_OPTION.search(text, first.end(), first.end() + OPTION_MAX) is not None
    lower = text.lower()
    return any(map(lower.__contains__, marks.options))


def _request(text: str, marks: Marks) -> str:
    """The paragraphs of a long text that ask for something; the text itself if none or many do."""
    if not _is_document(text, marks):
        return text
    parts = _paragraphs(text)
    if len(parts) == 2 and QUESTION_MIN <= len(short := min(parts, key=len)) <= BRIEF_MAX:
        long = max(parts, key=len)
        asks = long.rstrip().endswith(QUESTION_MARKS) and not _asks(short, marks, at_end=True)
        if not (asks or _LIST_ITEM.match(long)):
            return short
    scores = [_asks(part, marks, index in (0, len(parts) - 1)) for index, part in enumerate(parts)]
    most = max(scores)
    best = [index for index, score in enumerate(scores) if score == most]
    alone = best[0] > 0 and sum(map(bool, scores)) == 1
    last = most == 3 and best == [len(parts) - 1]
    if most < 4 and (not (alone or last) or len(parts[best[0]]) < TAIL_MIN):
        return text
    if len(text) < CODE_MIN and sum(score > 2 for score in scores) > 2:
        return text
    if any(map(_LIST_ITEM.match, (parts[best[-1]], *parts[1 : 2 * (best[0] == 0)]))):
        return text  # a list of requirements, not a document
    found = "\n".join(parts[index] for index in best[:3])
    return found if len(best) < 3 and len(found) * MATERIAL_MIN <= len(text) else text


def _asks(part: str, marks: Marks, at_end: bool) -> int:
    """How clearly a paragraph asks for something: from 0 to 6."""
    if len(part) > REQUEST_MAX:
        return 0
    lower = part.strip().lower()
    score = 2 * lower.endswith(QUESTION_MARKS)
    if not lower.startswith(marks.rules):
        first = _FIRST_WORD.match(lower)
        edges = "" if lower.isascii() else f"{lower[:EDGE]} {lower[-EDGE:]}"
        begins = first is not None and first[1] in marks.request
        score += 2 * (begins or any(map(edges.__contains__, marks.request_inside)))
    return score and score + at_end + any(map(lower.__contains__, marks.refers))


def _plain(text: str, marks: Marks) -> str:
    """The text without the sentences about the form of the answer, and without courtesies around it."""
    if len(text) > FORMAT_MAX:
        return text
    sentences = SENTENCE.findall(_BOXED.sub(r"\\boxed", text))
    for edge in (0, -1):
        while sentences and _courteous(sentences[edge], marks):
            del sentences[edge]
    if any(map(text.lower().__contains__, marks.format)):
        sentences = [each for each in sentences if not any(map(each.lower().__contains__, marks.format))]
    plain = "".join(sentences)
    return plain if len(plain.strip()) >= QUESTION_MIN else text


def _courteous(sentence: str, marks: Marks) -> bool:
    """Whether a sentence is a greeting, thanks or a signature and nothing else."""
    return all(part.strip(_COURTEOUS) in marks.courtesy for part in sentence.lower().split(","))
