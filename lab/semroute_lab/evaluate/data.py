"""Readers of evaluation files: CSV, JSON Lines and plain lines, maybe gzip-compressed, by extension.

Every reader says where a file is wrong: `DataError` reads `file:row:column: what was expected`.
Rows are numbered as a spreadsheet shows them: the CSV header is row 1, the first line of JSON
Lines is row 1. The shapes, by column name (further columns are ignored):

    pair        prompt, strong_correct, weak_correct, [split], [subject]; outcomes are 0/1 or graded
    intent      a text column and a label column, [split]
    pool        questions: an id and a text column; outcomes: the id, then one column per model with
                0..1 or blank (not run); costs: the same shape with positive costs per question, or
                two columns `model,cost`; models: `model`, [role], where roles beginning with
                `unseen` are kept out of training and the rest are trained on
    robustness  a text column
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import math
import zlib
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from semroute_extproc.errors import DataError
from semroute_lab.evaluate.metrics.arrays import Floats

ROWS_MAX = 1_000_000
"""A file may hold at most this many rows."""

ROWS_MIN = 20
"""Fewer rows than this carry no figure worth an interval."""

FIELD_CHARACTERS_MAX = 1_000_000
"""A single field may be at most this long."""

TEXT_COLUMNS = ("prompt", "text", "question", "instruction")
"""Names tried, in this order, when the text column is not given."""

LABEL_COLUMNS = ("label", "intent", "category", "class", "domain")
"""Names tried, in this order, when the label column is not given."""


@dataclass(frozen=True, slots=True)
class Table:
    """A file's rows as strings, in order, with what is needed to name a place in it."""

    path: Path
    sha256: str
    """Of the file's bytes, hexadecimal."""
    columns: dict[str, list[str]]
    numbers: list[int]
    """The row number of each row in the file."""

    def __len__(self) -> int:
        return len(self.numbers)

    def has(self, column: str) -> bool:
        """Whether the file has that column."""
        return column in self.columns

    def error(self, column: str, what: str, row: int | None = None) -> DataError:
        """The error for a place: `row` indexes this table; without it the header (row 1) is meant."""
        number = 1 if row is None else self.numbers[row]
        return DataError(f"{self.path}:{number}:{column}: {what}")

    def strings(self, column: str) -> list[str]:
        """A column as it stands; refuses a column that is missing."""
        if column not in self.columns:
            raise self.error(
                column, f"expected a column of this name; the file has {', '.join(self.columns)}"
            )
        return self.columns[column]

    def texts(self, column: str) -> list[str]:
        """A column of which no field may be blank."""
        values = self.strings(column)
        for row, value in enumerate(values):
            if not value.strip():
                raise self.error(column, "expected text, found a blank field", row)
        return values

    def numbers_in(
        self, column: str, low: float = -math.inf, high: float = math.inf, blank: bool = False
    ) -> Floats:
        """A column of finite numbers within bounds; a blank becomes NaN if `blank` allows it."""
        values = self.strings(column)
        found = np.empty(len(values))
        span = (
            "a finite number" if low == -math.inf and high == math.inf else f"a number in {low:g}..{high:g}"
        )
        for row, value in enumerate(values):
            if blank and not value.strip():
                found[row] = math.nan
                continue
            try:
                number = float(value)
            except ValueError:
                raise self.error(column, f"expected {span}, found {value[:40]!r}", row) from None
            if not math.isfinite(number) or not low <= number <= high:
                raise self.error(column, f"expected {span}, found {value[:40]!r}", row)
            found[row] = number
        return found

    def where(self, keep: Iterable[bool]) -> Table:
        """The rows for which `keep` is true."""
        rows = [row for row, kept in enumerate(keep) if kept]
        columns = {name: [values[row] for row in rows] for name, values in self.columns.items()}
        return Table(self.path, self.sha256, columns, [self.numbers[row] for row in rows])

    def in_splits(self, splits: Collection[str]) -> Table:
        """The rows of the named splits; all rows if none is named. Refuses a split that has no row."""
        if not splits:
            return self
        present = self.strings("split")
        for split in splits:
            if split not in present:
                raise self.error(
                    "split", f"no row is of split {split!r}; there are {', '.join(sorted(set(present)))}"
                )
        return self.where(value in splits for value in present)


