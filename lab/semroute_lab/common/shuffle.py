"""Two ways to bring rows of many parts together: by key, on disk, and as a keyed sample in memory.

Neither depends on the order in which the parts are done.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

ROW_BYTES = 120  # Of the objects around the bytes of a row
_SCHEMA = pa.schema([("order", pa.float64()), ("first", pa.bool_()), ("row", pa.binary())])


class Buckets:
    """Rows of one part in Arrow files with a batch for each bucket; a key's rows are in one bucket."""

    def __init__(self, folder: Path, part: int, count: int, memory: int) -> None:
        """`count` buckets; files are written whenever the rows take `memory` bytes."""
        self._name, self._count, self._memory = folder / f"rows-{part:06}", count, memory
        self._rows: list[tuple[int, float, bool, bytes]] = []
        self._bytes = self._files = 0

    def add(self, key: str, row: bytes, order: float = 0.0, first: bool = False) -> None:
        """A row; `order` and `first` sort the rows of a bucket."""
        self._rows.append((zlib.crc32(key.encode(errors="replace")) % self._count, order, first, row))
        self._bytes += len(row) + ROW_BYTES
        if self._bytes >= self._memory:
            self.flush()

    def flush(self) -> None:
        """Write what is in memory."""
        self._rows.sort(key=lambda each: each[0])
        edges = np.searchsorted([each[0] for each in self._rows], np.arange(self._count + 1))
        columns = ([row[at] for row in self._rows] for at in (1, 2, 3))
        every = pa.record_batch(
            [pa.array(each, of.type) for each, of in zip(columns, _SCHEMA, strict=True)], _SCHEMA
        )
        path = f"{self._name}-{self._files:06}.arrow"
        how = pa.ipc.IpcWriteOptions(compression="lz4")
        with pa.OSFile(path, "wb") as sink, pa.ipc.new_file(sink, _SCHEMA, options=how) as writer:
            for low, high in pairwise(edges):
                writer.write_batch(every.slice(low, high - low))
        self._rows, self._bytes, self._files = [], 0, self._files + 1


def bucket(folder: str, number: int) -> tuple[Iterator[bytes], Iterator[bytes], int]:
    """The rows of a bucket: those marked as first, and all of them in their order; and how many they are."""
    batches = []
    for path in sorted(Path(folder).glob("rows-*.arrow")):
        with pa.OSFile(str(path)) as source:
            batches.append(pa.ipc.open_file(source).get_batch(number))
    rows = pa.Table.from_batches(batches, _SCHEMA)
    place = np.argsort(rows["order"].to_numpy(), kind="stable")
    column, first = rows["row"].combine_chunks(), rows["first"].to_numpy()
    return (
        (column[int(at)].as_py() for at in place if first[at]),
        (column[int(at)].as_py() for at in place),
        len(place),
    )


class Sample:
    """The rows with the lowest hashes of their places: a uniform sample, and all rows if these fit.

    Bounded by rows and by bytes. The union of two samples' rows is sampled as if they were added one by one.
    """

    def __init__(self, rows_max: int, bytes_max: int) -> None:
        self._most = rows_max, bytes_max
        self._kept: list[tuple[int, list[int], Any, int]] = []
        self._bytes, self._below = 0, 1 << 64
        self.seen = 0

    def add(self, place: list[int], row: Any, size: int) -> None:
        """A row of `size` bytes; its place is the number of its part, and its own number in it."""
        self.seen += 1
        self._take(
            int.from_bytes(hashlib.blake2b(repr(place).encode(), digest_size=8).digest()), place, row, size
        )

    def _take(self, key: int, place: list[int], row: Any, size: int) -> None:
        if key < self._below:
            self._kept.append((key, place, row, size))
            self._bytes += size
            if len(self._kept) > 2 * self._most[0] or self._bytes > 2 * self._most[1]:
                self._trim()

    def _trim(self) -> None:
        """Drop the highest hashes; what is above a dropped one never fits again."""
        self._kept.sort(key=lambda each: each[:2])
        sizes = np.cumsum([each[3] for each in self._kept])
        fit = max(1, min(self._most[0], int(np.searchsorted(sizes, self._most[1], "right"))))
        if fit < len(self._kept):
            self._below = self._kept[fit][0]
            self._kept, self._bytes = self._kept[:fit], int(sizes[fit - 1])

    def state(self) -> dict[str, Any]:
        """Plain data for `merge`."""
        self._trim()
        return {"kept": self._kept, "seen": self.seen}

    def merge(self, state: dict[str, Any]) -> None:
        """Take the rows of another sample of the same bounds."""
        self.seen += state["seen"]
        for each in state["kept"]:
            self._take(*each)

    def rows(self) -> list[tuple[list[int], Any]]:
        """Place and row of the sample, by place."""
        self._trim()
        return sorted(((place, row) for _, place, row, _ in self._kept), key=lambda each: each[0])
