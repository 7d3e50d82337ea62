"""The fuzz targets hold on the committed corpus, and a short fuzz of each finds nothing."""

from __future__ import annotations

import importlib.util
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
sys.path.append(str(HERE))

import fuzz  # noqa: E402
from targets import TARGETS  # noqa: E402

SECONDS = 22  # of all targets together, 2 each
INPUTS = [(name, file) for name in TARGETS for file in sorted((fuzz.CORPUS / name).glob("*"))]


@pytest.mark.parametrize(("target", "file"), INPUTS, ids=lambda each: getattr(each, "name", each))
def test_a_target_holds_on_the_corpus(target: str, file: Path) -> None:
    TARGETS[target](file.read_bytes())


def test_every_target_has_a_corpus_and_every_corpus_a_target() -> None:
    assert {path.name for path in fuzz.CORPUS.iterdir()} == set(TARGETS)


def test_the_corpus_is_small() -> None:
    assert sum(file.stat().st_size for _, file in INPUTS) < 100_000


@pytest.mark.timeout(600)
def test_a_short_fuzz_of_every_target_finds_nothing(tmp_path: Path) -> None:
    """The seed is fixed: each run makes the same inputs, as many as its time allows."""
    if importlib.util.find_spec("atheris") is None:
        pytest.skip("atheris is not installed: it has no wheel for this platform")
    command = [sys.executable, str(HERE / "fuzz.py"), "--seconds", str(SECONDS), "--seed", "1"]
    command += ["--out", str(tmp_path)]
    same = {**os.environ, "PYTHONHASHSEED": "0"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=590, check=False, env=same)
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    logs = {
        row["target"]: (tmp_path / f"{row['target']}.log").read_text()[-3_000:]
        for row in rows
        if row["failed"]
    }
    assert logs == {}, "\n".join(logs.values())
    assert [row["target"] for row in rows] == list(TARGETS), done.stderr
    assert all(row["executions"] and row["edges"] for row in rows)
    assert done.returncode == 0


@pytest.mark.timeout(600)
def test_an_input_that_breaks_a_target_is_found_and_kept(tmp_path: Path) -> None:
    """The whole harness, on a subject that fails for one prefix of three bytes."""
    if importlib.util.find_spec("atheris") is None:
        pytest.skip("atheris is not installed: it has no wheel for this platform")
    subject = tmp_path / "subject.py"
    subject.write_text(BROKEN.format(here=str(HERE)))
    done = subprocess.run(
        [sys.executable, str(subject), str(tmp_path)], capture_output=True, text=True, check=True
    )
    row = json.loads(done.stdout)
    assert row["failed"]
    [crash] = row["crashes"]
    assert (tmp_path / crash).read_bytes().startswith(b"bad")


BROKEN = """
import json, sys
from pathlib import Path
sys.path.append({here!r})
import atheris, fuzz

@atheris.instrument_func
def broken(data):
    if data[:1] == b"b":
        if data[1:2] == b"a":
            if data[2:3] == b"d":
                raise RuntimeError("found")

print(json.dumps(fuzz.fuzz("paths", broken, 60, Path(sys.argv[1]))))
"""


def test_a_mutation_changes_the_structure_of_json_and_keeps_what_is_before_it() -> None:
    data, known = b'0{"model": "auto", "messages": [{"role": "user"}]}', ["tool", None, {"a": 1}]
    made = {fuzz.mutated(data, known, random.Random(seed)) for seed in range(200)}
    assert len(made) > 100
    for each in made:
        assert each is not None
        assert each[:1] == b"0"
        json.loads(each[1:])


def test_an_input_without_json_is_left_to_the_fuzzer() -> None:
    assert fuzz.mutated(b"/v1/models", [], random.Random(0)) is None


def test_the_words_of_a_corpus_are_its_keys_and_values(tmp_path: Path) -> None:
    (tmp_path / "one").write_bytes(b'0{"model": ["auto"]}')
    found = fuzz.words(tmp_path)
    assert all(word in found for word in ("model", ["auto"], "auto"))


def test_the_time_of_one_input_is_limited_and_the_input_is_kept(tmp_path: Path) -> None:
    def slow(_: bytes) -> None:
        for _ in range(10**9):
            if os.times().user - began > 0.05:
                return

    began = os.times().user
    with pytest.raises(AssertionError, match="CPU time"):
        fuzz.bounded(slow, f"{tmp_path}/", seconds_max=0.01)(b"x")
    [kept] = tmp_path.iterdir()
    assert kept.read_bytes() == b"x"
    fuzz.bounded(slow, f"{tmp_path}/none-")(b"")


LOG = """\
#12	INITED cov: 202 ft: 278 corp: 8/2836b exec/s: 0 rss: 88Mb
#900	NEW    cov: 205 ft: 281 corp: 9/2875b lim: 65536 exec/s: 0 rss: 88Mb L: 52/1001 MS: 1 Custom-
#1024	pulse  cov: 205 ft: 281 corp: 9/2875b lim: 65536 exec/s: 0 rss: 88Mb
"""


def test_the_figures_are_those_that_libfuzzer_printed() -> None:
    assert fuzz.figures(LOG) == {"executions": 1_024, "edges_at_start": 202, "edges": 205, "inputs": 9}
    assert fuzz.figures("") == {"executions": 0, "edges_at_start": 0, "edges": 0, "inputs": 0}
