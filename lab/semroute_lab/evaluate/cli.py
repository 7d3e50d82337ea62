"""`semroute eval`: pair, intent, pool and robustness."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from semroute_extproc.cli.exits import exit_statuses
from semroute_extproc.encoder.bundle import default_bundle
from semroute_lab.common import options
from semroute_lab.common.metrics import Floats
from semroute_lab.common.options import DIRECTORY, EXISTING, option, shown, stacked
from semroute_lab.common.progress import tracked
from semroute_lab.common.tables import (
    LABEL_COLUMNS,
    TEXT_COLUMNS,
    Table,
    pick_column,
    prompt_texts,
    read_table,
    texts_in,
)
from semroute_lab.evaluate.scoring import Scores, Source, open_bundle

WIDTH = 140  # Columns of a table that does not go to a terminal
TRIALS_MAX = 1_000  # Most trials of the pool protocol
LABELS = ("det", "prob", "trans", "win")  # Training labels that `eval pair --labels` knows


@click.group("eval")
def evaluate() -> None:
    """Measure a bundle: as a router, as a classifier, over a pool, and under attack."""


def _writable(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    """Refuse a path that cannot be written before the work starts."""
    if value is not None and value != "-" and (Path(value).is_dir() or not Path(value).parent.is_dir()):
        raise click.BadParameter(f"{value} is not a file in an existing directory")
    return value


_judge = option(
    "--judge", "judge_config", type=EXISTING, help="Add the judge of this configuration as a row."
)
_no_bundle = option("--no-bundle", is_flag=True, help="Baselines only.")
_common = stacked(
    options.bundle,
    options.split,
    options.text_column,
    option(
        "--json",
        "json_out",
        metavar="OUT|-",
        callback=_writable,
        help="The report as JSON; - prints it.",
    ),
    option("--plots", type=DIRECTORY, help="Draw the figures into this directory, PNG and SVG."),
    options.seed,
    exit_statuses,
)


def _label_list(context: click.Context, parameter: click.Parameter, value: str) -> tuple[str, ...]:
    kinds = tuple(part.strip() for part in value.split(",") if part.strip())
    if unknown := [kind for kind in kinds if kind not in LABELS]:
        raise click.BadParameter(f"{', '.join(unknown)}: expected some of {', '.join(LABELS)}")
    return kinds


@evaluate.command()
@click.argument("file", type=EXISTING)
@_common
@options.bootstrap
@_no_bundle
@option("--threshold", type=float, help="Report the strong share of a threshold that was fixed elsewhere.")
@option("--fit", "fit_file", type=EXISTING, help="Add the strategies that learn, fitted on this pair file.")
@option("--fit-split", "fit_splits", multiple=True, help="Fit on the rows of this split of --fit.")
@option("--cross-fit", is_flag=True, help="Add them cross-fitted within the evaluated rows.")
@option(
    "--labels",
    "kinds",
    default="",
    metavar="KIND,…",
    callback=_label_list,
    help=f"With --fit or --cross-fit: add routers fitted to these labels, of {', '.join(LABELS)}.",
)
@option(
    "--bartscore-model",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="With --labels: this BART scores the columns strong_answer and weak_answer against reference.",
)
@_judge
@options.judge_strategy
def pair(
    file: Path,
    fit_file: Path | None,
    fit_splits: tuple[str, ...],
    cross_fit: bool,
    kinds: tuple[str, ...],
    bartscore_model: Path | None,
    threshold: float | None,
    no_bundle: bool,
    judge_config: Path | None,
    strategy: str | None,
    **common: Any,
) -> None:
    """Every strategy as a router between two models: difficulty, those fitted on labels, a judge.

    FILE has the columns prompt, strong_correct, weak_correct and optionally split and subject.
    Prompts that are evaluated are never fitted on.
    """
    fits = fit_file is not None or cross_fit
    for wrong, message in (
        (fit_file is not None and cross_fit, "give either --fit or --cross-fit"),
        (no_bundle and fits, "--fit and --cross-fit need a bundle"),
        (
            no_bundle and judge_config is not None,
            "--judge needs a bundle, for prompts without a score",
        ),
        (kinds and not fits, "--labels needs --fit or --cross-fit"),
    ):
        if wrong:
            raise click.UsageError(message)
    from semroute_lab.evaluate.pair import evaluate_pair, fitted_scores, read_pair

    seed, text_column = common["seed"], common["text_column"]
    table = read_table(file).in_splits(common["splits"])
    rows = read_pair(table, pick_column(table, text_column, TEXT_COLUMNS, "text"))
    source = None if no_bundle else _open(common["bundle"])
    scores = None if source is None else source.score(rows.texts)
    more: dict[str, Floats] = {}
    notes, said = None, None
    if scores is not None and source is not None:
        if fits:
            other = None if fit_file is None else read_table(fit_file).in_splits(fit_splits)
            more, notes = fitted_scores(
                rows, scores, source, other, text_column, seed=seed, kinds=kinds, bartscore=bartscore_model
            )
        if judge_config is not None:
            more["judge"], said = _judged(judge_config, strategy, rows.texts, scores, source)
    report = evaluate_pair(
        rows,
        scores,
        None if source is None else source.describe(),
        seed=seed,
        replicates=common["replicates"],
        threshold=threshold,
        more=more,
        judge=said,
        notes=notes,
    )
    _finish(report, common)


@evaluate.command()
@click.argument("file", type=EXISTING)
@_common
@options.bootstrap
@_no_bundle
@options.options_column
@option("--label-column", help=f"Column of the labels; by default {', '.join(LABEL_COLUMNS)}.")
@shown("--ood-label", default="oos", help="Label of out-of-distribution rows.")
@shown("--train-split", default="train", help="Split that baselines and heads fit.")
@option("--fit", is_flag=True, help="Fit heads on frozen embeddings, for labels that the bundle lacks.")
def intent(
    file: Path,
    no_bundle: bool,
    options_column: str | None,
    label_column: str | None,
    ood_label: str,
    train_split: str,
    fit: bool,
    **common: Any,
) -> None:
    """Labels, calibration, abstention and out-of-distribution detection.

    FILE has a text column, a label column and optionally split.
    """
    from semroute_lab.evaluate import intent as protocol

    if fit and no_bundle:
        raise click.UsageError("--fit needs a bundle")
    everything = read_table(file)
    table = everything.in_splits(common["splits"])
    column = pick_column(everything, common["text_column"], TEXT_COLUMNS, "text")
    label = pick_column(everything, label_column, LABEL_COLUMNS, "label")
    train = _train_rows(everything, common["splits"], train_split)
    if fit and train is None:
        raise click.UsageError(
            f"--fit needs rows of split {train_split!r} that are not evaluated; name --split"
        )
    fit_texts = [] if train is None else prompt_texts(train, column, options_column)
    rows = protocol.read_intent(
        table, train, prompt_texts(table, column, options_column), fit_texts, label, ood_label
    )
    predictions = protocol.baselines(rows, common["seed"])
    described = None
    if not no_bundle:
        source = _open(common["bundle"])
        described = source.describe()
        scores = source.score([*rows.texts, *(rows.fit_texts if fit else [])])
        evaluated = scores.take(range(len(rows.texts)))
        own = protocol.bundle_prediction(rows, evaluated)
        if own is None and not fit:
            strange = ", ".join(sorted(set(rows.labels) - set(scores.labels))[:3])
            raise table.error(label, f"{strange} …: no labels of the bundle; use --fit")
        predictions += [] if own is None else [own]
        if fit:
            fitted = scores.take(range(len(rows.texts), len(scores.difficulty)))
            predictions += protocol.fitted_predictions(rows, fitted, evaluated)
    settings = {name: common[name] for name in ("seed", "replicates")}
    _finish(protocol.evaluate_intent(rows, predictions, described, **settings), common)


def _train_rows(table: Table, splits: tuple[str, ...], train_split: str) -> Table | None:
    """The rows to fit on, if the file has a train split that is not itself evaluated."""
    separate = bool(splits) and train_split not in splits
    present = separate and train_split in table.columns.get("split", [])
    return table.in_splits([train_split]) if present else None


@evaluate.command()
@click.argument("questions", type=EXISTING)
@click.argument("outcomes", type=EXISTING)
@_common
@options.options_column
@option("--costs", type=EXISTING, multiple=True, help="By question or by model; several are multiplied.")
@option("--models", type=EXISTING, help="Models to use; a role that begins with unseen holds out its family.")
@shown("--trials", type=click.IntRange(1, TRIALS_MAX), default=20)
@option("--validation-rows", type=click.IntRange(10), help="Validation prompts of a new model.")
@option("--clusters", type=click.IntRange(1, 1_000), help="Clusters of prompts; by default at most 25.")
@_judge
@options.judge_strategy
def pool(
    questions: Path,
    outcomes: Path,
    options_column: str | None,
    costs: tuple[Path, ...],
    models: Path | None,
    judge_config: Path | None,
    strategy: str | None,
    trials: int,
    validation_rows: int | None,
    clusters: int | None,
    **common: Any,
) -> None:
    """Routing over models that the router was not trained on.

    QUESTIONS has an id and a text column; OUTCOMES the same id and one column per model. Without
    --costs the cost of a model is its number of parameters, by its name.
    """
    from semroute_lab.evaluate.pool import evaluate_pool, read_pool

    table = read_table(questions).in_splits(common["splits"])
    texts = texts_in(table, common["text_column"], options_column)
    listed = None if models is None else read_table(models)
    rows = read_pool(table, texts, read_table(outcomes), [read_table(cost) for cost in costs], listed)
    source = _open(common["bundle"])
    known = source.score(rows.texts)
    judged, said = None, None
    if judge_config is not None:
        judged, said = _judged(judge_config, strategy, rows.texts, known, source)
    report = evaluate_pool(
        rows,
        known,
        source.describe(),
        seed=common["seed"],
        trials=trials,
        validation_rows=validation_rows,
        clusters=clusters,
        judged=judged,
        judge=said,
        progress=lambda seeds: tracked(seeds, len(seeds), "trials"),
    )
    _finish(report, common)


@evaluate.command()
@click.argument("file", type=EXISTING)
@_common
@options.bootstrap
@options.options_column
@shown("--limit", type=click.IntRange(20), default=500, help="Prompts drawn from the file.")
@option("--strong-share", type=click.FloatRange(0.0, 1.0, min_open=True, max_open=True), default=0.3)
@option("--threshold", type=float, help="Difficulty threshold; by default from --strong-share.")
def robustness(
    file: Path,
    options_column: str | None,
    limit: int,
    strong_share: float,
    threshold: float | None,
    **common: Any,
) -> None:
    """Decision flips under typos, casing, paraphrase, appended text and prompt injection.

    FILE has a text column.
    """
    from semroute_lab.evaluate.robustness import evaluate_robustness, sample

    table = sample(read_table(file).in_splits(common["splits"]), limit, common["seed"])
    texts = texts_in(table, common["text_column"], options_column)
    settings: Any = {name: common[name] for name in ("seed", "replicates")}
    settings |= {"strong_share": strong_share, "threshold": threshold}
    _finish(evaluate_robustness(table, texts, _open(common["bundle"]), **settings), common)


def _judged(
    path: Path, strategy: str | None, texts: Sequence[str], known: Scores, source: Source
) -> tuple[Floats, dict[str, object]]:
    """The scores (n,) of the judge in a configuration, and its section of the report."""
    from semroute_lab.evaluate.strategies import judge_scores
    from semroute_lab.fit.judge_scores import judge

    judged = judge(path, strategy, texts)
    return judge_scores(judged.scores, texts, known.difficulty, source.quantiles), judged.describe()


def _open(directory: Path | None) -> Source:
    return open_bundle(
        directory or default_bundle(), lambda signals, total: tracked(signals, total, "scoring")
    )


def _finish(report: dict[str, Any], common: dict[str, Any]) -> None:
    """Print the tables, write the JSON, draw the figures."""
    from semroute_lab.evaluate import reports

    found = reports.plain(report)
    to_terminal = common["json_out"] != "-"
    console = Console(stderr=not to_terminal)
    if not console.is_terminal:
        console = Console(stderr=not to_terminal, width=WIDTH)
    for table in reports.tables(found):
        console.print(table)
    if common["json_out"] is not None:
        text = reports.to_json(found)
        if to_terminal:
            Path(common["json_out"]).write_text(text, encoding="utf-8")
        else:
            sys.stdout.write(text)
    if common["plots"] is not None:
        from semroute_lab.evaluate.plots import draw

        paths = draw(found, common["plots"])
        console.print(f"{len(paths)} figures in {common['plots']}")
