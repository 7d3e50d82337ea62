"""Tables of any size from CSV, JSON Lines, Parquet and plain text, by extension: files, folders and patterns.

A decision log is read as a table of its prompts. The columns are those of docs/logs.md; older names of
columns are read with a note. A folder `name=value` is a column.

Errors name the place as `file:row:column: what was expected`. Rows are numbered as in a spreadsheet:
the header of a CSV file is row 1, and so is the first line of a JSON Lines file or row of a Parquet file.
"""

from __future__ import annotations

import base64
import contextlib
import csv
import gzip
import io
import itertools
import json
import math
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from semroute_extproc.errors import DataError
from semroute_lab.common.decisions import BATCH_ROWS, DecisionLog, digest_of, files_of, is_log, prompt_rows
from semroute_lab.common.engine import Engine, Part, Tick
from semroute_lab.common.metrics import Floats, Integers
from semroute_lab.common.shuffle import Sample

ROWS_MAX = 1_000_000  # Rows of a table in memory; of more, a sample
SUFFIXES = (".csv", ".csv.gz", ".jsonl", ".jsonl.gz", ".txt", ".txt.gz", ".parquet")
FIELD_BYTES = 60  # Of the object around a field
ROWS_MIN = 20  # Fewer rows give no useful interval
FIELD_CHARACTERS_MAX = 1_000_000  # Length of a single CSV field
TEXT_COLUMNS = ("prompt", "text", "question", "instruction")  # Tried if no text column is given
LABEL_COLUMNS = ("label", "intent", "category", "class", "domain")  # Tried if none is given
FOLDS = 5  # Folds of everything that is cross-fitted
OUTCOME = "outcome."  # Start of the name of a column of outcomes; the model follows
OLD_NAMES = {"strong_correct": "outcome.strong", "weak_correct": "outcome.weak"}
"""Older names of columns, and what they are now."""


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of a file as strings, in order, with their row numbers for error messages."""

    path: Path
    sha256: str  # See `digest_of`
    columns: dict[str, list[str]]
    numbers: list[int]  # The row number of each row in its file
    files: Sequence[Path] = ()  # The file of each row; by default `path`

    def __len__(self) -> int:
        return len(self.numbers)

    def has(self, column: str) -> bool:
        """Whether the file has that column."""
        return self.actual(column) in self.columns

    def actual(self, column: str) -> str:
        """The name in the file of a column that has an older or newer name there."""
        same = next((pair for pair in OLD_NAMES.items() if column in pair), ())
        return next((name for name in (column, *same) if name in self.columns), column)

    def error(self, column: str, what: str, row: int | None = None) -> DataError:
        """The error for a place: `row` indexes this table; without it, the header (row 1)."""
        number = 1 if row is None else self.numbers[row]
        file = self.path if row is None or not self.files else self.files[row]
        return DataError(f"{file}:{number}:{self.actual(column)}: {what}")

    def strings(self, column: str) -> list[str]:
        """A column, which must exist."""
        column = self.actual(column)
        if column not in self.columns:
            names = ", ".join(self.columns)
            raise self.error(column, f"expected a column of this name; the file has {names}")
        return self.columns[column]

    def texts(self, column: str) -> list[str]:
        """A column without blank fields."""
        values = self.strings(column)
        for row, value in enumerate(values):
            if not value.strip():
                raise self.error(column, "expected text, found a blank field", row)
        return values

    def field(self, column: str, row: int) -> str:
        """One field without surrounding white space; blank if there is no such column."""
        return self.columns[column][row].strip() if column in self.columns else ""

    def numbers_in(
        self, column: str, low: float = -math.inf, high: float = math.inf, blank: bool = False
    ) -> Floats:
        """A column of finite numbers within bounds; a blank field becomes NaN if `blank` is set."""
        values = self.strings(column)
        found = np.full(len(values), math.nan)
        unbounded = low == -math.inf and high == math.inf
        expected = "a finite number" if unbounded else f"a number in {low:g}..{high:g}"
        for row, value in enumerate(values):
            if blank and not value.strip():
                continue
            with contextlib.suppress(ValueError):
                found[row] = float(value)
            if not math.isfinite(found[row]) or not low <= found[row] <= high:
                raise self.error(column, f"expected {expected}, found {value[:40]!r}", row)
        return found

    def by_model(self) -> Table:
        """A table of outcomes with the names of the models as columns: `outcome.MODEL` becomes `MODEL`."""
        models, key = [name for name in self.columns if name.startswith(OUTCOME)], next(iter(self.columns))
        if not models:
            click.echo(f"note: {self.path}: all columns but {key} are read as {OUTCOME}MODEL", err=True)
            return self
        columns = {name.removeprefix(OUTCOME): self.columns[name] for name in (key, *models)}
        return Table(self.path, self.sha256, columns, self.numbers, self.files)

    def where(self, keep: Iterable[bool]) -> Table:
        """The rows for which `keep` is true."""
        rows = [row for row, kept in enumerate(keep) if kept]
        columns = {name: [values[row] for row in rows] for name, values in self.columns.items()}
        files = [self.files[row] for row in rows] if self.files else ()
        return Table(self.path, self.sha256, columns, [self.numbers[row] for row in rows], files)

    def in_splits(self, splits: Collection[str]) -> Table:
        """The rows of the named splits, each of which must have rows; all rows if none is named."""
        if not splits:
            return self
        present = self.strings("split")
        for split in splits:
            if split not in present:
                there = ", ".join(sorted(set(present)))
                raise self.error("split", f"no row has split {split!r}; the splits are {there}")
        return self.where(value in splits for value in present)


def read_table(path: Path, rows_max: int = ROWS_MAX) -> Table:
    """Read a file, a folder, a pattern or a decision log; raises DataError.

    Of more than `rows_max` rows, or of more than fit the memory, a keyed sample is read.
    """
    source, engine = Source.of(path), Engine.current()
    found = Sample(rows_max, engine.memory)
    names = set[str]()
    for number, state in enumerate(source.map("reading", _sampled, rows_max, engine.memory)):
        found.merge(state)
        if (own := set(state["names"])) and not source.log and ".jsonl" not in source.files[number].name:
            names = names or own
            for other in sorted(names ^ own):
                has = "other files have" if other in names else "no other file has"
                raise DataError(f"{source.files[number]}:1:{other}: {has} this column")
    rows = found.rows()
    if len(rows) < found.seen:
        click.echo(f"note: {path}: a sample of {len(rows):,} of its {found.seen:,} rows is used", err=True)
    if not rows:
        raise DataError(f"{path}:1:: the file has no rows")
    table = table_of(path, [(place[1], row) for place, row in rows], digest_of(source.files))
    if len(source.files) > 1 and not source.log:
        table = replace(table, files=[source.files[place[0]] for place, _ in rows])
    for old in [name for name in OLD_NAMES if name in table.columns and OLD_NAMES[name] not in table.columns]:
        click.echo(f"note: {path}: {old} is read as {OLD_NAMES[old]}, its new name", err=True)
    return table


Row = dict[str, str]
Rows = Iterable[tuple[int, Row]]  # With the numbers of the rows in their file


def table_of(path: Path, rows: Sequence[tuple[int, Row]], sha256: str = "") -> Table:
    """A table of some rows of a file."""
    names = dict.fromkeys(name for _, row in rows for name in row)
    columns = {name: [row.get(name, "") for _, row in rows] for name in names}
    return Table(path, sha256, columns, [number for number, _ in rows])


@dataclass(frozen=True, slots=True)
class Source:
    """A table in parts, of which each is read on its own."""

    path: Path
    files: list[Path]
    parts: list[Part]  # Arguments of `rows`
    log: bool

    @classmethod
    def of(cls, path: Path) -> Source:
        """The files of a path, or the prompts of a log."""
        if is_log(path):
            return cls(path, files_of(path), DecisionLog(path).prompts(), True)
        files = files_of(path, SUFFIXES)
        root = str(path) if path.is_dir() else ""
        return cls(path, files, [(str(file), root) for file in files], False)

    def map(self, what: str, function: Callable[..., Any], *given: Any) -> Iterator[Any]:
        """`function(rows, number, folder, *given)` of each part, with rows as of `Rows`."""
        return Engine.current().run(what, _rows, self.parts, function, given, self.files)


def _sampled(rows: Rows, part: int, _: Path, rows_max: int, bytes_max: int) -> dict[str, Any]:
    found, names = Sample(rows_max, bytes_max), list[str]()
    for number, row in rows:
        names = names or list(row)
        found.add([part, number], row, sum(map(len, row.values())) + FIELD_BYTES * (len(row) + 1))
    return found.state() | {"names": names}


def _rows(part: str, root: Any, _: Tick) -> Iterator[tuple[int, Row]]:
    """The rows of a part of a source, with their numbers; raises DataError."""
    if isinstance(root, int):
        prompts = enumerate(prompt_rows(part, root), start=1)
        yield from ((n, {name: _as_field(value) for name, value in row.items()}) for n, row in prompts)
        return
    path = Path(part)
    folders = path.relative_to(root).parts[:-1] if root else ()
    fixed = dict(each.split("=", 1) for each in folders if "=" in each)
    kind = path.name.removesuffix(".gz").rpartition(".")[2]
    if f".{kind}" not in SUFFIXES:
        raise DataError(f"{path}:1:: expected a name ending in {', '.join(SUFFIXES)}")
    try:
        if kind == "parquet":
            yield from ((number, fixed | row) for number, row in _from_parquet(path))
            return
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as raw:
            for number, row in _READERS[kind](path, io.TextIOWrapper(raw, "utf-8-sig", newline="")):
                yield number, fixed | row
    except (OSError, EOFError, zlib.error, pa.ArrowException) as error:
        raise DataError(f"{path}:1:: cannot be read: {error}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}:1:: expected UTF-8 text: {error.reason}") from error


def _from_parquet(path: Path) -> Iterator[tuple[int, Row]]:
    number = 0
    for batch in pq.ParquetFile(path).iter_batches(BATCH_ROWS):
        for row in batch.to_pylist():
            number += 1
            yield number, {name: _as_field(value) for name, value in row.items()}


def _from_csv(path: Path, text: io.TextIOWrapper) -> Iterator[tuple[int, Row]]:
    previous = csv.field_size_limit(FIELD_CHARACTERS_MAX)
    number = 0
    try:
        rows = csv.reader(text, strict=True)
        header = next(rows, [])
        if not header or any(not name.strip() for name in header):
            raise DataError(f"{path}:1:: expected a header with a name for every column")
        if len(set(header)) < len(header):
            twice = next(name for name in header if header.count(name) > 1)
            raise DataError(f"{path}:1:{twice}: duplicate column")
        number = 1
        for row in rows:
            number += 1
            if len(row) != len(header):
                raise DataError(f"{path}:{number}:: expected {len(header)} fields, found {len(row)}")
            yield number, dict(zip(header, row, strict=True))
    except csv.Error as error:
        raise DataError(f"{path}:{number + 1}:: not CSV: {error}") from error
    finally:
        csv.field_size_limit(previous)


def json_lines(path: Path, text: Iterable[str]) -> Iterator[tuple[int, dict[str, object]]]:
    """The objects of JSON Lines with their line numbers; raises DataError."""
    for number, line in enumerate(text, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            raise DataError(f"{path}:{number}:: not JSON: {error}") from error
        if not isinstance(record, dict):
            raise DataError(f"{path}:{number}:: expected an object, found {type(record).__name__}")
        yield number, record


def _from_json_lines(path: Path, text: Iterable[str]) -> Iterator[tuple[int, Row]]:
    for number, record in json_lines(path, text):
        yield number, {name: _as_field(value) for name, value in record.items()}


def _from_lines(_: Path, text: Iterable[str]) -> Iterator[tuple[int, Row]]:
    for number, line in enumerate(text, start=1):
        if line.strip():
            yield number, {"text": line.rstrip("\r\n")}


_READERS: dict[str, Callable[[Path, io.TextIOWrapper], Iterator[tuple[int, Row]]]] = {
    "csv": _from_csv,
    "jsonl": _from_json_lines,
    "txt": _from_lines,
}


def _as_field(value: object) -> str:
    """A value as its CSV field: null is blank, booleans are 1 and 0, lists are JSON, bytes are base64."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(int(value))
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def pick_column(table: Table, given: str | None, candidates: Sequence[str], role: str) -> str:
    """The column that was given, or the first candidate that the file has."""
    if given is not None:
        table.strings(given)
        return given
    for name in candidates:
        if name in table.columns:
            return name
    names = ", ".join(candidates)
    raise table.error(role, f"expected one of the columns {names}, or name it with --{role}-column")


