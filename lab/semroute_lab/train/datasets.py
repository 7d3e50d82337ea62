"""Examples, and the rules that keep the wrong rows out of a fit.

An example carries its text, its place and the targets of its source. `assemble` enforces rights: a row
whose licence or part forbids training reaches no fit.
"""

from __future__ import annotations

import enum
import hashlib
import re
import tomllib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from semroute_extproc.errors import DataError
from semroute_lab.common.tables import Table, text_key

DECLARED = Path(__file__).parent / "sources.toml"  # The declared domains, tasks and sources
NAMES = tomllib.loads(DECLARED.read_text())

DOMAINS: tuple[str, ...] = tuple(NAMES["domains"])  # The domains, in MMLU-Pro's spelling
TASKS: tuple[str, ...] = tuple(NAMES["tasks"])  # Kinds of request
LEVELS: dict[str, float] = NAMES["levels"]  # Difficulty of kinds without outcomes

CALIBRATION_SHARE = 10  # One in this many fit rows, by the hash of its text, is kept for calibration
FIT_ROWS_MIN = 200  # A fit on fewer rows is refused


class Part(enum.StrEnum):
    """Use of a row."""

    FIT = "fit"
    CALIBRATE = "calibrate"  # Not in the fit; for early stopping, temperatures and thresholds
    DEV = "dev"  # Only reported on


@dataclass(frozen=True, slots=True)
class Rights:
    """The licence of a source, and whether shipped weights may be trained on it."""

    licence: str
    may_train: bool


@dataclass(frozen=True, slots=True)
class Example:
    """One row of a source. A target that is None is unknown and adds nothing to the loss."""

    text: str
    source: str
    place: str  # `file:row`, for messages
    rights: Rights
    part: Part
    domain: int | None = None  # Index into `DOMAINS`
    task: int | None = None  # Index into `TASKS`
    difficulty: float | None = None  # Probability that the strong model is needed, 0..1
    gain: float | None = None  # Value of the cluster table, such as s - w; -1..1
    kind: str = ""  # Kind of request, for the reference traffic and the card
    intent: str | None = None  # Fine label such as `clinc150/card_arrival`; shapes the embedding
    weight: float = 1.0  # Of this row's difficulty in the loss


TARGETS = ("domain", "task", "difficulty", "intent")  # Trained on, and reported on for dev rows
_LETTERED = re.compile(r"\n\s*\(?[A-J][.):]\s.*\Z", re.DOTALL)


def stem_key(text: str) -> str:
    """The key of a question without its lettered options."""
    return text_key(_LETTERED.sub("", text))


def part_of_fit(text: str) -> Part:
    """`FIT` or `CALIBRATE`, by the hash of the stem: a row is in the same part in every run."""
    digest = hashlib.sha256(stem_key(text).encode()).digest()
    return Part.CALIBRATE if digest[0] % CALIBRATION_SHARE == 0 else Part.FIT


def named(table: Table, row: int, column: str, names: tuple[str, ...]) -> int | None:
    """The index in `names` of an optional field; DataError for another name."""
    value = table.columns[column][row] if table.has(column) else ""
    if not value:
        return None
    if value not in names:
        raise table.error(column, f"expected one of {', '.join(names)}, found {value!r}", row)
    return names.index(value)


@dataclass(frozen=True, slots=True)
class Corpus:
    """Rows of all parts, after the rules between rows were applied."""

    fit: tuple[Example, ...]
    calibrate: tuple[Example, ...]
    dev: tuple[Example, ...]
    dropped: dict[str, int]  # Number of rows, or of targets of rows, that were left out, by reason


def assemble(rows: Iterable[Example], rows_min: int = FIT_ROWS_MIN) -> Corpus:
    """Apply the rules between rows and split them into parts.
    A row whose question is also a dev row loses every target that is reported there. Of rows of one source
    with the same text the first is kept.
    """
    rows = list(rows)
    dev = tuple(row for row in rows if row.part is Part.DEV)
    reported: dict[str, set[str]] = {
        target: {stem_key(row.text) for row in dev if getattr(row, target) is not None} for target in TARGETS
    }
    dropped: Counter[str] = Counter()
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
            dropped[reason] += 1
    parts = (Part.FIT, Part.CALIBRATE)
    fit, calibrate = (tuple(row for row in kept.values() if row.part is part) for part in parts)
    if len(fit) < rows_min:
        raise DataError(f"expected at least {rows_min} rows to train on, found {len(fit)}")
    return Corpus(fit, calibrate, dev, dict(dropped))


def _admit(row: Example, reported: dict[str, set[str]]) -> tuple[Example | None, str]:
    """The row without the targets that the rules forbid, or None; and why it lost any."""
    if not row.rights.may_train:
        return None, "may only be evaluated on"
    reason = ""
    stem = stem_key(row.text)
    leaks = [t for t in TARGETS if stem in reported[t] and getattr(row, t) is not None]
    if leaks:
        nothing: dict[str, Any] = dict.fromkeys(leaks)
        gain = None if stem in reported["difficulty"] else row.gain
        row, reason = replace(row, gain=gain, **nothing), "also a dev row"
    if all(getattr(row, target) is None for target in TARGETS):
        return None, reason or "no target"
    return row, reason
