"""`semroute profile`: run, fit, show."""

from __future__ import annotations

import asyncio
import datetime
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from semroute_extproc.encoder.cores import usable_cores
from semroute_extproc.errors import ArtifactError, BundleError, DataError, EndpointError
from semroute_extproc.strategies.clusters import ClustersArtifact, read_clusters
from semroute_extproc.strategies.profiles import Profile, read_profile, write_profile
from semroute_lab.profile.tally import certainty

FAILED_SHARE_MAX = 0.1
"""With more questions than this left unanswered no profile is written: it would describe the rest."""

clusters_option = click.option(
    "--clusters",
    "clusters_path",
    type=click.Path(path_type=Path, dir_okay=False),
    required=True,
    help="The artifact of `semroute fit clusters` whose clusters are counted in.",
)
bundle_option = click.option(
    "--bundle",
    "bundle_dir",
    type=click.Path(path_type=Path, file_okay=False),
    help="The bundle it was fitted with; default: the shipped one.",
)
out_option = click.option(
    "--out", "out", type=click.Path(path_type=Path, dir_okay=False), help="The profile; default: MODEL.json."
)


@click.group()
def profile() -> None:
    """What a model is good at: measure it, show it, and let it join without training.

    \b
    A profile holds a model's errors by cluster of prompts. Put it into the directory `profiles` of a
    `clusters` strategy and the pool that serves the model is a candidate at once.
    """


@profile.command()
@click.option(
    "--endpoint", required=True, metavar="URL", help="Up to before /chat/completions: http://host:8000/v1."
)
@click.option("--model", required=True, help="The model's name there, and in its pool.")
@click.option(
    "--questions",
    "questions_path",
    type=click.Path(path_type=Path, dir_okay=False),
    required=True,
    help="CSV or JSON Lines: prompt, grader, answer, options, tests; see docs/onboarding.md.",
)
@clusters_option
@bundle_option
@out_option
@click.option("--grader", help="For rows that name none: choice, number, exact, regex, code, judge.")
@click.option(
    "--concurrency", type=click.IntRange(1, 1024), default=16, show_default=True, help="Questions at once."
)
@click.option(
    "--timeout",
    "seconds",
    type=click.FloatRange(0.1, 3600),
    default=120.0,
    show_default=True,
    help="Seconds for one answer.",
)
@click.option(
    "--tries", type=click.IntRange(1, 20), default=6, show_default=True, help="Tries for one answer."
)
@click.option("--max-tokens", type=click.IntRange(1, 1_000_000), default=2048, show_default=True)
@click.option("--temperature", type=click.FloatRange(0, 2), default=0.0, show_default=True)
@click.option("--body", "extra", default="{}", metavar="JSON", help="Further members of every request body.")
@click.option("--api-key-env", metavar="NAME", help="Variable that holds the bearer token.")
@click.option(
    "--ca-file", type=click.Path(dir_okay=False), help="Certificates to trust instead of the system's."
)
@click.option("--judge-endpoint", metavar="URL", help="For the grader judge; default: the endpoint itself.")
@click.option("--judge-model", help="The judge's name; required for the grader judge.")
@click.option("--judge-api-key-env", metavar="NAME", help="Variable that holds the judge's bearer token.")
@click.option(
    "--code-seconds",
    type=click.FloatRange(0.1, 600),
    default=10.0,
    show_default=True,
    help="For the grader code.",
)
@click.option(
    "--code-megabytes",
    type=click.IntRange(32, 65_536),
    default=512,
    show_default=True,
    help="For the grader code.",
)
def run(questions_path: Path, clusters_path: Path, bundle_dir: Path | None, **options: Any) -> None:
    """Ask an OpenAI-compatible endpoint questions, grade the answers and write the profile.

    \b
    Answers are kept beside the profile in MODEL.answers.jsonl as they come. After an interruption the
    same command goes on where it stopped. Errors that may pass (429, 5xx, timeouts) are tried again.
    """
    from semroute_lab.profile.profiling import profile_of
    from semroute_lab.profile.questions import read_questions

    with _told():
        extra = _members(options["extra"])
        clusters, scorer = _clusters(clusters_path, bundle_dir)
        questions = read_questions(questions_path, options["grader"])
        if any(q.grader == "judge" for q in questions) and not options["judge_model"]:
            raise click.UsageError("there are questions for a judge: give --judge-model")
        rows, x = _embed(scorer, [question.text for question in questions])
        questions = [questions[row] for row in rows]
        out = options["out"] or Path(_file_name(options["model"]))
        parameters = {"max_tokens": options["max_tokens"], "temperature": options["temperature"], **extra}
        found = asyncio.run(_run(questions, out, parameters, options))
        _enough(found, len(questions))
        source = f"{options['endpoint']} {questions_path.name}"
        made = profile_of(found, clusters, x, model=options["model"], created=_today(), source=source)
        write_profile(out, made)
    _tell(out, made, clusters)


