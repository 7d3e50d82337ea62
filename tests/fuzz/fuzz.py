"""Fuzz the targets with atheris, which is libFuzzer for Python: coverage of our own code guides it.

    python tests/fuzz/fuzz.py --seconds 1800 --record   # every target; `make fuzz`
    python tests/fuzz/fuzz.py edits --seconds 60        # one target
    python tests/fuzz/fuzz.py edits --replay FILE       # one input, with its traceback

Inputs that reach new code are kept in build/fuzz/TARGET and used by the next run. An input that breaks an
invariant, or takes too long, is written to build/fuzz/crashes, and the run fails. After the fix, add
it to tests/fuzz/corpus/TARGET, which the ordinary tests replay.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import hashlib
import io
import json
import os
import platform
import random
import re
import sys
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
CORPUS = Path(__file__).with_name("corpus")
RESULT = ROOT / "benchmarks" / "results" / "fuzz.json"
INPUT_BYTES_MAX = 65_536
INPUT_SECONDS_MAX = 60  # of wall time, on a busy machine
INPUT_CPU_SECONDS_MAX = 2.0  # of instrumented code, which takes several times as long
MEMORY_MIB_MAX = 1_024
STRUCTURED_SHARE = 0.7  # of the mutations of inputs with JSON, that change the JSON and not the bytes
NESTING_MAX = 50  # of the JSON that is changed by its structure


def words(folder: Path) -> list[Any]:
    """Every key and every value of the JSON in a target's corpus, to build new JSON from."""
    found: dict[str, Any] = {}
    for file in sorted(folder.glob("*")):
        if (document := _json_of(file.read_bytes())[1]) is not None:
            for _, key, value in _places(document):
                found |= {repr(each): each for each in (key, value)}
    return [None, -1, 2**63, 1e308, "", "\ud800", [], {}, *found.values()]


def mutated(data: bytes, known: list[Any], chance: random.Random) -> bytes | None:
    """The input with one to three changes in the structure of its JSON; None if it has none."""
    before, document = _json_of(data)
    if document is None:
        return None
    for _ in range(chance.randint(1, 3)):
        container, key, value = chance.choice([*_places(document), (None, None, document)])
        new = copy.deepcopy(chance.choice([value, [value], {"a": value}, *chance.choices(known, k=5)]))
        match chance.randint(0, 3), container:
            case _, None:
                document = new if chance.random() < 0.05 else document
            case 0, _:
                del container[key]
            case 1, dict():
                container[str(chance.choice(known))] = new
            case 1, list():
                container[key:key] = [new] * chance.choice([1, 1, 2, 40])
            case _, _:
                container[key] = new
    try:
        text = json.dumps(document, ensure_ascii=chance.random() < 0.3)
    except RecursionError:
        return None
    return before + text.encode("utf-8", "surrogatepass")


def _json_of(data: bytes) -> tuple[bytes, Any]:
    """What is before the JSON object of an input, and the object; None if there is none."""
    start = data.find(b"{")
    try:
        return data[:start], json.loads(data[start:]) if start >= 0 else None
    except (ValueError, RecursionError):
        return data, None


def _places(document: Any, depth: int = 0) -> Iterator[tuple[Any, Any, Any]]:
    """Each container, key and value."""
    if not isinstance(document, dict | list) or depth > NESTING_MAX:
        return
    pairs = document.items() if isinstance(document, dict) else enumerate(document)
    for key, value in list(pairs):
        yield document, key, value
        yield from _places(value, depth + 1)


def bounded(
    subject: Callable[[bytes], None], prefix: str, seconds_max: float = INPUT_CPU_SECONDS_MAX
) -> Callable[[bytes], None]:
    """The target with a limit on its CPU time; an empty input has no variant and is not passed on.

    An input that breaks it is written under the name that libFuzzer gives it, should that not come to it.
    """

    def run(data: bytes) -> None:
        began = time.process_time()
        try:
            if data:
                subject(data)
            spent = time.process_time() - began
            assert spent < seconds_max, f"took {spent:.1f} s of CPU time"
        except Exception:
            name = hashlib.sha1(data, usedforsecurity=False).hexdigest()
            Path(f"{prefix}crash-{name}").write_bytes(data)
            raise

    return run


