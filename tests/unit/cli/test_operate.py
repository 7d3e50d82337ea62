"""`semroute status`, `logs` and `top` against a real admin port."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import signal
import subprocess
import sys
import termios
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from click.testing import CliRunner, Result
from viewed import Server

from semroute_extproc.cli import main, operate
from semroute_extproc.events import Decided
from semroute_extproc.outcome import Cause, Kind, Outcome
from semroute_extproc.telemetry.admin import AdminServer, Page, text

TOKEN = "0123456789abcdef"


@pytest_asyncio.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    running = Server(tmp_path)
    for each in ("hard", "easy", "easy", "easy"):
        await running.send(each, f"{each}-request")
    await running.send("hard", "by-rule", **{"x-tier": "internal"})
    late = Outcome(Kind.FALLBACK, Cause.DEADLINE, "large", reason="deadline")
    running.emit(Decided(late, "l\u2028te-\x1b[31m", "/v1/x", (), 1, 2, 4_000_000_000, False))
    yield running
    await running.live.close()


@contextmanager
def listening(server: Server, listen: str = "127.0.0.1:0", ready: int = 200, **guards: Any) -> Iterator[str]:
    pages = {"/readyz": lambda: text(ready, "ok\n" if ready == 200 else "not ready\n")}
    admin = AdminServer(listen, pages, site=server.site, **guards)
    yield listen if listen.startswith("unix:") else f"127.0.0.1:{admin.port}"
    admin.close()


async def run(*arguments: str, env: dict[str, str] | None = None) -> Result:
    return await asyncio.to_thread(CliRunner().invoke, main, list(arguments), env=env)


def started(*arguments: str, **options: Any) -> subprocess.Popen[bytes]:
    # A shell's background job ignores SIGINT, and so would its children.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    return subprocess.Popen([sys.executable, "-m", "semroute_extproc", *arguments], **options)


def fits(result: Result) -> bool:
    return all(len(line) <= 80 for line in result.output.splitlines())


class TestStatus:
    async def test_one_screen_shows_pools_shares_and_causes(self, server: Server) -> None:
        with listening(server) as address:
            result = await run("status", "--admin", address)
        shown = " ".join(result.output.split())
        assert result.exit_code == 0, result.output
        assert f"configuration {server.live.loaded.sha256[:12]}, generation 1, since 20" in shown
        for words in (
            "serving 1 of 1 process",
            "last hour 6 requests",
            "small 4 66.7% ok",
            "large 2 33.3% ok",
            "pair 30.0% to large 25.0% 4",
            "fallback deadline 1",
            "encoder 0 waiting",
            "saved $",
        ):
            assert words in shown
        assert fits(result)
        assert len(result.output.splitlines()) <= 24

    async def test_the_same_data_is_one_json_object(self, server: Server) -> None:
        with listening(server) as address:
            shown = json.loads((await run("status", "--json", "--admin", address)).output)
        assert ["strategy pair", "small", 3] in shown["table"]
        assert (shown["undecided"], shown["warnings"], shown["queue"]) == ({"fallback deadline": 1}, [], 0)

    async def test_warnings_are_status_1(self, server: Server) -> None:
        server.file.write_text("pools: 1\n")
        await server.live.reload()
        for _ in range(9):
            server.controllers.sent("small", 0.0)
            server.controllers.failed("small", "connection", 0.0)
        with listening(server) as address:
            result = await run("status", "--admin", address)
        assert result.exit_code == 1
        assert "warning: the file was rejected" in result.output
        assert "warning: pool small is excluded: connection" in result.output
        assert fits(result)

    def test_many_long_names_fit_one_screen(self) -> None:
        health = {"excluded": True, "why": "w" * 90}
        pool = {"health": health, "load": {"running": 3.0, "waiting": 1e6}, "metrics": None}
        pair = {"name": "n" * 90, "strong": "s" * 90, "strong_share": None, "threshold": None}
        pair |= {"max_quality_drop": 0.25, "realized": None, "requests": 10**9}
        view = {
            "workers": 2,
            "workers_wanted": 3,
            "serving": {"sha256": "a" * 64, "generation": 10**6, "since": 0.0},
            "table": [["rule x", f"{index}" + "p" * 90, 10**9] for index in range(64)],
            "ms": [99_999.0, 99_999.0],
            "queue": 99_999,
            "encoders": [{"bundle": "b" * 90, "provider": "CUDAExecutionProvider"}],
            "money": {"total": 1e7, "always": 2e7, "sample": 1},
            "pools": {f"{index}" + "p" * 90: pool for index in range(64)},
            "pairs": [pair] * 64,
            "undecided": {f"fallback {index}" + "c" * 90: 10**9 for index in range(64)},
            "warnings": ["w" * 90] * 64,
        }
        lines = operate.render("status.txt", view).splitlines()
        assert max(map(len, lines)) <= 80
        assert len(lines) <= 60
        assert "… and 54 more: --json has all" in lines

    async def test_a_server_that_is_not_ready_is_status_69(self, server: Server) -> None:
        with listening(server, ready=503) as address:
            result = await run("status", "--admin", address)
        assert (result.exit_code, result.output) == (69, f"{address}: not ready\n")


class TestAddress:
    @pytest.mark.parametrize("command", ["status", "logs", "top"])
    def test_a_port_that_refuses_is_status_69_and_a_hint(self, command: str) -> None:
        result = CliRunner().invoke(main, [command, "--admin", "http://127.0.0.1:1"])
        assert result.exit_code == 69
        assert result.output.startswith("http://127.0.0.1:1 does not answer (")
        assert "is `semroute serve` running?" in result.output

    @pytest.mark.parametrize("body", ["[]", "<html>", '{"status": "ok"}', '"serving"'])
    def test_another_service_is_status_69(self, body: str) -> None:
        admin = AdminServer("127.0.0.1:0", {}, lambda _: Page(200, "application/json", body.encode()))
        result = CliRunner().invoke(main, ["status", "--admin", f"127.0.0.1:{admin.port}"])
        admin.close()
        assert result.exit_code == 69
        assert "not the admin port of this version of semroute" in result.output

    async def test_without_the_token_it_says_what_is_needed(self, server: Server) -> None:
        with listening(server, token=TOKEN) as address:
            refused = await run("logs", "--admin", address)
            allowed = await run("logs", "--admin", address, env={"SEMROUTE__ADMIN__TOKEN": TOKEN})
        assert (refused.exit_code, allowed.exit_code) == (69, 0)
        assert "needs the bearer token of admin.token" in refused.output

    async def test_socket_and_token_are_found_in_a_file_whose_other_sections_are_wrong(
        self, server: Server, tmp_path: Path
    ) -> None:
        file = tmp_path / "broken.yaml"
        file.write_text(f"admin: {{listen: 'unix:{tmp_path}/admin.sock'}}\npools: 1\n")
        with listening(server, f"unix:{tmp_path}/admin.sock"):
            assert (await run("status", "-c", str(file))).exit_code == 0
        with listening(server, token=TOKEN) as address:
            port = address.rpartition(":")[2]
            file.write_text(f"admin: {{listen: '0.0.0.0:{port}', token: {TOKEN}}}\npools: 1\n")
            assert (await run("status", "-c", str(file))).exit_code == 0

    @pytest.mark.parametrize(("listen", "status"), [("null", 69), ("127.0.0.1:0", 69), ("nowhere", 78)])
    def test_a_file_without_a_usable_port_says_so(self, tmp_path: Path, listen: str, status: int) -> None:
        file = tmp_path / "semroute.yaml"
        file.write_text(f"admin: {{listen: '{listen}'}}\n".replace("'null'", "null"))
        result = CliRunner().invoke(main, ["status", "-c", str(file)])
        assert result.exit_code == status
        assert "admin.listen" in result.output


class TestLogs:
    async def test_the_newest_decision_is_last_and_control_characters_are_masked(
        self, server: Server
    ) -> None:
        with listening(server) as address:
            result = await run("logs", "--admin", address)
        lines = result.output.splitlines()
        assert len(lines) == 6
        assert lines[-1].split() == ["00:00:04", "large", "0.0", "ms", "l?te-?[3", "deadline"]
        assert fits(result)

    @pytest.mark.parametrize(
        ("arguments", "count"),
        [
            (["--pool", "large"], 2),
            (["--id", "easy"], 3),
            (["--reason", "internal"], 1),
            (["--reason", "deadline"], 1),
            (["--reason", "difficulty", "--pool", "large"], 1),
            (["--lines", "2"], 2),
        ],
    )
    async def test_decisions_are_filtered(self, server: Server, arguments: list[str], count: int) -> None:
        with listening(server) as address:
            result = await run("logs", "--admin", address, "--json", *arguments)
        rows = [json.loads(line) for line in result.output.splitlines()]
        assert len(rows) == count
        assert all({"facts", "trace", "request_id"} <= row.keys() for row in rows)

    async def test_new_decisions_follow_until_ctrl_c(self, server: Server) -> None:
        with listening(server) as address:
            process = started("logs", "--follow", "-n", "1", "--admin", address, stdout=subprocess.PIPE)
            assert process.stdout is not None
            first = await asyncio.to_thread(process.stdout.readline)
            await server.send("easy", "followed")
            second = await asyncio.to_thread(process.stdout.readline)
            process.send_signal(signal.SIGINT)
            rest = await asyncio.to_thread(process.stdout.read)
            process.stdout.close()
            assert await asyncio.to_thread(process.wait) == 0
        assert (b"te-" in first, b"followed" in second, rest) == (True, True, b"")


class TestTop:
    def test_a_rate_is_what_was_counted_between_two_views(self) -> None:
        before = {"charts": {"pool": {"1": {"small": 9}, "2": {"small": 1}}}}
        after = {"charts": {"pool": {"2": {"small": 4, "large": 1}, "3": {"small": 1}}}}
        assert operate.rates(before, after, 2.0) == {"pool": Counter(small=2.0, large=0.5)}
        assert operate.rates(after, before, 2.0)["pool"].total() == 0.0, "after a restart"

    async def test_without_a_terminal_each_update_is_a_line(self, server: Server) -> None:
        with listening(server) as address:
            work = asyncio.create_task(run("top", "--admin", address, "--count", "2", "--interval", "1"))
            while not work.done():
                await server.send("easy")
                await asyncio.sleep(0.05)
        lines = work.result().output.splitlines()
        assert len(lines) == 2
        assert all("ms  queue 0  small" in line for line in lines)
        assert fits(work.result())

    async def test_a_server_that_goes_away_does_not_end_it(self, server: Server) -> None:
        with listening(server) as address:
            work = started("top", "--admin", address, "--interval", "1", stdout=subprocess.PIPE)
            assert work.stdout is not None
            await asyncio.to_thread(work.stdout.readline)
        line = await asyncio.to_thread(work.stdout.readline)
        work.send_signal(signal.SIGINT)
        work.stdout.close()
        assert b"does not answer" in line
        assert await asyncio.to_thread(work.wait) == 0

    async def test_q_ends_it_and_the_terminal_is_as_before(self, server: Server) -> None:
        ours, its = pty.openpty()
        before = termios.tcgetattr(its)
        with listening(server) as address:
            process = started("top", "--admin", address, "--interval", "1", stdin=its, stdout=its, stderr=its)
            shown = b""
            while b"q ends" not in shown:
                shown += await asyncio.to_thread(os.read, ours, 65_536)
            os.write(ours, b"xq")
            try:
                assert await asyncio.to_thread(process.wait, 20) == 0
            finally:
                process.kill()
        assert b"latency" in shown
        assert termios.tcgetattr(its) == before
        os.close(ours)
        os.close(its)
