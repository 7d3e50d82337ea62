"""`semroute status`, `logs` and `top`: what a running server does, from the data of its admin page."""

import contextlib
import json
import os
import select
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from threading import Event
from typing import Any

import click

from semroute_extproc.cli.exits import Exit, exit_statuses
from semroute_extproc.errors import EndpointError

COLUMNS = 80
ROWS_MAX = 10  # of a table, so that a view fits one screen
LOGS_MAX = 100  # decisions that the admin port lists
ANSWER_SECONDS_MAX = 25.0  # above the 20 s that the supervisor waits for a worker
FOLLOW_SECONDS = 1.0  # between two requests of `logs --follow`: the server keeps a view for a second
TOKEN = "SEMROUTE__ADMIN__TOKEN"  # noqa: S105 - the name of the variable
ANY = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "[::]": "[::1]"}  # noqa: S104 - addresses to listen on

View = Mapping[str, Any]


class AdminPort:
    """A client of the admin port at `address`, or without one at that of the configuration in `path`."""

    def __init__(self, address: str | None, path: Path) -> None:
        """`address` is `http://host:port`, `host:port` or `unix:/path`; raises ConfigError, EndpointError."""
        import httpx2  # Takes 60 ms, which `--help` should not.

        from semroute_extproc.config.source import load_admin

        token = os.environ.get(TOKEN, "")
        if address is None:
            admin = load_admin(path)
            token, (host, _, port) = admin.guards()["token"], (admin.listen or "").rpartition(":")
            if port in ("", "0"):
                raise EndpointError("setup", f"{path}: admin.listen is {admin.listen}: give --admin ADDRESS")
            address = f"{ANY.get(host, host)}:{port}"
        socket = address.removeprefix("unix:") if address.startswith("unix:") else None
        self._url = "http://admin" if socket else address if "://" in address else f"http://{address}"
        self.address, self._errors = address, (httpx2.HTTPError, httpx2.InvalidURL)
        transport = httpx2.HTTPTransport(uds=socket)
        self._client = httpx2.Client(transport=transport, timeout=ANSWER_SECONDS_MAX)
        self._client.headers |= {"authorization": f"Bearer {token}"} if token else {}

    def get(self, path: str, member: str = "", **query: str) -> Any:
        """A page of JSON with this member; without `member`, any page. Raises EndpointError."""
        try:
            answer = self._client.get(self._url + path, params=query)
            found = answer.json() if member and answer.status_code == 200 else {}
        except self._errors as error:
            problem = f"{self.address} does not answer ({str(error) or type(error).__name__})"
            raise EndpointError("connection", f"{problem}: is `semroute serve` running?") from None
        except ValueError:
            found = {}
        status, problem = answer.status_code, answer.text.strip()[:200]
        if status in (401, 421, 503):
            problem = f"needs the bearer token of admin.token: set {TOKEN}" if status == 401 else problem
            raise EndpointError("http", f"{self.address}: {problem}", status)
        if status != 200 or not isinstance(found, dict) or (member and member not in found):
            problem = f"{path} answers {status}: not the admin port of this version of semroute"
            raise EndpointError("unreadable", f"{self.address}{problem}", status)
        return found


@cache
def _environment() -> Any:
    from jinja2 import Environment, FileSystemLoader

    from semroute_extproc.request.text import clip
    from semroute_extproc.telemetry.page import clock, dollars, percent

    made = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=False)  # noqa: S701 - no HTML
    made.trim_blocks = made.lstrip_blocks = True
    made.filters |= {"clock": clock, "dollars": dollars, "percent": percent, "clip": clip, "json": json.dumps}
    made.filters["utc"] = lambda seconds: f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%SZ}"
    return made


def render(name: str, view: View) -> str:
    """A view as text of 80 columns, by the template `name`."""
    text = _environment().get_template(name).render(**view, rows_max=ROWS_MAX)
    # A client chooses its request ID: no control character or line separator of it reaches the terminal.
    shown = "".join(each if each == "\n" or each.isprintable() else "?" for each in text)
    return "\n".join(line[:COLUMNS].rstrip() for line in shown.split("\n")).removesuffix("\n")


def rates(before: View, after: View, seconds: float) -> dict[str, Counter[str]]:
    """Requests per second by pool and by reason, between two views."""
    found = {}
    for chart, minutes in after["charts"].items():
        known, gained = before["charts"][chart], Counter[str]()
        first = max(map(int, known), default=0)  # The counts of older minutes do not change.
        for minute in (minute for minute in minutes if int(minute) >= first):
            gained += Counter(minutes[minute]) - Counter(known.get(minute, {}))
        found[chart] = Counter({name: count / seconds for name, count in gained.items()})
    return found


