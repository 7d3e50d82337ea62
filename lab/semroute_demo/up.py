"""`semroute up` and `semroute go`: from the addresses of servers to routed requests.

`up` writes a configuration in which every request goes where it went before, and starts the sidecar and
Envoy. What would have been routed is counted. `go` routes a share of the requests.
"""

import contextlib
import hashlib
import json
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import click
import httpx2
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console
from ruamel.yaml import YAML

from semroute_demo import servers
from semroute_demo.envoy import START_SECONDS_MAX, find_envoy
from semroute_demo.process import HTTP, Process, ProcessError, free_port
from semroute_demo.servers import PRICES, Model
from semroute_extproc.cli import envoy_file
from semroute_extproc.cli.exits import exit_statuses
from semroute_extproc.config import source
from semroute_extproc.config.models import Config
from semroute_extproc.errors import DataError, EndpointError
from semroute_extproc.settings.pools import cost

CONFIG, BOOTSTRAP, RECORD = "semroute.yaml", "envoy.yaml", ".semroute-up.json"
TICK_SECONDS = 2.0  # between two signs of progress
REPORT_SECONDS = 10.0  # between two reports of what was counted
SOCKET_CHARACTERS_MAX = 100  # of a socket's path; the system's limit is 108
COLUMNS = 80

WRITTEN = Path(__file__).with_name("up.yaml.txt").read_text()
LIVE_SHARE = r"&live \{[^}]*\}"
LIVE = """\
    # As before, the server itself refuses what it cannot do.
    images: true
    audio: true
    video: true
    files: true
    apis: [chat_completions, completions, responses, messages, embeddings,
      rerank, score, pooling, classify, transcriptions, translations, speech,
      images]
    policy: observe
    # The share that is routed. `semroute go --share 0.1` writes {routed: 0.1}.
    canary: &live {}
"""

folder_option = click.option(
    "--dir",
    "folder",
    type=click.Path(path_type=Path, file_okay=False),
    default=".",
    help="Folder of semroute.yaml and envoy.yaml; default: the current one.",
)


@click.command()
@click.argument("urls", nargs=-1, required=True, metavar="URL URL...")
@click.option("--strong", default="", metavar="MODEL", help="The stronger model; default: the larger one.")
@click.option("--api-key-env", metavar="NAME", help="Variable with the servers' API key.")
@click.option("--port", type=click.IntRange(1, 65535), help="Envoy's port; default: 10000 if it is free.")
@folder_option
@exit_statuses
def up(urls: tuple[str, ...], strong: str, api_key_env: str | None, port: int | None, folder: Path) -> None:
    """Put Envoy and the sidecar in front of vLLM servers, and only observe.

    Writes semroute.yaml and envoy.yaml, starts both, and reports what routing
    would have saved. Every request goes where it went before, until you run
    `semroute go`. Files that you have edited are kept.
    """
    say = Console(stderr=True, markup=False, highlight=False, width=COLUMNS, soft_wrap=True).print
    key = os.environ.get(api_key_env, "") if api_key_env else ""
    if api_key_env and not key:
        raise EndpointError("setup", f"the environment has no {api_key_env}")
    folder = folder.absolute()
    if len(str(folder)) + len("/w0.sock") > SOCKET_CHARACTERS_MAX:
        raise DataError(f"{folder}: the path is too long for a socket; give a shorter --dir")
    folder.mkdir(parents=True, exist_ok=True)
    with _progress(say, "asking the servers"):
        models = servers.ask(urls, key)
    best, why = _choose(models, strong)
    weak = min((each for each in models if each is not best), key=lambda each: each.blended)
    _show(say, models, best, why)
    running = folder / CONFIG
    if running.is_file() and _is_up(source.load(running).config):
        raise DataError(f"{folder}: `semroute up` is running here already; stop it first")
    _keep(say, running, _configuration(folder, models, weak, best))
    loaded = source.load(running)
    place = f"0.0.0.0:{port or free_port(preferred=10_000)}"
    admin = f"127.0.0.1:{free_port(preferred=9901)}"
    _keep(say, folder / BOOTSTRAP, envoy_file.render(loaded, "envoy", {}, place, admin))
    if "semroute.answer" not in (folder / BOOTSTRAP).read_text():
        say(f"{BOOTSTRAP} has no filter `accounting`: tokens are not counted")
    try:
        _serve(say, folder, loaded.config)
    except ProcessError as error:
        raise EndpointError("setup", str(error)) from None


