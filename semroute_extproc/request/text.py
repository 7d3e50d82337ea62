"""From conversation turns to the text that is judged, and its surface features. Pure.

No tokenizer runs here. At most `CLASSIFIED_CHARACTERS_MAX` characters are judged, and what `envelope` reads
is bounded, so the cost is bounded for any prompt.
"""

import math
import re
from collections.abc import Sequence
from typing import NamedTuple

from semroute_extproc.request import conversation, housekeeping
from semroute_extproc.request.envelope import LeftOut, unwrap
from semroute_extproc.request.marks import SHIPPED, Marks
from semroute_extproc.request.view import Turn

CLASSIFIED_CHARACTERS_MAX = 8_192  # longer text keeps its head and its tail
CONTEXT_CHARACTERS = 960  # of each text that the last question continues
ELISION = " … "  # replaces the middle of a long text

SURFACE_NAMES = (
    *("log_words", "log_characters", "log_lines", "mean_word_length", "digit_share", "uppercase_share"),
    *("punctuation_share", "code_marks", "latex_marks", "options", "question_marks", "non_ascii_share"),
)
"""Names of the surface features, in the order of the encoder heads' input."""

_OPTION = re.compile(r"\n[^\S\n]*+\(?[A-J1-9][.):]\s")  # in linear time, whatever the white space
_CODE = (
    *("```", "def ", "class ", "import ", "return", "function", "SELECT ", "#include"),
    *("{}", "();", "</", "std::", "console."),
)
_EQUALS = re.compile(r"=[=>]")
_SYMBOL = re.compile(r"[∑∫√≤≥≠∞∈∀∃πθ]")
_LATEX = re.compile(r"\\[a-zA-Z]+|\$[^$]+\$|" + _SYMBOL.pattern)
_DIGIT = re.compile(r"\d")
_PUNCTUATION = re.compile(r"[^\w\s]")
_ASCII = bytes(range(128))
_ASCII_UPPER = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_ASCII_PUNCTUATION = bytes(code for code in _ASCII if _PUNCTUATION.match(chr(code)))


def clip(text: str, limit: int = CLASSIFIED_CHARACTERS_MAX) -> str:
    """Keep the head and the tail of `text` within `limit` characters; the question is often at the end."""
    if len(text) <= limit:
        return text
    half = (limit - len(ELISION)) // 2
    return text[:half] + ELISION + text[-half:]


class Judged(NamedTuple):
    """What is judged of a conversation."""

    text: str
    left_out: tuple[LeftOut, ...] = ()  # of the user turns that were read
    housekeeping: str = ""  # the kind of a request that an application makes by itself, or ""


def judged(turns: Sequence[Turn], marks: Marks = SHIPPED) -> Judged:
    """The user's last question, with earlier ones if it is short, without the envelopes around them.

    System prompts and tool results are left out, because they would obscure the question. In a tool loop the
    user's last turn still states the task. Without a user turn, all text is judged.
    """
    asked = [turn.text for turn in turns if turn.role == "user" and is_written(turn.text)]
    if not asked:
        return Judged(clip("\n".join(turn.text for turn in turns if is_written(turn.text))))
    asked = asked[-conversation.TURNS_MAX :]
    read = [unwrap(asked[-1], marks)]
    while len(asked) > 1 and not read[0].question:  # a turn that has only context
        asked.pop()
        read = [unwrap(asked[-1], marks)]
    question, proposed = read[0].question or asked[-1], conversation.proposal(turns)
    texts = [question]
    if len(asked) > 1 and not conversation.alone(question, asked[-2], proposed):
        read = [unwrap(text, marks) for text in asked[:-1]] + read
        before = [each.question for each in read[:-1] if each.question]
        texts = conversation.relevant([*before, question], proposed)
    text = "\n".join([*(clip(text, CONTEXT_CHARACTERS) for text in texts[:-1]), texts[-1]])
    left = [each for unwrapped in read for each in unwrapped.left_out]
    if len(text) > CLASSIFIED_CHARACTERS_MAX:
        left.append(LeftOut("unread", len(text) - CLASSIFIED_CHARACTERS_MAX))
    system = next((turn.text for turn in turns if turn.role == "system"), "")
    later = any(turn.role == "assistant" for turn in turns)
    kind = housekeeping.kind(system, asked[-1], read[-1], later, marks)
    return Judged(clip(text), tuple(left), kind)


def is_written(text: str) -> bool:
    """Whether the text has more than white space; `strip` would copy a long text."""
    return bool(text) and not text.isspace()


def surface_features(text: str) -> list[float]:
    """Features of the text's form that mean pooling loses; finite, in the order of `SURFACE_NAMES`."""
    text = clip(text)
    characters = max(len(text), 1)
    words = len(text.split())
    ascii_text = text.encode("ascii", "ignore")
    other = ""
    if len(ascii_text) < len(text):
        other = text.encode("utf-8", "surrogatepass").translate(None, _ASCII).decode("utf-8", "surrogatepass")
    digits = _count(ascii_text, b"0123456789") + len(_DIGIT.findall(other))
    punctuation = _count(ascii_text, _ASCII_PUNCTUATION) + len(_PUNCTUATION.findall(other))
    # None of these marks can overlap, so the sum of their counts is exact.
    code = sum(map(text.count, _CODE)) + len(_EQUALS.findall(text))
    latex = len(_LATEX.findall(text) if "\\" in text or "$" in text else _SYMBOL.findall(other))
    return [
        math.log1p(words),
        math.log1p(len(text)),
        math.log1p(text.count("\n")),
        min(characters / max(words, 1), 20.0),
        digits / characters,
        _count(ascii_text, _ASCII_UPPER) / characters,
        punctuation / characters,
        math.log1p(code),
        math.log1p(latex),
        float(min(len(_OPTION.findall("\n" + text)), 10)),  # lines that begin like "A) ", "(2. ", …
        float(min(text.count("?") + text.count("？"), 5)),
        len(other) / characters,
    ]


def _count(text: bytes, characters: bytes) -> int:
    """Number of bytes of `text` that are among `characters`."""
    return len(text) - len(text.translate(None, characters))
