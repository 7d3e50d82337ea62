"""The command line: arguments to one call each.

Exit status: 0 done, 1 done with errors in the data, 2 wrong usage, 78 the configuration or the
bundle cannot be used.
"""

from __future__ import annotations

import importlib.metadata
import json
import sys
from pathlib import Path
from typing import Any, NoReturn

import click

from semroute_extproc import __version__
from semroute_extproc.errors import BundleError, ConfigError

EXIT_CONFIG = 78
"""EX_CONFIG of sysexits.h: a supervisor must not restart what cannot start."""

PLUGINS = "semroute.commands"
"""Entry-point group by which other distributions add commands."""

LAB = {
    "demo": "demo",
    "train": "train",
    "bundle": "train",
    "fit": "",
    "calibrate": "",
    "eval": "train",
    "profile": "",
    "bench": "bench",
}
"""Commands of the distribution semroute-lab, and the extra that each needs."""


class Commands(click.Group):
    """A group whose plug-in commands are imported when they are used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Every command, most used first."""
        plugins = importlib.metadata.entry_points(group=PLUGINS).names
        return [*self.commands, *dict.fromkeys([*LAB, *sorted(plugins)])]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command, imported now if it is a plug-in."""
        found = super().get_command(ctx, cmd_name)
        if found is not None:
            return found
        plugins = importlib.metadata.entry_points(group=PLUGINS, name=cmd_name)
        if not plugins:
            return _missing(cmd_name) if cmd_name in LAB else None
        try:
            command: click.Command = next(iter(plugins)).load()
        except ModuleNotFoundError as error:
            if (error.name or "").startswith("semroute"):
                raise
            return _missing(cmd_name, str(error.name))
        return command


def _missing(name: str, module: str = "") -> click.Command:
    """A stand-in that says what to install."""
    extra = f"[{LAB[name]}]" if LAB.get(name) else ""
    install = f"pip install 'semroute-lab{extra}'"

    @click.command(
        name,
        short_help=f"(not installed: {install})",
        context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
    )
    def missing() -> None:
        what = f"the Python package {module!r} is missing" if module else f"{name} is not installed"
        raise click.ClickException(f"{what}: {install}")

    return missing


config_option = click.option(
    "--config",
    "-c",
    "config_path",
    type=click.Path(path_type=Path, dir_okay=False),
    envvar="SEMROUTE_CONFIG",
    required=True,
    help="The configuration, YAML. Also SEMROUTE_CONFIG; SEMROUTE__SECTION__KEY sets single values.",
)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="semroute")
def main() -> None:
    """Route LLM requests to the cheapest vLLM pool that will answer them well.

    semroute is an external processor for Envoy: it reads each request, classifies its prompt with a
    small ONNX encoder, applies your policy and tells Envoy which cluster and model should answer.

    \b
    First steps:
      semroute demo                      everything on this machine, with simulated pools
      semroute example > semroute.yaml   a configuration to start from
      semroute check -c semroute.yaml    is it right?
      semroute explain -c semroute.yaml --text "Prove that sqrt(2) is irrational."
      semroute serve -c semroute.yaml    the real thing, behind your Envoy
    """


@main.command()
@config_option
@click.option("--worker", "index", type=click.IntRange(min=0), hidden=True)
@click.option("--worker-admin", hidden=True)
def serve(config_path: Path, index: int | None, worker_admin: str | None) -> None:
    """Serve Envoy's ext_proc streams until SIGTERM, then drain.

    \b
    SIGHUP or a change of the file reloads pools, models, policies and strategies;
    a configuration that is wrong changes nothing and is logged.

    With server.workers above 1 this process starts so many others, keeps them running and answers
    for all of them on the admin port.
    """
    try:
        if index is None and _workers(config_path) > 1:
            from semroute_extproc.serve import supervisor

            sys.exit(supervisor.serve(config_path))
        from semroute_extproc.serve import app

        app.serve(config_path, None if index is None else app.Worker(index, worker_admin or ""))
    except (ConfigError, BundleError) as error:
        _refuse(error)
    except OSError as error:
        raise click.ClickException(str(error)) from None


def _workers(config_path: Path) -> int:
    from semroute_extproc.config import source as config_source

    return config_source.load(config_path).config.server.workers


@main.command()
@config_option
@click.option("--text", help="A prompt, sent as one user turn of a chat completion.")
@click.option(
    "--body",
    "body_file",
    type=click.File("rb"),
    help="A request body, a file or - for standard input, instead of --text.",
)
@click.option("--model", help="Model name in the body made from --text; default: the first routed name.")
@click.option("--header", "headers", multiple=True, metavar="K=V", help="A request header; repeatable.")
@click.option("--path", default="/v1/chat/completions", show_default=True, help="Path of the request.")
@click.option("--json", "as_json", is_flag=True, help="Everything, as one JSON object.")
def explain(
    config_path: Path,
    text: str | None,
    body_file: Any,
    model: str | None,
    headers: tuple[str, ...],
    path: str,
    as_json: bool,
) -> None:
    """Show the decision for one request, exactly as the server would take it.

    Prints pool, cluster, model, reasoning effort, reason, the rules tried, the signals, the header
    and body edits and the time of each stage.
    """
    from rich.console import Console

    from semroute_extproc.cli.explain import explain as run
    from semroute_extproc.cli.explain import print_report
    from semroute_extproc.config import source as config_source

    if (text is None) == (body_file is None):
        raise click.UsageError("give either --text or --body")
    pairs = [_pair(header) for header in headers]
    try:
        loaded = config_source.load(config_path)
        if body_file is not None:
            body = body_file.read()
        else:
            name = model or next(iter(loaded.config.models), "")
            body = json.dumps({"model": name, "messages": [{"role": "user", "content": text}]}).encode()
        report = run(loaded, path, dict(pairs), body)
    except (ConfigError, BundleError) as error:
        _refuse(error)
    if as_json:
        click.echo(json.dumps(report, ensure_ascii=False))
    else:
        # What clients and models are called is not markup.
        print_report(report, Console(markup=False))


@main.command()
@click.option(
    "--bundle",
    "bundle_dir",
    type=click.Path(path_type=Path),
    help="Use this bundle for every language; default: the shipped ones.",
)
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@click.option("--embedding", is_flag=True, help="Add the sentence embedding to every line.")
def score(bundle_dir: Path | None, device: Any, embedding: bool) -> None:
    """Give the signals of many prompts: JSON lines in, JSON lines out, in order.

    \b
    in   {"text": "…"} or {"body": {…}} (a request body)
    out  {"domain": {"label", "probs"}, "difficulty", "unknown", "tokens", "truncated", "language"}

    A bad line gives {"error": …} in its place, and exit status 1 at the end.
    """
    from semroute_extproc.cli.score import read_lines, score_lines
    from semroute_extproc.encoder.offline import Scorer

    try:
        scorer = Scorer.of(bundle_dir, device)
    except (ConfigError, BundleError) as error:
        _refuse(error)
    failed = 0
    lines = score_lines(scorer, read_lines(sys.stdin.buffer), embedding)
    with _progress() as advance:
        for line in lines:
            failed += "error" in line
            click.echo(json.dumps(line, ensure_ascii=False))
            advance()
    if failed:
        click.echo(f"{failed} bad line{'s' if failed > 1 else ''}", err=True)
        sys.exit(1)


@main.command()
@click.argument("config_path", type=click.Path(path_type=Path), required=False)
@click.option("--config", "-c", "option_path", type=click.Path(path_type=Path), envvar="SEMROUTE_CONFIG")
@click.option(
    "--envoy",
    type=click.Path(path_type=Path),
    help="Envoy's bootstrap with static clusters, to look for the pools' in.",
)
def check(config_path: Path | None, option_path: Path | None, envoy: Path | None) -> None:
    """Check a configuration, its conditions, its bundle and what it needs here, without serving.

    Variables with keys, optional libraries and a GPU that it asks for count, so run it where you will
    serve. Nothing is sent.

    Prints every problem as file:line:col: path: message, and exits with 78 if there is one. What is allowed
    and more likely a slip is a note.
    """
    from semroute_extproc.cli import check as checking
    from semroute_extproc.config import source as config_source

    path = config_path or option_path
    if path is None:
        raise click.UsageError("give a configuration")
    try:
        loaded = config_source.load(path)
        bundles, policies = checking.check(loaded)
        if envoy is not None and (problems := config_source.without_cluster(loaded, envoy)):
            raise loaded.error(problems)
    except (ConfigError, BundleError) as error:
        _refuse(error)
    for doubt in checking.doubts(loaded, bundles):
        click.echo(f"note: {doubt}", err=True)
    config = loaded.config
    counts = f"{len(config.pools)} pools, {len(policies)} policies, {len(config.strategies)} strategies"
    names = ", ".join(sorted(each.manifest.name for each in bundles.values()))
    click.echo(f"{path}: ok ({counts}, bundles {names})")


@main.command()
def example() -> None:
    """Print a commented configuration to start from."""
    click.echo((Path(__file__).parent / "example.yaml").read_text(), nl=False)


@main.command()
def schema() -> None:
    """Print the configuration's JSON Schema, for editors."""
    from semroute_extproc.config.models import Config

    document = {"$schema": "https://json-schema.org/draft/2020-12/schema", **Config.model_json_schema()}
    click.echo(json.dumps(document, indent=2))


