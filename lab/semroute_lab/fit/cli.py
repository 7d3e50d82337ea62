"""`semroute fit` and `semroute calibrate`."""

import json
from pathlib import Path
from typing import Any

import click
import numpy as np

from semroute_extproc.cli.exits import exit_statuses
from semroute_extproc.serve.offline import Scorer
from semroute_extproc.strategies.artifact import ArtifactManifest
from semroute_lab.common import options
from semroute_lab.common.engine import engine
from semroute_lab.common.metrics import Floats, Vectors
from semroute_lab.common.options import EXISTING, FILE, TABLE, option, shown, stacked
from semroute_lab.common.routing import apgr, decile_curve
from semroute_lab.common.writing import write_artifact
from semroute_lab.fit import clusters as clusters_fit
from semroute_lab.fit import factorization as factorization_fit
from semroute_lab.fit import outcomes as data
from semroute_lab.fit import similarity as similarity_fit

ROWS_PER_CLUSTER = 10  # Fewer prompts in a cluster do not describe a model


@click.group("fit")
def fit() -> None:
    """Fit an artifact for a strategy, from prompts whose outcomes are known.

    FILE has a text column and the columns outcome.strong and outcome.weak (0..1). With --outcomes, FILE
    has a text column and an id, and the outcomes have the same id and one column per model. The
    artifact is valid only for this revision of the bundle.
    """


_clusterings_help = "K-means runs whose estimates are averaged."
_drop_help = "Largest fraction of the strong model's quality to lose; needs outcomes."
_common = stacked(
    click.argument("file", type=TABLE),
    option("--out", "-o", type=FILE, required=True, help="The artifact to write, NAME.npz."),
    option("--outcomes", type=TABLE, help="File of outcomes: an id, and a column per model."),
    options.bundle,
    options.split,
    options.text_column,
    options.options_column,
    option("--license", default="", help="Note on the data's license, kept in the artifact."),
    options.seed,
    engine,
    option("--json", "as_json", is_flag=True, help="Print the summary as one JSON object."),
)


@fit.command()
@_common
@option("--strong", help="With --outcomes: column of the strong model.")
@option("--weak", help="With --outcomes: column of the weak model.")
@shown("--gamma", type=click.FloatRange(1.0), default=similarity_fit.GAMMA, help="Base of the weights.")
@shown("--neighbors", type=click.IntRange(0), default=0, help="Most similar prompts to use; 0: all.")
@option("--axes", type=click.IntRange(1), help="Principal axes; default: all, or 64 above 10,000 prompts.")
@exit_statuses
def similarity(strong: str | None, weak: str | None, **common: Any) -> None:
    """Store labeled prompts for the strategy `similarity`."""
    rows, x, manifest = _read("similarity", common)
    pair = rows.pair(*_pair(rows, strong, weak))
    fold, settings = rows.folds(common["seed"]), (common[name] for name in ("gamma", "neighbors", "axes"))
    artifact, held = similarity_fit.fit(x, data.wins(*pair), fold, manifest, *settings)
    write_artifact(common["out"], artifact)
    _finish(common, manifest, _held_out(*pair, held))


@fit.command()
@_common
@shown("--rank", type=click.IntRange(1, 512), default=factorization_fit.RANK)
@exit_statuses
def factorization(rank: int, **common: Any) -> None:
    """Fit one vector per model for the strategy `factorization`; --outcomes may have any number of models."""
    rows, x, manifest = _read("factorization", common)
    fold = rows.folds(common["seed"])
    artifact, held = factorization_fit.fit(x, rows.outcome, rows.models, fold, manifest, rank)
    write_artifact(common["out"], artifact)
    apart = _held_out(*rows.pair(*rows.models[:2]), held[:, 0] - held[:, 1])
    _finish(common, manifest, {"models": list(rows.models), **apart})


