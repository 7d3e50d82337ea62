"""The turns of a conversation that are judged for its last request, and the state of the work. Pure.

A self-contained last turn is judged alone. Any other one ("and why?", "commit it", "that is wrong") is judged
with the task that it continues. A turn is self-contained if it has enough words that the turn before does not
have: more if it refers to earlier turns, fewer if it asks a question. The phrases of 16 languages and the
patterns for tool results are in conversation.json.
"""

import itertools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from semroute_extproc.request.envelope import both_ends, unwrap
from semroute_extproc.request.view import Turn

TURNS_MAX = 16  # last user turns that are read
READ_CHARACTERS = 240  # at the start of a turn; a longer turn is self-contained unless it rejects the answer
TOKENS_MAX = 64  # the same limit in words, or in characters of scripts without spaces
KNOWN_CHARACTERS = 1_000  # at each end of an earlier text whose words are not new
KNOWN_LETTERS_MIN = 4  # a shorter word is often part of another word
WORDS_MIN, ASKING_WORDS_MIN = 4, 2  # own words of a self-contained turn; of one that asks
REFERENCE_WORDS, REFERENCES_MAX = 3, 2  # additional words per reference to earlier turns; most references
APPROVAL_WORDS_MAX = 2  # own words in an approval: "yes, use Postgres"

REPEATS_MAX = 4  # earlier user turns that the last one may repeat
LOOP_MAX = 1_024  # most turns that count since the last user turn
RESULTS_MAX = 16  # last tool results that are read
MARK_CHARACTERS = 300  # read at each end of a tool result

_LISTS: Mapping[str, Any] = msgspec.json.decode(Path(__file__).with_name("conversation.json").read_bytes())
_SPACELESS = "\u0e00-\u0e7f\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af"
_TOKEN = re.compile(rf"[{_SPACELESS}]|[^\W{_SPACELESS}]+")
"""A word, or a character of Thai, Japanese, Chinese or Korean (whose words carry suffixes)."""
_START = "^"
_MARKS = {
    name: [(needed, re.compile(pattern, re.MULTILINE)) for needed, pattern in marks.items()]
    for name, marks in _LISTS["marks"].items()
}
"""Patterns for tool results; a text that a pattern needs is found faster than the pattern."""


def _tokens(text: str) -> list[str]:
    return _TOKEN.findall(text.lower())


def _phrases(kinds: Mapping[str, Mapping[str, Sequence[str]]]) -> dict[str, str]:
    """Maps a phrase, as tokens joined with spaces, to its kind."""
    found = {}
    for kind, languages in kinds.items():
        for phrase in ", ".join(", ".join(lines) for lines in languages.values()).split(", "):
            start = [_START] if phrase.startswith(_START) else []
            found[" ".join(start + _tokens(phrase))] = kind
    return found


_KINDS = _phrases(_LISTS["phrases"])
_LONGEST: dict[str, int] = {}  # maps the first token of phrases to the length of the longest, in tokens
for _phrase in _KINDS:
    _first, *_others = _phrase.split(" ")
    _LONGEST[_first] = max(_LONGEST.get(_first, 0), 1 + len(_others))


def alone(last: str, before: str, proposed: str = "") -> bool:
    """Whether the last user turn is judged without the turns before it."""
    form = _Form(last, _known(before, proposed))
    return form.only_courtesy or (form.self_contained and not form.count["rejection"])


def relevant(asked: Sequence[str], proposed: str = "") -> list[str]:
    """The texts to judge, in order; the last is the last user turn.

    `asked` are the texts of the user's turns, at least one, and `proposed` is the assistant's text before the
    last one; it is among the texts if the last turn approves it. Of the turns between the task and the
    last turn, the nearest with words of their own are included, up to `READ_CHARACTERS`.
    """
    asked = asked[-TURNS_MAX:]
    last = asked[-1]
    if len(asked) == 1 or alone(last, asked[-2], proposed):
        return [last]
    form = _Form(last, _known(asked[-2], proposed))
    taken = [last, proposed] if form.approves and proposed else [last]
    length = len(last)
    for index in range(len(asked) - 2, -1, -1):
        form = _Form(asked[index], _known(*asked[max(index - 1, 0) : index]))
        if form.self_contained:
            taken.append(asked[index])
            break
        if form.words and length < READ_CHARACTERS:
            taken.append(asked[index])
            length += len(asked[index])
    return taken[::-1]


def proposal(turns: Sequence[Turn]) -> str:
    """The assistant's text right before the last user turn; empty if there is none."""
    said = [turn for turn in turns if turn.role in ("user", "assistant") and turn.text.strip()]
    last = max((at for at, turn in enumerate(said) if turn.role == "user"), default=0)
    return said[last - 1].text if last and said[last - 1].role == "assistant" else ""


