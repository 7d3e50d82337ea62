"""One training run: declared data to a published bundle."""

from __future__ import annotations

import hashlib
import random
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tokenizers import Tokenizer
from torch import Tensor

from semroute_extproc.encoder.bundle import load
from semroute_extproc.encoder.manifest import EncoderSpec, Manifest
from semroute_extproc.encoder.preprocess import Framer
from semroute_extproc.errors import DataError
from semroute_extproc.request.language import language_of
from semroute_extproc.request.text import SURFACE_NAMES
from semroute_lab.train import bert, graphs, use
from semroute_lab.train.augment import DECLARED as AUGMENT
from semroute_lab.train.augment import Augment
from semroute_lab.train.bundling import make_manifest, write
from semroute_lab.train.card import training_facts, write_card
from semroute_lab.train.datasets import DOMAINS, TASKS, Corpus, Example, Part, assemble
from semroute_lab.train.fill import add_memory, add_table, fit_recall
from semroute_lab.train.fit import States, Targets, embed, fine_tune, fit_heads, multitask
from semroute_lab.train.frames import Frames
from semroute_lab.train.kept import Kept
from semroute_lab.train.logs import LogsPlan, read_logs
from semroute_lab.train.model import Heads, Network
from semroute_lab.train.sources import SOURCES, read_all, read_handwritten
from semroute_lab.train.spec import BundleSpec, Checkpoint, Say, obtain, read_spec


@dataclass(frozen=True, slots=True)
class Settings:
    """The request for a run."""

    data: Path | None  # Folder of the declared data sets; None trains on `handwritten` and `logs` alone
    out: Path
    work: Path
    base: Path | None = None
    keep: Path | None = None  # A bundle whose encoder is kept: only the heads are fitted
    handwritten: Path | None = None
    logs: LogsPlan | None = None  # A user's own outcomes, for the cluster table
    spec: BundleSpec = field(default_factory=read_spec)
    seed: int = 1
    threads: int = 2


def train(settings: Settings, say: Say) -> Manifest:
    """Run the recipe; raises DataError before any fitting if the data cannot be used."""
    # CPU time hardly depends on the machine's other work.
    started = time.process_time()
    torch.set_num_threads(settings.threads)
    torch.manual_seed(settings.seed)
    settings.work.mkdir(parents=True, exist_ok=True)
    spec, seed, work = settings.spec, settings.seed, settings.work
    corpus, labels = read_corpus(settings, say)
    # A changed copy of each row: what surrounds a question must not decide.
    augment = Augment([row.text for row in corpus.fit], random.Random(seed))
    rows = [*corpus.fit, *(augment(row) for row in corpus.fit)]
    rows = list({(row.source, row.text): row for row in rows}.values())
    index = _recall_rows(rows, spec.fill.recall_rows, seed)
    if settings.keep is not None:
        read = _kept(settings, settings.keep, rows, index, corpus, say)
    else:
        read = _encoded(settings, rows, index, corpus, say)
    heads = read.heads
    started -= read.seconds
    fit = States.of(rows, read.states, read.frames)
    check = States.of(corpus.calibrate, read.checked, read.check_frames)
    fit_recall(heads, fit.pooled[index], read.base, spec.fill, say)
    fit_heads(heads, fit, check, spec.loss, spec.heads, seed, say)
    add_table(heads, rows, fit, spec.fill, seed, say)
    with torch.inference_mode():
        stored, tried = (heads.parts(part.pooled, part.surface) for part in (fit, check))
    add_memory(heads, rows, stored, tried, check.targets.domain, spec.fill, seed, say)
    manifest, centroids = make_manifest(spec, read.framing, heads, rows, corpus.calibrate, fit, check, seed)
    write(read.network, heads.eval(), manifest, centroids, read.check_frames, settings.out, work, say)
    minutes = (time.process_time() - started) / 60
    epochs = None if settings.keep is not None else spec.tune.epochs
    facts = {"seed": seed, "epochs": epochs, "minutes": minutes, "threads": settings.threads}
    facts |= training_facts(corpus, manifest) | {"labels": labels, "traffic": spec.traffic}
    write_card(settings.out, work / graphs.FP32_GRAPH, settings.data, settings.handwritten, facts, work, say)
    return manifest


