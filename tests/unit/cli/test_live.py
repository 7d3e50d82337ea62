"""`semroute check --live` against simulated pools."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import pytest_asyncio
from aiohttp import web
from click.testing import CliRunner, Result
from semroute_demo.pool import CONTEXT, Fault, Pool

from semroute_extproc.cli import live, main
from semroute_extproc.config import source
from semroute_extproc.errors import EndpointError

CONFIG = """\
---
server: {{listen: 'unix:{folder}/w.sock'}}
pools:
  small:
    model: org/small
    endpoints: ['http://127.0.0.1:{small}']
    metrics: http://127.0.0.1:{small}/metrics
  large:
    model: org/large
    endpoints: ['http://127.0.0.1:{large}']
    metrics: http://127.0.0.1:{large}/metrics
default_pool: large
models: {{auto: {{policy: main}}}}
policies: {{main: {{otherwise: {{pool: small}}}}}}
...
"""


class Site:
    """A file, and the two pools that it describes."""

    def __init__(self, folder: Path, small: Pool, large: Pool) -> None:
        self.file, self.small, self.large = folder / "semroute.yaml", small, large
        self.write()

    def write(self, old: str = "", new: str = "") -> None:
        ports = {"small": self.small.port, "large": self.large.port, "folder": self.file.parent}
        text = CONFIG.format(**ports)
        assert old in text
        self.file.write_text(text.replace(old, new) if old else text)

    async def check(self, *arguments: str) -> Result:
        return await asyncio.to_thread(
            CliRunner().invoke, main, ["check", str(self.file), "--live", *arguments]
        )


@pytest_asyncio.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    async with Pool("small", ["org/small"]) as small, Pool("large", ["org/large", "auto"]) as large:
        yield Site(tmp_path, small, large)


def told(result: Result) -> str:
    return " ".join(result.output.split())


async def test_servers_as_described_give_a_table_and_status_0(site: Site) -> None:
    result = await site.check()
    assert result.exit_code == 0
    assert [line for line in result.stderr.splitlines() if not line.startswith("waiting for")] == []
    assert f"small 127.0.0.1:{site.small.port} yes 32768 yes –" in told(result)
    assert f"large 127.0.0.1:{site.large.port} yes +1 32768 yes –" in told(result)
    assert not [each for each in (*site.small.received, *site.large.received) if each.body], "no tokens"


@pytest.mark.parametrize(
    ("old", "new", "status", "words"),
    [
        (
            "model: org/small",
            "model: org/smal",
            78,
            "(did you mean 'org/small'?)",
        ),
        (
            "model: org/small",
            "model: org/small\n    context: 40000",
            78,
            f"its max_model_len, {CONTEXT}",
        ),
        (
            "model: org/small",
            "model: org/small\n    context: 4000",
            0,
            f"reads up to {CONTEXT} tokens",
        ),
        ("    metrics: http://127.0.0.1:{small}/metrics\n", "", 0, "has gauges of its load: set metrics to"),
        ("{small}/metrics", "{small}/nothing", 78, "cannot be read, or has no gauges of load"),
        ("http://127.0.0.1:{small}'", "http://127.0.0.1:1'", 69, "http://127.0.0.1:1 does not answer"),
        ("default_pool: large", "default_pool: small", 0, "does not serve auto: while semroute is down"),
        ("models: {{auto", "models: {{other", 0, "also serves auto: name other models as pools"),
    ],
)
async def test_what_differs_is_found_with_its_place(
    site: Site, old: str, new: str, status: int, words: str
) -> None:
    ports = {"small": str(site.small.port), "large": str(site.large.port)}

    def filled(text: str) -> str:
        for name, port in ports.items():
            text = text.replace(f"{{{name}}}", port)
        return text.replace("{{", "{")

    site.write(filled(old), filled(new))
    result = await site.check()
    assert result.exit_code == status, result.output
    assert words in told(result)
    assert status or "note: " in result.stderr
    assert f"{site.file}:" in result.stderr


async def test_a_tool_call_is_sent_only_when_asked_and_costs_one_token(site: Site) -> None:
    message = "auto tool choice requires --enable-auto-tool-choice"
    site.small.faults.append(Fault(400, message))
    result = await site.check("--tools")
    assert result.exit_code == 78
    assert "pools.small.tools" in told(result)
    assert "refuses tool calls (400): write false, or start vLLM with a tool call parser" in told(result)
    [body] = [each.body for each in site.large.received if each.body]
    assert b'"max_tokens":1' in body.replace(b" ", b"")
    site.write("model: org/large", "model: org/large\n    tools: false")
    again = await site.check("--tools")
    assert again.exit_code == 0
    assert "accepts tool calls: write true" in told(again)


async def test_a_key_is_sent_and_a_missing_one_is_named(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    missing = await site.check("--api-key-env", "SEMROUTE_TEST_KEY")
    assert (missing.exit_code, missing.stderr) == (69, "the environment has no SEMROUTE_TEST_KEY\n")
    monkeypatch.setenv("SEMROUTE_TEST_KEY", "k")
    assert (await site.check("--api-key-env", "SEMROUTE_TEST_KEY")).exit_code == 0
    assert {each.headers.get("authorization") for each in site.small.received} == {"Bearer k"}


async def test_a_pool_without_endpoints_is_named_and_not_asked(site: Site) -> None:
    port = site.small.port
    block = f"    endpoints: ['http://127.0.0.1:{port}']\n    metrics: http://127.0.0.1:{port}/metrics\n"
    site.write(block, "    cluster: c\n")
    result = await site.check()
    assert "pools.small: has no endpoints, so nothing was asked" in told(result)
    assert not site.small.received


async def test_a_long_wait_is_reported_and_an_unhealthy_server_and_its_adapters_are_named(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`TICK_SECONDS` is shortened, so that the test is not long."""
    monkeypatch.setattr(live, "TICK_SECONDS", 0.05)

    async def models(_: web.Request) -> web.Response:
        await asyncio.sleep(0.3)
        cards = [{"id": "org/small", "max_model_len": CONTEXT}, {"id": "sql", "parent": "org/small"}]
        return web.json_response({"data": cards})

    async def unhealthy(_: web.Request) -> web.Response:
        return web.Response(status=503)

    app = web.Application()
    app.add_routes([web.get("/v1/models", models), web.get("/health", unhealthy)])
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    port = runner.addresses[0][1]
    site.write(f"['http://127.0.0.1:{site.small.port}']", f"['http://127.0.0.1:{port}']")
    result = await site.check()
    await runner.cleanup()
    assert result.exit_code == 69
    assert "waiting for 1 of 2 servers" in result.stderr
    assert "is not healthy: /health answers 503" in told(result)
    assert "small: LoRA adapters sql" in result.stdout


async def test_every_line_of_ours_fits_80_columns(site: Site) -> None:
    site.write("model: org/small", f"model: org/{'s' * 40}")
    result = await site.check()
    shown = set(source.load(site.file, {}).source.lines)
    ours = [
        line for line in result.output.splitlines() if line.strip() not in {each.strip() for each in shown}
    ]
    path = str(site.file)
    assert all(len(line) <= 80 for line in ours if path not in line)


class Says(BaseHTTPRequestHandler):
    """Answers every path with a list of models, or without an end."""

    models = b""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        with suppress(OSError):
            self.wfile.write(self.models)
            while not self.models:
                self.wfile.write(b" " * 65_536)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def saying(models: bytes) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("One", (Says,), {"models": models}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def test_a_list_of_models_without_an_end_is_given_up() -> None:
    with saying(b"") as url, pytest.raises(EndpointError):
        live.cards(url, "")


def test_the_names_of_a_server_control_no_terminal() -> None:
    with saying(b'{"data": [{"id": "\\u001b[2J"}, {"id": "m"}]}') as url:
        assert live.cards(url, "") == [{"id": "m"}]
