"""One training run: declared data to a published bundle."""

from __future__ import annotations

import hashlib
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from semroute_extproc.encoder.manifest import EncoderSpec, Manifest
from semroute_extproc.encoder.preprocess import Framer
from semroute_extproc.errors import DataError
from semroute_extproc.request.language import language_of
from semroute_extproc.request.text import SURFACE_NAMES
from semroute_lab.train.bert import EncoderConfig, from_checkpoint
from semroute_lab.train.bundling import FP32_GRAPH, Names, Trained, make_manifest, write
from semroute_lab.train.datasets import DOMAINS, TASKS, Corpus, Example, FitSet, Part, Track, assemble
from semroute_lab.train.experts import (
    RECALL_ROWS_MAX,
    TABLE_SOURCES,
    add_table,
    calibrate_experts,
    fit_recall,
)
from semroute_lab.train.fit import HeadPlan, States, embed, fit_heads, set_surface
from semroute_lab.train.frames import Frames
from semroute_lab.train.logs import read_logs
from semroute_lab.train.losses import Targets, Weights, multitask
from semroute_lab.train.memory import add_memory
from semroute_lab.train.model import Heads, Network
from semroute_lab.train.report import training_facts, write_card
from semroute_lab.train.sources import read_all, read_handwritten
from semroute_lab.train.tune import TunePlan, fine_tune
from semroute_lab.train.weights import Base, obtain

WINDOW = 128
"""Most ids of one input; longer text keeps head and tail."""

TUNE_WINDOW = 96
"""Most ids of one input while the encoder is fine-tuned: long questions say their domain early and late."""

FOREIGN_SCRIPTS = frozenset({"zh", "ja", "ko", "ru", "ar", "hi", "th", "el", "he"})
"""Languages whose script the encoder's vocabulary reduces to unknown tokens."""

SOURCE_ROWS_MAX = 3_000
"""Rows of a capped source; more of the same adds time and nothing else."""

CAPPED_SOURCES = frozenset(
    {"clinc150", "banking77", "hwu64", "snips", "stackoverflow20", "big_math", "gsm8k_train"}
)

QUOTA = {
    "big_math": 1_000,
    "gsm8k_train": 600,
    "clinc150": 2_000,
    "banking77": 600,
    "hwu64": 600,
    "snips": 400,
    "stackoverflow20": 500,
    "arena_hard": 300,
    "humaneval": 80,
}
"""Rows of a source drawn per epoch of fine-tuning; every row of the others."""

OPTIONS_MOST = 4.0
"""Options that count on the zero track. MMLU-Pro, the only exam there, has ten, and a gate that is not told
otherwise takes other exams, which have four, for everyday requests."""

CHECK_ROWS_MAX = 1_500
"""Calibration rows that the choice of the epoch looks at."""

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Settings:
    """What a run is asked for."""

    data: Path | None
    """Folder of the declared data sets; None trains on `handwritten` and `logs` alone."""
    out: Path
    work: Path
    base: Path | None = None
    handwritten: Path | None = None
    logs: Path | None = None
    """A user's own outcomes (see `logs`); they replace the exam questions in the cluster table."""
    weak: str = ""
    strong: str = ""
    """The models of the pair in the logs."""
    track: Track = Track.GOLD
    beside: tuple[Path, ...] = ()
    """`evaluation.json` of runs on other tracks, whose figures the card states as well."""
    names: Names = field(
        default_factory=lambda: Names(
            "semroute-minilm",
            "1",
            "Domain, task and difficulty of an English prompt, from one small encoder.",
        )
    )
    seed: int = 1
    threads: int = 2
    heads: HeadPlan = field(default_factory=HeadPlan)
    tune: TunePlan = field(default_factory=lambda: TunePlan(quota=QUOTA))


