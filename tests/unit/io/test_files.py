"""Small files: whole or not at all, and never in silence."""

from __future__ import annotations

import os
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO

import numpy as np
import pytest
from pydantic import BaseModel
from semroute_lab.common.writing import write_json, write_whole

from semroute_extproc.errors import ArtifactError
from semroute_extproc.io.files import read_arrays, read_file, read_json


class Note(BaseModel):
    format: int = 3
    text: str


def test_what_fails_while_it_is_written_leaves_the_old_file(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    write_json(file, Note(text="old"))

    def half(stream: IO[bytes]) -> None:
        stream.write(b"{")
        raise OSError("disk full")

    with pytest.raises(ArtifactError, match=r"a\.json: cannot be written: disk full"):
        write_whole(file, half)
    assert read_json(file, Note, 100, "x").text == "old"
    assert [each.name for each in tmp_path.iterdir()] == ["a.json"]


def test_a_directory_that_is_not_there_is_an_error_with_the_name(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"none/a\.json: cannot be written"):
        write_json(tmp_path / "none" / "a.json", Note(text="x"))


def test_a_file_is_read_only_up_to_its_bound_and_of_its_format(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    write_json(file, Note(text="x" * 50))
    with pytest.raises(ArtifactError, match="more than 40 bytes"):
        read_json(file, Note, 40, "write it")
    write_json(file, Note(format=4, text="x"))
    with pytest.raises(ArtifactError, match="format 4 is not 3"):
        read_json(file, Note, 100, "write it")
    with pytest.raises(ArtifactError, match="no such file; write it"):
        read_json(tmp_path / "b.json", Note, 100, "write it")


def test_what_is_no_regular_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
        for path in (tmp_path / "fifo", tmp_path / "socket", tmp_path, Path("/dev/zero"), Path("/dev/tty")):
            with pytest.raises(OSError, match=r"not a regular file|No such") as caught:
                read_file(path, 100)
            assert caught.value.strerror
            with pytest.raises(ArtifactError, match="cannot be read"):
                read_json(path, Note, 100, "write it")


def test_a_file_is_never_read_beyond_its_bound(tmp_path: Path) -> None:
    file = tmp_path / "a"
    file.write_bytes(b"x" * 100)
    assert read_file(file, 100) == b"x" * 100
    with pytest.raises(OSError, match="more than 99 bytes"):
        read_file(file, 99)


def test_arrays_that_decompress_to_more_than_the_bound_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "a.npz"
    np.savez_compressed(file, a=np.zeros(1_000_000))
    assert file.stat().st_size < 20_000
    with pytest.raises(OSError, match="more than 100000 bytes when decompressed"):
        read_arrays(file, 100_000)
    assert read_arrays(file, 10_000_000)["a"].shape == (1_000_000,)


def test_arrays_are_read_in_many_threads_at_once(tmp_path: Path) -> None:
    """numpy reads headers with `ast.literal_eval`, which failed here on CPython 3.11.7."""
    np.save(tmp_path / "a.npy", np.arange(3))
    np.savez(tmp_path / "b.npz", x=np.arange(3), y=np.arange(4))

    def read(number: int) -> int:
        names = ("a.npy", "b.npz")
        return sum(each.size for each in read_arrays(tmp_path / names[number % 2], 10_000).values())

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(read, range(2_000))) == {3, 7}
