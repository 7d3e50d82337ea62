"""`semroute eval`: pair, intent, pool, mixed and robustness."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from semroute_extproc.cli.exits import exit_statuses
from semroute_extproc.state.live import threshold_for_share
from semroute_lab.common import options
from semroute_lab.common.engine import engine
from semroute_lab.common.metrics import Floats
from semroute_lab.common.options import DIRECTORY, EXISTING, EXISTING_DIRECTORY, TABLE, option, shown, stacked
from semroute_lab.common.tables import (
    LABEL_COLUMNS,
    TEXT_COLUMNS,
    pick_column,
    prompt_texts,
    read_table,
    texts_in,
)
from semroute_lab.evaluate.scoring import SHARE, Scores, Source, head, open_bundle
from semroute_lab.train.labels import KINDS

WIDTH = 140  # Columns of a table that does not go to a terminal
TRIALS_MAX = 1_000  # Most trials of the pool protocol
LABELS = KINDS[1:]  # Training labels that `eval pair --labels` accepts: all but the outcomes themselves


@click.group("eval")
def evaluate() -> None:
    """Measure a bundle as a router, as a classifier, on unseen models, mixed traffic and changed prompts."""


def _writable(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    """Refuse a path that cannot be written before the work starts."""
    if value is not None and value != "-" and (Path(value).is_dir() or not Path(value).parent.is_dir()):
        raise click.BadParameter(f"{value} is not a file in an existing directory")
    return value


def _label_list(context: click.Context, parameter: click.Parameter, value: str) -> tuple[str, ...]:
    kinds = _kinds(context, parameter, value)
    if unknown := [kind for kind in kinds if kind not in LABELS]:
        raise click.BadParameter(f"{', '.join(unknown)}: expected some of {', '.join(LABELS)}")
    return kinds


def _kinds(context: click.Context, parameter: click.Parameter, value: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in value.split(",") if part.strip())


_json_help = "Write the report as JSON; - prints it."
_labels_help = f"With --fit or --cross-fit: add routers fitted to these labels: {', '.join(LABELS)}."
_bart_help = "With --labels: BART model that scores strong_answer and weak_answer against reference."
_kinds_help = "default: all others; with neither option, the column hard decides."
_judge_help = "Add the judge of this configuration as a row."
_judge = stacked(option("--judge", type=EXISTING, help=_judge_help), options.judge_strategy)
_no_bundle = option("--no-bundle", is_flag=True, help="Measure the baselines only.")
_share_help = "Strong share on the bundle's reference traffic, which sets the threshold."
_threshold = stacked(
    shown("--share", type=click.FloatRange(0.0, 1.0), default=SHARE, help=_share_help),
    option("--threshold", type=float, help="Difficulty threshold instead of the one of --share."),
)
_common = stacked(
    options.bundle,
    options.split,
    options.text_column,
    option("--json", "json_out", metavar="OUT|-", callback=_writable, help=_json_help),
    option("--plots", type=DIRECTORY, help="Draw the figures into this directory, PNG and SVG."),
    options.seed,
    engine,
    exit_statuses,
)


@evaluate.command()
@click.argument("file", type=TABLE)
@_common
@options.bootstrap
@_no_bundle
@option("--threshold", type=float, help="Also report the strong share at this threshold.")
@option("--fit", type=TABLE, help="Add the learned strategies, fitted on this pair file.")
@option("--fit-split", "fit_splits", multiple=True, help="Use only rows of this split of the --fit file.")
@option("--cross-fit", is_flag=True, help="Add the learned strategies, cross-fitted on the evaluated rows.")
@option("--labels", default="", metavar="KIND,…", callback=_label_list, help=_labels_help)
@option("--bartscore-model", type=EXISTING_DIRECTORY, help=_bart_help)
@_judge
def pair(file: Path, **given: Any) -> None:
    """Measure strategies as routers between two models: difficulty, learned strategies, a judge.

    FILE has the columns prompt, outcome.strong, outcome.weak and optionally split and subject.
    Evaluated prompts are never used for fitting.
    """
    from semroute_lab.evaluate.pair import evaluate_pair, fitted_scores, read_pair

    fits, alone = given["fit"] is not None or given["cross_fit"], given["no_bundle"]
    for wrong, message in (
        (given["fit"] is not None and given["cross_fit"], "give either --fit or --cross-fit"),
        (alone and fits, "--fit and --cross-fit need a bundle"),
        (alone and given["judge"] is not None, "--judge needs a bundle, for prompts without a score"),
        (given["labels"] and not fits, "--labels needs --fit or --cross-fit"),
    ):
        if wrong:
            raise click.UsageError(message)
    seed, text_column = given["seed"], given["text_column"]
    table = read_table(file).in_splits(given["splits"])
    rows = read_pair(table, pick_column(table, text_column, TEXT_COLUMNS, "text"))
    found: dict[str, Any] = {"more": {}}
    if not alone:
        source = open_bundle(given["bundle"])
        scores = source.score(rows.texts)
        found |= {"scores": scores, "bundle": source.describe()}
        if fits:
            other = None if given["fit"] is None else read_table(given["fit"]).in_splits(given["fit_splits"])
            labels = {"kinds": given["labels"], "bartscore": given["bartscore_model"]}
            fitted = fitted_scores(rows, scores, source, other, text_column, seed=seed, **labels)
            found["more"], found["notes"] = fitted
        judged, found["judge"] = _judged(given, rows.texts, scores, source)
        found["more"] |= {} if judged is None else {"judge": judged}
    settings = {name: given[name] for name in ("seed", "replicates", "threshold")}
    _finish(evaluate_pair(rows, **settings, **found), given)


@evaluate.command()
@click.argument("file", type=TABLE)
@_common
@options.bootstrap
@_no_bundle
@options.options_column
@option("--label-column", help=f"Column of the labels; default: {', '.join(LABEL_COLUMNS)}.")
@shown("--ood-label", default="oos", help="Label of out-of-distribution rows.")
@shown("--train-split", default="train", help="Split on which baselines and heads are fitted.")
@option("--fit", is_flag=True, help="Fit heads on frozen embeddings, for labels that the bundle lacks.")
def intent(file: Path, no_bundle: bool, fit: bool, train_split: str, **given: Any) -> None:
    """Measure labels, calibration, abstention and out-of-distribution detection.

    FILE has a text column, a label column and optionally a split column.
    """
    from semroute_lab.evaluate import intent as protocol

    if fit and no_bundle:
        raise click.UsageError("--fit needs a bundle")
    everything, splits = read_table(file), given["splits"]
    table = everything.in_splits(splits)
    column = pick_column(everything, given["text_column"], TEXT_COLUMNS, "text")
    label = pick_column(everything, given["label_column"], LABEL_COLUMNS, "label")
    # Models are fitted on the train split if the file has one that is not evaluated.
    separate = splits and train_split not in splits and train_split in everything.columns.get("split", [])
    train = everything.in_splits([train_split]) if separate else None
    if fit and train is None:
        needed = f"rows of split {train_split!r} that are not evaluated"
        raise click.UsageError(f"--fit needs {needed}; give --split")
    options_in = given["options_column"]
    texts = prompt_texts(table, column, options_in)
    fit_texts = [] if train is None else prompt_texts(train, column, options_in)
    rows = protocol.read_intent(table, train, texts, fit_texts, label, given["ood_label"])
    predictions = protocol.baselines(rows, given["seed"])
    described = None
    if not no_bundle:
        source = open_bundle(given["bundle"])
        described = source.describe()
        scores = source.score([*rows.texts, *(rows.fit_texts if fit else [])])
        evaluated = scores.take(range(len(rows.texts)))
        own = protocol.bundle_prediction(rows, evaluated)
        if own is None and not fit:
            unknown = ", ".join(sorted(set(rows.labels) - set(scores.labels))[:3])
            raise table.error(label, f"{unknown} …: not among the bundle's labels; use --fit")
        predictions += [] if own is None else [own]
        if fit:
            fitted = scores.take(range(len(rows.texts), len(scores.difficulty)))
            predictions += protocol.fitted_predictions(rows, fitted, evaluated)
    report = protocol.evaluate_intent(rows, predictions, described, given["seed"], given["replicates"])
    _finish(report, given)


@evaluate.command()
@click.argument("questions", type=TABLE)
@click.argument("outcomes", type=TABLE)
@_common
@options.options_column
@option("--costs", type=EXISTING, multiple=True, help="Costs by question or model; several are multiplied.")
@option("--models", type=EXISTING, help="Models to use; a role starting with `unseen` holds out its family.")
@shown("--trials", type=click.IntRange(1, TRIALS_MAX), default=20)
@option("--validation-rows", type=click.IntRange(10), help="Number of validation prompts for a new model.")
@option("--clusters", type=click.IntRange(1, 1_000), help="Number of prompt clusters; default: at most 25.")
@_judge
def pool(questions: Path, outcomes: Path, models: Path | None, costs: tuple[Path, ...], **given: Any) -> None:
    """Measure routing among models that the router was not trained on.

    QUESTIONS has an id and a text column; OUTCOMES has the same id and one column per model.
    Without --costs, the cost of a model is the parameter count in its name.
    """
    from semroute_lab.evaluate.pool import evaluate_pool, read_pool

    table = read_table(questions).in_splits(given["splits"])
    texts = texts_in(table, given["text_column"], given["options_column"])
    listed = None if models is None else read_table(models)
    rows = read_pool(
        table, texts, read_table(outcomes).by_model(), [read_table(cost) for cost in costs], listed
    )
    source = open_bundle(given["bundle"])
    known = source.score(rows.texts)
    judged, said = _judged(given, rows.texts, known, source)
    settings = {name: given[name] for name in ("seed", "trials", "validation_rows", "clusters")}
    _finish(evaluate_pool(rows, known, source.describe(), judged=judged, judge=said, **settings), given)


@evaluate.command()
@click.argument("file", type=TABLE)
@_common
@options.bootstrap
@options.options_column
@shown("--limit", type=click.IntRange(20), default=200, help="Number of prompts sampled from the file.")
@_threshold
def robustness(file: Path, limit: int, **given: Any) -> None:
    """Measure decision flips under typos, paraphrase, appended text, injection and clients' envelopes.

    FILE has a text column, and optionally `hard` (0 or 1) for the AUROC under each of them.
    """
    from semroute_lab.evaluate.robustness import evaluate_robustness, sample

    table = sample(read_table(file).in_splits(given["splits"]), limit, given["seed"])
    texts = texts_in(table, given["text_column"], given["options_column"])
    settings = {name: given[name] for name in ("seed", "replicates", "share", "threshold")}
    _finish(evaluate_robustness(table, texts, open_bundle(given["bundle"]), **settings), given)


@evaluate.command()
@click.argument("file", type=TABLE)
@_common
@options.bootstrap
@_threshold
@option("--hard", metavar="KIND,…", default="", callback=_kinds, help=f"Hard kinds to compare; {_kinds_help}")
@option("--easy", metavar="KIND,…", default="", callback=_kinds, help=f"Easy kinds to compare; {_kinds_help}")
@option("--lang", "languages", metavar="LANG,…", default="", callback=_kinds, help="Only rows of these.")
@shown("--kind-column", default="kind")
@shown("--lang-column", default="lang")
@shown("--weak-column", default="weak")
@shown("--strong-column", default="strong")
@option("--outcomes", type=TABLE, help="Outcomes in the format of eval pool, a column per model.")
def mixed(file: Path, **given: Any) -> None:
    """Measure how the difficulty orders requests of different kinds and languages.

    FILE has the column kind, a text column or messages, and optionally lang, hard (0 or 1), and the
    outcomes weak and strong (0..1).
    """
    from semroute_lab.evaluate.mixed import evaluate_mixed, read_mixed

    table = read_table(file).in_splits(given["splits"])
    if given["languages"]:
        table = table.where(
            language in given["languages"] for language in table.strings(given["lang_column"])
        )
    source, threshold = open_bundle(given["bundle"], every_language=True), given["threshold"]
    columns = {role: given[f"{role}_column"] for role in ("kind", "lang", "weak", "strong")}
    matrix = read_table(given["outcomes"]).by_model() if given["outcomes"] else None
    rows = read_mixed(table, source, given["text_column"], columns, matrix)
    cut = threshold_for_share(source.quantiles, given["share"]) if threshold is None else threshold
    settings = {name: given[name] for name in ("share", "hard", "easy", "seed", "replicates")}
    found = evaluate_mixed(rows, threshold=cut, **settings)
    _finish(head("mixed", table, source.describe(), given["seed"]) | found, given)


def _judged(
    given: dict[str, Any], texts: Sequence[str], known: Scores, source: Source
) -> tuple[Floats | None, dict[str, object] | None]:
    """The judge's scores (n,) and its section of the report; both None without --judge."""
    from semroute_lab.evaluate.strategies import judge_scores
    from semroute_lab.fit.settle import judge

    if given["judge"] is None:
        return None, None
    judged = judge(given["judge"], given["strategy"], texts)
    return judge_scores(judged.scores, texts, known.difficulty, source.quantiles), judged.describe()


def _finish(report: dict[str, Any], given: dict[str, Any]) -> None:
    """Print the tables, write the JSON, draw the figures."""
    from semroute_lab.evaluate import reports

    found, out = reports.plain(report), given["json_out"]
    console = Console(stderr=out == "-")
    if not console.is_terminal:
        console = Console(stderr=out == "-", width=WIDTH)
    for table in reports.tables(found):
        console.print(table)
    text = json.dumps(found, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    if out == "-":
        sys.stdout.write(text)
    elif out is not None:
        Path(out).write_text(text, encoding="utf-8")
    if given["plots"] is not None:
        from semroute_lab.evaluate.plots import draw

        console.print(f"{len(draw(found, given['plots']))} figures in {given['plots']}")
