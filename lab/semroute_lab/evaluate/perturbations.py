"""Ways to change a prompt without changing its needs, and ways to fool the router.

Every perturbation is a pure function of the text and a seeded generator. `noise` and `paraphrase`
keep the question; `appended` adds unrelated text; `easy` tries to get the weak model for a hard
prompt, `hard` the strong one for any prompt. Those that only add text are in `perturbations.json`
with their texts, of which one is drawn.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

TYPO_SHARE = 0.1  # Share of the longer words that get a typing error
TYPO_LETTERS_MIN = 4  # Shorter words are left alone: an error would turn them into another word
RARE_TOKENS = 12  # Words in an appended string of rare tokens

_DATA: dict[str, Any] = json.loads(
    resources.files("semroute_lab.evaluate").joinpath("perturbations.json").read_text(encoding="utf-8")
)

_NEIGHBOURS = {
    letter: row[max(0, i - 1) : i] + row[i + 1 : i + 2]
    for row in ("qwertyuiop", "asdfghjkl", "zxcvbnm")
    for i, letter in enumerate(row)
}

_WORD = re.compile(r"[A-Za-z]+")
_OPTION = re.compile(r"^(\s*\(?[A-J][.):]\s+)(.*)$", re.MULTILINE)
_SENTENCE = re.compile(r"(?<=[.!?])\s+")


@dataclass(frozen=True, slots=True)
class Perturbation:
    """One way to change a text."""

    name: str
    group: str  # noise, paraphrase, appended, easy or hard
    about: str
    apply: Callable[[str, random.Random], str]


def typos(text: str, rng: random.Random) -> str:
    """Swap, drop, double or mistype one letter in a share of the longer words; first letters stay."""

    def mistype(match: re.Match[str]) -> str:
        word = match[0]
        if len(word) < TYPO_LETTERS_MIN or rng.random() >= TYPO_SHARE:
            return word
        i = rng.randrange(1, len(word) - 1)
        kind = rng.randrange(4)
        if kind == 0:
            return word[:i] + word[i + 1] + word[i] + word[i + 2 :]
        if kind == 1:
            return word[:i] + word[i + 1 :]
        other = word[i] + word[i] if kind == 2 else rng.choice(_NEIGHBOURS[word[i].lower()])
        return word[:i] + other + word[i + 1 :]

    return _WORD.sub(mistype, text)


def contract(text: str, rng: random.Random) -> str:
    """Write long forms short, or if there are none, short forms long."""
    pairs: dict[str, str] = _DATA["contractions"]
    shortened = _replace(text, pairs)
    return shortened if shortened != text else _replace(text, {v: k for k, v in pairs.items()})


def _replace(text: str, pairs: dict[str, str]) -> str:
    pattern = re.compile(r"\b(" + "|".join(map(re.escape, pairs)) + r")\b", re.IGNORECASE)

    def swap(match: re.Match[str]) -> str:
        new = pairs[match[0].lower()]
        return new.capitalize() if match[0][0].isupper() else new

    return pattern.sub(swap, text)


def reorder(text: str, rng: random.Random) -> str:
    """Options in another order under the same letters; without options, the last sentence first."""
    options = [match[2] for match in _OPTION.finditer(text)]
    if len(options) > 1:
        shuffled = options[:]
        while shuffled == options and len(set(options)) > 1:
            rng.shuffle(shuffled)
        remaining = iter(shuffled)
        return _OPTION.sub(lambda match: match[1] + next(remaining), text)
    sentences = _SENTENCE.split(text.strip())
    return " ".join([sentences[-1], *sentences[:-1]]) if len(sentences) > 1 else text


def unpunctuated(text: str, rng: random.Random) -> str:
    """Without punctuation at the end of words, as people type in a hurry."""
    return re.sub(r"[.,;:!?]+(?=\s|$)", "", text)


def rare_tokens(text: str, rng: random.Random) -> str:
    """The text, then a string of improbable words."""
    letters = "bcdfghjklmnpqrstvwxz"
    words = ("".join(rng.choices(letters, k=rng.randint(3, 9))) for _ in range(RARE_TOKENS))
    return text + "\n\n" + " ".join(words)


def _around(before: Sequence[str], after: Sequence[str]) -> Callable[[str, random.Random], str]:
    def put(text: str, rng: random.Random) -> str:
        return (rng.choice(before) if before else "") + text + (rng.choice(after) if after else "")

    return put


_FUNCTIONS: dict[str, Callable[[str, random.Random], str]] = {
    "typos": typos,
    "lower case": lambda text, rng: text.lower(),
    "upper case": lambda text, rng: text.upper(),
    "no punctuation": unpunctuated,
    "respaced": lambda text, rng: " ".join(text.split()),
    "contractions": contract,
    "reordered": reorder,
    "rare tokens": rare_tokens,
}

PERTURBATIONS = tuple(
    Perturbation(
        one["name"],
        one["group"],
        one["about"],
        _FUNCTIONS.get(one["name"]) or _around(one.get("before", ()), one.get("after", ())),
    )
    for one in _DATA["perturbations"]
)
"""All perturbations, in the order of the report."""


def perturb(perturbation: Perturbation, texts: list[str], seed: int) -> list[str]:
    """Every text changed; a text's change depends on its place, the perturbation and the seed only."""
    return [
        perturbation.apply(text, random.Random(f"{seed}/{perturbation.name}/{row}"))
        for row, text in enumerate(texts)
    ]