class Read(NamedTuple):
    """The encoder, and what it makes of the rows."""

    network: Network | Kept
    heads: Heads  # Fresh
    framing: EncoderSpec
    frames: Frames
    check_frames: Frames
    states: Tensor  # [rows, d]
    checked: Tensor  # Of the calibration rows
    base: Tensor  # The base encoder's states of the rows that recall is fitted on
    seconds: float = 0.0  # CPU time of an earlier, interrupted run


def _kept(
    settings: Settings, keep: Path, rows: Sequence[Example], index: list[int], corpus: Corpus, say: Say
) -> Read:
    """Read the rows with the encoder of a published bundle."""
    kept = Kept(load(keep), settings.threads)
    framing = kept.bundle.manifest.encoder
    shutil.copyfile(keep / "tokenizer.json", settings.work / "tokenizer.json")
    frames, check = (_frames(part, framing, settings.work) for part in (rows, corpus.calibrate))
    say(f"embedding {len(frames)} + {len(check)} rows")
    (states, base), (checked, _) = (kept.read(part, settings.work) for part in (frames, check))
    heads = new_heads(framing.dimensions, frames, settings.seed)
    return Read(kept, heads, framing, frames, check, states, checked, base[index])


def _encoded(settings: Settings, rows: Sequence[Example], index: list[int], corpus: Corpus, say: Say) -> Read:
    """Fine-tune the base encoder, and read the rows with it."""
    spec, work = settings.spec, settings.work
    checkpoint = obtain(spec.base, settings.base, work)
    framing, mask_id = write_tokenizer(spec, checkpoint, work)
    frames, check = (_frames(part, framing, work) for part in (rows, corpus.calibrate))
    network = Network(base_encoder(checkpoint, spec), new_heads(framing.dimensions, frames, settings.seed))
    earlier = 0.0
    if spec.tune.epochs:
        before = time.process_time()
        network, seconds = _tuned(settings, network, corpus, framing, check, mask_id, say)
        earlier = max(0.0, seconds - (time.process_time() - before))
    say(f"embedding {len(frames)} + {len(check)} rows")
    states, checked = (embed(network.encoder, part, work) for part in (frames, check))
    base = embed(base_encoder(checkpoint, spec), frames.take(index), work)
    # The heads start again on the finished encoder, with every row and the whole window.
    heads = network.heads = new_heads(framing.dimensions, frames, settings.seed)
    return Read(network, heads, framing, frames, check, states, checked, base, earlier)


def _frames(rows: Sequence[Example], framing: EncoderSpec, work: Path) -> Frames:
    return Frames.of([row.text for row in rows], Framer(work / "tokenizer.json", framing), framing.pad_id)


