"""Bringing rows together: nothing depends on how they were divided."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from semroute_lab.common.shuffle import Buckets, Sample, bucket

ROWS = [([part, number], f"{part}-{number}", 10 + number % 7) for part in range(4) for number in range(500)]


def sample_of(rows: list[Any], rows_max: int, bytes_max: int = 1 << 30) -> Sample:
    found = Sample(rows_max, bytes_max)
    for place, row, size in rows:
        found.add(place, row, size)
    return found


@pytest.mark.parametrize(("rows_max", "bytes_max"), [(100, 1 << 30), (10_000, 1_000), (10_000, 1 << 30)])
def test_a_sample_is_the_same_however_the_rows_are_divided(rows_max: int, bytes_max: int) -> None:
    whole = sample_of(ROWS, rows_max, bytes_max)
    shuffled = ROWS[:]
    random.Random(1).shuffle(shuffled)
    merged = Sample(rows_max, bytes_max)
    for start in range(0, len(shuffled), 300):
        merged.merge(sample_of(shuffled[start : start + 300], rows_max, bytes_max).state())
    assert merged.rows() == whole.rows()
    assert merged.seen == len(ROWS)


def test_a_sample_keeps_its_bounds_and_is_everything_if_that_fits() -> None:
    assert len(sample_of(ROWS, 100).rows()) == 100
    by_bytes = sample_of(ROWS, 10_000, 1_000).rows()
    assert 950 <= sum(10 + place[1] % 7 for place, _ in by_bytes) <= 1_000
    assert sample_of(ROWS, 10_000).rows() == [(place, row) for place, row, _ in ROWS]


def test_a_sample_is_fair() -> None:
    """Of 2,000 rows, 1,000 are drawn: each part has 250 of its 500, give or take four standard deviations."""
    parts = [place[0] for place, _ in sample_of(ROWS, 1_000).rows()]
    assert all(abs(parts.count(part) - 250) < 40 for part in range(4))


@pytest.mark.parametrize("memory", [1 << 30, 2_000])
def test_the_rows_of_a_key_are_in_one_bucket_in_their_order(tmp_path: Path, memory: int) -> None:
    for part in range(3):
        rows = Buckets(tmp_path, part, 5, memory)
        for number in range(100):
            rows.add(f"key-{number % 20}", b"%d" % number, order=-number, first=number % 10 == 0)
        rows.flush()
    assert len(list(tmp_path.iterdir())) >= 3
    found: dict[int, int] = {}
    for number in range(5):
        first, every, count = bucket(str(tmp_path), number)
        numbers = list(map(int, every))
        assert numbers == sorted(numbers, reverse=True)
        assert len(numbers) == count
        assert list(map(int, first)) == [each for each in numbers if each % 10 == 0]
        for each in numbers:
            assert found.setdefault(each % 20, number) == number
    assert len(found) == 20