def texts_in(table: Table, column: str | None, options_column: str | None = None) -> list[str]:
    """The texts of the given column, or of the first of `TEXT_COLUMNS`; see `prompt_texts`."""
    return prompt_texts(table, pick_column(table, column, TEXT_COLUMNS, "text"), options_column)


def prompt_texts(table: Table, column: str, options_column: str | None = None) -> list[str]:
    """The texts of a column; with an options column (a JSON list), one lettered line per option follows."""
    texts = table.texts(column)
    if options_column is None:
        return texts
    found: list[str] = []
    for row, (text, field) in enumerate(zip(texts, table.strings(options_column), strict=True)):
        options = json_list(field)
        if options is None or not all(isinstance(option, str) for option in options):
            raise table.error(options_column, f"expected a JSON list of strings, found {field[:40]!r}", row)
        found.append(with_options(text, options))
    return found


def with_options(text: str, options: Sequence[object]) -> str:
    """The text with one lettered line per option below it."""
    return "\n".join([text, *(f"{chr(ord('A') + i)}. {option}" for i, option in enumerate(options))])


def json_list(field: str) -> list[object] | None:
    """A field as a JSON list, None if it is not one."""
    try:
        value = json.loads(field)
    except ValueError:
        return None
    return value if isinstance(value, list) else None