def _recall_rows(rows: Sequence[Example], most: int, seed: int) -> list[int]:
    """Rows on which the heads learn to recall the base embedding: half exam questions, half all others."""
    rng = random.Random(seed)
    exams = [i for i, row in enumerate(rows) if row.kind == "exam"]
    index = rng.sample(exams, min(len(exams), most // 2))
    others = sorted(set(range(len(rows))) - set(index))
    return index + rng.sample(others, min(len(others), most - len(index)))


def read_corpus(settings: Settings, say: Say) -> tuple[Corpus, dict[str, Any]]:
    """Read, apply the rules and cap the large sources; also the facts about the logs' labels."""
    rows, missing = read_all(settings.data) if settings.data else ([], [])
    labels: dict[str, Any] = {}
    if settings.handwritten is not None:
        rows.extend(read_handwritten(settings.handwritten))
    if settings.logs is not None:
        own, labels = read_logs(settings.logs)
        rows.extend(own)
        say(f"labels of the logs: {', '.join(f'{name} {value}' for name, value in labels.items())}")
    # A bundle names domains and tasks.
    for target in ("domain", "task"):
        if all(getattr(row, target) is None for row in rows):
            folder = "the folder `datasets` of this project"
            raise DataError(f"no row has a {target}: give --data or --handwritten ({folder})")
    for name in missing:
        say(f"not there, skipped: {name}")
    english = random.Random(settings.seed)
    readable = [row for row in rows if _readable(row, settings.spec, english)]
    if len(readable) < len(rows):
        say(f"left out {len(rows) - len(readable)} rows: in languages of another bundle")
    # At most `rows_max` rows of each source that has a cap; the order of rows is kept.
    rng, left = random.Random(settings.seed), set[int]()
    for source in sorted(SOURCES, key=lambda source: source.name):
        if source.rows_max is not None:
            places = [i for i, r in enumerate(readable) if r.source == source.name and r.part is not Part.DEV]
            left.update(rng.sample(places, max(0, len(places) - source.rows_max)))
    corpus = assemble(row for i, row in enumerate(readable) if i not in left)
    sizes = (len(corpus.fit), len(corpus.calibrate), len(corpus.dev))
    say("{} rows to fit, {} to calibrate, {} to report on".format(*sizes))
    for reason, count in sorted(corpus.dropped.items()):
        say(f"left out of {count} rows: {reason}")
    return corpus, labels


def _readable(row: Example, spec: BundleSpec, rng: random.Random) -> bool:
    """Whether the row is in a language of the bundle; of English, perhaps only a share."""
    language = language_of(row.text)
    if language == "en" and row.part is not Part.DEV and rng.random() >= spec.english_share:
        return False
    return language in spec.languages


def write_tokenizer(spec: BundleSpec, checkpoint: Checkpoint, work: Path) -> tuple[EncoderSpec, int]:
    """Write the tokenizer without its own padding and truncation; how text is framed, and [MASK]'s id."""
    base = spec.base
    if base.architecture == "use":
        tokenizer = use.tokenizer(checkpoint)
    else:
        tokenizer = Tokenizer.from_str(checkpoint.tokenizer.decode())
        tokenizer.no_padding()
        tokenizer.no_truncation()
    tokenizer.save(str(work / "tokenizer.json"))
    ids = {f"{name}_id": tokenizer.token_to_id(getattr(base, name)) for name in ("cls", "sep", "pad", "unk")}
    origin = {"base": base.name, "base_sha256": base.sha256, "dimensions": base.dimensions}
    found = EncoderSpec(**origin, window=spec.window, **ids)
    return found, tokenizer.token_to_id(base.mask) or 0


def base_encoder(checkpoint: Checkpoint, spec: BundleSpec) -> torch.nn.Module:
    """The encoder with the checkpoint's weights."""
    if spec.base.architecture == "use":
        return use.from_checkpoint(checkpoint)
    return bert.from_checkpoint(checkpoint.weights, spec.base)


def new_heads(dimensions: int, frames: Frames, seed: int) -> Heads:
    """Fresh heads that know the fit rows' surface features; the same in a run that was resumed."""
    torch.manual_seed(seed)
    heads = Heads(dimensions, len(SURFACE_NAMES), len(DOMAINS), len(TASKS))
    surface = frames.surface()
    heads.surface_mean.copy_(surface.mean(0))
    heads.surface_scale.copy_(surface.std(0).clamp(min=1e-3))
    return heads


def _tuned(
    settings: Settings,
    network: Network,
    corpus: Corpus,
    framed: EncoderSpec,
    check: Frames,
    mask: int,
    say: Say,
) -> tuple[Network, float]:
    """The network fine-tuned, and the CPU seconds; the state in the work folder is keyed by rows and plan."""
    spec = settings.spec
    index = check.spread(spec.tune.check_rows)
    part, targets = check.take(index), Targets.of([corpus.calibrate[i] for i in index])

    def loss(now: Network) -> float:
        now.eval()
        with torch.inference_mode():
            out = now.heads.parts(embed(now.encoder, part), part.surface())
            return float(multitask(out, targets, spec.loss))

    # Places are left out, since one folder can be written in several ways, and kinds, which train nothing.
    rows = [replace(row, place="", kind="") for row in corpus.fit]
    plan = (spec.base, spec.tune, spec.tune_window, spec.loss, settings.seed, rows, AUGMENT.read_bytes())
    key = hashlib.sha256(repr(plan).encode()).hexdigest()[:16]
    shorter = framed.model_copy(update={"window": spec.tune_window})
    framer = Framer(settings.work / "tokenizer.json", shorter)
    files = (settings.seed, settings.work / f"tune-{key}.pt", say)
    return fine_tune(network, corpus.fit, framer, framed.pad_id, mask, loss, spec.tune, spec.loss, *files)
