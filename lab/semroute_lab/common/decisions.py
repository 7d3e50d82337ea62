"""The decision log of any size: its records, with outcomes and usage joined by request id.

A log is JSON Lines or Parquet: a file, a folder or a pattern. Its records are put into buckets by a hash of
their request id, on disk, and each bucket is joined in memory.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from semroute_extproc.errors import DataError
from semroute_extproc.request.signals import Signals
from semroute_extproc.telemetry.parquet_files import COLUMNS
from semroute_extproc.telemetry.record import SIGNALS
from semroute_lab.common.engine import Engine, Part, Tick
from semroute_lab.common.metrics import Vectors
from semroute_lab.common.shuffle import Buckets, bucket

SUFFIXES = (".jsonl", ".jsonl.gz", ".parquet")
PACKED = 12  # Most bytes of records for each byte of a compressed file
BATCH_ROWS = 1_024  # Rows of a Parquet file that are in memory at once
TICK_ROWS = 256  # Rows between two steps of a progress bar
TICK_BYTES = 1024**2  # Bytes of lines between two steps
_RECORDS = ("decision", "outcome", "usage")
_KINDS: dict[str, Callable[[Any], bool]] = {
    "number": lambda of: pa.types.is_floating(of) or pa.types.is_integer(of),
    "integer": pa.types.is_integer,
    "boolean": pa.types.is_boolean,
    "binary": lambda of: pa.types.is_binary(of) or pa.types.is_large_binary(of),
}
"""What a column of Parquet may be, by the type of `columns.toml`; all others are text."""

Record = dict[str, Any]


@dataclass(frozen=True, slots=True)
class LoggedSignals(Signals):
    """The signals of a record."""

    record: Mapping[str, Any] = field(default_factory=dict)


def files_of(path: Path, suffixes: tuple[str, ...] = SUFFIXES) -> list[Path]:
    """The files of a path or pattern, by name; of folders, all but hidden ones. Raises DataError."""
    if path.is_file():
        return [path]
    roots = [path] if path.exists() else [*Path(path.anchor).glob(str(path.relative_to(path.anchor)))]
    found = {
        each
        for root in roots
        for each in ([root] if root.is_file() else root.rglob("*"))
        if each.name.endswith(suffixes)
        and each.is_file()
        and not any(name.startswith((".", "_")) for name in each.relative_to(root).parts)
    }
    if not found:
        raise DataError(f"{path}:1:: expected files {', '.join(suffixes)}, found none")
    return sorted(found)


def digest_of(files: list[Path]) -> str:
    """SHA-256 of a file; of several, that of their digests."""
    digests = []
    for file in files:
        with file.open("rb") as stream:
            digests.append(hashlib.file_digest(stream, "sha256").hexdigest())
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


def is_log(path: Path) -> bool:
    """Whether a path is a decision log: its first file begins with a record."""
    try:
        first = files_of(path)[0]
        if first.name.endswith(".parquet"):
            return {"record", "request_id"} <= set(pq.read_schema(first).names)
        return (
            first.name.endswith(SUFFIXES) and (_record(next(_lines(first))) or {}).get("record") in _RECORDS
        )
    except (OSError, EOFError, StopIteration, DataError, pa.ArrowException):
        return False


def _lines(path: Path) -> Iterator[bytes]:
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as stream:
        yield from stream


class _Head(msgspec.Struct):
    """What the shuffle reads of a record."""

    record: str
    request_id: str = ""
    time: float = 0.0
    outcome: float | None = None
    failed_pools: dict[str, msgspec.Raw] = {}


_head = msgspec.json.Decoder(_Head).decode


class DecisionLog:
    """A log whose records are in buckets."""

    def __init__(self, path: Path) -> None:
        """Reads the whole log once; raises DataError if it has no decision."""
        self.path, self._engine = path, Engine.current()
        self._files = files_of(path)
        size = sum(map(_size, self._files))
        self.buckets = max(1, -(-size // self._engine.memory))
        groups = _grouped(self._files, self._engine.memory)
        self.count, self.unreadable, self.example = 0, 0, ""
        run, bounds = self._engine.run, (self.buckets, self._engine.memory)
        for found in run("indexing", _lines_of, [(each,) for each in groups], _scatter, bounds, self._files):
            self._folder, decisions, unreadable, example = found
            self.count += decisions
            self.unreadable += unreadable
            self.example = example or self.example
        if not self.count:
            raise DataError(f"{path}:1:: expected records of decisions, found none")

    @property
    def sha256(self) -> str:
        """See `digest_of`."""
        return digest_of(self._files)

    def map(self, what: str, function: Callable[..., Any], *given: Any) -> Iterator[Any]:
        """`function(records, number, folder, *given)` of each bucket's joined decisions."""
        parts = [(self._folder, number) for number in range(self.buckets)]
        return self._engine.run(what, _joined, parts, function, given, self._files)

    def prompts(self) -> list[Part]:
        """The parts of a table with a row for each prompt, which `prompt_rows` reads."""
        *_, folder = self.map("joining", _by_prompt, self.buckets, self._engine.memory)
        return [(folder, number) for number in range(self.buckets)]


