"""Changes of a training text that leave its labels as they are: envelopes, phrases, noise.

What applications put around a question, and how people type it, must not decide where it goes (see
`augment.toml`). An application's own chore about a question is labeled as housekeeping.
"""

from __future__ import annotations

import json
import random
import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from semroute_lab.train.datasets import LEVELS, Example

SHARES = {"envelope": 0.2, "change": 0.2, "chore": 0.03}  # Of the rows of an epoch
PASSAGES = (200, 600, 1_500, 3_000)  # Characters of a passage around a question
OTHER, SHORT = 400, 80  # Characters of a second passage, and of a short one
TYPO_SHARE, TYPO_LETTERS = 0.1, 3  # Share of the words of more letters that get a typing error
_FIELDS = re.compile(r"\{(question|passage|other|short)\}")
DECLARED = Path(__file__).with_suffix(".toml")  # The envelopes, chores and phrases
_DECLARED = tomllib.loads(DECLARED.read_text(encoding="utf-8"))
_ENVELOPES: list[str] = _DECLARED["envelopes"]
_CHORES: list[str] = _DECLARED["chores"]
_BEFORE: list[str] = _DECLARED["phrases"]["before"]
_AFTER: list[str] = _DECLARED["phrases"]["after"]


@dataclass(frozen=True, slots=True)
class Augment:
    """Draws a change for a row; `passages` are texts to put around it."""

    passages: Sequence[str]
    rng: random.Random

    def __call__(self, row: Example) -> Example:
        """The row itself, or a changed copy of it."""
        drawn = self.rng.random()
        if drawn < SHARES["chore"]:
            text = self._filled(self.rng.choice(_CHORES), row.text)
            nothing: dict[str, Any] = dict.fromkeys(("domain", "task", "intent", "gain"))
            return replace(row, text=text, difficulty=LEVELS["housekeeping"], kind="housekeeping", **nothing)
        drawn -= SHARES["chore"]
        if drawn < SHARES["envelope"]:
            return replace(row, text=self._filled(self.rng.choice(_ENVELOPES), row.text), intent=None)
        if drawn < SHARES["envelope"] + SHARES["change"]:
            return replace(row, text=self._changed(row.text))
        return row

    def _filled(self, template: str, question: str) -> str:
        found = {"question": question, "passage": self._passage(self.rng.choice(PASSAGES))}
        found |= {"other": self._passage(OTHER), "short": self._passage(SHORT).partition("\n")[0]}
        if template.startswith('{"'):
            found = {name: json.dumps(text, ensure_ascii=False)[1:-1] for name, text in found.items()}
        return _FIELDS.sub(lambda match: found[match[1]], template)

    def _passage(self, characters: int) -> str:
        return self.rng.choice(self.passages)[:characters]

    def _changed(self, text: str) -> str:
        match self.rng.randrange(7):
            case 0:
                return typing_errors(text, self.rng)
            case 1:
                return text.lower()
            case 2:
                return text.upper() if self.rng.random() < 0.4 else text.rstrip(".?! ")
            case 3:
                return self.rng.choice(_BEFORE) + text
            case 4:
                return text + self.rng.choice(_AFTER)
            case 5:
                return self.rng.choice(_BEFORE) + text + self.rng.choice(_AFTER)
            case _:
                return " ".join(text.split())


def typing_errors(text: str, rng: random.Random) -> str:
    """Swap, drop or double a letter in some of the longer words."""
    words = text.split(" ")
    for place, word in enumerate(words):
        if len(word) > TYPO_LETTERS and rng.random() < TYPO_SHARE:
            at = rng.randrange(len(word) - 1)
            first, second = word[at], word[at + 1]
            changed = rng.choice((second + first, second, first + first + second))
            words[place] = word[:at] + changed + word[at + 2 :]
    return " ".join(words)
