"""One training run: declared data to a published bundle."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from semroute_extproc.bundle import (
    FORMAT,
    DifficultyHead,
    EncoderSpec,
    LabelHead,
    Manifest,
    UnknownSpec,
)
from semroute_extproc.encoder.tokens import Framer
from semroute_extproc.language import language_of
from semroute_extproc.text import SURFACE_NAMES
from semroute_extproc.training import calibrate, export
from semroute_extproc.training.datasets import DOMAINS, TASKS, Corpus, Example, FitSet, Part, Track, assemble
from semroute_extproc.training.fit import HeadPlan, States, embed, fit_heads, set_surface
from semroute_extproc.training.frames import Frames
from semroute_extproc.training.losses import Targets, Weights, multitask
from semroute_extproc.training.model import EncoderConfig, Heads, Network, from_checkpoint
from semroute_extproc.training.sources import read_all, read_handwritten
from semroute_extproc.training.tune import TunePlan, fine_tune
from semroute_extproc.training.weights import Base, obtain

WINDOW = 128
"""Most ids of one input; longer text keeps head and tail."""

TUNE_WINDOW = 72
"""Most ids of one input while the encoder is fine-tuned: long questions say their domain early and late."""

CENTROIDS = 96
"""Centroids that describe known text."""

FOREIGN_SCRIPTS = frozenset({"zh", "ja", "ko", "ru", "ar", "hi", "th", "el", "he"})
"""Languages whose script the encoder's vocabulary reduces to unknown tokens."""

UNK_SHARE_MAX = 0.3
"""Share of unknown tokens from which on a text is not in a script the vocabulary knows."""

PARITY_ROWS = 64
"""Texts on which the graphs are compared with the network."""

SOURCE_ROWS_MAX = 3_000
"""Rows of a source of short commands; more of the same adds time and nothing else."""

CHECK_ROWS_MAX = 1_500
"""Calibration rows that the choice of the epoch looks at."""

QUOTA = {
    "mmlu_pro_options": 2_000,
    "big_math": 1_200,
    "gsm8k_train": 800,
    "clinc150": 3_000,
    "banking77": 600,
    "hwu64": 600,
    "snips": 400,
    "stackoverflow20": 500,
    "arena_hard": 300,
    "humaneval": 80,
}
"""Rows of a source drawn per epoch of fine-tuning."""

CAPPED_SOURCES = frozenset({"clinc150", "banking77", "hwu64", "snips", "stackoverflow20", "big_math", "gsm8k_train"})

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Settings:
    """What a run is asked for."""

    data: Path
    out: Path
    work: Path
    base: Path | None = None
    handwritten: Path | None = None
    track: Track = Track.GOLD
    name: str = "semroute-minilm"
    version: str = "1"
    seed: int = 1
    threads: int = 2
    plan: HeadPlan = field(default_factory=HeadPlan)
    tune: TunePlan = field(default_factory=lambda: TunePlan(quota=QUOTA))