@contextlib.contextmanager
def keyboard() -> Iterator[Callable[[float], bool]]:
    """A function that waits, and returns whether `q` was pressed; without a terminal it only waits."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        yield lambda wait: Event().wait(wait)
        return
    import termios
    import tty

    before, key = termios.tcgetattr(sys.stdin), sys.stdin.fileno()
    tty.setcbreak(key)
    try:
        yield lambda wait: bool(select.select([key], [], [], wait)[0] and b"q" in os.read(key, 64).lower())
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


def _options(command: Callable[..., Any]) -> Callable[..., Any]:
    path, named = click.Path(path_type=Path, dir_okay=False), "Configuration that names the admin port."
    config = {"type": path, "envvar": "SEMROUTE_CONFIG", "default": "semroute.yaml", "show_default": True}
    address = "Admin port: URL, HOST:PORT or unix:/PATH; then SEMROUTE__ADMIN__TOKEN is its token."
    command = click.option("--admin", "address", metavar="ADDRESS", help=address)(exit_statuses(command))
    return click.option("--config", "-c", "path", help=named, **config)(command)  # type: ignore[arg-type]


@click.command()
@_options
@click.option("--json", "as_json", is_flag=True, help="Print the data as one JSON object.")
def status(path: Path, address: str | None, as_json: bool) -> None:
    """Show whether a server serves, its configuration, pools, shares and warnings.

    The figures are of the last hour. The exit status is 0 if it serves, 1 if it serves with warnings,
    and 69 if it does not serve.
    """
    port = AdminPort(address, path)
    port.get("/readyz")
    view = port.get("/ui/now.json", "serving")
    view["warnings"] = render("warnings.txt", view).splitlines()
    click.echo(json.dumps(view) if as_json else render("status.txt", view))
    sys.exit(Exit.ROWS if view["warnings"] else Exit.OK)


@click.command()
@_options
@click.option("--lines", "-n", type=click.IntRange(1, LOGS_MAX), default=20, show_default=True)
@click.option("--follow", "-f", is_flag=True, help="Show new decisions too, until Ctrl-C.")
@click.option("--pool", default="", help="Only decisions for this pool.")
@click.option("--reason", default="", help="Only those whose reason, rule, strategy or cause has this text.")
@click.option("--id", default="", help="Only those whose request ID has this text.")
@click.option("--json", "as_json", is_flag=True, help="Print each decision as one line of JSON.")
def logs(path: Path, address: str | None, lines: int, follow: bool, as_json: bool, **filters: str) -> None:
    """Show the last decisions: time (UTC), pool, duration, request ID and reason."""
    port, seen = AdminPort(address, path), list[View]()
    with contextlib.suppress(KeyboardInterrupt):
        while True:
            rows = port.get("/ui/decisions.json", "rows", **filters)["rows"]
            new = [row for row in rows if row not in seen] if seen else rows[:lines]
            if seen and len(new) == LOGS_MAX:
                click.echo(f"more than {LOGS_MAX} new decisions: some are not shown", err=True)
            for row in reversed(new):
                click.echo(json.dumps(row) if as_json else render("logs.txt", row))
            if not follow:
                return
            seen = rows or seen
            time.sleep(FOLLOW_SECONDS)


@click.command()
@_options
@click.option("--interval", type=click.FloatRange(1, 60), default=2.0, show_default=True, help="Seconds.")
@click.option("--count", type=click.IntRange(min=1), help="End after this many updates.")
def top(path: Path, address: str | None, interval: float, count: int | None) -> None:
    """Show requests per second, latency, queue, shares and cost, until q or Ctrl-C.

    Without a terminal, each update is one line.
    """
    port, made = AdminPort(address, path), 0
    before, at = port.get("/ui/now.json", "serving"), time.monotonic()
    with contextlib.suppress(KeyboardInterrupt), keyboard() as pressed:
        while made != count and not pressed(interval):
            made += 1
            try:
                view, now = port.get("/ui/now.json", "serving"), time.monotonic()
                shown = {**view, "rate": rates(before, view, now - at), "now": time.time()}
                before, at, text = view, now, render("top.txt", shown)
            except EndpointError as error:  # A restart does not end the view.
                text = str(error)
            if sys.stdout.isatty():
                click.clear()
                click.echo(f"{text}\n\nq ends")
            else:
                click.echo(text.partition("\n")[0])