def train(settings: Settings, say: Say) -> Manifest:
    """Run the recipe; raises DataError before any fitting if the data cannot be used."""
    # CPU time: the same whatever else the machine does meanwhile.
    started = time.process_time()
    torch.set_num_threads(settings.threads)
    torch.manual_seed(settings.seed)
    settings.work.mkdir(parents=True, exist_ok=True)
    corpus = read_corpus(settings, say)
    base = obtain(settings.base, settings.work)
    spec, framer = framing(base, settings.work)
    frames, check_frames = (_frames(rows, framer, spec) for rows in (corpus.fit, corpus.calibrate))
    network = new_network(base, frames, settings.track)
    if settings.tune.epochs:
        before = time.process_time()
        tuned, seconds = _tuned(settings, network, corpus, spec, check_frames, say)
        # A run that was interrupted has spent more than this sitting shows.
        started -= max(0.0, seconds - (time.process_time() - before))
        # The heads start anew on the finished encoder, with every row and the whole window.
        network = new_network(base, frames, settings.track)
        network.encoder.load_state_dict(tuned.encoder.state_dict())
    say(f"embedding {len(frames)} + {len(check_frames)} rows")
    key = digest_of(network)
    fit, check = (
        States.of(rows, embed(network.encoder, own, settings.work, key), own)
        for rows, own in ((corpus.fit, frames), (corpus.calibrate, check_frames))
    )
    fit_heads(network.heads, fit, check, Weights(), settings.heads, settings.seed, say)
    _recall(settings, network, base, corpus, frames, fit, say)
    both = States.joined(fit, check)
    source = "logs" if settings.logs else TABLE_SOURCES[settings.track]
    add_table(network.heads, [*corpus.fit, *corpus.calibrate], both, source, settings.seed, say)
    calibrate_experts(network.heads, corpus.calibrate.rows, check, say)
    with torch.inference_mode():
        known, asked = (network.heads.parts(part.pooled, part.surface) for part in (fit, check))
    add_memory(network.heads, corpus.fit.rows, known, asked, check.targets.domain, settings.seed, say)
    trained = Trained(network.eval(), spec, corpus, fit, check, check_frames)
    manifest, centroids = make_manifest(trained, settings.names, settings.seed)
    write(trained, manifest, centroids, settings.out, settings.work, say)
    minutes = (time.process_time() - started) / 60
    facts = training_facts(
        corpus, manifest, settings.track, settings.seed, settings.tune.epochs, minutes, settings.threads
    )
    fp32 = settings.work / FP32_GRAPH
    write_card(
        settings.out, fp32, settings.data, settings.handwritten, facts, settings.work, say, settings.beside
    )
    return manifest


