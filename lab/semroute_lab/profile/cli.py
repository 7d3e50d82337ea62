"""`semroute profile`: run, fit, import, show."""

import asyncio
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from semroute_extproc.cli.exits import Exit, exit_statuses, refuse
from semroute_extproc.errors import DataError
from semroute_extproc.io.cores import usable_cores
from semroute_extproc.strategies.clusters import ClustersArtifact, read_clusters
from semroute_extproc.strategies.profiles import Profile, read_profile
from semroute_lab.common.engine import engine
from semroute_lab.common.options import DIRECTORY, FILE, TABLE, option, progress, shown, stacked
from semroute_lab.common.writing import write_json
from semroute_lab.profile.tally import certainty, open_clusters, profile_of, seen_of

CHUNK_ROWS = 4_096  # Rows whose embeddings are in memory at once
FAILED_SHARE_MAX = 0.1  # No profile is written if a larger share of the questions has no grade

_clusters_help = "Artifact of `semroute fit clusters` that defines the clusters."
_questions_help = "CSV or JSON Lines: prompt, grader, answer, options, tests; see docs/onboarding.md."
_common = stacked(
    option("--clusters", type=FILE, required=True, help=_clusters_help),
    option("--bundle", type=DIRECTORY, help="Bundle of the artifact; default: the shipped bundle."),
    option("--out", type=FILE, help="Profile to write; default: MODEL.json."),
    exit_statuses,
)


@click.group()
def profile() -> None:
    """Measure and show the quality of a model by cluster of prompts.

    \b
    A profile holds a model's error rate in each cluster. Copy it into the folder
    `profiles` of a `clusters` strategy. The pool that serves the model is then a
    candidate; no training is needed.
    """


@profile.command()
@option("--endpoint", required=True, metavar="URL", help="Base URL, without /chat/completions.")
@option("--model", required=True, help="Model name at the endpoint and in the pool.")
@option("--questions", "questions_path", type=FILE, required=True, help=_questions_help)
@_common
@option("--grader", help="Grader for rows that name none: choice, number, exact, regex, code, judge.")
@shown("--concurrency", type=click.IntRange(1, 1024), default=16, help="Maximum concurrent questions.")
@shown("--timeout", type=click.FloatRange(0.1, 3600), default=120.0, help="Timeout of one answer in seconds.")
@shown("--tries", type=click.IntRange(1, 20), default=6, help="Maximum attempts for one answer.")
@shown("--max-tokens", type=click.IntRange(1, 1_000_000), default=2048)
@shown("--temperature", type=click.FloatRange(0, 2), default=0.0)
@option("--body", "extra", default="{}", metavar="JSON", help="Fields to add to every request body.")
@option("--api-key-env", metavar="NAME", help="Environment variable with the bearer token.")
@option("--ca-file", type=FILE, help="Certificates to trust instead of the system's.")
@option("--judge-endpoint", metavar="URL", help="Endpoint of the grader judge; default: --endpoint.")
@option("--judge-model", help="The judge's name; required for the grader judge.")
@option("--judge-api-key-env", metavar="NAME", help="Environment variable with the judge's token.")
@shown("--code-seconds", type=click.FloatRange(0.1, 600), default=10.0, help="Time of the grader code.")
@shown("--code-megabytes", type=click.IntRange(32, 65_536), default=512, help="Memory of the grader code.")
def run(questions_path: Path, model: str, **given: Any) -> None:
    """Ask an OpenAI-compatible endpoint questions, grade the answers and write the profile.

    \b
    Every answer is stored at once in MODEL.answers.jsonl, next to the profile.
    After an interruption, the same command resumes from there. Transient errors
    (429, 5xx, timeouts) are retried.
    """
    from semroute_lab.profile.questions import read_questions

    extra = _members(given["extra"])
    clusters, scorer = open_clusters(given["clusters"], given["bundle"])
    questions = read_questions(questions_path, given["grader"])
    if any(q.grader == "judge" for q in questions) and not given["judge_model"]:
        raise click.UsageError("there are questions for a judge: give --judge-model")
    rows, x = _embed(scorer, [question.text for question in questions])
    questions = [questions[row] for row in rows]
    out = given["out"] or _file_of(model)
    parameters = {"max_tokens": given["max_tokens"], "temperature": given["temperature"], **extra}
    replies, grades = asyncio.run(_run(questions, out, model, parameters, given))
    missing = sum(grade is None for grade in grades)
    if missing > FAILED_SHARE_MAX * len(questions):
        message = f"{missing} of {len(questions)} questions have no graded answer: no profile is "
        message += "written. The answers are kept; run the command again to ask the rest"
        refuse([message], Exit.UNAVAILABLE)
    quality = [None if grade is None else grade.quality for grade in grades]
    tokens = [None if reply is None else reply.output_tokens for reply in replies]
    seen = seen_of(replies, grades, given["concurrency"])
    source = f"{given['endpoint']} {questions_path.name}"
    _write(out, profile_of(clusters, x, quality, tokens, model=model, source=source, seen=seen), clusters)


