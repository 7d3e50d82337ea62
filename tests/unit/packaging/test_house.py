"""The layout of the code: line budgets, rooms, and names that mean one thing."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
SIDECAR = ROOT / "semroute_extproc"
LAB = ROOT / "lab"

ROOMS_MAX = 16
"""Most top-level modules and packages of the sidecar."""

CORE = ("pipeline", "policy", "request", "encoder", "envoy", "events.py", "outcome.py", "errors.py")
"""What every request runs through."""

BUDGETS = {
    "sidecar": ([SIDECAR], 16_210),
    "per-request core": ([SIDECAR / name for name in CORE], 6_710),
    "lab": ([LAB / "semroute_lab"], 11_150),
    "demo and benchmarks": ([LAB / "semroute_demo", LAB / "semroute_bench", ROOT / "benchmarks"], 3_320),
}
"""Part to its folders and the most lines of Python it may have (docs/adr/0013-line-budgets.md)."""


def modules(place: Path) -> Iterator[Path]:
    """Every hand-written Python file of a file or folder."""
    files = [place] if place.is_file() else sorted(place.rglob("*.py"))
    return (file for file in files if "_pb" not in file.parts)


@pytest.mark.parametrize("part", BUDGETS)
def test_a_part_keeps_its_line_budget(part: str) -> None:
    places, most = BUDGETS[part]
    lines = sum(len(file.read_text().splitlines()) for place in places for file in modules(place))
    assert 0 < lines <= most


def test_the_sidecar_has_few_rooms() -> None:
    names = {path.name for path in SIDECAR.iterdir()} - {
        "__init__.py",
        "__main__.py",
        "py.typed",
        "__pycache__",
    }
    assert len(names) <= ROOMS_MAX


def test_no_class_name_of_the_sidecar_is_defined_twice() -> None:
    names = Counter(
        node.name
        for file in modules(SIDECAR)
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.ClassDef)
    )
    assert [name for name, count in names.items() if count > 1] == []


def test_every_room_says_what_it_is_for() -> None:
    for package in SIDECAR.rglob("__init__.py"):
        if "_pb" not in package.parts:
            assert ast.get_docstring(ast.parse(package.read_text())), package