def _size(file: Path) -> int:
    return file.stat().st_size * (1 if file.suffix == ".jsonl" else PACKED)


def _grouped(files: list[Path], memory: int) -> Iterator[list[Path]]:
    group, total = list[Path](), 0
    for file in files:
        if group and total + _size(file) > memory:
            yield group
            group, total = [], 0
        group.append(file)
        total += _size(file)
    yield group


def _lines_of(files: list[Path], tick: Tick) -> Iterator[tuple[str, bytes]]:
    """The place and the JSON of each record."""
    for file in files:
        lines = _json_of(file, lambda share: tick(share / len(files)))
        yield from ((f"{file}:{number}", line) for number, line in enumerate(lines, start=1))


def _scatter(
    lines: Iterator[tuple[str, bytes]], part: int, folder: Path, count: int, memory: int
) -> tuple[str, int, int, str]:
    """The folder of the buckets, the decisions, the lines that are no records, and the place of one."""
    rows, decisions, unreadable, example = Buckets(folder, part, count, memory), 0, 0, ""
    for place, line in lines:
        match head := _head_of(line):
            case _Head("decision"):
                decisions += 1
                rows.add(head.request_id or place, line, head.time, bool(head.failed_pools))
            case _Head("outcome", outcome=float(value)) if 0.0 <= value <= 1.0:
                rows.add(head.request_id, line, head.time, first=True)
            case _Head("usage"):
                rows.add(head.request_id, line, head.time, first=True)
            case _:
                unreadable, example = unreadable + 1, place
    rows.flush()
    return str(folder), decisions, unreadable, example


def _head_of(line: bytes) -> _Head | None:
    """The head of a record; None of what is none."""
    try:
        return _head(line)
    except (ValueError, RecursionError):
        pass
    try:  # Lone surrogates, which only the standard library reads.
        return msgspec.convert(_record(line), _Head)
    except ValueError:
        return None


def _json_of(file: Path, tick: Tick) -> Iterator[bytes]:
    """The records of a file as JSON; raises DataError."""
    size = file.stat().st_size or 1
    try:
        if file.name.endswith(".parquet"):
            table = pq.ParquetFile(file)
            for name in ("record", "request_id"):
                if name not in table.schema_arrow.names:
                    raise DataError(f"{file}:1:{name}: expected this column of a decision log")
            for one in table.schema_arrow:
                if (of := COLUMNS.get(one.name)) in _KINDS and not _KINDS[of](one.type):
                    raise DataError(f"{file}:1:{one.name}: expected {of}, found {one.type}")
            for batch in table.iter_batches(BATCH_ROWS):
                yield from map(msgspec.json.encode, map(_nested, batch.to_pylist()))
                tick(len(batch) / table.metadata.num_rows)
            return
        pending = 0
        for line in _lines(file):
            yield line
            if (pending := pending + len(line)) > TICK_BYTES:
                tick(pending / size / (PACKED if file.suffix == ".gz" else 1))
                pending = 0
    except (OSError, EOFError, RecursionError, ValueError, pa.ArrowException) as error:
        raise DataError(f"{file}:1:: cannot be read: {error}") from error