def train(settings: Settings, say: Say) -> Manifest:
    """Run the recipe; raises DataError before any fitting if the data cannot be used."""
    torch.set_num_threads(settings.threads)
    torch.manual_seed(settings.seed)
    settings.work.mkdir(parents=True, exist_ok=True)
    corpus = read_corpus(settings, say)
    base = obtain(settings.base, settings.work)
    spec, framer = _framing(base, settings.work)
    encoder = from_checkpoint(base.tensors(), EncoderConfig(), dropout=0.0)
    fit_frames = _frames(corpus.fit, framer, spec)
    check_frames = _frames(corpus.calibrate, framer, spec)
    heads = Heads(encoder.config.dimensions, len(SURFACE_NAMES), len(DOMAINS), len(TASKS))
    set_surface(heads, fit_frames.surface())
    network = Network(encoder, heads)
    key = base.sha256
    if settings.tune.epochs:
        tune_spec = spec.model_copy(update={"window": TUNE_WINDOW})
        check_rows = list(range(0, len(check_frames), max(1, len(check_frames) // CHECK_ROWS_MAX)))
        network = fine_tune(
            network,
            corpus.fit,
            _frames(corpus.fit, Framer(settings.work / "tokenizer.json", tune_spec), spec),
            lambda now: _loss_on(now, corpus.calibrate, check_frames, check_rows),
            settings.tune,
            settings.seed,
            settings.work / "tune.pt",
            say,
        )
        key = file_digest(network)
    say(f"embedding {len(fit_frames)} + {len(check_frames)} rows")
    fit = States.of(corpus.fit, embed(network.encoder, fit_frames, settings.work, key), fit_frames)
    check = States.of(corpus.calibrate, embed(network.encoder, check_frames, settings.work, key), check_frames)
    if not settings.tune.epochs:
        fit_heads(heads, fit, check, Weights(), settings.plan, settings.seed, say)
    return _finish(settings, network.eval(), base, spec, check_frames, fit, check, say)


def _loss_on(network: Network, rows: FitSet, frames: Frames, index: list[int]) -> float:
    """The heads' loss on some rows."""
    network.eval()
    chosen = [rows.rows[i] for i in index]
    part = Frames([frames.framed[i] for i in index], frames.pad_id)
    with torch.inference_mode():
        pooled = embed(network.encoder, part)
        _, domain, members, task = network.heads.parts(pooled, part.surface())
        return float(multitask(domain, members.mean(-1), task, Targets.of(chosen), Weights()))


def file_digest(network: Network) -> str:
    """A digest of the encoder's weights."""
    digest = hashlib.sha256()
    for tensor in network.encoder.state_dict().values():
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def read_corpus(settings: Settings, say: Say) -> Corpus:
    """Read, apply the rules and cap the sources of short commands."""
    rows, missing = read_all(settings.data, settings.track)
    if settings.handwritten is not None:
        rows.extend(read_handwritten(settings.handwritten))
    for name in missing:
        say(f"not there, skipped: {name}")
    readable = [row for row in rows if language_of(row.text) not in FOREIGN_SCRIPTS]
    if len(readable) < len(rows):
        say(f"left out of {len(rows) - len(readable)} rows: in a script the vocabulary does not know")
    corpus = assemble(_capped(readable, settings.seed))
    say(f"{len(corpus.fit)} rows to fit, {len(corpus.calibrate)} to calibrate, {len(corpus.dev)} to report on")
    for reason, count in sorted(corpus.dropped.items()):
        say(f"left out of {count} rows: {reason}")
    return corpus


def _capped(rows: list[Example], seed: int) -> list[Example]:
    """At most `SOURCE_ROWS_MAX` rows of each capped source; the order of rows is kept."""
    rng = random.Random(seed)
    left: set[int] = set()
    for name in CAPPED_SOURCES:
        own = [i for i, row in enumerate(rows) if row.source == name and row.part is not Part.DEV]
        left.update(rng.sample(own, max(0, len(own) - SOURCE_ROWS_MAX)))
    return [row for i, row in enumerate(rows) if i not in left]


def _framing(base: Base, work: Path) -> tuple[EncoderSpec, Framer]:
    """The tokenizer with its own padding and truncation switched off, and how text is framed."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(base.tokenizer.decode())
    tokenizer.no_padding()
    tokenizer.no_truncation()
    file = work / "tokenizer.json"
    tokenizer.save(str(file))
    ids = {name: tokenizer.token_to_id(token) for name, token in _SPECIAL.items()}
    spec = EncoderSpec(
        base=base.name, base_sha256=base.sha256, dimensions=EncoderConfig().dimensions, window=WINDOW, **ids
    )
    return spec, Framer(file, spec)


_SPECIAL = {"cls_id": "[CLS]", "sep_id": "[SEP]", "pad_id": "[PAD]", "unk_id": "[UNK]"}


def _frames(rows: FitSet, framer: Framer, spec: EncoderSpec) -> Frames:
    return Frames.of([row.text for row in rows], framer, spec.pad_id)


def _finish(
    settings: Settings,
    network: Network,
    base: Base,
    spec: EncoderSpec,
    check_frames: Frames,
    fit: States,
    check: States,
    say: Say,
) -> Manifest:
    heads = network.heads
    with torch.inference_mode():
        embedding, domain, difficulty, task = heads(check.pooled, check.surface)
        fit_embedding = F.normalize(fit.pooled, dim=-1)
    targets = check.targets
    platt = calibrate.platt(difficulty, targets.difficulty, targets.weight)
    centroids = calibrate.spherical_kmeans(fit_embedding, CENTROIDS, settings.seed)
    manifest = Manifest(
        format=FORMAT,
        name=settings.name,
        version=settings.version,
        description="Domain, task and difficulty of a prompt, from one pass of a small English encoder.",
        encoder=spec,
        graphs={"cpu": export.CPU_GRAPH, "cuda": export.CUDA_GRAPH},
        surface=SURFACE_NAMES,
        domain=LabelHead(labels=DOMAINS, temperature=calibrate.temperature(domain, targets.domain)),
        task=LabelHead(labels=TASKS, temperature=calibrate.temperature(task, targets.task)),
        difficulty=DifficultyHead(
            scale=platt.scale,
            shift=platt.shift,
            quantiles=tuple(calibrate.quantiles(platt(difficulty))),
        ),
        unknown=UnknownSpec(
            centroids="centroids.npy",
            threshold=calibrate.unknown_threshold(embedding, centroids),
            unk_share_max=UNK_SHARE_MAX,
        ),
        files={},
    )
    _export(settings, network, manifest, base, centroids, check_frames, say)
    return manifest


def _export(
    settings: Settings,
    network: Network,
    manifest: Manifest,
    base: Base,
    centroids: Tensor,
    frames: Frames,
    say: Say,
) -> None:
    fp32 = settings.work / "model.fp32.onnx"
    export.write_fp32(network, fp32)
    step = max(1, len(frames) // PARITY_ROWS)
    index = list(range(0, len(frames), step))
    say(f"fp32 graph against torch: {_worst(export.check_parity(network, fp32, frames, index))}")
    reference = export.run_graph(fp32, frames, index)
    files: dict[str, Path | bytes] = {"tokenizer.json": settings.work / "tokenizer.json"}
    for name, write in ((export.CPU_GRAPH, export.write_int8), (export.CUDA_GRAPH, export.write_fp16)):
        write(fp32, settings.work / name)
        files[name] = settings.work / name
        found = export.largest_difference(reference, export.run_graph(settings.work / name, frames, index))
        say(f"{name} against fp32: {_worst(found)}")
    np.save(settings.work / "centroids.npy", centroids.numpy().astype(np.float32))
    files["centroids.npy"] = settings.work / "centroids.npy"
    export.publish(manifest, files, settings.out)
    say(f"published {settings.out}")


def _worst(found: dict[str, float]) -> str:
    return json.dumps({name: round(value, 6) for name, value in found.items()})