@click.command()
@click.option("--share", type=click.FloatRange(0, 1), default=0.1, show_default=True, help="Share to route.")
@folder_option
@exit_statuses
def go(share: float, folder: Path) -> None:
    """Route a share of the requests of `semroute up`; --share 0 only observes.

    Changes one line of semroute.yaml: `canary: &live {routed: 0.1}`. Requests
    that name a weaker model stay as they are, whatever the share.
    """
    path = folder / CONFIG
    config = source.load(path).config
    lines = path.read_text().splitlines(keepends=True)
    found = [index for index, line in enumerate(lines) if re.match(rf" *canary: {LIVE_SHARE}", line)]
    if len(found) != 1 or "routed" not in config.policies:
        raise DataError(f"{path}: no line `canary: &live {{}}`, as `semroute up` writes it")
    # As text, so that everything else stays as a person has written it.
    written = f"&live {{routed: {share:g}}}" if share else "&live {}"
    lines[found[0]] = re.sub(LIVE_SHARE, written, lines[found[0]])
    _replace(path, "".join(lines))
    click.echo(f"{share:.0%} of the requests are routed; the others go where they went.")
    for pool in config.pools.values():
        if pool.policy is None:
            click.echo(f"Requests that name {pool.model} stay as they are.")
    if not _is_up(config):
        click.echo("Nothing is running here: `semroute up` starts it with this share.")


def _choose(models: Sequence[Model], wanted: str) -> tuple[Model, str]:
    if len(models) < 2:
        served = f"the servers have only one model, {models[0].model}"
        raise EndpointError("setup", f"{served}: give servers with two different models")
    found = servers.strongest(models, wanted)
    if found is None and sys.stdin.isatty():
        names = click.Choice([each.model for each in models])
        found = servers.strongest(models, click.prompt("Which model is stronger?", type=names, err=True))
    if found is None:
        raise EndpointError("setup", f"which model is stronger? add --strong {models[-1].model}")
    return found


def _show(say: Callable[..., None], models: Sequence[Model], best: Model, why: str) -> None:
    for each in models:
        price = each.price
        cost = f"${price['input']:.2f} in, ${price['output']:.2f} out" if price else "no price known"
        context = f"{each.context} tokens" if each.context else "context unknown"
        load = "" if each.measured else ", no vLLM metrics"
        say(f"{each.name}: {each.model}\n  {', '.join(each.endpoints)}: {context}, {cost}{load}")
    say(f"Stronger: {best.model} ({why}).")
    say(f"Prices are guesses of {PRICES['date']} by size, per million tokens.")


def _configuration(folder: Path, models: Sequence[Model], weak: Model, best: Model) -> str:
    parts = []
    for each in models:
        price = each.price and {key: each.price[key] for key in ("input", "output")}
        lines = [
            f"  {each.name}:",
            f"    model: {json.dumps(each.model)}",
            f"    endpoints: {json.dumps(each.endpoints)}",
        ]
        lines += [f"    aliases: {json.dumps(each.aliases)}"] if each.aliases else []
        lines += [f"    metrics: {each.endpoints[0]}/metrics"] if each.measured else []
        lines += [f"    price: {json.dumps(price).replace(chr(34), '')}"] if price else []
        lines += [f"    context: {each.context}"] if each.context else []
        parts.append("\n".join(lines) + "\n" + (LIVE if each is best else ""))
    places = {"folder": folder, "admin": f"127.0.0.1:{free_port(preferred=9090)}", "date": PRICES["date"]}
    return WRITTEN.format(pools="".join(parts), weak=weak.name, strong=best.name, **places)


def _keep(say: Callable[..., None], path: Path, text: str) -> None:
    """Write a file unless a person has changed it: then it is not what was written last."""
    record = path.with_name(RECORD)
    written: dict[str, str] = json.loads(record.read_text()) if record.is_file() else {}
    if path.is_file() and written.get(path.name) != _digest(path.read_text()):
        say(f"kept {path.name}: it was edited")
        return
    _replace(path, text)
    _replace(record, json.dumps({**written, path.name: _digest(text)}))
    say(f"wrote {path.name}")


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _replace(path: Path, text: str) -> None:
    """Write a file as a whole, so that no reader sees a part of it."""
    partial = path.with_name(f".{path.name}.new")
    partial.write_text(text)
    partial.replace(path)


