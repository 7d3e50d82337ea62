"""Writing `bundle.json`."""

from __future__ import annotations

from pathlib import Path

from semroute_lab.train.graphs import write_manifest

from semroute_extproc.encoder.bundle import default_bundle, read_manifest


def test_a_manifest_survives_being_written_and_read(tmp_path: Path) -> None:
    manifest = read_manifest(default_bundle())
    write_manifest(tmp_path, manifest)
    assert read_manifest(tmp_path) == manifest
