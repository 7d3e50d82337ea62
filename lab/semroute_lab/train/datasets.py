"""Examples, and the rules that keep the wrong ones out of a fit.

An example carries its text, where it came from and whatever targets its source has. Rights are
enforced here and not in the sources: `FitSet` is the only thing a fit accepts, and it refuses a
row whose licence, part or track forbids training.
"""

from __future__ import annotations

import enum
import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from semroute_extproc.errors import DataError

DOMAINS = (
    "biology",
    "business",
    "chemistry",
    "computer science",
    "economics",
    "engineering",
    "health",
    "history",
    "law",
    "math",
    "other",
    "philosophy",
    "physics",
    "psychology",
)
"""The domains, in MMLU-Pro's spelling."""

TASKS = (
    "code",
    "math",
    "tool use",
    "extraction",
    "translation",
    "summarisation",
    "creative",
    "chat",
    "question answering",
    "other",
)
"""What a request wants done."""

FAMILIES = ("everyday", "mathematics", "exam")
"""Families of requests whose difficulty has its own expert; the last one's reads a cluster table."""

CALIBRATION_SHARE = 10
"""One in this many fit rows, chosen by the hash of its text, is kept for early stopping and calibration."""

FIT_ROWS_MIN = 200
"""A fit on fewer rows is refused."""


class Part(enum.StrEnum):
    """What a row is for."""

    FIT = "fit"
    CALIBRATE = "calibrate"
    """Kept out of the fit; early stopping, temperatures and thresholds look at it."""
    DEV = "dev"
    """Only reported on."""


class Track(enum.StrEnum):
    """What a difficulty reported on the MMLU pair was allowed to see."""

    ZERO = "zero"
    """Nothing from MMLU or from the GSM8K test set."""
    GOLD = "gold"
    """The rows marked `gold` of the MMLU pair as well."""


@dataclass(frozen=True, slots=True)
class Rights:
    """The licence of a source and whether it lets shipped weights be trained on it."""

    licence: str
    may_train: bool


@dataclass(frozen=True, slots=True)
class Example:
    """One row of a source. A target that is None is not known and adds nothing to the loss."""

    text: str
    source: str
    place: str
    """`file:row`, for messages."""
    rights: Rights
    part: Part
    domain: int | None = None
    """Index into `DOMAINS`."""
    task: int | None = None
    """Index into `TASKS`."""
    difficulty: float | None = None
    """Probability that the strong model answers well where the weak one does not, 0..1."""
    gain: float | None = None
    """Quality of the strong model over the weak one, -1..1, where both were measured on this row."""
    family: int = 0
    """Index into `FAMILIES`."""
    intent: str | None = None
    """A fine label such as `clinc150/card_arrival`; it shapes the embedding and is not exported."""
    mmlu_stem: bool = False
    """The question is also one of MMLU's test questions."""
    weight: float = 1.0
    """Of this row's difficulty in the loss."""


_LETTERED = re.compile(r"\n\s*\(?[A-J][.):]\s.*\Z", re.DOTALL)
_SPACE = re.compile(r"\s+")


def text_key(text: str) -> str:
    """A key that texts share when they differ in case and white space only."""
    return _SPACE.sub(" ", text).strip().casefold()


def stem_key(text: str) -> str:
    """The key of a question without its lettered options, so that it is found with and without them."""
    return text_key(_LETTERED.sub("", text))


def part_of_fit(text: str) -> Part:
    """`FIT` or `CALIBRATE`, by the hash of the stem: the same row lands in the same part every time."""
    digest = hashlib.sha256(stem_key(text).encode()).digest()
    return Part.CALIBRATE if digest[0] % CALIBRATION_SHARE == 0 else Part.FIT