def _recall(
    settings: Settings, network: Network, base: Base, corpus: Corpus, frames: Frames, fit: States, say: Say
) -> None:
    """Teach the heads to recall the base embedding, on exam questions and on everything else."""
    rows = corpus.fit.rows
    rng = random.Random(settings.seed)
    exams = [i for i, row in enumerate(rows) if row.source in TABLE_SOURCES.values()]
    index = rng.sample(exams, min(len(exams), RECALL_ROWS_MAX // 2))
    others = sorted(set(range(len(rows))) - set(index))
    index += rng.sample(others, min(len(others), RECALL_ROWS_MAX - len(index)))
    part = Frames([frames.framed[i] for i in index], frames.pad_id)
    encoder = from_checkpoint(base.tensors(), EncoderConfig(), dropout=0.0)
    fit_recall(network.heads, fit.pooled[index], embed(encoder, part, settings.work, base.sha256), say)


def read_corpus(settings: Settings, say: Say) -> Corpus:
    """Read, apply the rules and cap the sources that hold more of the same."""
    rows, missing = read_all(settings.data, settings.track) if settings.data else ([], [])
    if settings.handwritten is not None:
        rows.extend(read_handwritten(settings.handwritten))
    if settings.logs is not None:
        rows.extend(read_logs(settings.logs, settings.weak, settings.strong))
    _need_labels(rows)
    for name in missing:
        say(f"not there, skipped: {name}")
    readable = [row for row in rows if language_of(row.text) not in FOREIGN_SCRIPTS]
    if len(readable) < len(rows):
        say(f"left out of {len(rows) - len(readable)} rows: in a script the vocabulary does not know")
    corpus = assemble(_capped(readable, settings.seed))
    say(
        f"{len(corpus.fit)} rows to fit, {len(corpus.calibrate)} to calibrate, {len(corpus.dev)} to report on"
    )
    for reason, count in sorted(corpus.dropped.items()):
        say(f"left out of {count} rows: {reason}")
    return corpus


def _need_labels(rows: list[Example]) -> None:
    """A bundle names domains and tasks: refuse rows of which none says any."""
    for target in ("domain", "task"):
        if all(getattr(row, target) is None for row in rows):
            raise DataError(
                f"no row has a {target}: give --data or --handwritten (the folder `datasets` of this project)"
            )


def _capped(rows: list[Example], seed: int) -> list[Example]:
    """At most `SOURCE_ROWS_MAX` rows of each capped source; the order of rows is kept."""
    rng = random.Random(seed)
    left: set[int] = set()
    for name in sorted(CAPPED_SOURCES):
        own = [i for i, row in enumerate(rows) if row.source == name and row.part is not Part.DEV]
        left.update(rng.sample(own, max(0, len(own) - SOURCE_ROWS_MAX)))
    return [row for i, row in enumerate(rows) if i not in left]


_SPECIAL = {"cls_id": "[CLS]", "sep_id": "[SEP]", "pad_id": "[PAD]", "unk_id": "[UNK]"}


def framing(base: Base, work: Path) -> tuple[EncoderSpec, Framer]:
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


def _frames(rows: FitSet, framer: Framer, spec: EncoderSpec) -> Frames:
    return Frames.of([row.text for row in rows], framer, spec.pad_id)


def new_network(base: Base, frames: Frames, track: Track) -> Network:
    """The base encoder with fresh heads that know the fit rows' surface features."""
    encoder = from_checkpoint(base.tensors(), EncoderConfig(), dropout=0.0)
    heads = Heads(encoder.config.dimensions, len(SURFACE_NAMES), len(DOMAINS), len(TASKS))
    if track is Track.ZERO:
        heads.surface_most = torch.full((len(SURFACE_NAMES),), torch.inf)
        heads.surface_most[SURFACE_NAMES.index("options")] = OPTIONS_MOST
    set_surface(heads, frames.surface())
    return Network(encoder, heads)


def _tuned(
    settings: Settings, network: Network, corpus: Corpus, spec: EncoderSpec, check: Frames, say: Say
) -> tuple[Network, float]:
    """The network fine-tuned, and the CPU seconds that took.

    The state in the work folder belongs to these very rows and settings.
    """
    shorter = Framer(settings.work / "tokenizer.json", spec.model_copy(update={"window": TUNE_WINDOW}))
    frames = _frames(corpus.fit, shorter, spec)
    index = list(range(0, len(check), max(1, len(check) // CHECK_ROWS_MAX)))
    # However the folder was spelt.
    rows = [replace(row, place="") for row in corpus.fit.rows]
    asked = repr((settings.tune, settings.seed, rows))
    file = settings.work / f"tune-{hashlib.sha256(asked.encode()).hexdigest()[:16]}.pt"
    return fine_tune(
        network,
        corpus.fit,
        frames,
        lambda now: _loss_on(now, corpus.calibrate, check, index),
        settings.tune,
        settings.seed,
        file,
        say,
    )


def _loss_on(network: Network, rows: FitSet, frames: Frames, index: list[int]) -> float:
    """The heads' loss on some rows."""
    network.eval()
    part = Frames([frames.framed[i] for i in index], frames.pad_id)
    with torch.inference_mode():
        out = network.heads.parts(embed(network.encoder, part), part.surface())
        return float(multitask(out, Targets.of([rows.rows[i] for i in index]), Weights()))


def digest_of(network: Network) -> str:
    """A digest of the encoder's weights."""
    digest = hashlib.sha256()
    for tensor in network.encoder.state_dict().values():
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()