def _nested(row: Record) -> Record:
    """The members that a row has, with lists and maps read from their JSON."""
    return {
        name: json.loads(value) if COLUMNS.get(name) in ("list", "map") and type(value) is str else value
        for name, value in row.items()
        if value is not None
    }


def _record(line: bytes) -> Record | None:
    for decode in (msgspec.json.decode, json.loads):  # Only the latter reads lone surrogates.
        try:
            found = decode(line)
        except (ValueError, RecursionError):
            continue
        return found if isinstance(found, dict) else None
    return None


def _joined(folder: str, number: int, tick: Tick) -> Iterator[Record]:
    """Each decision, with `outcome` (the mean over its sources) and `usage` if they are known."""
    others, rows, count = bucket(folder, number)
    outcomes: dict[str, dict[str, float]] = {}
    usage: dict[str, bytes] = {}
    failed: dict[str, int] = {}
    for line in others:
        record = _record(line) or {}
        key = record.get("request_id", "")
        match record["record"]:
            case "outcome":
                outcomes.setdefault(key, {})[str(record.get("source"))] = record["outcome"]
            case "usage":
                usage[key] = line
            case _:
                failed[key] = max(failed.get(key, 0), len(record["failed_pools"]))
    for place, line in enumerate(rows):
        if place % TICK_ROWS == TICK_ROWS - 1:
            tick(TICK_ROWS / count)
        record = _record(line) or {}
        if record["record"] != "decision":
            continue
        key = record.get("request_id", "")
        # Of several attempts, the client saw the last one.
        if key and len(record.get("failed_pools", ())) >= failed.get(key, 0):
            record["usage"] = (_record(usage[key]) or {}) if key in usage else {}
            if key in outcomes:
                record["outcome"] = sum(outcomes[key].values()) / len(outcomes[key])
        yield record


def _by_prompt(records: Iterator[Record], number: int, folder: Path, count: int, memory: int) -> str:
    """Sums of the outcomes and tokens of each prompt's answers, by a hash of the prompt."""
    rows, found = Buckets(folder, number, count, memory), dict[str, Record]()
    for record in records:
        if prompt := record.get("prompt", "").strip():
            row = found.setdefault(prompt, {"prompt": prompt, "sums": {}})
            if "embedding" in record:
                row |= {"embedding": record["embedding"], "revision": record["revision"]}
            model, usage = record.get("model", ""), record.get("usage", {})
            for name, value in (("outcome", record.get("outcome")), ("tokens", usage.get("output_tokens"))):
                if value is not None:
                    total, times = row["sums"].get(f"{name}.{model}", (0.0, 0))
                    row["sums"][f"{name}.{model}"] = (total + value, times + 1)
    for prompt, row in found.items():
        rows.add(prompt, json.dumps(row).encode())
    rows.flush()
    return str(folder)


def prompt_rows(folder: str, number: int) -> Iterator[Record]:
    """Each logged prompt of a bucket, with the mean of every model's outcomes and answer tokens."""
    found: dict[str, Record] = {}
    for line in bucket(folder, number)[1]:
        row = json.loads(line)
        known = found.setdefault(row["prompt"], row)
        if known is not row:
            for name, (total, times) in row.pop("sums").items():
                before = known["sums"].get(name, (0.0, 0))
                known["sums"][name] = (before[0] + total, before[1] + times)
            known |= row
    for row in found.values():
        yield row | {name: total / times for name, (total, times) in row.pop("sums").items()}


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
    return LoggedSignals(**values, neighbors=embedding_of(record), record=record)
