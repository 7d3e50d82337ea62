"""Readers: what they accept, and that a wrong file is named by row and column."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from semroute_lab.common.tables import pick_column, prompt_texts, read_table, require_rows

from semroute_extproc.errors import DataError


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_csv_gzip_and_json_lines_of_the_same_rows_read_the_same(tmp_path: Path) -> None:
    rows = [{"prompt": "a, b\nc", "right": "1"}, {"prompt": 'say "x"', "right": "0"}]
    text = 'prompt,right\n"a, b\nc",1\n"say ""x""",0\n'
    plain = read_table(write(tmp_path / "t.csv", text))
    (tmp_path / "t.csv.gz").write_bytes(gzip.compress(text.encode()))
    packed = read_table(tmp_path / "t.csv.gz")
    lines = read_table(write(tmp_path / "t.jsonl", "".join(json.dumps(row) + "\n" for row in rows)))
    assert plain.columns == packed.columns == lines.columns
    assert plain.columns == {"prompt": ["a, b\nc", 'say "x"'], "right": ["1", "0"]}


def test_json_values_become_the_fields_csv_would_hold(tmp_path: Path) -> None:
    line = '{"a": true, "b": null, "c": 0.5, "d": ["x"]}\n'
    table = read_table(write(tmp_path / "t.jsonl", line))
    assert table.columns == {"a": ["1"], "b": [""], "c": ["0.5"], "d": ['["x"]']}


def test_a_line_separator_inside_a_field_does_not_end_the_row(tmp_path: Path) -> None:
    table = read_table(write(tmp_path / "t.csv", "prompt,right\none\u2028two,1\n"))
    assert table.columns["prompt"] == ["one\u2028two"]


@pytest.mark.parametrize(
    ("name", "content", "where"),
    [
        ("t.csv", b"a,b\n1\n", ":2:: expected 2 fields, found 1"),
        ("t.csv", b"a,a\n1,2\n", ":1:a: duplicate column"),
        ("t.csv", b"a,\n1,2\n", ":1:: expected a header"),
        ("t.csv", b"", ":1:: expected a header"),
        ("t.csv", b"a,b\n", "the file has no rows"),
        ("t.csv", b'a,b\n"x,1\n', ":2:: not CSV"),
        ("t.csv", b"a\n\xff\n", "expected UTF-8"),
        ("t.csv.gz", b"not gzip", "cannot be read"),
        ("t.csv.gz", gzip.compress(b"a,b\n1,2\n", mtime=0)[:-9], "cannot be read"),
        ("t.jsonl", b'{"a": 1}\n{"a":\n', ":2:: not JSON"),
        ("t.jsonl", b"[1]\n", ":1:: expected an object, found list"),
        ("t.parquet", b"PAR1", "cannot be read"),
        ("t.xlsx", b"PK", "expected a name ending in"),
    ],
)
def test_unreadable_files_are_refused_with_the_place(
    tmp_path: Path, name: str, content: bytes, where: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError) as error:
        read_table(path)
    assert str(error.value).startswith(f"{path}:")
    assert where in str(error.value)


