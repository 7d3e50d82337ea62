"""Finished files of the decision log as Parquet: `date=DAY/part-WORKER-NUMBER.parquet`, DAY in UTC.

The current file is JSON Lines, so a crash loses nothing. At rotation the thread of the log converts it; the
Parquet file gets its name in one step. If that fails, as on a full disk, the finished file stays JSON Lines.
"""

import base64
import json
import os
import time
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from semroute_extproc.telemetry.decision_log import LogFiles

ROWS_MAX = 1_024  # in memory at once, and in a row group
PAUSE_SECONDS = 0.02  # between row groups, for the event loop
_TYPES = {"number": pa.float64(), "integer": pa.int64(), "boolean": pa.bool_(), "binary": pa.binary()}
_JSON = json.JSONEncoder(separators=(",", ":")).encode
_CONVERT: dict[str, Any] = {"list": _JSON, "map": _JSON, "binary": base64.b64decode}
_CONVERT["string"] = lambda text: text.encode(errors="replace")  # UTF-8 has no lone surrogates.
_ROWS = msgspec.toml.decode(Path(__file__).with_name("columns.toml").read_bytes()).values()
COLUMNS: dict[str, str] = {name: of for rows in _ROWS for name, (of, _) in rows.items()}
SCHEMA = pa.schema([(name, _TYPES.get(of, pa.string())) for name, of in COLUMNS.items()])
"""Lists and maps are JSON, as their members differ. Embeddings have no fixed size, as bundles differ."""


class ParquetFiles(LogFiles):
    """The files of one worker whose finished ones are Parquet."""

    def append(self, lines: bytes) -> None:
        """As of `LogFiles`; a new day begins a new file."""
        if self._file < 0:
            self._open()
        if self._size and _day(os.fstat(self._file).st_mtime) != _day(time.time()):
            self._rotate()
        super().append(lines)

    def _finish(self, number: int) -> None:
        lines, hidden = self._folder / f"{self._name}.jsonl", self._folder / f".{self._name}.parquet"
        folder = self._folder / f"date={_day(os.fstat(self._file).st_mtime)}"
        try:
            _convert(lines, hidden)
            folder.mkdir(mode=0o700, exist_ok=True)
            os.rename(hidden, folder / f"part-{self._worker}-{number:09}.parquet")
            lines.unlink()
        except Exception:  # Whatever fails, the file stays as it is, and the thread continues.
            with suppress(OSError):
                hidden.unlink()
            super()._finish(number)


def _day(seconds: float) -> str:
    return time.strftime("%Y-%m-%d", time.gmtime(seconds))


def _convert(source: Path, target: Path) -> None:
    file = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with source.open("rb") as lines, os.fdopen(file, "wb") as sink:
        with pq.ParquetWriter(sink, SCHEMA, compression="zstd") as writer:
            while batch := list(islice(lines, ROWS_MAX)):
                rows = [row for row in map(_row, batch) if row]
                writer.write_table(pa.table([_column(rows, field) for field in SCHEMA], SCHEMA))
                time.sleep(PAUSE_SECONDS)
        os.fsync(sink.fileno())


def _row(line: bytes) -> dict[str, Any] | None:
    """The record of a line; None of one that a crash cut."""
    with suppress(ValueError):
        return json.loads(line)  # type: ignore[no-any-return]
    return None


def _column(rows: list[dict[str, Any]], field: Any) -> Any:
    convert, values = _CONVERT.get(COLUMNS[field.name]), (row.get(field.name) for row in rows)
    return pa.array([convert(each) if convert and each is not None else each for each in values], field.type)
