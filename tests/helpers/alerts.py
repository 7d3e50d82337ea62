"""The shipped alerts, and what their expressions look at."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ruamel.yaml import YAML

ROOT = Path(__file__).resolve().parents[2]
FILE = ROOT / "charts" / "semroute" / "alerts.yaml"
DOCUMENT = YAML(typ="safe", pure=True).load(FILE.read_text())
ALERTS: Mapping[str, Any] = {rule["alert"]: rule for rule in DOCUMENT["groups"][0]["rules"]}

_SELECTOR = re.compile(r"\b((?:semroute|envoy)_\w+)(?:\{([^}]*)\})?")
_SAMPLE = re.compile(r"^(\w+)(?:\{(.*)\})? (\S+)$", re.M)
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
_MATCHER = re.compile(r'(\w+)(=~|!~|!=|=)"([^"]*)"')


class Selector(NamedTuple):
    """A metric in an expression, and its labels with operator and value."""

    metric: str
    labels: tuple[tuple[str, str, str], ...]

    def matches(self, name: str, labels: Mapping[str, str]) -> bool:
        """Whether a sample is selected; regular expressions match whole values, as in PromQL."""
        return name == self.metric and all(
            (re.fullmatch(value, labels.get(key, "")) is not None) == operator.startswith("=")
            for key, operator, value in self.labels
        )

    def total(self, page: str) -> float:
        """The sum of the selected samples of a metrics page."""
        # Not by prometheus_client, which renames Envoy's counters.
        samples = _SAMPLE.findall(page)
        each = ((name, dict(_LABEL.findall(labels)), float(value)) for name, labels, value in samples)
        return sum(value for name, labels, value in each if self.matches(name, labels))


def selectors(alert: str) -> list[Selector]:
    """The metrics that an alert's expression looks at, in order."""
    found = _SELECTOR.findall(ALERTS[alert]["expr"])
    return [Selector(metric, tuple(_MATCHER.findall(labels))) for metric, labels in found]


def undecided() -> list[list[str]]:
    """The rows of the table of docs/operations.md: ways, counter, alert, tests."""
    page = (ROOT / "docs" / "operations.md").read_text()
    section = page.partition("\n## Undecided requests\n")[2].partition("\n## ")[0]
    rows = [line.strip("|").split("|") for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row] for row in rows[2:]]
