"""The bundle for Chinese script: one run from the declared data to the published directory.

Few rows are labelled in Chinese, so the encoder stays frozen, the heads are convex, and nothing is
held out for calibration alone: every row is calibrated by heads that were fitted without its fold.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import click
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from semroute_extproc import bundle as bundles
from semroute_extproc.bundle import (
    FORMAT,
    DifficultyHead,
    EncoderSpec,
    LabelHead,
    Manifest,
    UnknownSpec,
)
from semroute_extproc.encoder.tokens import Framer
from semroute_extproc.evaluation.data import read_table
from semroute_extproc.text import SURFACE_NAMES
from semroute_extproc.training import calibrate, chinese_card, chinese_network, chinese_report, export
from semroute_extproc.training.datasets import (
    DOMAINS,
    TASKS,
    Example,
    FitSet,
    Part,
    Rights,
    assemble,
    part_of_fit,
    stem_key,
)
from semroute_extproc.training.fit import States, embed
from semroute_extproc.training.frames import Frames
from semroute_extproc.training.losses import Targets
from semroute_extproc.training.model import Heads, Network, from_checkpoint
from semroute_extproc.training.sources import read_handwritten
from semroute_extproc.training.weights import Base

NAME = "semroute-bge-zh"

WORK = Path("runs/train-zh")
"""Downloads and cached states; safe to delete."""

WINDOW = 128
"""Most ids of one input; one id is one Chinese character."""

FOLDS = 5
"""Folds of the cross-fitting."""

CENTROIDS = 64
"""Centroids that describe known text."""

UNK_SHARE_MAX = 0.3
"""Share of unknown tokens from which on a text is not in a script the vocabulary knows."""

PARITY_ROWS = 64
"""Texts on which the fp32 graph is compared with the network."""

SEED = 1
"""Of the centroids: nothing else here is drawn by chance."""

HANDWRITTEN = "handwritten/chinese"
"""Prefix of the sources, among the hand-written files, that are in Chinese."""

BELLE = "intent/belle.csv.gz"

BELLE_RIGHTS = Rights("Apache-2.0 / ODC-By", True)

BELLE_TASKS = {
    "math": "math",
    "code": "code",
    "summarization": "summarisation",
    "extract": "extraction",
    "open qa": "question answering",
    "closed qa": "question answering",
    "classification": "other",
}
"""BELLE's class to a task, where the class decides. Brainstorming is of several kinds and left out."""

_TRANSLATION = re.compile("翻译|译成|译为")
_CREATIVE = re.compile("故事|诗|小说|歌词|剧本|童话|散文|短文|文章|创作|作文|对话|段落")

Say = Callable[[str], None]


def train_chinese(
    data: Path,
    datasets: Path,
    out: Path,
    base: Path | None,
    *,
    work: Path = WORK,
    threads: int = 2,
    say: Say = lambda line: None,
) -> Manifest:
    """Train, evaluate and publish the bundle in `out`; returns its manifest.

    `data` holds the declared sets, `datasets` the hand-written ones. Raises DataError before any
    fitting if the data or the base cannot be used.
    """
    torch.set_num_threads(threads)
    work.mkdir(parents=True, exist_ok=True)
    held_out = chinese_report.held_out(data, datasets)
    rows = read_corpus(data, datasets, held_out)
    say(f"{len(rows)} rows to fit and calibrate, {sum(len(one.rows) for one in held_out)} to report on")
    checkpoint = chinese_network.obtain(base, work)
    spec, framer = _framing(checkpoint, work)
    encoder = from_checkpoint(
        chinese_network.dequantised(checkpoint.weights), chinese_network.CONFIG, dropout=0.0
    )
    chinese = chinese_network.ChineseEncoder(chinese_network.CONFIG, dropout=0.0)
    chinese.load_state_dict(encoder.state_dict())
    frames = Frames.of([row.text for row in rows], framer, spec.pad_id)
    states = States.of(rows, embed(chinese, frames, work, checkpoint.sha256 + " [CLS]"), frames)
    crossed = cross_fit(states, folds_of(rows))
    heads = chinese_network.fit_heads(
        states.pooled, states.surface, states.targets, len(DOMAINS), len(TASKS)
    )
    centroids = calibrate.spherical_kmeans(F.normalize(states.pooled, dim=-1), CENTROIDS, SEED)
    manifest = _manifest(spec, states.targets, crossed)
    network = Network(chinese, cast(Heads, heads))
    figures = chinese_report.cross_fitted(crossed.domain, crossed.difficulty, crossed.task, states.targets)
    _publish(manifest, network, frames, centroids, held_out, figures, work, out, say)
    return manifest


