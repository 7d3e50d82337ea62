"""Write a bundle's `bundle.json`."""

from __future__ import annotations

import json
from pathlib import Path

from semroute_extproc.encoder.manifest import Manifest


def write_manifest(path: Path, manifest: Manifest) -> None:
    """Write `bundle.json` into the directory `path`, indented and with a final newline."""
    text = json.dumps(manifest.model_dump(mode="json", exclude_none=True), indent=2, ensure_ascii=False)
    (path / "bundle.json").write_text(text + "\n")
