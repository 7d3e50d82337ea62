"""Small files: whole or not at all, and never in silence."""

from __future__ import annotations

from pathlib import Path
from typing import IO

import pytest
from pydantic import BaseModel
from semroute_lab.common.writing import write_json, write_whole

from semroute_extproc.errors import ArtifactError
from semroute_extproc.io.files import read_json


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
