"""The bundle for Chinese script: one run from the declared data to the published directory.

Few rows are labelled in Chinese, so the encoder stays frozen, the heads are convex, and nothing is
held out for calibration alone: every row is calibrated by heads that were fitted without its fold.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from semroute_extproc.encoder import bundle as bundles
from semroute_extproc.encoder.manifest import (
    FORMAT,
    DifficultyHead,
    EncoderSpec,
    LabelHead,
    Manifest,
    UnknownSpec,
)
from semroute_extproc.encoder.preprocess import Framer
from semroute_extproc.errors import DataError
from semroute_extproc.request.text import SURFACE_NAMES
from semroute_lab.train import (
    calibrate,
    chinese_card,
    chinese_data,
    chinese_network,
    chinese_report,
    export,
    graphs,
)
from semroute_lab.train.bert import from_checkpoint
from semroute_lab.train.chinese_data import HeldOut
from semroute_lab.train.datasets import DOMAINS, TASKS, FitSet, stem_key
from semroute_lab.train.fit import States, embed
from semroute_lab.train.frames import Frames
from semroute_lab.train.losses import Targets
from semroute_lab.train.model import Heads, Network
from semroute_lab.train.publish import publish
from semroute_lab.train.smoothing import TEXTS_MAX, smooth
from semroute_lab.train.weights import Base

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

KEPT = ((), ("widen", "narrow"), ("widen", "narrow", "query", "key", "value", "attended"))
"""Modules whose matrices stay in fp32, in the order in which they are tried."""

GAP_MAX = 0.01
"""Most that any figure may lose to int8: two rows of the smallest set, one of which moves it by .005."""

UNKNOWN_SHARE = 0.025
"""Share of the training rows that are unknown to the centroids of the other folds."""

SEED = 1
"""Of the centroids: nothing else here is drawn by chance."""

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
    held_out = chinese_data.held_out(data, datasets)
    rows = chinese_data.read_corpus(data, datasets, held_out)
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
    heads = chinese_network.fit_heads(states.pooled, states.surface, states.targets, len(DOMAINS), len(TASKS))
    centroids = calibrate.spherical_kmeans(F.normalize(states.pooled, dim=-1), CENTROIDS, SEED)
    manifest = _manifest(spec, states.targets, crossed)
    network = Network(chinese, cast("Heads", heads))
    report = {
        "cross_fitted": chinese_report.cross_fitted(
            crossed.domain, crossed.difficulty, crossed.task, states.targets
        )
    }
    _publish(manifest, network, frames, centroids, held_out, report, work, out, say)
    return manifest


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
        graphs={"cpu": graphs.CPU_GRAPH},
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
            threshold=float(np.quantile(crossed.similarity.numpy(), UNKNOWN_SHARE)),
            unk_share_max=UNK_SHARE_MAX,
        ),
        languages=("zh",),
        files={},
    )


def _publish(
    manifest: Manifest,
    network: Network,
    frames: Frames,
    centroids: Tensor,
    held_out: list[HeldOut],
    report: chinese_report.Figures,
    work: Path,
    out: Path,
    say: Say,
) -> None:
    """Export, score the held-out rows as the server would, write the card, publish.

    The graph that is published is the smallest whose figures all stay within `GAP_MAX` of fp32's.
    """
    fp32, int8 = work / "model.fp32.onnx", work / graphs.CPU_GRAPH
    smooth(network.encoder, frames, range(0, len(frames), max(1, len(frames) // TEXTS_MAX)))
    export.write_fp32(network, fp32)
    index = list(range(0, len(frames), max(1, len(frames) // PARITY_ROWS)))
    calibration = graphs.feeds(frames.framed[:: max(1, len(frames) // graphs.CALIBRATION_TEXTS_MAX)])
    say(f"fp32 graph against torch: {json.dumps(export.check_parity(network, fp32, frames, index))}")
    np.save(work / "centroids.npy", centroids.numpy().astype(np.float32))
    files: dict[str, Path | bytes] = {name: work / name for name in ("tokenizer.json", "centroids.npy")}
    publish(manifest, {**files, graphs.CPU_GRAPH: fp32}, work / "fp32")
    report["fp32"] = chinese_report.evaluate(work / "fp32", held_out)
    for kept in KEPT:
        graphs.write_int8(fp32, int8, calibration, matrices_of(fp32, kept))
        publish(manifest, {**files, graphs.CPU_GRAPH: int8}, work / "int8")
        report["shipped"] = chinese_report.evaluate(work / "int8", held_out)
        gap = chinese_report.largest_gap(report["shipped"], report["fp32"])
        report["precision"] = {"kept": list(kept), "gap": gap}
        say(f"int8 but for {', '.join(kept) or 'nothing'}: figures within {gap:.4f} of fp32's")
        if gap <= GAP_MAX:
            break
    else:
        raise DataError(f"{int8}:1:: no mixed precision keeps every figure within {GAP_MAX} of fp32's")
    if bundles.default_bundle().is_dir():
        report["english"] = chinese_report.evaluate(bundles.default_bundle(), held_out)
    (work / "evaluation.json").write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    card = chinese_card.card(report, manifest)
    publish(manifest, {**files, graphs.CPU_GRAPH: int8, "CARD.md": card.encode()}, out)
    say(f"published {out}")


def matrices_of(graph: Path, modules: tuple[str, ...]) -> list[str]:
    """The matrix products of a graph that belong to modules of these names."""
    import onnx

    nodes = onnx.load(str(graph)).graph.node
    return [one.name for one in nodes if one.op_type == "MatMul" and one.name.split("/")[-2] in modules]
