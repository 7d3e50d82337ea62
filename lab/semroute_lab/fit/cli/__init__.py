"""`semroute fit` and `semroute calibrate`."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import click
import numpy as np
from rich.console import Console
from rich.progress import Progress, track

from semroute_extproc.encoder.offline import Scorer
from semroute_extproc.encoder.signals import Signals
from semroute_extproc.errors import BundleError, ConfigError, DataError, SemrouteError
from semroute_extproc.strategies.artifact import write_artifact
from semroute_lab.evaluate import metrics
from semroute_lab.evaluate.metrics.arrays import Floats
from semroute_lab.fit import clusters as clusters_fit
from semroute_lab.fit import factorization as factorization_fit
from semroute_lab.fit import outcomes as data
from semroute_lab.fit import similarity as similarity_fit

EXIT_CONFIG = 78
"""EX_CONFIG of sysexits.h, as for every other command."""

ROWS_PER_CLUSTER = 10
"""Fewer prompts than this in a cluster say nothing of a model."""

Command = TypeVar("Command", bound=Callable[..., Any])

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_DIRECTORY = click.Path(file_okay=False, path_type=Path)
_OUT = click.Path(dir_okay=False, path_type=Path)


class _Unusable(click.ClickException):
    exit_code = EXIT_CONFIG


def fails_clearly(command: Callable[..., None]) -> Callable[..., None]:
    """Errors as one line: exit status 78 for a bundle that cannot be used, 1 for files."""

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except SemrouteError as error:
            unusable = isinstance(error, BundleError | ConfigError)
            raise (_Unusable if unusable else click.ClickException)(str(error)) from error

    return run


def open_scorer(bundle: Path | None) -> Scorer:
    """The shipped bundles, or the given one for every language."""
    return Scorer.of(bundle)


def progress(signals: Iterable[Signals], total: int) -> Iterable[Signals]:
    """Show on a terminal how many texts were read."""
    console = Console(stderr=True)
    hidden = not console.is_terminal
    return track(signals, "reading", total=total, console=console, transient=True, disable=hidden)


@contextmanager
def counter(what: str, total: int) -> Iterator[Callable[[], None]]:
    """Show on a terminal how much of `total` was done."""
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=total)
        yield lambda: bar.advance(task)


@click.group("fit")
def fit() -> None:
    """Fit an artifact for a strategy, from prompts whose outcomes are known.

    FILE has a text column and strong_correct, weak_correct (0..1); or, with --outcomes, an id that the
    outcomes have too, beside one column for each model. What is written carries the bundle's revision:
    another bundle needs another fit.
    """


def _common(command: Command) -> Command:
    options = [
        click.argument("file", type=_FILE),
        click.option("--out", "-o", type=_OUT, required=True, help="The artifact to write, NAME.npz."),
        click.option("--outcomes", type=_FILE, help="Outcomes: an id, and a column for each model."),
        click.option("--bundle", type=_DIRECTORY, help="Bundle to embed with; by default the shipped ones."),
        click.option("--split", "splits", multiple=True, help="Use the rows of this split; may be repeated."),
        click.option("--text-column", help="Column of the prompts; by default prompt, text, question …"),
        click.option("--options-column", help="Column with a JSON list of options to append to the text."),
        click.option("--licence", default="", help="Note on the data's licence, kept in the artifact."),
        click.option("--seed", type=click.IntRange(0), default=0, show_default=True),
        click.option("--json", "as_json", is_flag=True, help="The summary as one JSON object."),
    ]
    return functools.reduce(lambda wrapped, option: option(wrapped), reversed(options), command)


@fit.command()
@_common
@click.option("--strong", help="With --outcomes: column of the strong model.")
@click.option("--weak", help="With --outcomes: column of the weak model.")
@click.option(
    "--gamma",
    type=click.FloatRange(1.0),
    default=similarity_fit.GAMMA,
    show_default=True,
    help="Base of the weights.",
)
@click.option(
    "--neighbours",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="Only so many of the most similar prompts count; 0 for all.",
)
@click.option(
    "--axes",
    type=click.IntRange(1),
    help=f"Principal axes to store prompts on; default: all, above {similarity_fit.WHOLE_MAX} prompts "
    f"{similarity_fit.AXES}.",
)
@fails_clearly
def similarity(
    strong: str | None, weak: str | None, gamma: float, neighbours: int, axes: int | None, **common: Any
) -> None:
    """Labelled prompts for the strategy `similarity`."""
    rows, x, scorer = _read(**common)
    names = _pair(rows, strong, weak)
    manifest = data.manifest("similarity", scorer, rows, x, common["seed"], common["licence"])
    artifact, held = similarity_fit.fit(
        x, rows.win(*names), rows.folds(common["seed"]), manifest, gamma, neighbours, axes
    )
    write_artifact(common["out"], artifact)
    _finish(common, manifest, _held_out(rows, names, held))


@fit.command()
@_common
@click.option("--rank", type=click.IntRange(1, 512), default=factorization_fit.RANK, show_default=True)
@fails_clearly
def factorization(rank: int, **common: Any) -> None:
    """Vectors of models for the strategy `factorization`; with --outcomes, of any number."""
    rows, x, scorer = _read(**common)
    manifest = data.manifest("factorization", scorer, rows, x, common["seed"], common["licence"])
    artifact, held = factorization_fit.fit(
        x, rows.outcome, rows.models, rows.folds(common["seed"]), manifest, rank
    )
    write_artifact(common["out"], artifact)
    names = (rows.models[0], rows.models[1])
    _finish(
        common, manifest, {"models": list(rows.models), **_held_out(rows, names, held[:, 0] - held[:, 1])}
    )


@fit.command()
@_common
@click.option("--clusters", "k", type=click.IntRange(1), default=clusters_fit.CLUSTERS, show_default=True)
@click.option(
    "--clusterings",
    type=click.IntRange(1, 64),
    default=clusters_fit.CLUSTERINGS,
    show_default=True,
    help="K-means runs whose estimates are averaged.",
)
@click.option("--learned-map", is_flag=True, help="Learn a soft map from the outcomes instead of K-means.")
@fails_clearly
def clusters(k: int, clusterings: int, learned_map: bool, **common: Any) -> None:
    """Clusters of prompts for the strategy `clusters`; profiles of models are made on them."""
    rows, x, scorer = _read(**common)
    k = max(1, min(k, len(x) // ROWS_PER_CLUSTER))
    manifest = data.manifest("clusters", scorer, rows, x, common["seed"], common["licence"])
    if learned_map:
        artifact = clusters_fit.fit_learned_map(x, 1.0 - rows.outcome, manifest, rows.texts, k)
    else:
        artifact = clusters_fit.fit_kmeans(x, manifest, rows.texts, k, clusterings)
    write_artifact(common["out"], artifact)
    share = artifact.membership(x).sum(axis=0) * artifact.clusterings
    names = {
        f"{number}: {name}": round(float(rows_in), 1)
        for number, (name, rows_in) in enumerate(zip(artifact.names, share, strict=True))
    }
    _finish(common, manifest, {"digest": artifact.digest, "clusters": names})


def _read(
    file: Path,
    out: Path,
    outcomes: Path | None,
    bundle: Path | None,
    splits: tuple[str, ...],
    text_column: str | None,
    options_column: str | None,
    **_: Any,
) -> tuple[data.Outcomes, data.Vectors, Scorer]:
    if not out.absolute().parent.is_dir():
        raise click.UsageError(f"--out {out}: there is no such directory")
    rows = data.read(file, outcomes, splits, text_column, options_column)
    scorer = open_scorer(bundle)
    kept, x = data.embed(scorer, rows, progress)
    if len(set(kept.texts)) < 2:
        raise DataError(f"{file}:1:: expected different prompts, found the same one in every row")
    return kept, x, scorer


def _pair(rows: data.Outcomes, strong: str | None, weak: str | None) -> tuple[str, str]:
    """The names of the two models to compare."""
    if rows.models == data.PAIR and strong is None and weak is None:
        return data.PAIR
    if strong is None or weak is None:
        raise click.UsageError(f"name --strong and --weak; there are {', '.join(rows.models)}")
    for option, name in (("--strong", strong), ("--weak", weak)):
        if name not in rows.models:
            raise click.UsageError(f"{option}: no model {name!r}; there are {', '.join(rows.models)}")
    return strong, weak


def _held_out(rows: data.Outcomes, names: tuple[str, str], scores: Floats) -> dict[str, Any]:
    """How well held-out scores route: APGR by RouteLLM's code, .5 is random; null without a gap."""
    strong, weak = (rows.outcome[:, rows.models.index(name)] for name in names)
    seen = np.isfinite(scores)
    s, w = strong[seen], weak[seen]
    gap = float(s.mean() - w.mean())
    curve = metrics.decile_curve(scores[seen], s, w)
    value = metrics.apgr(curve, float(s.mean()), float(w.mean())) if gap > 0 else None
    return {"strong": float(s.mean()), "weak": float(w.mean()), "held_out_apgr": value}