async def _run(
    questions: Sequence[Any], out: Path, name: str, parameters: Mapping[str, object], given: Mapping[str, Any]
) -> tuple[list[Any], list[Any]]:
    """Replies and grades, in the order of the questions."""
    from semroute_extproc.io.http import Endpoint
    from semroute_lab.profile import sandbox
    from semroute_lab.profile.asking import Answers, Model, ask_all
    from semroute_lab.profile.questions import grade_all, rating_prompts

    at_once, bounds = given["concurrency"], (given["timeout"], given["tries"])
    tls = {"ca_file": given["ca_file"], "connections_max": at_once}
    url, judged_at, judge_key = given["endpoint"], given["judge_endpoint"], given["judge_api_key_env"]
    if judged_at is None and judge_key is None:
        judge_key = given["api_key_env"]
    if any(q.grader == "code" for q in questions) and not sandbox.isolates():
        click.echo("no user namespaces here: code runs with network access; the other limits apply", err=True)
    with Answers(out.with_suffix(".answers.jsonl")) as answers:
        async with (
            Endpoint(url, api_key_env=given["api_key_env"], **tls) as endpoint,
            Endpoint(judged_at or url, api_key_env=judge_key, **tls) as judging,
        ):

            async def ask(what: str, model: Model, prompts: Sequence[str | None]) -> list[Any]:
                with progress(what, sum(prompt is not None for prompt in prompts)) as advance:
                    asked = await ask_all(model, prompts, answers, at_once, advance)
                failures = asked.failures
                for index in sorted(failures)[:5]:
                    failure = f"question {questions[index].id}: no answer: {failures[index]}"
                    click.echo(failure, err=True)
                if len(failures) > 5:
                    click.echo(f"and {len(failures) - 5} more", err=True)
                return asked.replies

            asked = Model(endpoint, name, parameters, *bounds)
            replies = await ask("answered", asked, [question.asked for question in questions])
            judge_parameters = {"max_tokens": 1024, "temperature": 0}
            judge = Model(judging, given["judge_model"] or "", judge_parameters, *bounds)
            ratings = await ask("judged", judge, rating_prompts(questions, replies))
    limits = sandbox.Limits(given["code_seconds"], given["code_megabytes"])
    return replies, await grade_all(questions, replies, limits, usable_cores(), ratings)


@profile.command()
@click.argument("outcomes", type=TABLE)
@option("--column", required=True, help="Column of outcomes, 0 (wrong) to 1 (right); blank: not asked.")
@option("--model", help="Model name in the pool; default: --column without `outcome.`.")
@option("--text-column", help="Column of the texts; default: prompt, text, question or instruction.")
@option("--tokens-column", help="Column of the answer's token count; blank: unknown.")
@option("--options-column", help="Column with a JSON list of options, added below the prompt.")
@engine
@_common
def fit(outcomes: Path, column: str, model: str | None, tokens_column: str | None, **given: Any) -> None:
    """Create a profile from existing outcomes, one prompt per row, or from a decision log of any size."""
    import numpy as np

    from semroute_lab.common.tables import Source
    from semroute_lab.profile.tally import dated

    clusters, _ = open_clusters(given["clusters"], given["bundle"])
    source, found = Source.of(outcomes), list[dict[str, Any]]()
    columns = (column, tokens_column, given["text_column"], given["options_column"])
    names = [outcomes] if source.log else source.files
    found.extend(source.map("profiling", _counted, names, given["clusters"], given["bundle"], *columns))
    if not any(each["asked"] for each in found):
        raise DataError(f"{outcomes}:1:{column}: expected an outcome in at least one row, all are blank")
    _say_left_out(sum(each["left_out"] for each in found), clusters.manifest.bundle)
    name, sums = model or column.removeprefix("outcome."), np.sum([each["sums"] for each in found], axis=0)
    made = dated(clusters, sums, name, f"{outcomes.name} {column}")
    _write(given["out"] or _file_of(name), made, clusters)