def require_rows(table: Table, least: int = ROWS_MIN) -> None:
    """Raise DataError for a table with fewer rows."""
    if len(table) < least:
        raise DataError(f"{table.path}:1:: expected at least {least} rows, found {len(table)}")


def text_key(text: str) -> str:
    """A key that ignores case and white space."""
    return " ".join(text.split()).casefold()


def text_groups(texts: Sequence[str]) -> Integers:
    """A number for each text, equal for texts with one `text_key`; shape (n,)."""
    keys = [text_key(text) for text in texts]
    numbers = {key: i for i, key in enumerate(dict.fromkeys(keys))}
    return np.asarray([numbers[key] for key in keys], dtype=np.int64)


def folds(texts: Sequence[str], seed: int) -> Integers:
    """A fold 0..FOLDS-1 for each row, the same for identical texts; shape (n,)."""
    groups = text_groups(texts)
    fold_of_group = np.random.default_rng(seed).permutation(int(groups.max()) + 1) % FOLDS
    return np.asarray(fold_of_group[groups], dtype=np.int64)


def portions(groups: Integers, shares: Sequence[float], seed: int) -> list[Integers]:
    """Row indices of consecutive portions of the shuffled groups; shares add up to 1."""
    distinct = int(groups.max()) + 1
    place = np.random.default_rng(seed).permutation(distinct)[groups]
    edges = np.round(np.cumsum([0.0, *shares]) * distinct)
    return [np.flatnonzero((place >= a) & (place < b)) for a, b in itertools.pairwise(edges)]
