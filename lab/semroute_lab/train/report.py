"""The card of a trained bundle: what it was trained on, and its figures beside those of its fp32 graph."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from semroute_extproc.encoder.bundle import DEFAULT_BUNDLE, read_manifest
from semroute_extproc.encoder.manifest import FileEntry, Manifest
from semroute_lab.train.assess import assess, figures, pool
from semroute_lab.train.card import render
from semroute_lab.train.datasets import TARGETS, Corpus
from semroute_lab.train.manifest_file import write_manifest
from semroute_lab.train.publish import file_entry

Say = Callable[[str], None]

SEED = 0
"""Seed of the bootstrap."""


def training_facts(
    corpus: Corpus, manifest: Manifest, track: str, seed: int, epochs: int, minutes: float, threads: int
) -> dict[str, Any]:
    """What a bundle was trained on, by source, for its card."""
    fit = Counter(row.source for row in corpus.fit)
    calibrate = Counter(row.source for row in corpus.calibrate)
    licences = {row.source: row.rights.licence for row in (*corpus.fit, *corpus.calibrate)}
    used: dict[str, set[str]] = {}
    for row in corpus.fit:
        used.setdefault(row.source, set()).update(t for t in TARGETS if getattr(row, t) is not None)
    return {
        "track": track,
        "seed": seed,
        "epochs": epochs,
        "minutes": minutes,
        "threads": threads,
        "base": manifest.encoder.base,
        "base_sha256": manifest.encoder.base_sha256,
        "dropped": dict(corpus.dropped),
        "sources": [
            {
                "source": source,
                "licence": licences[source],
                "fit": fit[source],
                "calibrate": calibrate[source],
                "used_for": ", ".join(t for t in TARGETS if t in used.get(source, ())) or "calibration",
            }
            for source in sorted(licences)
        ],
    }


def write_card(
    out: Path,
    fp32: Path,
    data: Path | None,
    handwritten: Path | None,
    training: dict[str, Any],
    work: Path,
    say: Say,
    beside: Sequence[Path] = (),
) -> None:
    """Evaluate the bundle in `out` and its `fp32` graph, write `evaluation.json` and the card.

    `beside` are the `evaluation.json` of runs that were trained on less, whose pairs the card has too.
    """
    document = assess(out, data, handwritten, SEED, say)
    document["training"] = training
    document["beside"] = [_pairs_of(json.loads(file.read_text())) for file in beside]
    document["pool"] = pool(out, data, SEED, say)
    say("evaluating the fp32 graph")
    document["fp32"] = figures(
        assess(_with_graph(out, fp32, work), data, handwritten, SEED, lambda _: None, alone=True)
    )
    (work / "evaluation.json").write_text(json.dumps(document, indent=1) + "\n")
    (out / "CARD.md").write_text(render(document))
    say(f"wrote {out / 'CARD.md'}")


def _pairs_of(document: dict[str, Any]) -> dict[str, Any]:
    """What a card says of another run."""
    training = {key: document["training"][key] for key in ("track", "epochs", "seed")}
    return {"training": training, "pairs": document["pairs"]}


def _with_graph(bundle: Path, graph: Path, work: Path) -> Path:
    """A copy of `bundle` that runs `graph` on the CPU."""
    manifest = read_manifest(bundle)
    copy = work / f"{DEFAULT_BUNDLE}-fp32"
    shutil.rmtree(copy, ignore_errors=True)
    copy.mkdir(parents=True)
    names = [name for name in manifest.files if name not in manifest.graphs.values()]
    for name in names:
        shutil.copy(bundle / name, copy / name)
    shutil.copy(graph, copy / "model.fp32.onnx")
    files: dict[str, FileEntry] = {name: file_entry(copy / name) for name in (*names, "model.fp32.onnx")}
    write_manifest(copy, manifest.model_copy(update={"graphs": {"cpu": "model.fp32.onnx"}, "files": files}))
    return copy