def read_corpus(data: Path, datasets: Path, held_out: list[chinese_report.HeldOut]) -> FitSet:
    """Every Chinese row that may train and whose question is not reported on."""
    rows = [row for row in read_handwritten(datasets) if row.source.startswith(HANDWRITTEN)]
    rows.extend(_belle(data / BELLE))
    reported = [row for one in held_out for row in one.rows]
    corpus = assemble(rows, reported)
    return FitSet([*corpus.fit, *(replace(row, part=Part.FIT) for row in corpus.calibrate)])


def _belle(file: Path) -> Iterator[Example]:
    table = read_table(file)
    for row, (text, kind) in enumerate(zip(table.texts("question"), table.strings("class"), strict=True)):
        task = belle_task(kind.replace("\xa0", " "), text)
        place = f"{table.path}:{table.numbers[row]}"
        yield Example(
            text,
            "belle",
            place,
            BELLE_RIGHTS,
            part_of_fit(text),
            task=None if task is None else TASKS.index(task),
        )


def belle_task(kind: str, text: str) -> str | None:
    """The task of a BELLE row, from its class and, where that says too little, its words."""
    if kind == "rewrite":
        return "translation" if _TRANSLATION.search(text) else "other"
    if kind == "generation":
        return "creative" if _CREATIVE.search(text) else "other"
    return BELLE_TASKS.get(kind)


def folds_of(rows: FitSet) -> Tensor:
    """The fold of every row, by the hash of its stem: the same question is always in the same one."""
    return torch.tensor([hashlib.sha256(stem_key(row.text).encode()).digest()[1] % FOLDS for row in rows])


@dataclass(frozen=True, slots=True)
class Crossed:
    """What heads that never saw a row say of it, for all rows."""

    domain: Tensor
    difficulty: Tensor
    task: Tensor
    similarity: Tensor
    """Cosine to the nearest centroid of the other folds."""


def cross_fit(states: States, folds: Tensor) -> Crossed:
    """Fit on all folds but one, speak on that one, for each fold in turn."""
    n = len(states.pooled)
    domain, task = torch.zeros(n, len(DOMAINS)), torch.zeros(n, len(TASKS))
    difficulty, similarity = torch.zeros(n), torch.zeros(n)
    for fold in folds.unique():
        fit, rest = torch.nonzero(folds != fold)[:, 0], torch.nonzero(folds == fold)[:, 0]
        heads = chinese_network.fit_heads(
            states.pooled[fit], states.surface[fit], states.targets.take(fit), len(DOMAINS), len(TASKS)
        )
        with torch.inference_mode():
            embedding, domain[rest], difficulty[rest], task[rest] = heads(
                states.pooled[rest], states.surface[rest]
            )
        centroids = calibrate.spherical_kmeans(F.normalize(states.pooled[fit], dim=-1), CENTROIDS, SEED)
        similarity[rest] = (embedding @ centroids.T).max(1).values
    return Crossed(domain, difficulty, task, similarity)


def _framing(base: Base, work: Path) -> tuple[EncoderSpec, Framer]:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(chinese_network.lowercasing(base.tokenizer))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    file = work / "tokenizer.json"
    tokenizer.save(str(file))
    names = {"cls_id": "[CLS]", "sep_id": "[SEP]", "pad_id": "[PAD]", "unk_id": "[UNK]"}
    spec = EncoderSpec(
        base=base.name,
        base_sha256=base.sha256,
        dimensions=chinese_network.CONFIG.dimensions,
        window=WINDOW,
        **{name: tokenizer.token_to_id(token) for name, token in names.items()},
    )
    return spec, Framer(file, spec)


