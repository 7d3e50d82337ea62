"""Ways to break the shipped bootstrap, from broken_envoy.yaml."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from semroute_extproc.cli.envoy_file import FILES

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = ROOT / "envoy" / "envoy.yaml"
GATEWAYS = {target: SHIPPED.with_name(file) for target, file in FILES.items() if target != "envoy"}

_FILE = YAML(typ="safe", pure=True).load(Path(__file__).with_suffix(".yaml").read_text())
ACCEPTED: dict[str, Any] = _FILE["accepted"]
REFUSED: dict[str, Any] = _FILE["refused"]
"""What is broken to how; of what Envoy accepts, and of what it refuses too."""


def broken(what: str) -> str:
    """The shipped file with the changes of one way, each of which is possible in one place."""
    text = SHIPPED.read_text()
    for each in {**ACCEPTED, **REFUSED}[what]["replace"]:
        text = replaced(text, each["old"], each["new"])
    return text


def replaced(text: str, old: str, new: str) -> str:
    """The text with one change, which is possible in one place."""
    assert text.count(old) == 1, f"{text.count(old)} times: {old}"
    return text.replace(old, new)