def test_a_number_that_is_none_is_named_by_the_row_a_spreadsheet_shows(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", 'prompt,right\n"two\nlines",1\nx,yes\n')
    with pytest.raises(DataError, match=r":3:right: expected a number in 0\.\.1, found 'yes'"):
        read_table(path).numbers_in("right", 0.0, 1.0)


@pytest.mark.parametrize("value", ["nan", "inf", "2", "-1", ""])
def test_numbers_out_of_bounds_or_not_finite_are_refused(tmp_path: Path, value: str) -> None:
    path = write(tmp_path / "t.csv", f"a,b\n0.5,x\n{value},x\n")
    with pytest.raises(DataError, match=":3:a: expected a number"):
        read_table(path).numbers_in("a", 0.0, 1.0)


def test_a_blank_text_and_a_missing_column_are_refused(tmp_path: Path) -> None:
    table = read_table(write(tmp_path / "t.csv", "a,b\nx,1\n ,1\n"))
    with pytest.raises(DataError, match=":3:a: expected text"):
        table.texts("a")
    with pytest.raises(DataError, match=":1:c: expected a column of this name; the file has a, b"):
        table.texts("c")


def test_splits_filter_and_an_unknown_split_names_those_there_are(tmp_path: Path) -> None:
    table = read_table(write(tmp_path / "t.csv", "a,split\nx,dev\ny,gold\nz,dev\n"))
    assert table.in_splits(["dev"]).columns["a"] == ["x", "z"]
    assert table.in_splits(["dev"]).numbers == [2, 4]
    assert len(table.in_splits([])) == 3
    with pytest.raises(DataError, match="no row has split 'test'; the splits are dev, gold"):
        table.in_splits(["test"])


def test_options_are_appended_as_lettered_lines(tmp_path: Path) -> None:
    table = read_table(write(tmp_path / "t.csv", 'q,options\nWhich?,"[""one"", ""two""]"\n'))
    assert prompt_texts(table, "q", "options") == ["Which?\nA. one\nB. two"]


def test_options_that_are_no_json_list_are_refused(tmp_path: Path) -> None:
    table = read_table(write(tmp_path / "t.csv", "q,options\nWhich?,one;two\n"))
    with pytest.raises(DataError, match=":2:options: expected a JSON list"):
        prompt_texts(table, "q", "options")


def test_the_text_column_is_found_by_name_or_asked_for(tmp_path: Path) -> None:
    table = read_table(write(tmp_path / "t.csv", "id,question\n1,why\n"))
    assert pick_column(table, None, ("prompt", "question"), "text") == "question"
    with pytest.raises(DataError, match="--text-column"):
        pick_column(table, None, ("prompt",), "text")


def test_too_few_rows_are_refused(tmp_path: Path) -> None:
    table = read_table(write(tmp_path / "t.csv", "a\n1\n2\n"))
    with pytest.raises(DataError, match="expected at least 20 rows, found 2"):
        require_rows(table)


class TestOldNames:
    """Columns that were renamed: both names work, and errors name what is in the file."""

    OLD, NEW = "prompt,strong_correct,weak_correct\na,1,x\n", "prompt,outcome.strong,outcome.weak\na,1,x\n"

    def test_a_file_with_old_names_is_read_with_a_note(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        table = read_table(write(tmp_path / "t.csv", self.OLD))
        assert capsys.readouterr().err.splitlines() == [
            f"note: {tmp_path}/t.csv: strong_correct is read as outcome.strong, its new name",
            f"note: {tmp_path}/t.csv: weak_correct is read as outcome.weak, its new name",
        ]
        assert table.strings("outcome.strong") == table.strings("strong_correct") == ["1"]
        with pytest.raises(DataError, match="2:weak_correct: expected"):
            table.numbers_in("outcome.weak")

    def test_a_command_that_names_an_old_column_reads_the_new_one_without_a_note(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        table = read_table(write(tmp_path / "t.csv", self.NEW))
        assert capsys.readouterr().err == ""
        assert table.has("strong_correct")
        assert table.strings("strong_correct") == ["1"]
        with pytest.raises(DataError, match=r"2:outcome\.weak: expected"):
            table.numbers_in("weak_correct")

    @pytest.mark.parametrize(("name", "noted"), [("outcome.a", False), ("a", True)])
    def test_outcomes_are_named_by_model(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, noted: bool
    ) -> None:
        table = read_table(write(tmp_path / "t.csv", f"id,{name}\n1,0\n")).by_model()
        assert table.columns == {"id": ["1"], "a": ["0"]}
        note = f"note: {tmp_path}/t.csv: all columns but id are read as outcome.MODEL"
        assert (note in capsys.readouterr().err) == noted


class TestManyFiles:
    """A folder, a pattern or partitions of files are one table."""

    def parts(self, folder: Path) -> Path:
        import pyarrow as pa
        import pyarrow.parquet as pq

        for number, split in enumerate(("dev", "test")):
            place = folder / f"split={split}"
            place.mkdir(parents=True)
            columns = {
                "prompt": [f"{number} a", f"{number} b"],
                "strong_correct": [1.0, 0.5],
                "tags": [["x"], []],
            }
            pq.write_table(pa.table(columns), place / "part-0.parquet")
        return folder

    def test_partitions_of_parquet_are_columns_and_old_names_a_note(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        table = read_table(self.parts(tmp_path / "t"))
        assert table.columns == {
            "split": ["dev", "dev", "test", "test"],
            "prompt": ["0 a", "0 b", "1 a", "1 b"],
            "strong_correct": ["1.0", "0.5", "1.0", "0.5"],
            "tags": ['["x"]', "[]", '["x"]', "[]"],
        }
        assert "strong_correct is read as outcome.strong" in capsys.readouterr().err
        assert table.numbers_in("outcome.strong").tolist() == [1.0, 0.5, 1.0, 0.5]

    def test_a_pattern_is_the_files_that_match(self, tmp_path: Path) -> None:
        self.parts(tmp_path / "t")
        table = read_table(tmp_path / "t" / "split=*" / "*.parquet")
        assert table.columns["prompt"] == ["0 a", "0 b", "1 a", "1 b"]

    def test_hidden_files_are_not_read(self, tmp_path: Path) -> None:
        write(self.parts(tmp_path / "t") / ".part.csv", "no,table")
        (tmp_path / "t" / "_SUCCESS").touch()
        assert len(read_table(tmp_path / "t")) == 4

    def test_a_wrong_value_is_named_with_its_own_file_and_row(self, tmp_path: Path) -> None:
        for number, value in enumerate(("1", "high")):
            write(tmp_path / f"{number}.csv", f"prompt,right\nx,{value}\n")
        with pytest.raises(DataError, match=r"/1\.csv:2:right: expected a number in 0\.\.1, found 'high'"):
            read_table(tmp_path).numbers_in("right", 0.0, 1.0)

    def test_a_file_with_other_columns_is_named(self, tmp_path: Path) -> None:
        write(tmp_path / "a.csv", "prompt,right\nx,1\n")
        write(tmp_path / "b.csv", "prompt,wrong\nx,1\n")
        with pytest.raises(DataError, match=r"/b\.csv:1:right: other files have this column"):
            read_table(tmp_path)

    def test_of_more_rows_than_fit_a_sample_is_read_with_a_note(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        for number in range(3):
            write(tmp_path / f"{number}.jsonl", "".join(f'{{"prompt": "{number} {n}"}}\n' for n in range(50)))
        found = read_table(tmp_path, rows_max=60)
        assert len(found) == 60
        assert "a sample of 60 of its 150 rows is used" in capsys.readouterr().err
        assert found.columns["prompt"] == [
            each for each in read_table(tmp_path).columns["prompt"] if each in found.columns["prompt"]
        ]