def _serve(say: Callable[..., None], folder: Path, config: Config) -> None:
    """Run both until they are interrupted, and report what was counted."""
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    bootstrap = YAML(typ="safe", pure=True).load((folder / BOOTSTRAP).read_text())
    port = bootstrap["static_resources"]["listeners"][0]["address"]["socket_address"]["port_value"]
    place = bootstrap["admin"]["address"]["socket_address"]
    envoy_admin = f"http://{place['address']}:{place['port_value']}"
    command = [sys.executable, "-m", "semroute_extproc", "serve", "--config", str(folder / CONFIG)]
    options = ["--concurrency", "2", "--log-level", "warning", "--disable-hot-restart"]
    run = [str(find_envoy()), "-c", str(folder / BOOTSTRAP), *options]
    sidecar = Process("semroute", command, folder / "semroute.log")
    envoy = Process("Envoy", run, folder / "envoy.log", folder / "access.log")
    with contextlib.ExitStack() as exits:
        for process, ready in (
            (sidecar, lambda: _is_up(config)),
            (envoy, lambda: HTTP.get(f"{envoy_admin}/ready", timeout=1.0).text.strip() == "LIVE"),
        ):
            exits.callback(process.stop)
            with _progress(say, f"starting {process.name}"):
                process.start(ready, 2 * START_SECONDS_MAX)
        say(
            f"\nSend requests to   http://localhost:{port}/v1\nThe page           http://{config.admin.listen}/"
        )
        say(f"Envoy's admin      {envoy_admin}\nLogs               {folder}/*.log\n")
        say("Every request goes where it went. `semroute go --share 0.1` routes a tenth.")
        say("Ctrl-C stops both.\n")
        reported = ""
        while not stop.wait(REPORT_SECONDS if reported else TICK_SECONDS):
            if (text := report(config)) != reported:
                say(text)
                reported = text


def report(config: Config) -> str:
    """What was counted so far, and what routing all requests would have saved."""
    try:
        page = HTTP.get(f"http://{config.admin.listen}/metrics", timeout=2.0).text
    except httpx2.HTTPError as error:
        return f"the sidecar does not answer: {error}"
    families = {each.name: each.samples for each in text_string_to_metric_families(page)}

    def total(name: str, **labels: str) -> float:
        found = (each for each in families.get(name, ()) if each.name.endswith("_total"))
        return sum(each.value for each in found if labels.items() <= each.labels.items())

    observed = total("semroute_shadow_decisions", shadow="routed")
    requests, routed = total("semroute_decisions"), total("semroute_decisions", strategy="pair")
    pair: Any = config.strategies.get("pair")
    if pair is None:
        return f"{requests:.0f} requests."
    text = f"{requests:.0f} requests, {routed:.0f} routed, {observed:.0f} observed."
    answers = total("semroute_answers", pool=pair.strong)
    spent, baseline = total("semroute_dollars"), total("semroute_baseline_dollars")
    if total("semroute_answers"):
        read, written = (total("semroute_tokens", type=kind) for kind in ("input", "output"))
        text += f"\nCounted in the answers: {read:,.0f} tokens in, {written:,.0f} out."
    if baseline:
        text += f"\nThey cost {_dollars(spent)}; routing has saved {_dollars(baseline - spent)}."
    if observed:
        moved = total("semroute_shadow_decisions", shadow="routed", pool=pair.weak)
        text += f"\n{pair.weak} would have answered {moved / observed:.0%} of the observed ones"
        if answers and (paid := total("semroute_dollars", pool=pair.strong)):
            kinds = ("input", "output", "cached_input")
            counts = (total("semroute_tokens", pool=pair.strong, type=kind) for kind in kinds)
            saved = moved / answers * (paid - cost(config.pools[pair.weak], *counts))
            text += f",\nand saved {_dollars(saved)} of this, if they are of mean size"
        text += "."
    return text


def _dollars(amount: float) -> str:
    """Cents from one dollar on, else millionths."""
    return f"${amount:.{2 if amount >= 1.0 else 6}f}".rstrip("0").rstrip(".")


def _is_up(config: Config) -> bool:
    try:
        return HTTP.get(f"http://{config.admin.listen}/readyz", timeout=1.0).status_code == 200
    except httpx2.HTTPError:
        return False


@contextlib.contextmanager
def _progress(say: Callable[..., None], what: str) -> Iterator[None]:
    """Say what is being waited for, and every two seconds for how long."""
    done, started = threading.Event(), time.monotonic()

    def tick() -> None:
        while not done.wait(TICK_SECONDS):
            say(f"{what}: {time.monotonic() - started:.0f} s")

    say(f"{what} ...")
    thread = threading.Thread(target=tick, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
