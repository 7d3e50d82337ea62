"""Writing bundles: checksums, the manifest, and a directory that is complete or absent. Needs no torch."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path

from semroute_extproc.encoder.bundle import Bundle, load
from semroute_extproc.encoder.manifest import FileEntry, Manifest
from semroute_extproc.encoder.preprocess import Framer
from semroute_extproc.errors import BundleError, DataError
from semroute_lab.train import graphs
from semroute_lab.train.spec import Say

CARD = "CARD.md"

TEXTS_MIN = 32  # Fewer texts are too few for the inputs' correlations


def publish(manifest: Manifest, files: Iterable[Path], target: Path) -> None:
    """Write a bundle of `files` aside as `.partial`, check that it loads, and rename it into place."""
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".partial", dir=target.parent))
    staging.chmod(0o755)
    try:
        listed = {}
        for file in files:
            copy = Path(shutil.copyfile(file, staging / file.name))
            if file.name != CARD:
                digest = hashlib.sha256(copy.read_bytes()).hexdigest()
                listed[file.name] = FileEntry(sha256=digest, bytes=copy.stat().st_size)
        write_manifest(staging, manifest.model_copy(update={"files": listed}))
        load(staging)
        if target.exists():
            old = target.with_name(f".{target.name}.{os.getpid()}.old")
            target.rename(old)
            staging.rename(target)
            shutil.rmtree(old)
        else:
            staging.rename(target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def copy_bundle(source: Bundle, target: Path, device: str | None) -> list[str]:
    """Publish a copy of `source`, without the graph of the other device if one is given; its files' names."""
    manifest = source.manifest
    kept = {name: file for name, file in manifest.graphs.items() if device in (None, name)}
    unused = set(manifest.graphs.values()) - set(kept.values())
    names = [name for name in manifest.files if name not in unused]
    if (source.path / CARD).exists():
        names.append(CARD)
    publish(manifest.model_copy(update={"graphs": kept}), [source.path / name for name in names], target)
    return sorted(names)


def requantise(source: Bundle, target: Path, texts: Path, say: Say) -> None:
    """Publish `source` in `target` with its CPU graph rebuilt from its CUDA graph, rounded on `texts`.
    Raises DataError or BundleError. The card describes another graph and is not copied.
    """
    lines = [line.strip() for line in texts.read_text(encoding="utf-8", errors="replace").splitlines()]
    chosen = [line for line in lines if line]
    if len(chosen) < TEXTS_MIN:
        raise DataError(f"{texts}:1:: {len(chosen)} texts, at least {TEXTS_MIN} are needed")
    manifest = source.manifest
    if "cuda" not in manifest.graphs:
        raise BundleError(f"{source.path}: there is no CUDA graph to make the CPU graph from")
    most = graphs.CALIBRATION_TEXTS_MAX
    chosen = chosen[:: max(1, len(chosen) // most)][:most]
    framer = Framer(source.path / "tokenizer.json", source.manifest.encoder)
    with tempfile.TemporaryDirectory() as folder:
        fp32, int8 = Path(folder) / "fp32.onnx", Path(folder) / graphs.CPU_GRAPH
        graphs.write_widened(source.path / manifest.graphs["cuda"], fp32)
        say(f"rounding the weights on {len(chosen)} texts")
        graphs.write_int8(fp32, int8, graphs.feeds(map(framer.frame, chosen)))
        kept = [source.path / name for name in manifest.files if name != manifest.graphs.get("cpu")]
        updated = manifest.model_copy(update={"graphs": {**manifest.graphs, "cpu": graphs.CPU_GRAPH}})
        publish(updated, [*kept, int8], target)
    say(f"published {target}")


def write_manifest(path: Path, manifest: Manifest) -> None:
    """Write `bundle.json` into the directory `path`, indented and with a final newline."""
    text = json.dumps(manifest.model_dump(mode="json", exclude_none=True), indent=2, ensure_ascii=False)
    (path / "bundle.json").write_text(text + "\n")
