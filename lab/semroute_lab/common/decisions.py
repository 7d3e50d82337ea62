"""The decision log: read as a stream, with outcomes and usage joined by request id.

A log is one file of JSON Lines or a folder of them, as the sidecar writes it. It may be larger than memory:
outcomes and usage are kept in a temporary database on disk until their decision is read.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import sqlite3
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import msgspec
import numpy as np

from semroute_extproc.errors import DataError
from semroute_extproc.request.signals import Signals
from semroute_extproc.telemetry.record import SIGNALS
from semroute_lab.common.metrics import Vectors

SUFFIXES = (".jsonl", ".jsonl.gz")
CACHE_KIB = 8_192  # Memory of the database
TABLES = """
pragma cache_size = -{};
create table outcome (id text, source text, value real, primary key (id, source)) without rowid;
create table usage (id text primary key, record text) without rowid;
create table attempts (id text primary key, failed integer) without rowid;
"""

Record = dict[str, Any]


@dataclass(frozen=True, slots=True)
class LoggedSignals(Signals):
    """The signals of a record."""

    record: Mapping[str, Any] = field(default_factory=dict)


def log_files(path: Path) -> list[Path]:
    """The files of a log, finished ones first."""
    if not path.is_dir():
        return [path]
    found = sorted(each for each in path.iterdir() if each.name.endswith(SUFFIXES))
    if not found:
        raise DataError(
            f"{path}:1:: expected a folder with files {' or '.join(SUFFIXES)}, as of decision_log"
        )
    return found


def is_log(path: Path) -> bool:
    """Whether a path is a decision log: a folder, or a file whose first line is a record."""
    if path.is_dir():
        return True
    if not path.name.endswith(SUFFIXES):
        return False
    try:
        with _opened(path) as stream:
            first = json.loads(stream.readline())
    except (OSError, EOFError, ValueError):
        return False
    return isinstance(first, dict) and first.get("record") in ("decision", "outcome", "usage")


def _opened(path: Path) -> IO[bytes]:
    return gzip.open(path) if path.suffix == ".gz" else path.open("rb")  # type: ignore[return-value]


class DecisionLog:
    """A log whose outcomes and usage have been found."""

    def __init__(self, path: Path) -> None:
        """Reads the whole log once; raises DataError if it has no decision."""
        self.path, self.count = path, 0
        self.unreadable, self.example = 0, ""  # Lines that are no records, and the place of the last one.
        self._digest = hashlib.sha256()
        self._database = sqlite3.connect("")  # A file without a name, which ends with the connection.
        self._database.executescript(TABLES.format(CACHE_KIB))
        for place, record in self._lines():
            self._index(place, record)
        self.sha256 = self._digest.hexdigest()
        if not self.count:
            raise DataError(f"{path}:1:: expected records of decisions, found none")

    def decisions(self) -> Iterator[Record]:
        """Each decision, with `outcome` (the mean over its sources) and `usage` if they are known."""
        find = self._database.execute
        for _, record in self._lines():
            if record is not None and record.get("record") == "decision":
                key = (record.get("request_id"),)
                [failed] = find("select max(failed) from attempts where id = ?", key).fetchone()
                # Of several attempts, the client saw the last one.
                if key[0] and len(record.get("failed_pools", ())) >= (failed or 0):
                    [outcome] = find("select avg(value) from outcome where id = ?", key).fetchone()
                    usage = find("select record from usage where id = ?", key).fetchone()
                    record["usage"] = json.loads(usage[0]) if usage else {}
                    if outcome is not None:
                        record["outcome"] = outcome
                yield record

    def _lines(self) -> Iterator[tuple[str, Record | None]]:
        """The place and the record of every line; None if it is no record."""
        for path in log_files(self.path):
            try:
                with _opened(path) as stream:
                    for number, line in enumerate(stream, start=1):
                        yield f"{path}:{number}", _record(line)
                        self._digest.update(line)
            except (OSError, EOFError) as error:
                raise DataError(f"{path}:1:: cannot be read: {error}") from error

    def _index(self, place: str, record: Record | None) -> None:
        known = record or {}
        key, write = known.get("request_id"), self._database.execute
        match known.get("record"):
            case "decision":
                self.count += 1
                if failed := known.get("failed_pools"):
                    write("insert or replace into attempts values (?, ?)", (key, len(failed)))
            case "outcome" if isinstance(value := known.get("outcome"), int | float) and 0 <= value <= 1:
                write("insert or replace into outcome values (?, ?, ?)", (key, known.get("source"), value))
            case "usage":
                write("insert or replace into usage values (?, ?)", (key, json.dumps(known)))
            case _:
                self.unreadable, self.example = self.unreadable + 1, place


def _record(line: bytes) -> Record | None:
    for decode in (msgspec.json.decode, json.loads):  # Only the latter reads lone surrogates.
        try:
            found = decode(line)
        except ValueError:
            continue
        return found if isinstance(found, dict) else None
    return None


def embedding_of(record: Mapping[str, Any]) -> Vectors | None:
    """The embedding of a record, of length 1 again; None if it was not logged."""
    x = np.frombuffer(base64.b64decode(record.get("embedding", "")), "<f2").astype(np.float32)
    return np.asarray(x / max(float(np.linalg.norm(x)), 1e-6), np.float32) if x.size else None


def signals_of_record(record: Mapping[str, Any]) -> LoggedSignals | None:
    """The signals of a decision; None if it was made without them."""
    if "difficulty" not in record:
        return None
    known: dict[str, Any] = {name: record[name] for name in SIGNALS if name in record}
    missing = {"unknown": False, "truncated": False, "tokens": 0, "domain": "", "domain_probs": {}}
    values = {"domain_entropy": 0.0, **missing, **known, "language": record.get("language", "")}
    return LoggedSignals(**values, neighbours=embedding_of(record), record=record)


def prompts_of(log: DecisionLog) -> dict[str, dict[str, float]]:
    """Each logged prompt, with the mean of every model's outcomes and answer tokens (`outcome.MODEL`, …)."""
    found: dict[str, dict[str, list[float]]] = {}
    for record in log.decisions():
        if prompt := record.get("prompt", "").strip():
            row, model = found.setdefault(prompt, {}), record.get("model", "")
            for name, value in (
                ("outcome", record.get("outcome")),
                ("tokens", record.get("usage", {}).get("output_tokens")),
            ):
                if value is not None:
                    row.setdefault(f"{name}.{model}", []).append(float(value))
    if not found:
        raise DataError(f"{log.path}:1:prompt: expected prompts, which decision_log.prompts logs; found none")
    return {
        prompt: {name: sum(each) / len(each) for name, each in row.items()} for prompt, row in found.items()
    }