def questions(turns: Sequence[Turn], most: int = TURNS_MAX) -> list[str]:
    """The last questions of the user, without their envelopes, at most `most`."""
    asked = [turn.text for turn in turns if turn.role == "user" and turn.text.strip()][-most:]
    return [question for text in asked if (question := unwrap(text).question)]


def _known(*texts: str) -> str:
    """The ends of earlier texts, in lower case, to look up words in."""
    return "\n".join(both_ends(text, KNOWN_CHARACTERS) for text in texts).lower()


class _Form:
    """What the start of a user turn is made of: phrases by kind, and words of its own."""

    def __init__(self, text: str, known: str = "") -> None:
        """`known` is earlier text in lower case; its words are not the turn's own."""
        self.count = count = dict.fromkeys(_LISTS["phrases"], 0)
        self.words = 0.0
        tokens = [_START, *_tokens(text[:READ_CHARACTERS])]
        long = len(text) > READ_CHARACTERS or len(tokens) > TOKENS_MAX
        del tokens[TOKENS_MAX:]
        at, opens = 0, False
        while at < len(tokens):
            for length in range(_LONGEST.get(tokens[at], 0), 0, -1):
                if kind := _KINDS.get(" ".join(tokens[at : at + length])):
                    opens = opens or (kind == "approval" and not self.words)
                    count[kind] += 1
                    at += length
                    break
            else:
                if at and not (len(tokens[at]) >= KNOWN_LETTERS_MIN and tokens[at] in known):
                    self.words += _weight(tokens[at])
                at += 1
        needed = ASKING_WORDS_MIN if count["question"] else WORDS_MIN
        needed += REFERENCE_WORDS * min(count["reference"], REFERENCES_MAX)
        self.self_contained = long or self.words >= needed
        asks = count["question"] or count["rejection"] or text.endswith(("?", "？", "؟"))
        self.approves = opens and not (long or asks) and self.words <= APPROVAL_WORDS_MAX
        others = sum(count.values()) - count["courtesy"] - count["filler"]
        self.only_courtesy = count["courtesy"] > 0 and not (others or self.words)


def _weight(token: str) -> float:
    """A token in words: a single letter, digit or character is half a word, a Thai character a quarter."""
    return 1.0 if len(token) > 1 else 0.25 if "\u0e00" <= token <= "\u0e7f" else 0.5


def approval(turns: Sequence[Turn]) -> bool:
    """Whether the last user turn approves what the assistant proposed."""
    return bool(proposal(turns)) and any(_Form(asked).approves for asked in questions(turns, 1))


def reask(turns: Sequence[Turn]) -> bool:
    """Whether the last user turn says that the answer was wrong, or repeats one of the turns before it."""
    if sum(turn.role == "user" for turn in turns) < 2:
        return False
    *earlier, last = questions(turns, REPEATS_MAX + 1) or [""]
    form = _Form(last)
    repeated = form.words >= ASKING_WORDS_MIN and any(_same(last, text) for text in earlier)
    return bool(earlier) and (repeated or form.count["rejection"] > 0)


def _same(text: str, earlier: str) -> bool:
    """Whether two requests differ at most in words without content; long ones must be equal."""
    if max(len(text), len(earlier)) > 2 * READ_CHARACTERS:
        return text == earlier
    return all(token in _KINDS for token in set(_tokens(text)) ^ set(_tokens(earlier)))


def tool_results(turns: Sequence[Turn]) -> list[Turn]:
    """The tool results since the last user turn, the newest first."""
    if all(turn.role != "tool" for turn in turns):
        return []
    # A turn with nothing but context, which a client added, does not count as the user's.
    since = itertools.takewhile(
        lambda turn: not (turn.role == "user" and questions([turn])), reversed(turns[-LOOP_MAX:])
    )
    return [turn for turn in since if turn.role == "tool"]


def tool_errors(turns: Sequence[Turn]) -> list[str]:
    """The ends of the results that failed, among the last `RESULTS_MAX` since the last user turn.

    A result failed if the client says so, else by its exit status, else by its words.
    """
    failed = []
    for turn in tool_results(turns)[:RESULTS_MAX]:
        text = both_ends(turn.text, MARK_CHARACTERS)
        status = _marked("exit", text)
        if turn.failed or (int(status[1]) != 0 if status else _marked("error", text)):
            failed.append(text)
    return failed


def failing_tests(turns: Sequence[Turn]) -> bool:
    """Whether the last report of tests or a build since the last user turn has failures."""
    for turn in tool_results(turns)[:RESULTS_MAX]:
        text = both_ends(turn.text, MARK_CHARACTERS)
        if (failing := _marked("failing", text)) or _marked("passing", text):
            return failing is not None
    return False


def _marked(name: str, result: str) -> re.Match[str] | None:
    matches = (pattern.search(result) for needed, pattern in _MARKS[name] if needed in result)
    return next(filter(None, matches), None)


def repeated_errors(turns: Sequence[Turn]) -> int:
    """Number of failed results with the same text as another one of them."""
    return len(errors := tool_errors(turns)) - len(set(errors))