def fuzz(
    name: str, subject: Callable[[bytes], None], seconds: int, output: Path, seed: int = 0
) -> dict[str, Any]:
    """Fuzz one target in a process of its own, which libFuzzer ends; returns the figures that it printed.

    A `seed` of 0 makes new inputs in each run.
    """
    import atheris

    grown, crashes, log = output / name, output / "crashes", output / f"{name}.log"
    for folder in (grown, crashes):
        folder.mkdir(parents=True, exist_ok=True)
    before = {*crashes.glob(f"{name}-*")}
    known = words(CORPUS / name)

    def mutate(data: bytes, size_max: int, seed: int) -> bytes:
        chance = random.Random(seed)
        new = mutated(data, known, chance) if chance.random() < STRUCTURED_SHARE else None
        return new if new is not None and len(new) <= size_max else bytes(atheris.Mutate(data, size_max))

    options = [
        *(f"-max_total_time={seconds}", f"-max_len={INPUT_BYTES_MAX}", f"-timeout={INPUT_SECONDS_MAX}"),
        *(f"-report_slow_units={INPUT_SECONDS_MAX}", f"-seed={seed}"),
        *(f"-rss_limit_mb={MEMORY_MIB_MAX}", f"-artifact_prefix={crashes}/{name}-", "-print_final_stats=1"),
        *(str(grown), str(CORPUS / name)),
    ]
    began = time.monotonic()
    if (child := os.fork()) == 0:
        with log.open("wb") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        atheris.Setup([sys.argv[0], *options], bounded(subject, f"{crashes}/{name}-"), custom_mutator=mutate)
        atheris.Fuzz()
        os._exit(0)  # not reached: libFuzzer ends the process
    _, status = os.waitpid(child, 0)
    new = sorted({*crashes.glob(f"{name}-*")} - before)
    row = {"target": name, "seconds": round(time.monotonic() - began)}
    row |= figures(log.read_text("utf-8", "replace"))
    return {**row, "crashes": [str(path.relative_to(output)) for path in new], "failed": bool(new or status)}


def figures(log: str) -> dict[str, int]:
    """What libFuzzer printed: executions, and covered edges after the corpus and at the end."""
    edges = [int(each) for each in re.findall(r"cov: (\d+)", log)]
    started = re.search(r"INITED cov: (\d+)", log)
    executed = [int(each) for each in re.findall(r"^#(\d+)\s", log, re.M)]
    kept = re.findall(r"corp: (\d+)/", log)
    return {
        "executions": max(executed, default=0),
        "edges_at_start": int(started[1]) if started else 0,
        "edges": max(edges, default=0),
        "inputs": int(kept[-1]) if kept else 0,
    }


def main() -> int:
    """Fuzz the targets, print a line for each, and return 1 if one failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("target", nargs="*")
    parser.add_argument("--seconds", type=int, default=1_800, help="of all targets together")
    parser.add_argument("--seed", type=int, default=0, help="to make the same inputs again")
    parser.add_argument("--replay", type=Path, help="an input for one target")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "fuzz")
    parser.add_argument("--record", action="store_true", help=f"write {RESULT.relative_to(ROOT)}")
    arguments = parser.parse_args()
    try:
        import atheris
    except ImportError:
        print("atheris is not installed: there are wheels for Python 3.11 to 3.13 on Linux, x86-64")
        return 2
    sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "helpers"), str(Path(__file__).parent)]
    with contextlib.redirect_stderr(io.StringIO()), atheris.instrument_imports(include=["semroute_extproc"]):
        from targets import TARGETS
    chosen = arguments.target or list(TARGETS)
    if arguments.replay:
        TARGETS[chosen[0]](arguments.replay.read_bytes())
        return 0
    rows = []
    for name in chosen:
        seconds = max(arguments.seconds // len(chosen), 1)
        rows.append(fuzz(name, TARGETS[name], seconds, arguments.out, arguments.seed))
        print(json.dumps(rows[-1]), flush=True)
    if arguments.record:
        run = {"atheris": version("atheris"), "python": platform.python_version(), "targets": rows}
        RESULT.write_text(json.dumps(run, indent=2) + "\n")
    return 1 if any(row["failed"] for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
