"""The command line: arguments to one call each. Exit statuses: see `exits`."""

import importlib.metadata
import json
import sys
import tomllib
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from semroute_extproc import __version__
from semroute_extproc.cli import operate
from semroute_extproc.cli.exits import LAB_EXTRA, Exit, exit_statuses, install, missing, refuse

PLUGINS = "semroute.commands"  # Entry-point group by which semroute-lab and others add commands

LAB: dict[str, list[str]] = tomllib.loads(Path(__file__).with_name("lab.toml").read_text())
"""Commands of semroute-lab: the extra that each needs, and its line in --help."""

ANY_ARGUMENTS = {"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []}

PATH = click.Path(path_type=Path)
BYTES = click.File("rb")


class Commands(click.Group):
    """A group whose plug-in commands are imported when they are used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Every command, most used first."""
        plugins = importlib.metadata.entry_points(group=PLUGINS).names
        return [*self.commands, *LAB, *sorted(plugins - LAB.keys())]

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """As click does, but without importing plug-ins."""
        names = (name for name in self.list_commands(ctx) if name.startswith(incomplete))
        return [*map(CompletionItem, names), *click.Command.shell_complete(self, ctx, incomplete)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command, imported now if it is a plug-in; one that cannot be imported says what to install."""
        plugins = importlib.metadata.entry_points(group=PLUGINS, name=cmd_name)
        if cmd_name not in LAB and not plugins:
            return super().get_command(ctx, cmd_name)
        extra, _ = LAB.get(cmd_name, ("", ""))
        ctx.meta[LAB_EXTRA] = extra
        problem = f"{cmd_name} is not installed: {install(extra)}"
        try:
            for plugin in plugins:
                command: click.Command = plugin.load()
                return command
        except ModuleNotFoundError as error:
            problem = missing(error, extra)
        return click.Command(cmd_name, ANY_ARGUMENTS, lambda: refuse([problem], Exit.UNAVAILABLE))

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """As click does, but without importing plug-ins."""
        rows = [(key, each.get_short_help_str(63)) for key, each in self.commands.items()]
        installed = importlib.metadata.entry_points(group=PLUGINS).names
        for name, (extra, line) in LAB.items():
            rows.append((name, line if name in installed else f"(not installed: {install(extra)})"))
        rows += [(name, "(a plug-in)") for name in sorted(installed - LAB.keys())]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


CONFIG_FILE = Path("semroute.yaml")  # in the current folder, if no other configuration is given


def _found(context: click.Context, _: click.Parameter, given: Path | None) -> Path:
    given = context.params.get("config_path") or given
    if given is None and not CONFIG_FILE.is_file():
        raise click.UsageError(f"give a configuration with -c: there is no {CONFIG_FILE} here")
    return given or CONFIG_FILE


config_option = click.option(
    "--config",
    "-c",
    type=click.Path(path_type=Path, dir_okay=False),
    envvar="SEMROUTE_CONFIG",
    callback=_found,
    help="Configuration (YAML); default: SEMROUTE_CONFIG, else semroute.yaml in the current folder. "
    "SEMROUTE__SECTION__KEY overrides one value.",
)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 80})
@click.version_option(__version__, prog_name="semroute")
def main() -> None:
    """Route LLM requests to the cheapest vLLM pool that will answer them well.

    semroute is an external processor for Envoy: it reads each request, classifies its prompt with a
    small ONNX encoder, applies your policy and tells Envoy which cluster and model should answer.

    \b
    First steps:
      semroute demo                      try it here, with simulated pools
      semroute example > semroute.yaml   write a sample configuration
      semroute check -c semroute.yaml    check it
      semroute envoy > envoy.yaml        write Envoy's configuration for it
      semroute explain -c semroute.yaml --text "Prove that sqrt(2) is irrational."
      semroute serve -c semroute.yaml    serve requests behind your Envoy
    """


@main.command()
@config_option
@click.option("--worker", "index", type=click.IntRange(min=0), hidden=True)
@click.option("--worker-admin", default="", hidden=True)
@exit_statuses
def serve(config: Path, index: int | None, worker_admin: str) -> None:
    """Serve Envoy's ext_proc streams until SIGTERM, then drain.

    \b
    SIGHUP or a change of the file reloads pools, models, policies and strategies;
    an invalid configuration is logged and changes nothing.

    With server.workers above 1, this process starts that many workers, keeps them running and
    answers for all of them on the admin port.
    """
    from semroute_extproc.config import source as config_source

    if index is None and config_source.load(config).config.server.workers > 1:
        from semroute_extproc.serve import supervisor

        sys.exit(supervisor.serve(config))
    from semroute_extproc.serve import app

    sys.exit(app.serve(config, index, worker_admin))


@main.command()
@config_option
@click.option("--text", help="A prompt, sent as one user turn of a chat completion; - reads standard input.")
@click.option("--body", type=BYTES, help="Request body file, or - for standard input, instead of --text.")
@click.option("--model", help="Model name in the body made from --text; default: the first routed name.")
@click.option(
    "--header", "-H", "headers", multiple=True, metavar="'NAME: VALUE'", help="As curl's; repeatable."
)
@click.option("--path", default="/v1/chat/completions", show_default=True, help="Path of the request.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as one JSON object.")
@exit_statuses
def explain(
    config: Path, text: str | None, body: Any, model: str, headers: tuple[str, ...], path: str, as_json: bool
) -> None:
    """Show the decision for one request, exactly as a server without traffic would make it.

    Prints pool, cluster, model, reasoning effort, reason, the rules tried, the signals, the header
    and body edits and the time of each stage.
    """
    from semroute_extproc.config import source as config_source
    from semroute_extproc.serve.explain import explain

    if (text is None) == (body is None):
        raise click.UsageError("give either --text or --body")
    pairs = {}
    for header in headers:
        name, colon, value = header.partition(":")
        if not (name and colon):
            raise click.UsageError(f"--header {header!r}: expected 'NAME: VALUE'")
        pairs[name.strip()] = value.strip()
    text = sys.stdin.read() if text == "-" else text
    loaded = config_source.load(config)
    name = model or next(iter(loaded.config.models), "")
    prompt = {"model": name, "messages": [{"role": "user", "content": text}]}
    most = loaded.config.server.body_bytes_max
    raw = json.dumps(prompt).encode() if body is None else body.read(most + 1)
    report = explain(loaded, path, pairs, raw)
    if as_json:
        click.echo(json.dumps(report, ensure_ascii=False))
    else:
        click.echo(operate.render("explain.txt", {"report": report}))


@main.command()
@click.option("--bundle", type=PATH, help="Use this bundle for every language; default: the shipped bundles.")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@click.option("--embedding", is_flag=True, help="Add the sentence embedding to every line.")
@exit_statuses
def score(bundle: Path | None, device: Any, embedding: bool) -> None:
    """Print the signals of many prompts: JSON Lines in, JSON Lines out, in the same order.

    \b
    in   {"text": "…"} or {"body": {…}} (a request body)
    out  {"domain": {"label", "probs"}, "difficulty", "unknown", "tokens",
          "truncated", "language"}

    For a bad line, prints {"error": …} in its place; the exit status is then 1.
    """
    from rich.console import Console
    from rich.progress import track

    from semroute_extproc.cli.score import read_lines, score_lines
    from semroute_extproc.serve.offline import Scorer

    lines = score_lines(Scorer.of(bundle, device), read_lines(sys.stdin.buffer), embedding)
    console = Console(stderr=True)
    hidden = not console.is_terminal or sys.stdout.isatty()
    failed = 0
    for line in track(lines, "scored", console=console, disable=hidden):
        failed += "error" in line
        click.echo(json.dumps(line, ensure_ascii=False))
    if failed:
        refuse([f"{failed} bad line{'s' if failed > 1 else ''}"], Exit.ROWS)


@main.command()
@click.argument("config_path", type=PATH, required=False, is_eager=True)  # before --config, which it replaces
@config_option
@click.option("--envoy", type=PATH, help="Envoy's configuration; check that it routes, safely and in time.")
@click.option("--envoy-version", "version", help="What `envoy --version` prints; is this Envoy new enough?")
@click.option("--live", is_flag=True, help="Ask every server of the pools; costs no tokens.")
@click.option(
    "--tools", is_flag=True, help="As --live, and request a tool call of one token from each server."
)
@click.option(
    "--api-key-env", "key_env", metavar="NAME", default="", help="As --live, with this variable's key."
)
@exit_statuses
def check(
    config: Path, envoy: Path | None, version: str | None, live: bool, tools: bool, key_env: str, **_: Any
) -> None:
    """Check a configuration, its conditions, its bundle and its requirements on this machine.

    Also checks API keys in the environment, optional libraries and the GPU, so run it on the machine
    that will serve. Sends no requests, unless --live asks the servers for their models,
    context lengths, health and load.

    Prints every problem as file:line:col: path: message, and exits with status 78 if there is
    any. Likely mistakes are printed as notes.
    """
    from semroute_extproc.cli import check as checking
    from semroute_extproc.config import source as config_source

    loaded = config_source.load(config)
    bundles = checking.check(loaded)
    if envoy is not None:
        found = checking.envoy_findings(loaded, envoy)
        for text in (text for text, is_note in found if is_note):
            click.echo(f"note: {text}", err=True)
        if problems := [text for text, is_note in found if not is_note]:
            refuse(problems, Exit.CONFIG)
    if version is not None and (problem := checking.old_envoy(version)):
        refuse([problem], Exit.CONFIG)
    for warning in checking.warnings(loaded, bundles):
        click.echo(warning, err=True)
    sections = ("pools", "policies", "strategies")
    counts = ", ".join(f"{len(getattr(loaded.config, each))} {each}" for each in sections)
    names = ", ".join(sorted({each.manifest.name for each in bundles.values()}))
    click.echo(f"{config}: ok ({counts}, bundles {names})")
    if live or tools or key_env:
        from semroute_extproc.cli import live as asking

        sys.exit(asking.check(loaded, key_env, tools))


@main.command()
@config_option
@click.option(
    "--for",
    "target",
    type=click.Choice(["envoy", "envoy-gateway", "istio", "kgateway", "inference-extension"]),
    default="envoy",
)
@click.option(
    "--pool", "given", multiple=True, metavar="NAME=HOST:PORT", help="A server of a pool; repeatable."
)
@click.option("--listen", default="0.0.0.0:10000", show_default=True, help="Where clients connect to Envoy.")
@exit_statuses
def envoy(config: Path, target: str, given: tuple[str, ...], listen: str) -> None:
    """Print the whole Envoy side of a configuration.

    The servers of each pool come from its `endpoints`, or from --pool. The result is the shipped
    file of envoy/ with your pools, sockets, limits and timeouts.
    """
    from semroute_extproc.cli import envoy_file
    from semroute_extproc.config import source as config_source

    places: dict[str, list[str]] = {}
    for each in given:
        name, _, address = each.partition("=")
        places.setdefault(name, []).append(f"http://{address}")
    click.echo(envoy_file.render(config_source.load(config), target, places, listen), nl=False)


@main.command()
def example() -> None:
    """Print a commented sample configuration."""
    click.echo((Path(__file__).parent / "example.yaml").read_text(), nl=False)


@main.command()
def schema() -> None:
    """Print the configuration's JSON Schema, for editors."""
    from semroute_extproc.config.models import Config

    document = {"$schema": "https://json-schema.org/draft/2020-12/schema", **Config.model_json_schema()}
    click.echo(json.dumps(document, indent=2))


@main.command("dump-config")
@config_option
@exit_statuses
def dump_config(config: Path) -> None:
    """Print the effective configuration: file, environment and defaults merged."""
    from semroute_extproc.config import source as config_source

    settings = config_source.load(config).config.model_dump(mode="json")
    click.echo(config_source.as_yaml(settings), nl=False)


for each in (operate.status, operate.logs, operate.top):
    main.add_command(each)