def _manifest(spec: EncoderSpec, targets: Targets, crossed: Crossed) -> Manifest:
    """Calibration from cross-fitted logits; quantiles over all training rows as reference traffic."""
    platt = calibrate.platt(crossed.difficulty, targets.difficulty, targets.weight)
    return Manifest(
        format=FORMAT,
        name=NAME,
        version="1",
        description="Domain, task and difficulty of a prompt in Chinese script.",
        encoder=spec,
        graphs={"cpu": export.CPU_GRAPH},
        surface=SURFACE_NAMES,
        domain=LabelHead(labels=DOMAINS, temperature=calibrate.temperature(crossed.domain, targets.domain)),
        task=LabelHead(labels=TASKS, temperature=calibrate.temperature(crossed.task, targets.task)),
        difficulty=DifficultyHead(
            scale=platt.scale,
            shift=platt.shift,
            quantiles=tuple(calibrate.quantiles(platt(crossed.difficulty))),
        ),
        unknown=UnknownSpec(
            centroids="centroids.npy",
            threshold=float(np.quantile(crossed.similarity.numpy(), calibrate.UNKNOWN_SHARE)),
            unk_share_max=UNK_SHARE_MAX,
        ),
        languages=("zh",),
        files={},
    )


def _publish(
    manifest: Manifest,
    network: nn.Module,
    frames: Frames,
    centroids: Tensor,
    held_out: list[chinese_report.HeldOut],
    figures: chinese_report.Figures,
    work: Path,
    out: Path,
    say: Say,
) -> None:
    """Export, score the held-out rows with fp32 and int8 as the server would, write the card, publish."""
    fp32, int8 = work / "model.fp32.onnx", work / export.CPU_GRAPH
    export.write_fp32(cast(Network, network), fp32)
    index = list(range(0, len(frames), max(1, len(frames) // PARITY_ROWS)))
    found = export.check_parity(cast(Network, network), fp32, frames, index)
    say(f"fp32 graph against torch: {json.dumps(found)}")
    export.write_int8(fp32, int8)
    np.save(work / "centroids.npy", centroids.numpy().astype(np.float32))
    files: dict[str, Path | bytes] = {name: work / name for name in ("tokenizer.json", "centroids.npy")}
    trials = {"fp32": fp32, "int8": int8}
    for name, graph in trials.items():
        export.publish(manifest, {**files, export.CPU_GRAPH: graph}, work / name)
    scored = {name: work / name for name in trials}
    english = bundles.default_bundle()
    if english.is_dir():
        scored["english"] = english
    report = chinese_report.evaluate(scored, held_out) | {"cross_fitted": figures}
    (work / "evaluation.json").write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    card = chinese_card.card(report, manifest)
    export.publish(manifest, {**files, export.CPU_GRAPH: int8, "CARD.md": card.encode()}, out)
    say(f"published {out}")


_EXISTING = click.Path(exists=True, path_type=Path)


@click.command("train-zh")
@click.option("--data", type=_EXISTING, required=True, help="Folder of the declared data sets.")
@click.option("--handwritten", type=_EXISTING, required=True, help="Folder of the hand-written files.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("models") / NAME, show_default=True)
@click.option("--work", type=click.Path(path_type=Path), default=WORK, show_default=True)
@click.option("--base", type=_EXISTING, help="Base checkpoint: the package's tarball or a directory.")
@click.option("--threads", type=click.IntRange(1, 64), default=2, show_default=True)
def train_zh(data: Path, handwritten: Path, out: Path, work: Path, base: Path | None, threads: int) -> None:
    """Train the bundle for Chinese script and publish it in OUT."""
    from semroute_extproc.training.cli import _reported

    with _reported():
        train_chinese(data, handwritten, out, base, work=work, threads=threads, say=click.echo)
