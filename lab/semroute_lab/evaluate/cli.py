"""`semroute eval`: pair, intent, pool and robustness."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click
from rich.console import Console
from rich.progress import track

from semroute_extproc.encoder.bundle import default_bundle
from semroute_extproc.errors import BundleError, ConfigError, SemrouteError
from semroute_lab.evaluate import reports
from semroute_lab.evaluate.data import (
    LABEL_COLUMNS,
    TEXT_COLUMNS,
    Table,
    pick_column,
    prompt_texts,
    read_table,
)
from semroute_lab.evaluate.metrics.arrays import Floats
from semroute_lab.evaluate.scoring import Scores, Source, open_bundle

WIDTH = 140
"""Columns of a table that does not go to a terminal."""

BOOTSTRAP_MAX = 100_000
"""More replicates than this change no digit that is shown."""

TRIALS_MAX = 1_000
"""Most trials of the pool protocol."""

EXIT_CONFIG = 78
"""EX_CONFIG of sysexits.h, as for every other command."""

Command = TypeVar("Command", bound=Callable[..., Any])
T = TypeVar("T")

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_DIRECTORY = click.Path(file_okay=False, path_type=Path)


@click.group("eval")
def evaluate() -> None:
    """Measure a bundle: as a router, as a classifier, over a pool, and under attack."""


def _writable(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    """Refuse a place that cannot be written before the work is done, not after."""
    if value is not None and value != "-" and (Path(value).is_dir() or not Path(value).parent.is_dir()):
        raise click.BadParameter(f"{value} is not a file in an existing directory")
    return value


def _common(command: Command) -> Command:
    options = [
        click.option("--bundle", type=_DIRECTORY, help="Bundle to measure; by default the shipped one."),
        click.option(
            "--split", "splits", multiple=True, help="Evaluate the rows of this split; may be repeated."
        ),
        click.option("--text-column", help=f"Column of the texts; by default {', '.join(TEXT_COLUMNS)}."),
        click.option(
            "--json",
            "json_out",
            metavar="OUT|-",
            callback=_writable,
            help="Write the report as JSON; - is standard output.",
        ),
        click.option("--plots", type=_DIRECTORY, help="Draw the figures into this directory, PNG and SVG."),
        click.option("--seed", type=click.IntRange(0), default=0, show_default=True),
    ]
    return functools.reduce(lambda wrapped, option: option(wrapped), reversed(options), command)


_bootstrap = click.option(
    "--bootstrap",
    "replicates",
    type=click.IntRange(0, BOOTSTRAP_MAX),
    default=1000,
    show_default=True,
    help="Bootstrap replicates of the intervals; 0 leaves them out.",
)

_options_column = click.option(
    "--options-column", help="Column with a JSON list of options to append to the text."
)

_JUDGE_OPTIONS = [
    click.option(
        "--judge",
        "judge_config",
        type=_FILE,
        help="Add the judge of this configuration, which is asked about every evaluated prompt.",
    ),
    click.option("--strategy", help="With --judge: its strategy's name, if there are several."),
]


def _judge_options(command: Command) -> Command:
    return functools.reduce(lambda wrapped, option: option(wrapped), reversed(_JUDGE_OPTIONS), command)


_no_bundle = click.option("--no-bundle", is_flag=True, help="Baselines only.")


class _BadBundle(click.ClickException):
    exit_code = EXIT_CONFIG


def _fails_clearly(command: Callable[..., None]) -> Callable[..., None]:
    """Errors as one line: exit status 78 for a bundle that cannot be used, 1 for files and packages."""

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except SemrouteError as error:
            unusable = isinstance(error, BundleError | ConfigError)
            raise (_BadBundle if unusable else click.ClickException)(str(error)) from error
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] not in ("matplotlib", "sklearn", "onnxruntime"):
                raise
            message = f"{error.name} is not installed; install semroute-extproc[cpu,train]"
            raise click.ClickException(message) from error

    return run


@evaluate.command()
@click.argument("file", type=_FILE)
@_common
@_bootstrap
@_no_bundle
@click.option(
    "--threshold", type=float, help="Report the strong share a threshold fixed elsewhere gives here."
)
@click.option(
    "--fit",
    "fit_file",
    type=_FILE,
    help="Add the strategies that learn, fitted on this file of the same shape; may be FILE itself.",
)
@click.option("--fit-split", "fit_splits", multiple=True, help="Fit on the rows of this split of --fit.")
@click.option("--cross-fit", is_flag=True, help="Add them cross-fitted within the evaluated rows.")
@_judge_options
@_fails_clearly
def pair(
    file: Path,
    bundle: Path | None,
    splits: tuple[str, ...],
    text_column: str | None,
    json_out: str | None,
    plots: Path | None,
    seed: int,
    replicates: int,
    no_bundle: bool,
    threshold: float | None,
    fit_file: Path | None,
    fit_splits: tuple[str, ...],
    cross_fit: bool,
    judge_config: Path | None,
    strategy: str | None,
) -> None:
    """Every strategy as a router between two models: difficulty, those fitted on labels, a judge.

    FILE has the columns prompt, strong_correct, weak_correct and optionally split and subject.
    Prompts that are evaluated are never fitted on.
    """
    if fit_file is not None and cross_fit:
        raise click.UsageError("give either --fit or --cross-fit")
    if no_bundle and (fit_file is not None or cross_fit):
        raise click.UsageError("--fit and --cross-fit need a bundle")
    if no_bundle and judge_config is not None:
        raise click.UsageError("--judge needs a bundle: it decides what the judge gives no score")
    from semroute_lab.evaluate.fitted import fitted_scores
    from semroute_lab.evaluate.pair import evaluate_pair, read_pair

    table = read_table(file).in_splits(splits)
    rows = read_pair(table, pick_column(table, text_column, TEXT_COLUMNS, "text"))
    source = None if no_bundle else _open(bundle)
    scores = None if source is None else source.score(rows.texts)
    described = None if source is None else source.describe()
    more: dict[str, Floats] = {}
    if scores is not None and source is not None and (fit_file is not None or cross_fit):
        other = None if fit_file is None else read_table(fit_file).in_splits(fit_splits)
        more |= fitted_scores(rows, scores, source, other, text_column, seed)
    said = None
    if scores is not None and source is not None and judge_config is not None:
        more["judge"], said = _judge(judge_config, strategy, rows.texts, scores, source)
    report = evaluate_pair(
        rows,
        scores,
        described,
        seed=seed,
        replicates=replicates,
        threshold=threshold,
        more=more,
        judge=said,
    )
    _finish(report, json_out, plots)


@evaluate.command()
@click.argument("file", type=_FILE)
@_common
@_bootstrap
@_no_bundle
@_options_column
@click.option("--label-column", help=f"Column of the labels; by default {', '.join(LABEL_COLUMNS)}.")
@click.option("--ood-label", default="oos", show_default=True, help="Label of out-of-distribution rows.")
@click.option("--train-split", default="train", show_default=True, help="Split that baselines and heads fit.")
@click.option(
    "--fit", is_flag=True, help="Fit heads on frozen embeddings, for labels the bundle does not have."
)
@_fails_clearly
def intent(
    file: Path,
    bundle: Path | None,
    splits: tuple[str, ...],
    text_column: str | None,
    json_out: str | None,
    plots: Path | None,
    seed: int,
    replicates: int,
    no_bundle: bool,
    options_column: str | None,
    label_column: str | None,
    ood_label: str,
    train_split: str,
    fit: bool,
) -> None:
    """Labels, calibration, abstention and out-of-distribution detection.

    FILE has a text column, a label column and optionally split.
    """
    from semroute_lab.evaluate import intent as protocol

    if fit and no_bundle:
        raise click.UsageError("--fit needs a bundle")
    everything = read_table(file)
    table = everything.in_splits(splits)
    column = pick_column(everything, text_column, TEXT_COLUMNS, "text")
    label = pick_column(everything, label_column, LABEL_COLUMNS, "label")
    train = _train_rows(everything, splits, train_split)
    if fit and train is None:
        raise click.UsageError(
            f"--fit needs rows of split {train_split!r} that are not evaluated; name --split"
        )
    fit_texts = [] if train is None else prompt_texts(train, column, options_column)
    rows = protocol.read_intent(
        table, train, prompt_texts(table, column, options_column), fit_texts, label, ood_label
    )
    predictions = protocol.baselines(rows, seed)
    source = None if no_bundle else _open(bundle)
    if source is not None:
        scores = source.score([*rows.texts, *(rows.fit_texts if fit else [])])
        predictions += _bundle_predictions(rows, scores, fit, label)
    described = None if source is None else source.describe()
    report = protocol.evaluate_intent(rows, predictions, described, seed=seed, replicates=replicates)
    _finish(report, json_out, plots)


def _train_rows(table: Table, splits: tuple[str, ...], train_split: str) -> Table | None:
    """The rows to fit on, if the file has a train split that is not itself evaluated."""
    separate = bool(splits) and train_split not in splits
    return (
        table.in_splits([train_split]) if separate and train_split in table.columns.get("split", []) else None
    )


def _bundle_predictions(rows: Any, scores: Scores, fit: bool, label: str) -> list[Any]:
    from semroute_lab.evaluate import intent as protocol

    count = len(rows.texts)
    evaluated = scores.take(range(count))
    own = protocol.bundle_prediction(rows, evaluated)
    if own is None and not fit:
        strange = sorted(set(rows.labels) - set(scores.labels))[:3]
        raise rows.table.error(label, f"{', '.join(strange)} …: no labels of the bundle; use --fit")
    fitted = scores.take(range(count, count + len(rows.fit_texts))) if fit else None
    heads = [] if fitted is None else protocol.fitted_predictions(rows, fitted, evaluated)
    return ([] if own is None else [own]) + heads


@evaluate.command()
@click.argument("questions", type=_FILE)
@click.argument("outcomes", type=_FILE)
@_common
@_options_column
@click.option(
    "--costs", type=_FILE, multiple=True, help="Costs by question or by model; several are multiplied."
)
@click.option(
    "--models", type=_FILE, help="Models to use; roles beginning with unseen are a family kept out."
)
@click.option("--trials", type=click.IntRange(1, TRIALS_MAX), default=20, show_default=True)
@click.option("--validation-rows", type=click.IntRange(10), help="Validation prompts to know a new model by.")
@click.option(
    "--clusters",
    type=click.IntRange(1, 1_000),
    help="Clusters of prompts; by default as many as ten validation prompts each fill, 25 at most.",
)
@_judge_options
@_fails_clearly
def pool(
    questions: Path,
    outcomes: Path,
    bundle: Path | None,
    splits: tuple[str, ...],
    text_column: str | None,
    json_out: str | None,
    plots: Path | None,
    seed: int,
    options_column: str | None,
    costs: tuple[Path, ...],
    models: Path | None,
    trials: int,
    validation_rows: int | None,
    clusters: int | None,
    judge_config: Path | None,
    strategy: str | None,
) -> None:
    """Routing over models that the router was not trained on.

    QUESTIONS has an id and a text column; OUTCOMES the same id and one column per model. Without
    --costs a model costs its parameters, as its name states them.
    """
    from semroute_lab.evaluate.pool import evaluate_pool
    from semroute_lab.evaluate.pool_data import read_pool

    table = read_table(questions).in_splits(splits)
    texts = prompt_texts(table, pick_column(table, text_column, TEXT_COLUMNS, "text"), options_column)
    listed = None if models is None else read_table(models)
    rows = read_pool(table, texts, read_table(outcomes), [read_table(cost) for cost in costs], listed)
    source = _open(bundle)
    known = source.score(rows.texts)
    judged, said = None, None
    if judge_config is not None:
        judged, said = _judge(judge_config, strategy, rows.texts, known, source)
    report = evaluate_pool(
        rows,
        known,
        source.describe(),
        seed=seed,
        trials=trials,
        validation_rows=validation_rows,
        clusters=clusters,
        judged=judged,
        judge=said,
        progress=lambda seeds: _track(seeds, len(seeds), "trials"),
    )
    _finish(report, json_out, plots)


@evaluate.command()
@click.argument("file", type=_FILE)
@_common
@_bootstrap
@_options_column
@click.option(
    "--limit", type=click.IntRange(20), default=500, show_default=True, help="Prompts drawn from the file."
)
@click.option("--strong-share", type=click.FloatRange(0.0, 1.0, min_open=True, max_open=True), default=0.3)
@click.option("--threshold", type=float, help="Difficulty threshold; by default from --strong-share.")
@_fails_clearly
def robustness(
    file: Path,
    bundle: Path | None,
    splits: tuple[str, ...],
    text_column: str | None,
    json_out: str | None,
    plots: Path | None,
    seed: int,
    replicates: int,
    options_column: str | None,
    limit: int,
    strong_share: float,
    threshold: float | None,
) -> None:
    """Decision flips under typos, casing, paraphrase, appended text and prompt injection.

    FILE has a text column.
    """
    from semroute_lab.evaluate.robustness import evaluate_robustness, sample

    table = sample(read_table(file).in_splits(splits), limit, seed)
    texts = prompt_texts(table, pick_column(table, text_column, TEXT_COLUMNS, "text"), options_column)
    report = evaluate_robustness(
        table,
        texts,
        _open(bundle),
        seed=seed,
        replicates=replicates,
        strong_share=strong_share,
        threshold=threshold,
    )
    _finish(report, json_out, plots)


def _judge(
    path: Path, strategy: str | None, texts: Sequence[str], known: Scores, source: Source
) -> tuple[Floats, dict[str, object]]:
    """The scores (n,) of the judge in a configuration, and what a report says of it."""
    from semroute_lab.evaluate.strategies import judge_scores
    from semroute_lab.fit.judging import judge

    judged = judge(path, strategy, texts)
    return judge_scores(judged.scores, texts, known.difficulty, source.quantiles), judged.describe()


def _open(directory: Path | None) -> Source:
    return open_bundle(
        directory or default_bundle(), lambda signals, total: _track(signals, total, "scoring")
    )


def _track(items: Iterable[T], total: int, what: str) -> Iterable[T]:
    console = Console(stderr=True)
    return track(items, what, total=total, console=console, transient=True, disable=not console.is_terminal)


def _finish(report: dict[str, Any], json_out: str | None, plots: Path | None) -> None:
    """Print the tables, write the JSON, draw the figures."""
    found = reports.plain(report)
    to_terminal = json_out != "-"
    console = Console(stderr=not to_terminal)
    if not console.is_terminal:
        console = Console(stderr=not to_terminal, width=WIDTH)
    for table in reports.tables(found):
        console.print(table)
    if json_out is not None:
        text = reports.to_json(found)
        if to_terminal:
            Path(json_out).write_text(text, encoding="utf-8")
        else:
            sys.stdout.write(text)
    if plots is not None:
        from semroute_lab.evaluate.plots import draw

        paths: Sequence[Path] = draw(found, plots)
        console.print(f"{len(paths)} figures in {plots}")
