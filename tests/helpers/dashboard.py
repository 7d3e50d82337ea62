"""The shipped dashboard, and the metrics that its expressions look at."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

FILE = Path(__file__).resolve().parents[2] / "charts" / "semroute" / "dashboard.json"
DOCUMENT: dict[str, Any] = json.loads(FILE.read_text())
PANELS = {panel["title"]: panel for panel in DOCUMENT["panels"] if panel["type"] != "row"}
EXPRESSIONS = {
    f"{title}: {target['legendFormat']}": target["expr"]
    for title, panel in PANELS.items()
    for target in panel["targets"]
}


def metrics(expression: str) -> list[tuple[str, dict[str, str]]]:
    """Every metric of an expression with the labels that it is selected by, and their values."""
    bare = re.sub(r"\b(by|on) \([^)]*\)", "", expression)
    found = re.findall(r"\b((?:semroute|envoy)_\w+)(?:\{([^}]*)\})?", bare)
    return [(name, dict(re.findall(r'(\w+)(?:=~|!~|!=|=)"([^"]*)"', labels))) for name, labels in found]


def grouped(expression: str) -> set[str]:
    """The labels that an expression keeps."""
    return {
        label.strip() for labels in re.findall(r"by \(([^)]*)\)", expression) for label in labels.split(",")
    }