def _finish(common: dict[str, Any], manifest: Any, found: dict[str, Any]) -> None:
    summary = {"artifact": str(common["out"]), **manifest.model_dump(), **found}
    if common["as_json"]:
        click.echo(json.dumps(summary, ensure_ascii=False))
        return
    of = f"{manifest.rows} prompts, bundle {manifest.bundle} {manifest.revision}"
    click.echo(f"{common['out']}: {manifest.kind}, {of}")
    if found.get("held_out_apgr") is not None:
        click.echo(f"on held-out folds: APGR {found['held_out_apgr']:.3f} (random .500)")
    for name, rows in found.get("clusters", {}).items():
        click.echo(f"  {rows:8.1f}  {name}")


@click.command()
@click.argument("file", type=_FILE)
@click.option("--bundle", type=_DIRECTORY, help="Bundle to score with; by default the shipped ones.")
@click.option(
    "--artifact", type=_FILE, help="Calibrate the score of this similarity or factorization artifact."
)
@click.option("--strong-share", type=click.FloatRange(0.0, 1.0), help="Share wanted at the strong model.")
@click.option(
    "--max-quality-drop",
    type=click.FloatRange(0.0, 1.0),
    help="Part of always-strong's quality that may be lost; needs outcomes.",
)
@click.option("--out", "-o", type=_OUT, help="Write the calibration, for `calibration:` of a strategy.")
@click.option("--split", "splits", multiple=True, help="Use the rows of this split; may be repeated.")
@click.option("--text-column", help="Column of the prompts; by default prompt, text, question …")
@click.option("--strong-column", default="strong_correct", show_default=True)
@click.option("--weak-column", default="weak_correct", show_default=True)
@click.option("--strong-model", help="Name of the strong model in a factorization artifact.")
@click.option("--weak-model", help="Name of the weak model in a factorization artifact.")
@click.option("--judge", type=_FILE, help="Calibrate the score of the judge in this configuration.")
@click.option("--strategy", help="With --judge: its strategy's name, if there are several.")
@click.option("--bootstrap", "replicates", type=click.IntRange(0, 100_000), default=1000, show_default=True)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@fails_clearly
def calibrate(as_json: bool, **options: Any) -> None:
    """Pick a threshold on your own prompts: for a wanted strong share or a bearable loss of quality.

    \b
    FILE is .csv, .jsonl (each maybe .gz) with a text column, or .txt with a prompt in each line.
    With strong_correct and weak_correct (0..1) it also says what the share costs in quality.
    """
    from semroute_lab.fit.calibrate import run

    shares = (options["strong_share"], options["max_quality_drop"])
    if (shares[0] is None) == (shares[1] is None):
        raise click.UsageError("give exactly one of --strong-share and --max-quality-drop")
    if options["judge"] is not None and options["artifact"] is not None:
        raise click.UsageError("give either --artifact or --judge")
    report = run(**options)
    if as_json:
        click.echo(json.dumps(report, ensure_ascii=False))
        return
    missing = f", {report['left_out']} left out without a score" if report["left_out"] else ""
    click.echo(
        f"{report['rows']} prompts{missing}, score {report['score']}, "
        f"bundle {report['bundle']} {report['revision']}"
    )
    click.echo(f"threshold     {report['threshold']:.4f}")
    click.echo(f"strong share  {_interval(report['realised_share'])}")
    if report["quality"] is not None:
        click.echo(f"quality       {_interval(report['quality'])}")
        click.echo(f"drop          {_interval(report['drop'])}")
    if options["out"]:
        click.echo(f"written to {options['out']}")


def _interval(figure: dict[str, float | None]) -> str:
    value = f"{figure['value']:.4f}"
    return value if figure["low"] is None else f"{value} [{figure['low']:.4f}, {figure['high']:.4f}]"
