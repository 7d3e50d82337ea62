"""Signals at any moment of a real process: while Python imports, at the start, while it serves and drains."""

from __future__ import annotations

import json
import os
import signal
import time
from contextlib import suppress
from pathlib import Path

import pytest
from semroute_demo.process import wait_until
from served import Served, served

HARMLESS = (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGPIPE)


def our_code_runs(subject: Served) -> bool:
    """Before that, Python itself is starting, and no program can change what a signal does."""
    return subject.handles(signal.SIGTERM, "SigCgt")


@pytest.mark.timeout(300)
def test_no_harmless_signal_ends_it_however_early_late_and_often_it_comes(tmp_path: Path) -> None:
    with served(tmp_path) as subject:
        wait_until(lambda: our_code_runs(subject), 30, "the first line of our code")

        def disturb() -> None:
            for number in HARMLESS:
                subject.process.send_signal(number)

        subject.until(subject.ready, disturb, 120)
        (tmp_path / "semroute.yaml").write_text("pools: [\n")
        subject.until(lambda: "last_reload_successful 0.0" in subject.get("/metrics"), disturb, 30)
        subject.process.send_signal(signal.SIGTERM)
        subject.until(lambda: subject.process.poll() is not None, disturb, 60)
        assert subject.process.wait(60) == 0
        assert '"server.stopped"' in subject.log.read_text()


@pytest.mark.timeout(300)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_is_heeded_at_every_moment_of_the_start(tmp_path: Path, number: signal.Signals) -> None:
    with served(tmp_path) as first:
        wait_until(lambda: our_code_runs(first), 30, "the first line of our code")
        began = time.monotonic()
        wait_until(first.ready, 120, "the first process to be ready")
        whole = time.monotonic() - began
        first.process.send_signal(number)
        assert first.process.wait(60) == 0
    for share in (0.0, 0.2, 0.4, 0.6, 0.8, 0.95):
        with served(tmp_path) as subject:
            wait_until(lambda each=subject: our_code_runs(each), 30, "the first line of our code")
            time.sleep(share * whole)
            subject.process.send_signal(number)
            assert subject.process.wait(60) == 0, share


@pytest.mark.timeout(300)
def test_neither_the_supervisor_nor_a_worker_ends_by_a_reload_however_early_it_comes(tmp_path: Path) -> None:
    with served(tmp_path, workers=2) as subject:
        wait_until(lambda: our_code_runs(subject), 30, "the first line of our code")

        def disturb() -> None:
            for pid in (subject.pid, *subject.children()):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGHUP)
            os.killpg(subject.pid, signal.SIGUSR1)

        subject.until(subject.ready, disturb, 200)
        workers = json.loads(subject.get("/workers"))
        assert [(each["ready"], each["restarts"]) for each in workers] == [(True, 0), (True, 0)]
        subject.process.send_signal(signal.SIGTERM)
        subject.until(lambda: subject.process.poll() is not None, disturb, 60)
        assert subject.process.wait(60) == 0
        assert "worker.ended" not in subject.log.read_text()
