"""Writing bundles: checksums, the manifest, and a folder that is there whole or not at all."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from semroute_extproc.encoder.bundle import load
from semroute_extproc.encoder.manifest import FileEntry, Manifest
from semroute_lab.train.manifest_file import write_manifest


def file_entry(file: Path) -> FileEntry:
    """Checksum and size of a file."""
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return FileEntry(sha256=digest, bytes=file.stat().st_size)


def publish(manifest: Manifest, files: Mapping[str, Path | bytes], target: Path) -> None:
    """Write a bundle beside `target`, check that it loads, and put it in place by renaming.

    `manifest.files` is filled here. Nothing half-written is ever under `target`: an interrupted
    run leaves a `.partial` directory, which is no bundle and may be removed.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".partial", dir=target.parent))
    staging.chmod(0o755)
    try:
        for name, content in files.items():
            if isinstance(content, bytes):
                (staging / name).write_bytes(content)
            else:
                shutil.copyfile(content, staging / name)
        listed = {name: file_entry(staging / name) for name in files if name != "CARD.md"}
        write_manifest(staging, manifest.model_copy(update={"files": listed}))
        load(staging)
        _swap(staging, target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _swap(staging: Path, target: Path) -> None:
    if not target.exists():
        staging.rename(target)
        return
    old = target.with_name(f".{target.name}.{os.getpid()}.old")
    target.rename(old)
    staging.rename(target)
    shutil.rmtree(old)
