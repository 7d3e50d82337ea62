"""Engines: the figures of a log in parts are those of the whole, and a killed run goes on."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from many_files import COMMANDS, IN_PARTS, make_home, run
from semroute_lab.common.decisions import DecisionLog, _lines_of, _scatter
from semroute_lab.common.engine import Engine

from semroute_extproc.cli import main
from semroute_extproc.errors import DataError


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_home(tmp_path_factory.mktemp("many"))


def without_draws(found: Any) -> Any:
    """Without intervals and examples, which depend on the order of the rows."""
    if not isinstance(found, dict):
        return found if not isinstance(found, float) else pytest.approx(found)
    return {
        name: without_draws(value)
        for name, value in found.items()
        if name not in ("low", "high", "examples", "flips", "out", "artifact")
    }


@pytest.mark.parametrize("name", [name for name in COMMANDS if name not in ("clusters", "factorization")])
def test_the_figures_of_a_log_in_parts_are_those_of_the_whole(home: Path, tmp_path: Path, name: str) -> None:
    """Also of its rows: the fits draw from them in their order, and so are only alike."""
    whole = run(name, home, tmp_path / "whole.npz")
    parts = run(name, home, tmp_path / "parts.npz", *IN_PARTS)
    if name == "similarity":
        assert whole["rows"] == parts["rows"] > 100
        assert whole["held_out_apgr"] == pytest.approx(parts["held_out_apgr"], abs=0.05)
    else:
        assert without_draws(whole) == without_draws(parts)


def test_the_log_of_these_tests_is_in_several_parts(home: Path, tmp_path: Path) -> None:
    run("share", home, tmp_path / "out", *IN_PARTS, "--work", tmp_path / "work")
    results = {
        each.name.partition("-")[0]: len(list(each.glob("*.msgpack")))
        for each in (tmp_path / "work").iterdir()
    }
    assert results["indexing"] > 1
    assert results["scoring"] > 1


def read(kind: str, tick: Callable[[float], object]) -> str:
    """What a part holds."""
    tick(1.0)
    return kind


def work(kind: str, number: int, folder: Path) -> dict[str, Any]:
    """Leave a mark for each call; the first call with number 3 kills the process, or is refused."""
    (folder / f"called-{number}-{os.getpid()}").touch()
    flag = folder / "stopped"
    if number == 3 and not flag.exists():
        flag.touch()
        if kind == "killed":
            os._exit(9)
        raise DataError("log.jsonl:7:score: expected a number")
    return {"number": number, "list": [1.5, None]}


def test_results_are_in_order_and_kept(tmp_path: Path) -> None:
    engine, parts = Engine(work=tmp_path), [("fine",)] * 3
    for _ in range(2):
        found = list(engine.run("counting", read, parts, work))
        assert found == [{"number": number, "list": [1.5, None]} for number in range(3)]
    assert len(list(tmp_path.glob("counting-*/called-*"))) == 3


def test_a_run_that_was_killed_goes_on_after_the_parts_that_are_done(tmp_path: Path) -> None:
    engine, parts = Engine(work=tmp_path), [("killed",)] * 8
    with pytest.raises(BrokenProcessPool):
        list(engine.run("counting", read, parts, work))
    done = {each.stem for each in tmp_path.glob("counting-*/*.msgpack")}
    assert "3" not in done
    before = set(tmp_path.glob("counting-*/called-*"))
    assert [each["number"] for each in engine.run("counting", read, parts, work)] == list(range(8))
    again = {each.name.split("-")[1] for each in set(tmp_path.glob("counting-*/called-*")) - before}
    assert again.isdisjoint(done)


def test_an_error_in_a_part_is_raised_as_it_is_and_tried_again(tmp_path: Path) -> None:
    engine, parts = Engine(work=tmp_path), [("refused",)] * 4
    with pytest.raises(DataError, match=r"log\.jsonl:7:score: expected a number"):
        list(engine.run("counting", read, parts, work))
    assert len(list(engine.run("counting", read, parts, work))) == 4


def test_a_file_that_changed_is_read_again(tmp_path: Path) -> None:
    file, engine = tmp_path / "log.jsonl", Engine(work=tmp_path / "work")
    for text in ("a", "ab"):
        file.write_text(text)
        list(engine.run("counting", read, [("fine",)], work, (), [file]))
    assert len(list((tmp_path / "work").iterdir())) == 2


def test_ray_needs_a_folder_that_is_shared(home: Path) -> None:

    result = CliRunner().invoke(
        main, ["calibrate", str(home / "log"), "--strong-share", "0.3", "--engine", "ray"]
    )
    assert result.exit_code == 2
    assert "--work, a folder that all machines share" in result.output


def test_progress_goes_on_while_a_single_file_is_read(home: Path, tmp_path: Path) -> None:
    """The steps of the bar while a log is indexed add up to its one part."""
    [file] = (home / "log").glob("*.jsonl")
    steps = list[float]()
    _scatter(_lines_of([file] * 2, steps.append), 0, tmp_path, 1, 1 << 30)
    assert sum(steps) <= 1.0
    for file in sorted((home / "log").glob("date=*/*.parquet")):
        steps.clear()
        _scatter(_lines_of([file], steps.append), 0, tmp_path, 1, 1 << 30)
        assert sum(steps) == pytest.approx(1.0)


def test_a_column_of_another_type_is_named_with_its_file(tmp_path: Path) -> None:
    file = tmp_path / "part-0.parquet"
    pq.write_table(pa.table({"record": ["decision"], "request_id": ["a"], "difficulty": ["hard"]}), file)
    with pytest.raises(DataError, match=r"part-0.parquet:1:difficulty: expected number, found string"):
        DecisionLog(tmp_path)
    pq.write_table(pa.table({"record": ["decision"], "id": ["a"]}), tmp_path / "part-1.parquet")
    file.unlink()
    with pytest.raises(DataError, match=r"part-1.parquet:1:request_id: expected this column"):
        DecisionLog(tmp_path)
