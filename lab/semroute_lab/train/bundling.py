"""From a calibrated network to a bundle: temperatures, the unknown, reference traffic, the graphs."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from semroute_extproc.encoder.manifest import (
    FORMAT,
    DifficultyHead,
    EncoderSpec,
    LabelHead,
    Manifest,
    UnknownSpec,
)
from semroute_extproc.request.language import language_of
from semroute_extproc.request.text import SURFACE_NAMES
from semroute_lab.train import calibrate, export, graphs
from semroute_lab.train.datasets import DOMAINS, TASKS, Corpus
from semroute_lab.train.fit import States
from semroute_lab.train.frames import Frames
from semroute_lab.train.model import Network
from semroute_lab.train.publish import publish
from semroute_lab.train.smoothing import TEXTS_MAX, smooth

Say = Callable[[str], None]

FP32_GRAPH = "model.fp32.onnx"
"""The graph that the served ones are made from; it stays in the work folder."""

CENTROIDS = 128
"""Centroids that describe known text."""

CENTROID_ROWS_MAX = 1_500
"""Rows of a source that the centroids are found on, so that no source takes most of them."""

UNK_SHARE_MAX = 0.3
"""Share of unknown tokens from which on a text is not in a script the vocabulary knows."""

LANGUAGE_ROWS_MIN = 200
"""Training rows from which on a language is one that the bundle was trained on."""

PARITY_ROWS = 64
"""Texts on which the graphs are compared with the network."""

REFERENCE = {"handwritten": 0.55, "arena": 0.15, "commands": 0.1, "mathematics": 0.1, "exam": 0.1}
"""Reference traffic: the share of each kind of prompt among the rows that the quantiles are taken on."""

_COMMANDS = frozenset({"clinc150", "banking77", "hwu64", "snips"})
_EXAMS = frozenset({"mmlu_pro", "mmlu_pro_options", "routellm_mmlu"})
_MATHEMATICS = frozenset({"big_math", "gsm8k_train"})


@dataclass(frozen=True, slots=True)
class Names:
    """What a bundle calls itself."""

    name: str
    version: str
    description: str


@dataclass(frozen=True, slots=True)
class Trained:
    """Everything a bundle is made of."""

    network: Network
    spec: EncoderSpec
    corpus: Corpus
    fit: States
    check: States
    check_frames: Frames


def kind_of(source: str) -> str:
    """The kind of reference traffic a source stands for; empty if none."""
    if source.startswith("handwritten/"):
        return "handwritten"
    if source == "arena_hard":
        return "arena"
    for kind, sources in (("commands", _COMMANDS), ("mathematics", _MATHEMATICS), ("exam", _EXAMS)):
        if source in sources:
            return kind
    return ""


def make_manifest(trained: Trained, names: Names, seed: int) -> tuple[Manifest, Tensor]:
    """Calibrate on the calibration rows; the manifest (its files still empty) and the centroids [k, d]."""
    check, corpus = trained.check, trained.corpus
    with torch.inference_mode():
        _, domain, difficulty, task, asked = trained.network.heads(check.pooled, check.surface)
        heads = trained.network.heads
        known = heads.recalled(heads.parts(trained.fit.pooled, trained.fit.surface))
    centroids = calibrate.spherical_kmeans(known[_balanced(trained, seed)], CENTROIDS, seed)
    kinds = [kind_of(row.source) for row in corpus.calibrate]
    ordinary = torch.tensor([kind in ("handwritten", "arena", "exam") for kind in kinds])
    by_hand = torch.tensor([kind == "handwritten" for kind in kinds])
    threshold = min(
        calibrate.unknown_threshold(asked[rows], centroids)
        for rows in (ordinary, by_hand)
        if bool(rows.any())
    )
    quantiles = calibrate.quantiles(torch.sigmoid(difficulty), _traffic(kinds))
    manifest = Manifest(
        format=FORMAT,
        name=names.name,
        version=names.version,
        description=names.description,
        encoder=trained.spec,
        graphs={"cpu": graphs.CPU_GRAPH, "cuda": graphs.CUDA_GRAPH},
        surface=SURFACE_NAMES,
        domain=LabelHead(labels=DOMAINS, temperature=calibrate.temperature(domain, check.targets.domain)),
        task=LabelHead(labels=TASKS, temperature=calibrate.temperature(task, check.targets.task)),
        # The experts are calibrated one by one inside the graph.
        difficulty=DifficultyHead(scale=1.0, shift=0.0, quantiles=tuple(quantiles)),
        unknown=UnknownSpec(centroids="centroids.npy", threshold=threshold, unk_share_max=UNK_SHARE_MAX),
        languages=languages_of(row.text for row in corpus.fit),
        files={},
    )
    return manifest, centroids


def languages_of(texts: Iterable[str]) -> tuple[str, ...]:
    """The languages of at least `LANGUAGE_ROWS_MIN` of the texts, or the most frequent one; sorted."""
    counts = Counter(map(language_of, texts))
    enough = [language for language, count in counts.items() if count >= LANGUAGE_ROWS_MIN]
    return tuple(sorted(enough or [language for language, _ in counts.most_common(1)]))


def _balanced(trained: Trained, seed: int) -> Tensor:
    """Indices of the fit rows that the centroids are found on."""
    generator = torch.Generator().manual_seed(seed)
    taken: dict[str, int] = {}
    chosen = []
    rows = trained.corpus.fit.rows
    for i in torch.randperm(len(rows), generator=generator).tolist():
        source = rows[i].source
        taken[source] = taken.get(source, 0) + 1
        if taken[source] <= CENTROID_ROWS_MAX:
            chosen.append(i)
    return torch.tensor(chosen)


def _traffic(kinds: list[str]) -> Tensor:
    """A weight for each row, so that the kinds have their shares of the reference traffic; [rows]."""
    return torch.tensor([REFERENCE.get(kind, 0.0) / max(1, kinds.count(kind)) for kind in kinds])


def write(trained: Trained, manifest: Manifest, centroids: Tensor, out: Path, work: Path, say: Say) -> None:
    """Export the graphs, compare them with the network, and publish the bundle in `out`."""
    fp32 = work / FP32_GRAPH
    smooth(trained.network.encoder, trained.check_frames, _spread(trained.check_frames, TEXTS_MAX))
    export.write_fp32(trained.network, fp32)
    frames = trained.check_frames
    index = _spread(frames, PARITY_ROWS)
    say(f"fp32 graph against torch: {_shown(export.check_parity(trained.network, fp32, frames, index))}")
    reference = export.run_graph(fp32, frames, index)
    np.save(work / "centroids.npy", centroids.numpy().astype(np.float32))
    names = ["tokenizer.json", "centroids.npy"]
    texts = _spread(frames, graphs.CALIBRATION_TEXTS_MAX)
    graphs.write_int8(fp32, work / graphs.CPU_GRAPH, graphs.feeds(frames.framed[i] for i in texts))
    graphs.write_fp16(fp32, work / graphs.CUDA_GRAPH)
    for name in (graphs.CPU_GRAPH, graphs.CUDA_GRAPH):
        names.append(name)
        found = export.largest_difference(reference, export.run_graph(work / name, frames, index))
        say(f"{name} against fp32: {_shown(found)}")
    files: dict[str, Path | bytes] = {name: work / name for name in names}
    publish(manifest, files, out)
    say(f"published {out}")


def _spread(frames: Frames, count: int) -> list[int]:
    """About `count` indices, evenly over all frames."""
    return list(range(0, len(frames), max(1, len(frames) // count)))


def _shown(found: dict[str, float]) -> str:
    return json.dumps({name: round(value, 6) for name, value in found.items()})