@fit.command()
@_common
@shown("--clusters", "k", type=click.IntRange(1), default=clusters_fit.CLUSTERS)
@shown("--clusterings", type=click.IntRange(1, 64), default=clusters_fit.CLUSTERINGS, help=_clusterings_help)
@option("--learned-map", is_flag=True, help="Learn a soft map from the outcomes instead of K-means.")
@exit_statuses
def clusters(k: int, clusterings: int, learned_map: bool, **common: Any) -> None:
    """Cluster prompts for the strategy `clusters`. Profiles refer to these clusters."""
    rows, x, manifest = _read("clusters", common)
    k = max(1, min(k, len(x) // ROWS_PER_CLUSTER))
    if learned_map:
        artifact = clusters_fit.fit_learned_map(x, 1.0 - rows.outcome, manifest, rows.texts, k)
    else:
        artifact = clusters_fit.fit_kmeans(x, manifest, rows.texts, k, clusterings)
    write_artifact(common["out"], artifact)
    share = (artifact.membership(x).sum(axis=0) * artifact.clusterings).tolist()
    names = {f"{k}: {name}": round(share[k], 1) for k, name in enumerate(artifact.names)}
    _finish(common, manifest, {"digest": artifact.digest, "clusters": names})


def _read(kind: str, common: dict[str, Any]) -> tuple[data.Outcomes, Vectors, ArtifactManifest]:
    if not common["out"].absolute().parent.is_dir():
        raise click.UsageError(f"--out {common['out']}: there is no such directory")
    names = ("file", "outcomes", "splits", "text_column", "options_column")
    rows = data.read(*(common[name] for name in names))
    scorer = Scorer.of(common["bundle"])
    rows, x = data.embedded(scorer, rows)
    return rows, x, data.manifest(kind, scorer, rows, x, common["seed"], common["license"])


def _pair(rows: data.Outcomes, strong: str | None, weak: str | None) -> tuple[str, str]:
    """The names of the two models to compare."""
    if rows.models == data.PAIR and strong is None and weak is None:
        return data.PAIR
    there = f"there are {', '.join(rows.models)}"
    if strong is None or weak is None:
        raise click.UsageError(f"name --strong and --weak; {there}")
    for flag, name in (("--strong", strong), ("--weak", weak)):
        if name not in rows.models:
            raise click.UsageError(f"{flag}: no model {name!r}; {there}")
    return strong, weak


def _held_out(strong: Floats, weak: Floats, scores: Floats) -> dict[str, Any]:
    """How well held-out scores route: RouteLLM's APGR (.5 is random), or None without a gap."""
    seen = np.isfinite(scores)
    s, w = float(strong[seen].mean()), float(weak[seen].mean())
    curve = decile_curve(scores[seen], strong[seen], weak[seen])
    return {"strong": s, "weak": w, "held_out_apgr": apgr(curve, s, w) if s > w else None}


def _finish(common: dict[str, Any], manifest: ArtifactManifest, found: dict[str, Any]) -> None:
    if common["as_json"]:
        summary = {"artifact": str(common["out"]), **manifest.model_dump(), **found}
        click.echo(json.dumps(summary, ensure_ascii=False))
        return
    of = f"{manifest.rows} prompts, bundle {manifest.bundle} {manifest.revision}"
    click.echo(f"{common['out']}: {manifest.kind}, {of}")
    if found.get("held_out_apgr") is not None:
        click.echo(f"on held-out folds: APGR {found['held_out_apgr']:.3f} (random .500)")
    for name, rows in found.get("clusters", {}).items():
        click.echo(f"  {rows:8.1f}  {name}")


@click.command()
@click.argument("file", type=TABLE)
@options.bundle
@option("--artifact", type=EXISTING, help="Calibrate the score of this similarity or factorization artifact.")
@option("--strong-share", type=click.FloatRange(0.0, 1.0), help="Target share of the strong model.")
@option("--max-quality-drop", type=click.FloatRange(0.0, 1.0), help=_drop_help)
@option("--out", "-o", type=FILE, help="Calibration file to write; use it as a strategy's `calibration`.")
@options.split
@options.text_column
@shown("--strong-column", default="outcome.strong")
@shown("--weak-column", default="outcome.weak")
@option("--strong-model", help="Name of the strong model in a factorization artifact or a log.")
@option("--weak-model", help="Name of the weak model in a factorization artifact or a log.")
@option("--judge", type=EXISTING, help="Calibrate the score of the judge in this configuration.")
@options.judge_strategy
@options.bootstrap
@options.seed
@engine
@option("--json", "as_json", is_flag=True, help="Print the report as one JSON object.")
@exit_statuses
def calibrate(file: Path, as_json: bool, **given: Any) -> None:
    """Choose a threshold on your own prompts, for a strong share or a maximum quality drop.

    \b
    FILE is .csv or .jsonl (each optionally .gz) with a text column, or .txt with
    one prompt per line. With the columns outcome.strong and outcome.weak (0..1),
    the report also has the quality at that share.

    \b
    FILE may also be a decision log. Then the scores are those of the logged
    signals, or of the prompts without signals. A quality drop needs outcomes
    of requests whose pool a `weighted` strategy drew; see docs/logs.md.
    """
    from semroute_lab.fit.settle import calibrate as run

    if (given["strong_share"] is None) == (given["max_quality_drop"] is None):
        raise click.UsageError("give exactly one of --strong-share and --max-quality-drop")
    if given["judge"] is not None and given["artifact"] is not None:
        raise click.UsageError("give either --artifact or --judge")
    report = run(file, given)
    if as_json:
        click.echo(json.dumps(report, ensure_ascii=False))
        return
    missing = f", {report['left_out']} left out without a score" if report["left_out"] else ""
    of = f"score {report['score']}, bundle {report['bundle']} {report['revision']}"
    click.echo(f"{report['rows']} prompts{missing}, {of}")
    click.echo(f"threshold     {report['threshold']:.4f}")
    for name, label in (("realized_share", "strong share"), ("quality", "quality"), ("drop", "drop")):
        if report[name] is not None:
            click.echo(f"{label:14}{_interval(report[name])}")
    if given["out"]:
        click.echo(f"written to {given['out']}")


def _interval(figure: dict[str, float | None]) -> str:
    value = f"{figure['value']:.4f}"
    return value if figure["low"] is None else f"{value} [{figure['low']:.4f}, {figure['high']:.4f}]"
