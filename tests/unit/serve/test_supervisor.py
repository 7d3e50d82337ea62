"""Workers are kept running and asked as one; the workers here are stand-ins."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import signal
import stat
import sys
import textwrap
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from builders import config
from semroute_demo.process import free_port
from structlog.testing import capture_logs

from semroute_extproc.errors import Exit
from semroute_extproc.events import LogDropped, ignore
from semroute_extproc.serve.supervisor import Supervisor, Timing
from semroute_extproc.telemetry import log

WORKER = textwrap.dedent(
    """
    import json, pathlib, signal, sys, threading, time
    from semroute_extproc.telemetry.admin import AdminServer, Page, text
    folder, _, index, _, admin = sys.argv[1:]
    folder = pathlib.Path(folder)
    with (folder / f"started{index}").open("a") as file:
        file.write("x")
    if (folder / f"refuse{index}").exists():
        sys.exit(int((folder / f"refuse{index}").read_text()))
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    signal.signal(signal.SIGHUP, lambda *_: (folder / f"reloaded{index}").touch())
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGHUP])
    threading.Thread(target=lambda: (sys.stdin.read(), stop.set()), daemon=True).start()
    sha256 = (folder / "sha").read_text() if index == "1" else "a" * 64
    def worker():
        while (folder / f"mute{index}").exists():
            time.sleep(0.02)
        still = (folder / f"still{index}").exists()
        ready = not still and not (folder / f"slow{index}").exists()
        state = {"ready": ready, "turning": not still, "sha256": sha256}
        return Page(200, "application/json", json.dumps(state).encode())
    posts = {}
    def reported(event):
        with (folder / f"outcomes{index}").open("a") as file:
            file.write(event.request_id + ":" + event.pool + " ")
    if (folder / "takes").exists():
        from types import SimpleNamespace
        from semroute_extproc.telemetry.feedback import Feedback
        alone = SimpleNamespace(pools_of=lambda _: {}, first=lambda reports: [True] * len(reports))
        posts = Feedback(lambda id_: "pool" if id_ == "of" + index else "", reported, alone).posts
    count = ["decisions", "small", "r", "", "", "routed", 2 + int(index)]
    state = {
        "minutes": [[int(time.time() // 60), [count]]],
        "pools": {"small": {"price": None, "health": None, "load": {}, "metrics": None, "pressure": None}},
        "sizes": {}, "pairs": {}, "traffic": {}, "ms": [1.0, 2.0], "problems": [], "drift": [],
        "serving": {"sha256": sha256, "generation": 1, "since": 0.0}, "encoders": [], "queue": 1,
    }
    rows = [{"time": 10 * n + int(index), "request_id": f"id-{index}-{n}", "facts": {"outcome": "routed",
             "reason": "why"}, "total_ms": 1.0} for n in (1, 2)]
    def site(asked):
        data = {"/ui/state.json": state, "/ui/decisions.json": {"rows": rows}}.get(asked.path)
        if data is not None:
            return Page(200, "application/json", json.dumps(data).encode())
        return text(200, f"{index} {asked}") if asked.path.startswith("/ui/") else None
    server = AdminServer(admin, site=site, pages={
        "/worker": worker,
        "/metrics": lambda: text(200, "# TYPE m gauge\\nm " + index + "\\n"),
        "/config": lambda: text(200, "config of " + index),
    }, posts=posts)
    stop.wait()
    (folder / f"ended{index}").touch()
    """
)


QUICK = Timing(probe=0.05, backoff_min=0.05)


class Running:
    """A supervisor with two stand-ins."""

    def __init__(self, subject: Supervisor, folder: Path, port: int) -> None:
        self.subject, self.folder, self.port = subject, folder, port
        self.workers = subject.workers

    async def get(self, path: str) -> tuple[int, str]:
        return await asyncio.to_thread(self._get, f"http://127.0.0.1:{self.port}{path}")

    def _get(self, request: str | urllib.request.Request) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(request, timeout=5) as response:
                return response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    async def post(self, path: str, body: str) -> tuple[int, str]:
        url, headers = f"http://127.0.0.1:{self.port}{path}", {"content-type": "application/json"}
        request = urllib.request.Request(url, body.encode(), headers)
        return await asyncio.to_thread(self._get, request)

    async def ready(self) -> None:
        await until(lambda: self.subject.ready)

    def pid(self, index: int) -> int:
        process = self.workers[index].process
        assert process is not None
        return process.pid

    def starts(self, index: int) -> int:
        return len((self.folder / f"started{index}").read_text())


async def until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.02)


@asynccontextmanager
async def running(folder: Path, timing: Timing = QUICK) -> AsyncIterator[tuple[Running, asyncio.Task[Exit]]]:
    port = free_port()
    settings = config(
        server={"workers": 2, "listen": f"unix:{folder}/w{{worker}}.sock", "drain_seconds": 0},
        admin={"listen": f"127.0.0.1:{port}"},
        telemetry={"decision_log": {"path": str(folder / "log")}},
    )
    (folder / "sha").write_text("a" * 64)
    (folder / "worker.py").write_text(WORKER)
    command = [sys.executable, str(folder / "worker.py"), str(folder)]
    subject = Supervisor(settings, f"{folder}/w{{worker}}.sock.admin", command, timing)
    task = asyncio.create_task(subject.run())
    try:
        yield Running(subject, folder, port), task
    finally:
        subject.stop.set()
        await task
        assert not [name for name in os.listdir(folder) if name.endswith(".admin")], "left behind"


async def test_it_is_ready_when_every_worker_is(tmp_path: Path) -> None:
    (tmp_path / "refuse1").write_text("1")
    async with running(tmp_path) as (subject, _):
        await until(lambda: subject.workers[0].ready)
        assert (await subject.get("/readyz"))[0] == 503
        assert (await subject.get("/livez"))[0] == 200
        (tmp_path / "refuse1").unlink()
        await subject.ready()
        assert (await subject.get("/readyz"))[0] == 200


async def test_outcomes_reach_the_worker_that_logged_the_request_and_others_the_last(tmp_path: Path) -> None:
    def line(request_id: str) -> str:
        return f'{{"request_id": "{request_id}", "label": "good"}}\n'

    (tmp_path / "takes").touch()
    async with running(tmp_path) as (subject, _):
        await subject.ready()
        answer = await subject.post("/outcomes", line("of1") + line("new") + line("of0"))
        assert answer == (200, '{\n  "accepted": 3\n}\n')
        found = [(tmp_path / f"outcomes{index}").read_text() for index in (0, 1)]
        assert found == ["of0:pool ", "of1:pool new: "]
        assert await subject.post("/outcomes", line("of0")) == (200, '{\n  "accepted": 1\n}\n')
        status, problem = await subject.post("/outcomes", line("of0") + "{")
        assert (status, problem[:7]) == (400, "line 2:")
        assert (tmp_path / "outcomes1").read_text() == found[1]


async def test_the_page_counts_the_requests_of_every_worker(tmp_path: Path) -> None:
    async with running(tmp_path) as (subject, _):
        await subject.ready()
        status, page = await subject.get("/")
    assert status == 200
    assert "of 2 workers" in page
    assert "<dt>requests</dt><dd>5</dd>" in page


async def test_the_page_has_the_newest_decisions_of_every_worker(tmp_path: Path) -> None:
    async with running(tmp_path) as (subject, _):
        await subject.ready()
        _, page = await subject.get("/ui/decisions")
    places = [page.index(f"id={name}") for name in ("id-1-2", "id-0-2", "id-1-1", "id-0-1")]
    assert places == sorted(places)


async def test_other_views_and_forms_are_the_first_workers(tmp_path: Path) -> None:
    async with running(tmp_path) as (subject, _):
        await subject.ready()
        _, page = await subject.get("/ui/frontier?share=4")
        posted = await asyncio.to_thread(
            urllib.request.urlopen, f"http://127.0.0.1:{subject.port}/ui/explain?x=1", b"text=hi"
        )
        answer = posted.read().decode()
    assert page.startswith("0 Asked(path='/ui/frontier', query='share=4', body=None")
    assert answer.startswith("0 Asked(path='/ui/explain', query='x=1', body=b'text=hi'")
    assert "x-www-form-urlencoded" in answer


async def test_without_a_worker_the_page_is_busy(tmp_path: Path) -> None:
    for index in (0, 1):
        (tmp_path / f"slow{index}").touch()
    async with running(tmp_path) as (subject, _):
        await until(lambda: all(worker.answered for worker in subject.workers))
        assert (await subject.get("/"))[0] == 503


async def test_a_killed_worker_is_started_again_and_the_other_is_left_alone(tmp_path: Path) -> None:
    async with running(tmp_path) as (subject, _):
        await subject.ready()
        other = subject.pid(1)
        os.kill(subject.pid(0), signal.SIGKILL)
        await until(lambda: subject.starts(0) == 2)
        await subject.ready()
        assert subject.pid(1) == other
        page = (await subject.get("/metrics"))[1]
    assert 'semroute_worker_restarts_total{worker="0"} 1' in page
    assert 'semroute_worker_restarts_total{worker="1"} 0' in page


@pytest.mark.parametrize("how", ["still", "stopped"])
async def test_a_worker_that_hangs_is_killed_and_started_again(tmp_path: Path, how: str) -> None:
    timing = Timing(probe=0.05, backoff_min=0.05, answer_max=0.2, failed_probes_max=8)
    async with running(tmp_path, timing) as (subject, _):
        await subject.ready()
        other, hung = subject.pid(1), subject.pid(0)
        if how == "still":
            (tmp_path / "still0").touch()
        else:
            os.kill(hung, signal.SIGSTOP)
        await until(lambda: subject.workers[0].hangs == 1)
        (tmp_path / "still0").unlink(missing_ok=True)
        await until(lambda: subject.starts(0) == 2)
        await subject.ready()
        assert subject.pid(1) == other
        page = (await subject.get("/metrics"))[1]
    assert 'semroute_worker_hangs_total{worker="0"} 1' in page
    assert 'semroute_worker_restarts_total{worker="0"} 1' in page
    assert 'semroute_worker_hangs_total{worker="1"} 0' in page


async def test_a_worker_that_is_slow_now_and_then_or_only_starting_is_not_killed(tmp_path: Path) -> None:
    (tmp_path / "slow1").touch()
    async with running(tmp_path, Timing(probe=0.05, backoff_min=0.05, failed_probes_max=8)) as (subject, _):
        first, second = subject.workers
        await until(lambda: first.ready)
        for _ in range(4):
            (tmp_path / "still0").touch()
            await until(lambda: first.failed_probes >= 2)
            (tmp_path / "still0").unlink()
            await until(lambda: first.failed_probes == 0)
        assert (first.hangs, second.hangs) == (0, 0)
        assert (first.restarts, second.restarts) == (0, 0)


async def test_before_its_first_answer_a_worker_is_starting_and_does_not_hang(tmp_path: Path) -> None:
    timing = Timing(probe=0.05, answer_max=0.05, failed_probes_max=2)
    (tmp_path / "mute0").touch()
    async with running(tmp_path, timing) as (subject, _):
        first = subject.workers[0]
        await until(lambda: first.failed_probes > 4)
        assert (first.hangs, first.restarts) == (0, 0)
        (tmp_path / "mute0").unlink()
        await subject.ready()
        assert (first.hangs, first.restarts) == (0, 0)


async def test_a_worker_that_keeps_failing_is_tried_ever_more_rarely(tmp_path: Path) -> None:
    (tmp_path / "refuse0").write_text("1")
    async with running(tmp_path) as (subject, _):
        await until(lambda: subject.workers[1].ready)
        started = time.monotonic()
        await until(lambda: (tmp_path / "started0").exists() and subject.starts(0) >= 4)
        assert time.monotonic() - started > 0.05 + 0.1, "the pauses did not grow"
        assert subject.workers[1].ready


async def test_a_configuration_that_no_worker_can_use_ends_it_with_78(tmp_path: Path) -> None:
    (tmp_path / "refuse0").write_text("78")
    async with running(tmp_path) as (_, task):
        assert await asyncio.wait_for(task, 20) == 78
    assert (tmp_path / "started0").read_text() == "x"


async def test_it_drains_its_workers_before_it_ends(tmp_path: Path) -> None:
    async with running(tmp_path) as (subject, task):
        await subject.ready()
        subject.subject.stop.set()
        assert await asyncio.wait_for(task, 20) == 0
    assert (tmp_path / "ended0").exists()
    assert (tmp_path / "ended1").exists()


async def test_a_reload_reaches_every_worker_and_ends_none_however_early_it_comes(tmp_path: Path) -> None:
    async with running(tmp_path) as (subject, _):
        await until(lambda: all(worker.process for worker in subject.workers))
        os.kill(os.getpid(), signal.SIGHUP)
        # To the workers themselves too, before Python has run a line of theirs.
        for worker in (0, 1):
            os.kill(subject.pid(worker), signal.SIGHUP)
        await until(lambda: all((tmp_path / f"reloaded{worker}").exists() for worker in (0, 1)))
        await subject.ready()
        assert (subject.starts(0), subject.starts(1)) == (1, 1)


async def test_a_signal_to_its_process_group_is_not_for_the_workers(tmp_path: Path) -> None:
    async with running(tmp_path) as (subject, _):
        await subject.ready()
        groups = {os.getpgid(subject.pid(worker)) for worker in (0, 1)}
        assert os.getpgrp() not in groups
        assert len(groups) == 2


async def test_a_worker_that_cannot_even_be_started_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refused(*_: Any, **__: Any) -> None:
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    async with running(tmp_path) as (subject, _):
        await subject.ready()
        with monkeypatch.context() as patched:
            patched.setattr(asyncio, "create_subprocess_exec", refused)
            os.kill(subject.pid(0), signal.SIGKILL)
            await until(lambda: subject.workers[0].restarts >= 2)
        await until(lambda: subject.starts(0) == 2)
        await subject.ready()


async def test_a_worker_that_is_being_started_when_it_stops_is_told_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = asyncio.create_subprocess_exec

    async def slow(*arguments: Any, **options: Any) -> Any:
        process = await start(*arguments, **options)
        await until(lambda: (tmp_path / "started0").exists())
        await asyncio.sleep(0.2)
        return process

    monkeypatch.setattr(asyncio, "create_subprocess_exec", slow)
    async with running(tmp_path) as (subject, task):
        await until(lambda: (tmp_path / "started0").exists())
        subject.subject.stop.set()
        started = time.monotonic()
        await task
        assert time.monotonic() - started < QUICK.stop_max / 2


async def test_metrics_are_one_page_and_other_pages_come_from_a_worker(tmp_path: Path) -> None:
    async with running(tmp_path) as (subject, _):
        await subject.ready()
        page = (await subject.get("/metrics"))[1]
        assert 'm{worker="0"} 0.0\nm{worker="1"} 1.0\n' in page
        assert 'semroute_worker_ready{worker="1"} 1' in page
        assert await subject.get("/config") == (200, "config of 0")


async def test_the_supervisors_own_dropped_log_lines_are_counted(tmp_path: Path) -> None:
    async with running(tmp_path) as (subject, _):
        await subject.ready()
        log.WRITER.emit(LogDropped(3))
        page = (await subject.get("/metrics"))[1]
    log.WRITER.emit = ignore
    assert 'semroute_log_lines_dropped_total{worker="supervisor"} 3.0' in page


async def test_the_first_view_of_all_workers_is_json_too(tmp_path: Path) -> None:
    async with running(tmp_path) as (subject, _):
        await subject.ready()
        shown = json.loads((await subject.get("/ui/now.json"))[1])
    assert (shown["workers"], shown["workers_wanted"], shown["queue"]) == (2, 2, 2)
    assert shown["table"] == [["rule r", "small", 5]]


async def test_workers_with_different_configurations_are_seen(tmp_path: Path) -> None:
    async with running(tmp_path) as (subject, _):
        await subject.ready()
        assert "semroute_workers_differ 0" in (await subject.get("/metrics"))[1]
        (tmp_path / "sha").write_text("b" * 64)
        os.kill(subject.pid(1), signal.SIGKILL)
        await until(lambda: subject.starts(1) == 2)
        await subject.ready()
        assert "semroute_workers_differ 1" in (await subject.get("/metrics"))[1]


async def test_workers_that_differ_for_long_are_logged(tmp_path: Path) -> None:
    timing = Timing(probe=0.05, backoff_min=0.05, differing_probes_max=3)
    with capture_logs() as logs:
        async with running(tmp_path, timing) as (subject, _):
            await subject.ready()
            assert not [entry for entry in logs if entry["event"] == "workers.differ"]
            (tmp_path / "sha").write_text("b" * 64)
            os.kill(subject.pid(1), signal.SIGKILL)
            await until(lambda: any(entry["event"] == "workers.differ" for entry in logs))


async def test_the_admin_sockets_are_for_our_user_alone(tmp_path: Path) -> None:
    async with running(tmp_path) as (subject, _):
        await subject.ready()
        modes = {stat.S_IMODE(worker.admin.stat().st_mode) for worker in subject.workers}
    assert modes == {0o600}


def test_several_workers_need_a_socket_each() -> None:
    with pytest.raises(ValueError, match="several workers need a socket each"):
        config(server={"workers": 2, "listen": "unix:/run/semroute/w0.sock"})
    settings: Any = config(server={"workers": 2}).server
    assert [settings.address(worker) for worker in range(2)] == [
        "unix:/run/semroute/w0.sock",
        "unix:/run/semroute/w1.sock",
    ]