async def _run(
    questions: Sequence[Any], out: Path, parameters: Mapping[str, object], options: Mapping[str, Any]
) -> Any:
    from semroute_extproc.io.http import Endpoint
    from semroute_lab.profile import sandbox
    from semroute_lab.profile.answers import Answers
    from semroute_lab.profile.asking import Model
    from semroute_lab.profile.profiling import Run
    from semroute_lab.profile.run import ask_all, grade_all, rating_prompts

    at_once, seconds, tries = options["concurrency"], options["seconds"], options["tries"]
    tls = {"ca_file": options["ca_file"], "connections_max": at_once}
    judged_at = options["judge_endpoint"] or options["endpoint"]
    judge_key = options["judge_api_key_env"] or (
        None if options["judge_endpoint"] else options["api_key_env"]
    )
    if any(q.grader == "code" for q in questions) and not sandbox.isolates():
        click.echo("no user namespaces here: code will run with a network, under the other limits", err=True)
    with Answers(out.with_suffix(".answers.jsonl")) as answers:
        async with (
            Endpoint(options["endpoint"], api_key_env=options["api_key_env"], **tls) as endpoint,
            Endpoint(judged_at, api_key_env=judge_key, **tls) as judging,
        ):
            model = Model(endpoint, options["model"], parameters, seconds, tries)
            with _progress("answered", len(questions)) as advance:
                asked = await ask_all(model, [q.asked for q in questions], answers, at_once, advance)
            _list_failures(questions, asked.failures)
            prompts = rating_prompts(questions, asked.replies)
            judge = Model(
                judging, options["judge_model"] or "", {"max_tokens": 1024, "temperature": 0}, seconds, tries
            )
            with _progress("judged", sum(p is not None for p in prompts)) as advance:
                rated = await ask_all(judge, prompts, answers, at_once, advance)
            _list_failures(questions, rated.failures)
        limits = sandbox.Limits(options["code_seconds"], options["code_megabytes"])
        cores = usable_cores()
        grades = await grade_all(questions, asked.replies, limits, cores, rated.replies)
    return Run([q.text for q in questions], asked.replies, grades, at_once)


@profile.command()
@click.argument("outcomes", type=click.Path(path_type=Path, dir_okay=False))
@click.option(
    "--column",
    required=True,
    help="The column of the model's outcomes, 0 (wrong) to 1 (right); blank: not asked.",
)
@click.option("--model", help="The model's name in its pool; default: the column's, without `outcome.`.")
@click.option("--text-column", help="Default: prompt, text, question or instruction.")
@click.option("--tokens-column", help="Tokens of the answer, blank where unknown.")
@click.option("--options-column", help="A JSON list of options, put below the prompt as lettered lines.")
@clusters_option
@bundle_option
@out_option
def fit(
    outcomes: Path,
    column: str,
    model: str | None,
    text_column: str | None,
    tokens_column: str | None,
    options_column: str | None,
    clusters_path: Path,
    bundle_dir: Path | None,
    out: Path | None,
) -> None:
    """Make a profile from outcomes you have: a CSV or JSON Lines file, one prompt a row."""
    import numpy as np

    from semroute_lab.evaluate.data import TEXT_COLUMNS, pick_column, prompt_texts, read_table
    from semroute_lab.profile.profiling import with_intervals
    from semroute_lab.profile.tally import tally

    with _told():
        clusters, scorer = _clusters(clusters_path, bundle_dir)
        table = read_table(outcomes)
        quality = table.numbers_in(column, 0.0, 1.0, blank=True)
        asked = np.isfinite(quality)
        if not asked.any():
            raise table.error(column, "expected an outcome in at least one row, all are blank")
        table, quality = table.where(asked.tolist()), quality[asked]
        texts = prompt_texts(table, pick_column(table, text_column, TEXT_COLUMNS, "text"), options_column)
        tokens: list[float | None] = []
        if tokens_column is not None:
            counts = table.numbers_in(tokens_column, 0.0, blank=True)
            tokens = [None if np.isnan(count) else float(count) for count in counts]
        rows, x = _embed(scorer, texts)
        name = model or column.removeprefix("outcome.")
        made = with_intervals(
            tally(
                clusters,
                x,
                (1.0 - quality[rows]).tolist(),
                [tokens[row] for row in rows] if tokens else [],
                model=name,
                created=_today(),
                source=f"{outcomes.name} {column}",
            )
        )
        path = out or Path(_file_name(name))
        write_profile(path, made)
    _tell(path, made, clusters)


