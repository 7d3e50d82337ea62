"""Options of the conformance suite, and the page with its last result (docs/conformance.md)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from report import page

RESULTS: pytest.StashKey[dict[str, str]] = pytest.StashKey()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--conformance-page", type=Path, help="write the results into this page")
    parser.addoption("--messages", type=int, default=10_000, help="messages of the longest stream")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[RESULTS] = {}


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[Any]:
    report = yield
    case = getattr(item, "callspec", None) and item.callspec.params.get("case")  # type: ignore[attr-defined]
    if case is not None and (report.when == "call" or report.failed):
        item.config.stash[RESULTS][f"{case.area}/{case.name}"] = report.outcome
    return report


def pytest_sessionfinish(session: pytest.Session) -> None:
    path, results = session.config.getoption("--conformance-page"), session.config.stash[RESULTS]
    if path is not None and results:
        path.write_text(page(results))
        print(f"\n{path}: {dict(Counter(results.values()))}")
