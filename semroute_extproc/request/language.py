"""The language of a text, from its script and its function words. Pure.

Other scripts identify the language. Within Latin script, each function word votes for its languages. In a
short text without English function words, typical first words of requests ("Schreib mir ein Gedicht") and
accented letters decide. Otherwise a text counts as English, the default bundle's language. A statistical
model would add a second at startup and 100 MB per worker. The word lists are in languages.json.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

SAMPLE_CHARACTERS = 400  # read at the start of a text
SCRIPT_SHARE_MIN = 0.15  # of the letters; a Greek letter in a formula is not Greek
VOTES_MIN = 1.1  # for another language; fewer votes may come from names and quotations
ENGLISH_MIN = 0.5  # votes that make a text English; words such as "in" give fewer in other languages
BRIEF_MIN = 1.0  # weight of another language without function words: one request word, or two halves
BRIEF_SHARE_MIN = 0.25  # and that weight must exceed this share of the distinct words
SHORT_WORD = 3  # up to this many letters it may be a name or an abbreviation: half a vote in a short text
ACCENTED_WEIGHT = 0.4  # of an unlisted accented word; two may be a foreign name in an English text

_LATIN_WORD = re.compile(r"\b[a-zà-ỹ]{2,}\b")
_LETTER = re.compile(r"[^\W\d_]")
_LISTS: Mapping[str, Any] = msgspec.json.decode(Path(__file__).with_name("languages.json").read_bytes())
"""Each list is an array of lines of words; a comment in the file describes it."""


def _languages(lists: Mapping[str, list[str]]) -> dict[str, list[str]]:
    """Word, or letter, to the languages that have it."""
    found: dict[str, list[str]] = {}
    for language, lines in lists.items():
        for entry in " ".join(lines).split():
            found.setdefault(entry, []).append(language)
    return found


_SCRIPTS: dict[str, re.Pattern[str]] = {key: re.compile(value) for key, value in _LISTS["scripts"].items()}
_ENGLISH_TOO = frozenset(" ".join(_LISTS["english_too"]).split())
_HALF = _ENGLISH_TOO | frozenset(" ".join(_LISTS["in_names"]).split())
_REQUESTS = _languages(_LISTS["request_words"])
_ACCENTS = _languages(_LISTS["accents"])
_VOTES = {
    word: tuple((language, (0.5 if word in _ENGLISH_TOO else 1.0) / len(speakers)) for language in speakers)
    for word, speakers in _languages(_LISTS["function_words"]).items()
}
"""Function word to its languages; they split one vote, or half a vote."""


def language_of(text: str) -> str:
    """ISO 639-1 code of the most likely language of `text`; "en" if there is no evidence."""
    sample = text[:SAMPLE_CHARACTERS]
    if not sample.isascii():
        letters = len(_LETTER.findall(sample)) or 1
        for language, script in _SCRIPTS.items():
            if len(script.findall(sample)) / letters >= SCRIPT_SHARE_MIN:
                return language
    words = _LATIN_WORD.findall(sample.lower())
    votes: dict[str, float] = {}
    for word in words:
        for language, vote in _VOTES.get(word, ()):
            votes[language] = votes.get(language, 0.0) + vote
    english, most = votes.get("en", 0.0), max(votes.values(), default=0.0)
    if most >= VOTES_MIN and most > english:
        return _winner(votes)
    return _brief(words) if english < ENGLISH_MIN else "en"


def _winner(votes: Mapping[str, float]) -> str:
    """The language with the most votes; on a tie, the one listed first."""
    winner: str = max(_LISTS["function_words"], key=lambda language: votes.get(language, 0.0))
    return winner


def _brief(words: list[str]) -> str:
    """The language of a text without function words, from its distinct words."""
    different = dict.fromkeys(words)  # in order: sums must be the same in every process
    total = 0.0
    votes: dict[str, float] = {}
    for word in different:
        languages = [language for language, _ in _VOTES.get(word, ())] + _REQUESTS.get(word, [])
        if "en" in languages:
            continue
        weight = 0.5 if word in _HALF or len(word) <= SHORT_WORD else 1.0
        if not languages:
            languages = [each for letter in dict.fromkeys(word) for each in _ACCENTS.get(letter, ())]
            weight = ACCENTED_WEIGHT
        if languages:
            total += weight
            for language in languages:
                votes[language] = votes.get(language, 0.0) + weight / len(languages)
    enough = total >= BRIEF_MIN and total > BRIEF_SHARE_MIN * len(different)
    return _winner(votes) if enough else "en"