@profile.command()
@click.argument("files", type=click.Path(path_type=Path, dir_okay=False), nargs=-1, required=True)
@click.option(
    "--clusters",
    "clusters_path",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The artifact they count in, for the names of the clusters.",
)
@click.option("--json", "as_json", is_flag=True, help="Everything, as one JSON object.")
def show(files: tuple[Path, ...], clusters_path: Path | None, as_json: bool) -> None:
    """Show how often models are right, by cluster, with 95 % intervals and counts.

    Several profiles stand side by side, where they differ most comes first.
    """
    from rich.console import Console

    from semroute_lab.profile.show import check_alike, draw, report

    with _told():
        clusters = read_clusters(clusters_path) if clusters_path is not None else None
        profiles = [read_profile(path) for path in files]
        check_alike(files, profiles, clusters)
    if as_json:
        click.echo(json.dumps(report(profiles, clusters), ensure_ascii=False))
    else:
        draw(profiles, clusters, Console(markup=False, highlight=False))


def _clusters(path: Path, bundle_dir: Path | None) -> tuple[ClustersArtifact, Any]:
    """The artifact and what embeds with its bundle; raises ArtifactError or BundleError."""
    from semroute_extproc.encoder.offline import Scorer
    from semroute_lab.profile.profiling import check_bundle

    clusters = read_clusters(path)
    scorer = Scorer.of(bundle_dir)
    check_bundle(path, clusters, scorer.bundle)
    return clusters, scorer


def _embed(scorer: Any, texts: Sequence[str]) -> tuple[list[int], Any]:
    from semroute_lab.profile.profiling import embed

    with _progress("embedded", len(texts)) as advance:
        rows, x = embed(scorer, texts, advance)
    if len(rows) < len(texts):
        name = scorer.bundle.manifest.name
        click.echo(f"{len(texts) - len(rows)} texts are left out: no language of bundle {name}", err=True)
    return rows, x


def _members(text: str) -> dict[str, object]:
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise click.UsageError(f"--body {text!r}: expected a JSON object")
    if reserved := {"model", "messages", "stream"} & value.keys():
        raise click.UsageError(f"--body: {', '.join(sorted(reserved))} cannot be set")
    return value


def _file_name(model: str) -> str:
    """A file for a model: `org/model-8b` becomes `org-model-8b.json`."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", model).strip(".-") + ".json"


def _today() -> str:
    return datetime.datetime.now(datetime.UTC).date().isoformat()


def _list_failures(questions: Sequence[Any], failures: Mapping[int, str]) -> None:
    for index in sorted(failures)[:5]:
        click.echo(f"question {questions[index].id}: no answer: {failures[index]}", err=True)
    if len(failures) > 5:
        click.echo(f"and {len(failures) - 5} more", err=True)


def _enough(found: Any, total: int) -> None:
    missing = sum(grade is None for grade in found.grades)
    if missing > FAILED_SHARE_MAX * total:
        raise click.ClickException(
            f"{missing} of {total} questions stayed without a graded answer: no profile is written. "
            "What was answered is kept; run the command again to ask the rest"
        )


def _tell(path: Path, made: Profile, clusters: ClustersArtifact) -> None:
    click.echo(certainty(made, clusters.clusterings), err=True)
    click.echo(f"{path}")


@contextmanager
def _told() -> Iterator[None]:
    """Errors of files and endpoints as one line and exit status 1."""
    from semroute_lab.profile.asking import Hopeless

    try:
        yield
    except (ArtifactError, BundleError, DataError, EndpointError, Hopeless) as error:
        raise click.ClickException(str(error)) from None
    except OSError as error:
        raise click.ClickException(f"{error.filename or 'file'}: {error.strerror or error}") from None


@contextmanager
def _progress(what: str, total: int) -> Iterator[Callable[[], None]]:
    """A bar on a terminal's standard error, nothing elsewhere."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal or not total) as bar:
        task = bar.add_task(what, total=total)
        yield lambda: bar.advance(task)