class FitSet:
    """Rows that a fit may see: the only argument a fit accepts.

    Raises DataError, naming the row, where one may not train, is reported on, or carries a
    difficulty that leaks the MMLU pair.
    """

    def __init__(self, rows: Iterable[Example], part: Part = Part.FIT) -> None:
        self.rows: tuple[Example, ...] = tuple(rows)
        self.part = part
        for row in self.rows:
            if not row.rights.may_train:
                raise DataError(f"{row.place}:: {row.source} ({row.rights.licence}) may only be evaluated on")
            if row.part is not part:
                raise DataError(f"{row.place}:: a row of part {row.part} cannot be used to {part}")
            if row.mmlu_stem and row.difficulty is not None:
                raise DataError(
                    f"{row.place}:: an MMLU question cannot train the difficulty reported on MMLU"
                )

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Example]:
        return iter(self.rows)


@dataclass(frozen=True, slots=True)
class Corpus:
    """Rows of all parts, after the rules between rows were applied."""

    fit: FitSet
    calibrate: FitSet
    dev: tuple[Example, ...]
    dropped: dict[str, int]
    """How many rows, or targets of rows, were left out, by reason."""


TARGETS = ("domain", "task", "difficulty", "intent")
"""The fields of `Example` that a head is trained on and a dev row is reported on."""


def assemble(rows: Iterable[Example], held_out: Iterable[Example] = ()) -> Corpus:
    """Apply the rules between rows and split them into parts.

    Rows that may not train and are no dev rows are left out. A row whose question is also a dev
    row, or one of `held_out`, loses every target that is reported there: identical questions never
    straddle a split. Of rows of one source with the same text the first is kept.
    """
    rows = list(rows)
    dev = tuple(row for row in rows if row.part is Part.DEV)
    reported = _reported((*dev, *held_out))
    dropped: dict[str, int] = {}
    kept: dict[tuple[str, str], Example] = {}
    for row in rows:
        if row.part is Part.DEV:
            continue
        left, reason = _admit(row, reported)
        key = (row.source, text_key(row.text))
        if left is not None and key in kept:
            left, reason = None, "same text twice"
        if left is not None:
            kept[key] = left
        if reason:
            dropped[reason] = dropped.get(reason, 0) + 1
    fit = FitSet((row for row in kept.values() if row.part is Part.FIT), Part.FIT)
    calibrate = FitSet((row for row in kept.values() if row.part is Part.CALIBRATE), Part.CALIBRATE)
    if len(fit) < FIT_ROWS_MIN:
        raise DataError(f"expected at least {FIT_ROWS_MIN} rows to train on, found {len(fit)}")
    return Corpus(fit, calibrate, dev, dropped)


def _reported(rows: Sequence[Example]) -> dict[str, set[str]]:
    """For each target, the stems of the rows it is reported on."""
    stems: dict[str, set[str]] = {target: set() for target in TARGETS}
    for row in rows:
        for target in TARGETS:
            if getattr(row, target) is not None:
                stems[target].add(stem_key(row.text))
    return stems


def _admit(row: Example, reported: dict[str, set[str]]) -> tuple[Example | None, str]:
    """What is left of a row under the rules, and why it lost something."""
    if not row.rights.may_train:
        return None, "may only be evaluated on"
    reason = ""
    if row.mmlu_stem and row.difficulty is not None:
        row, reason = replace(row, difficulty=None, gain=None), "difficulty of an MMLU question"
    stem = stem_key(row.text)
    leaks = [target for target in TARGETS if stem in reported[target]]
    if any(getattr(row, target) is not None for target in leaks):
        row, reason = _without(row, leaks), "also a dev row"
    if all(getattr(row, target) is None for target in TARGETS):
        return None, reason or "no target"
    return row, reason


def _without(row: Example, targets: Sequence[str]) -> Example:
    """The row without some of its targets."""
    return replace(
        row,
        domain=None if "domain" in targets else row.domain,
        task=None if "task" in targets else row.task,
        difficulty=None if "difficulty" in targets else row.difficulty,
        gain=None if "difficulty" in targets else row.gain,
        intent=None if "intent" in targets else row.intent,
    )