def read_table(path: Path) -> Table:
    """Read a `.csv`, `.jsonl` or `.txt` file, maybe `.gz`; `DataError` if it cannot be used.

    A `.txt` file has one text in each line that is not blank, column `text`.
    """
    try:
        raw = path.read_bytes()
        text = (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode("utf-8-sig")
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}:1:: cannot be read: {error}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}:1:: expected UTF-8 text, byte {error.start} is not") from error
    kind = path.name.removesuffix(".gz").rpartition(".")[2]
    if kind == "csv":
        table = _from_csv(path, text)
    elif kind == "jsonl":
        table = _from_json_lines(path, text)
    elif kind == "txt":
        table = _from_lines(path, text)
    else:
        raise DataError(f"{path}:1:: expected a name ending in .csv, .jsonl or .txt, or these with .gz")
    if not table.numbers:
        raise DataError(f"{path}:1:: the file has no rows")
    return Table(path, hashlib.sha256(raw).hexdigest(), table.columns, table.numbers)


def _from_csv(path: Path, text: str) -> Table:
    previous = csv.field_size_limit(FIELD_CHARACTERS_MAX)
    try:
        rows = list(_csv_rows(path, text))
    finally:
        csv.field_size_limit(previous)
    header = rows[0] if rows else []
    if not header or any(not name.strip() for name in header):
        raise DataError(f"{path}:1:: expected a header with a name for every column")
    if len(set(header)) < len(header):
        twice = next(name for name in header if header.count(name) > 1)
        raise DataError(f"{path}:1:{twice}: the column is there twice")
    for number, row in enumerate(rows[1:], start=2):
        if len(row) != len(header):
            raise DataError(f"{path}:{number}:: expected {len(header)} fields, found {len(row)}")
    columns = {name: [row[i] for row in rows[1:]] for i, name in enumerate(header)}
    return Table(path, "", columns, list(range(2, len(rows) + 1)))


def _csv_rows(path: Path, text: str) -> Iterator[list[str]]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    number = 0
    while True:
        number += 1
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise DataError(f"{path}:{number}:: not CSV: {error}") from error
        if number > ROWS_MAX + 1:
            raise DataError(f"{path}:{number}:: expected at most {ROWS_MAX} rows")
        yield row


def _from_json_lines(path: Path, text: str) -> Table:
    records: list[dict[str, object]] = []
    numbers: list[int] = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        if len(records) == ROWS_MAX:
            raise DataError(f"{path}:{number}:: expected at most {ROWS_MAX} rows")
        try:
            record = json.loads(line)
        except ValueError as error:
            raise DataError(f"{path}:{number}:: not JSON: {error}") from error
        if not isinstance(record, dict):
            raise DataError(f"{path}:{number}:: expected an object, found {type(record).__name__}")
        records.append(record)
        numbers.append(number)
    names = list(dict.fromkeys(name for record in records for name in record))
    columns = {name: [_as_field(record.get(name)) for record in records] for name in names}
    return Table(path, "", columns, numbers)


def _from_lines(path: Path, text: str) -> Table:
    lines = [(number, line) for number, line in enumerate(text.splitlines(), start=1) if line.strip()]
    if len(lines) > ROWS_MAX:
        raise DataError(f"{path}:{lines[ROWS_MAX][0]}:: expected at most {ROWS_MAX} rows")
    return Table(path, "", {"text": [line for _, line in lines]}, [number for number, _ in lines])


def _as_field(value: object) -> str:
    """A JSON value as its CSV field: null is blank, booleans are 1 and 0, lists stay JSON."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(int(value))
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def pick_column(table: Table, given: str | None, candidates: Sequence[str], role: str) -> str:
    """The column that was named, or the first candidate that the file has."""
    if given is not None:
        table.strings(given)
        return given
    for name in candidates:
        if table.has(name):
            return name
    raise table.error(
        role, f"expected one of the columns {', '.join(candidates)}, or name it with --{role}-column"
    )


def prompt_texts(table: Table, column: str, options_column: str | None = None) -> list[str]:
    """The texts to classify; with an options column (a JSON list), one lettered line per option follows."""
    texts = table.texts(column)
    if options_column is None:
        return texts
    joined: list[str] = []
    for row, (text, field) in enumerate(zip(texts, table.strings(options_column), strict=True)):
        try:
            options = json.loads(field)
        except ValueError:
            options = None
        if not isinstance(options, list) or not all(isinstance(option, str) for option in options):
            raise table.error(options_column, f"expected a JSON list of strings, found {field[:40]!r}", row)
        lines = [f"{chr(ord('A') + i)}. {option}" for i, option in enumerate(options)]
        joined.append("\n".join([text, *lines]))
    return joined


def require_rows(table: Table, least: int = ROWS_MIN) -> None:
    """Refuse a table too small for any figure."""
    if len(table) < least:
        raise DataError(f"{table.path}:1:: expected at least {least} rows, found {len(table)}")


def describe(table: Table) -> dict[str, object]:
    """What a report says of its data: file name, SHA-256, rows, and rows by split."""
    splits = table.columns.get("split", [])
    counts = {split: splits.count(split) for split in sorted(set(splits))}
    return {"file": table.path.name, "sha256": table.sha256, "rows": len(table), "splits": counts}