def _counted(
    rows: Any, number: int, _: Path, files: list[Path], artifact: Path, bundle: Path | None, *columns: Any
) -> dict[str, Any]:
    """The sums of a part's answers, by cluster, and how many rows have no cluster."""
    import numpy as np

    from semroute_lab.common.embedding import embed
    from semroute_lab.common.tables import table_of, texts_in
    from semroute_lab.profile.tally import sums_of

    clusters, scorer = open_clusters(artifact, bundle)
    column, tokens, *of = columns
    sums, asked, left_out = np.zeros((4, len(clusters.centroids))), 0, 0
    while chunk := list(itertools.islice(rows, CHUNK_ROWS)):
        table = table_of(files[number % len(files)], chunk)
        quality = table.numbers_in(column, 0.0, 1.0, blank=True)
        table, quality = table.where(np.isfinite(quality).tolist()), quality[np.isfinite(quality)]
        if not len(table):
            continue
        counts = np.full(len(table), np.nan) if tokens is None else table.numbers_in(tokens, 0.0, blank=True)
        kept, x = embed(scorer, texts_in(table, *of), table)
        sums += sums_of(clusters, x, (1.0 - quality[kept]).tolist(), counts[kept].tolist())
        asked, left_out = asked + len(table), left_out + len(table) - len(kept)
    return {"sums": sums.tolist(), "asked": asked, "left_out": left_out}


@profile.command("import")
@click.argument("log", type=FILE)
@option("--model", required=True, help="The model's name in its pool.")
@option("--metric", help="Metric or scorer to use as the quality; default: the first one.")
@option("--filter", "chosen", help="The filter of lm-evaluation-harness, if there are several.")
@_common
def import_(log: Path, model: str, metric: str | None, chosen: str | None, **given: Any) -> None:
    """Create a profile from an evaluation log: samples_*.jsonl of lm-evaluation-harness, .json of Inspect."""
    from semroute_lab.profile.logs import read_log

    _from_outcomes(tuple(map(list, zip(*read_log(log, metric, chosen), strict=True))), model, log.name, given)


def _from_outcomes(columns: tuple[Any, ...], model: str, source: str, given: Mapping[str, Any]) -> None:
    """Write a profile from columns of texts, qualities and tokens (which may be empty)."""
    texts, quality, tokens = columns
    clusters, scorer = open_clusters(given["clusters"], given["bundle"])
    rows, x = _embed(scorer, texts)
    known = [tokens[row] for row in rows] if tokens else []
    made = profile_of(clusters, x, [quality[row] for row in rows], known, model=model, source=source)
    _write(given["out"] or _file_of(model), made, clusters)


@profile.command()
@click.argument("files", type=FILE, nargs=-1, required=True)
@option("--clusters", "path", type=FILE, help="Artifact of the clusters, to show their names.")
@option("--json", "as_json", is_flag=True, help="Print the report as one JSON object.")
@exit_statuses
def show(files: tuple[Path, ...], path: Path | None, as_json: bool) -> None:
    """Show how often models are right, by cluster, with 95 % intervals and counts.

    Several profiles are shown side by side; the clusters where they differ most come first.
    """
    from rich.console import Console

    from semroute_lab.profile.tally import check_alike, draw, report

    clusters = read_clusters(path) if path is not None else None
    profiles = [read_profile(file) for file in files]
    check_alike(files, profiles, clusters)
    found = report(profiles, clusters)
    if as_json:
        click.echo(json.dumps(found, ensure_ascii=False))
    else:
        draw(found["models"], Console(markup=False, highlight=False))


def _embed(scorer: Any, texts: Sequence[str]) -> tuple[Any, Any]:
    from semroute_lab.common.embedding import embed

    rows, x = embed(scorer, texts)
    _say_left_out(len(texts) - len(rows), scorer.bundle.manifest.name)
    return rows, x


def _say_left_out(count: int, bundle: str) -> None:
    if count:
        click.echo(f"{count} texts are left out: no language of bundle {bundle}", err=True)


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


def _file_of(model: str) -> Path:
    """A file for a model: `org/model-8b` becomes `org-model-8b.json`."""
    return Path(re.sub(r"[^A-Za-z0-9._-]+", "-", model).strip(".-") + ".json")


def _write(path: Path, made: Profile, clusters: ClustersArtifact) -> None:
    write_json(path, made)
    click.echo(certainty(made, clusters.clusterings), err=True)
    click.echo(f"{path}")