@main.command("dump-config")
@config_option
def dump_config(config_path: Path) -> None:
    """Print the configuration as it is used: file, environment and defaults together."""
    from ruamel.yaml import YAML

    from semroute_extproc.config import source as config_source

    try:
        loaded = config_source.load(config_path)
    except ConfigError as error:
        _refuse(error)
    yaml = YAML()
    yaml.default_flow_style = False
    yaml.dump(loaded.config.model_dump(mode="json"), sys.stdout)


def _refuse(error: ConfigError | BundleError) -> NoReturn:
    problems = error.problems if isinstance(error, ConfigError) else [str(error)]
    for problem in problems:
        click.echo(problem, err=True)
    sys.exit(EXIT_CONFIG)


def _pair(header: str) -> tuple[str, str]:
    name, sign, value = header.partition("=")
    if not sign or not name:
        raise click.UsageError(f"--header {header!r}: expected K=V")
    return name, value


class _progress:  # noqa: N801
    """A progress counter on a terminal's standard error, nothing elsewhere."""

    def __enter__(self) -> Any:
        from rich.console import Console
        from rich.progress import MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        console = Console(stderr=True)
        self._bar = Progress(
            SpinnerColumn(),
            TextColumn("scored"),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
            disable=not console.is_terminal or sys.stdout.isatty(),
        )
        task = self._bar.add_task("scored", total=None)
        self._bar.start()
        return lambda: self._bar.advance(task)

    def __exit__(self, *_: object) -> None:
        self._bar.stop()
