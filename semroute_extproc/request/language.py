"""The language of a request's question, from its script and its function words. Pure.

Code, formulas and addresses are ignored. A first clause that announces a text ("Translate into English: ...")
or asks decides, then a short last line that asks, then the start of the text, without quotations if possible.
Letters of other scripts and listed words vote. A text without evidence is English. A text that is evidently
not English and in no listed language is "und". A statistical model would add a second and 100 MB per worker.
"""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

SAMPLE_CHARACTERS = 400  # read at the start of a text, and at its end if the start says nothing
CLAUSE_CHARACTERS = 200  # most of a first clause or a last line
REQUEST_SHARE_MAX = 0.5  # of a text; a longer last line is its content
EVIDENCE_MIN, CLAUSE_MIN = 1.0, 1.5  # weight of foreign words, and that in a first clause; less may be names
EVIDENCE_BASE, EVIDENCE_PER_WORD = 0.6, 0.1  # and more than this, by the number of distinct words
ENGLISH_SHARE = 0.3  # of the distinct words; if only English has so many, the others are not counted
WINNER_SHARE_MIN = 0.4  # of the foreign weight that the winner has; else no listed language fits
WORDS_UND = 15  # distinct words without evidence, not even for English, are in an unlisted language
SHORT_WORD, SHORT_WEIGHT = 3, 0.6  # letters of a word that may be a name or an abbreviation, and its weight
HALF_WEIGHT = 0.35  # of a word that English texts or names contain as well
LETTER_WEIGHT = 0.45  # of an unlisted word with an accented letter; two may be a foreign name
SCRIPT_LETTERS, SCRIPT_MIN = 4.0, 0.5  # letters of another script that equal one word, and their least weight
LEADING = 4.0  # factor of the script in which a part starts
DOMINANT = 3.0  # times the Latin letters: a script with more letters decides alone
VARIANT_SHARE_MIN = 0.01  # letters of a script that only its other languages have; fewer are names

_DATA: Mapping[str, Any] = msgspec.json.decode(Path(__file__).with_name("languages.json").read_bytes())
_SILENT, _QUOTED, _WORD, _NOT_LATIN = (re.compile(pattern) for pattern in _DATA["patterns"].values())
_CLAUSE = re.compile(rf"[^:?：？؟\n]{{1,{CLAUSE_CHARACTERS}}}+(?:[:?](?=\s)|[：？؟\n])")
_SCRIPT = re.compile("|".join(f"(?P<{name}>{pattern})" for name, pattern in _DATA["scripts"].items()))
_VARIANTS = {s: {name: re.compile(own) for name, own in v.items()} for s, v in _DATA["variants"].items()}
_REQUESTS, _HALF = _DATA["requests"].split(), frozenset(" ".join(_DATA["half"]).split())


def _votes(lists: Mapping[str, list[str]]) -> dict[str, tuple[float, float, dict[str, float]]]:
    """Word to its weight for English, against English, and for each other language."""
    languages: dict[str, list[str]] = {}
    for language, lines in lists.items():
        for word in dict.fromkeys(" ".join(lines).split()):
            languages.setdefault(word, []).append(language)
    votes = {}
    for word, names in languages.items():
        others = [name for name in names if name != "en"]
        english = len(others) < len(names)
        weight = SHORT_WEIGHT if len(word) <= SHORT_WORD and word.isascii() else 1.0
        weight = LETTER_WEIGHT if len(word) == 1 else HALF_WEIGHT if word in _HALF else weight
        weight *= (HALF_WEIGHT if english else 1.0) * bool(others)
        shares = dict.fromkeys(others, weight * (0.5 + 0.5 / max(len(others), 1)))
        votes[word] = (english * (1.0 - HALF_WEIGHT * bool(others)), weight, shares)
    return votes


_VOTES, _LETTERS = _votes(_DATA["words"]), _votes(_DATA["letters"])
_ENGLISH = frozenset(word for word, vote in _VOTES.items() if vote[0] == 1.0)
_ACCENTED = re.compile(f"[{''.join(_LETTERS)}]")


def language_of(text: str) -> str:
    """ISO 639-1 code of the language of `text`; "en" without evidence, "und" for an unlisted language."""
    sample = _SILENT.sub(" ", text[:SAMPLE_CHARACTERS])
    plain = _QUOTED.sub(" ", sample).lstrip()
    clause = (_CLAUSE.match(plain) or [""])[0]
    if (clause[-1:] != "\n" or _asks(clause.lower())) and (found := _judged(clause, CLAUSE_MIN)):
        return found
    last = text[-CLAUSE_CHARACTERS:].rstrip().rpartition("\n")[2]
    asks = len(last) < min(CLAUSE_CHARACTERS, REQUEST_SHARE_MAX * len(text)) and _asks(last.lower())
    found = _judged(_SILENT.sub(" ", last)) if asks else ""
    found = found or _judged(plain) or (_judged(sample) if plain != sample else "")
    rest = text[max(SAMPLE_CHARACTERS, len(text) - SAMPLE_CHARACTERS) :]
    return found or _judged(_SILENT.sub(" ", rest)) or "en"


def _asks(lower: str) -> bool:
    return any(cue in lower for cue in _REQUESTS)


def _judged(part: str, least: float = EVIDENCE_MIN) -> str:
    """The language of a part, or an empty string without evidence; `least` is for foreign words."""
    script, weight = ("", 0.0) if part.isascii() or not _NOT_LATIN.search(part) else _script(part)
    if weight == math.inf:
        return script
    words = dict.fromkeys(_WORD.findall(part.lower()))  # in order: sums must be the same in every process
    if not script and len(_ENGLISH.intersection(words)) > ENGLISH_SHARE * len(words):
        return "en"
    english = foreign = 0.0
    votes: dict[str, float] = {}
    for word in words:
        vote = _VOTES.get(word)
        if vote is None and not word.isascii() and (accent := _ACCENTED.search(word)):
            vote = _LETTERS[accent[0]]
        if vote is not None:
            english += vote[0]
            foreign += vote[1]
            for language, share in vote[2].items():
                votes[language] = votes.get(language, 0.0) + share
    if weight >= SCRIPT_MIN and weight > max(english, foreign):
        return script
    if foreign > max(english, EVIDENCE_BASE * least + EVIDENCE_PER_WORD * len(words)) and foreign >= least:
        winner = max(votes, key=lambda language: votes[language])
        return winner if votes[winner] > WINNER_SHARE_MIN * foreign else "und"
    if english < EVIDENCE_MIN:
        return "und" if len(words) >= WORDS_UND else ""
    return "en" if english >= foreign else ""


def _script(part: str) -> tuple[str, float]:
    """The most frequent other script in `part`, as a language, and its weight: infinite if it dominates."""
    runs: dict[str, str] = {}
    for match in _SCRIPT.finditer(part):
        script = str(match.lastgroup)
        runs[script] = runs.get(script, "") + match[0]
    leading, latin = next(iter(runs), ""), len(runs.pop("latin", ""))
    script = max(runs, key=lambda name: len(runs[name]), default="")
    letters = runs.get(script, "")
    weight = len(letters) / SCRIPT_LETTERS * (LEADING if script == leading else 1.0)
    weight = math.inf if len(letters) > DOMINANT * latin else weight
    variants = _VARIANTS.get(script, {}).items()
    found = (name for name, own in variants if len(own.findall(letters)) > VARIANT_SHARE_MIN * len(letters))
    return next(found, script), weight
