"""A running configuration and its changes."""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import structlog
from builders import BUNDLE
from structlog.testing import capture_logs

from semroute_extproc.config import source as config_source
from semroute_extproc.errors import ConfigError
from semroute_extproc.events import EncoderLost
from semroute_extproc.serve import app
from semroute_extproc.serve.app import App
from semroute_extproc.strategies import registry

GOOD = """\
pools:
  small: {cluster: vllm-small, model: org/small}
  large: {cluster: vllm-large, model: org/large}
default_pool: large
"""


class Model:
    """Enough of a model for an app that is never asked anything."""

    bundle = BUNDLE
    device = "cpu"
    provider = "fake"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "semroute.yaml"
    path.write_text(GOOD)
    return path


@pytest_asyncio.fixture
async def subject(file: Path) -> AsyncIterator[App]:
    models: Any = {app.DEFAULT: Model()}
    running = App(file, config_source.load(file, {}), models)
    yield running
    await running._classifier.close()


def successful(subject: App) -> bool:
    return b"semroute_config_last_reload_successful 1.0" in subject._metrics.exposition()


def write(file: Path, text: str) -> None:
    file.write_text(text)


def remove(file: Path) -> None:
    file.unlink()


async def test_a_change_is_taken_as_a_whole(subject: App, file: Path) -> None:
    write(file, GOOD.replace("vllm-large", "vllm-huge"))
    await subject._reload()
    assert subject._generation.number == 2
    assert subject._generation.settings.default_cluster == "vllm-huge"
    assert successful(subject)


async def test_what_is_wrong_changes_nothing_until_it_is_put_right_again(subject: App, file: Path) -> None:
    write(file, GOOD.replace("default_pool: large", "default_pool: larg"))
    await subject._reload()
    assert not successful(subject)
    write(file, GOOD)
    await subject._reload()
    assert successful(subject), "the file says again what is live"
    assert subject._generation.number == 1


async def test_a_change_that_needs_a_restart_is_named_with_its_place_and_nothing_else_is_taken(
    subject: App, file: Path
) -> None:
    write(file, GOOD.replace("vllm-large", "vllm-huge") + "server: {deadline_ms: 250, workers: 2}\n")
    with capture_logs() as logs:
        await subject._reload()
    [rejected] = [entry for entry in logs if entry["event"] == "config.rejected"]
    assert [problem.split(": ", 2)[1] for problem in rejected["problems"]] == [
        "server.workers",
        "server.deadline_ms",
    ]
    assert all("nothing of this file was applied" in problem for problem in rejected["problems"])
    assert subject._generation.settings.default_cluster == "vllm-large"
    assert not successful(subject)


async def test_the_log_says_when_a_rejected_file_is_put_back_as_it_was(subject: App, file: Path) -> None:
    with capture_logs() as logs:
        await subject._reload()
        write(file, GOOD + "nonsense: 1\n")
        await subject._reload()
        write(file, GOOD)
        await subject._reload()
    assert [entry["event"] for entry in logs] == ["config.rejected", "config.restored"]


async def test_a_file_that_is_gone_changes_nothing(subject: App, file: Path) -> None:
    remove(file)
    await subject._reload()
    assert subject._generation.number == 1
    assert not successful(subject)


async def test_a_failure_of_ours_while_reloading_does_not_end_the_watch(
    subject: App, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise ZeroDivisionError

    with monkeypatch.context() as patched:
        patched.setattr(config_source, "load", broken)
        await subject._reload()
    assert not successful(subject)
    write(file, GOOD.replace("vllm-large", "vllm-huge"))
    await subject._reload()
    assert subject._generation.number == 2


async def test_files_that_take_long_to_read_hold_no_request_up(
    subject: App, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = registry.read_files

    def slowly(*arguments: Any) -> Any:
        time.sleep(0.5)
        return read(*arguments)

    monkeypatch.setattr(registry, "read_files", slowly)
    write(file, GOOD.replace("vllm-large", "vllm-huge"))
    reloads = [asyncio.create_task(subject._reload()) for _ in range(2)]
    ticks = 0
    while not all(reload.done() for reload in reloads):
        await asyncio.sleep(0.01)
        ticks += 1
    assert ticks > 10, "the loop went on"
    assert subject._generation.number == 2, "one after the other, and the second found nothing new"


async def test_an_event_loop_that_stands_still_is_not_alive(
    subject: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The admin port is a thread beside it and would say ok for ever."""
    monkeypatch.setattr(app, "BEAT_SECONDS", 0.01)
    monkeypatch.setattr(app, "STILL_SECONDS_MAX", 0.2)
    subject._ready = True
    turning = asyncio.create_task(subject._turn())
    await asyncio.sleep(0.3)
    assert (subject._livez().status, subject._readyz().status) == (200, 200)
    time.sleep(0.3)  # noqa: ASYNC251 - it is what is tested
    assert (subject._livez().status, subject._readyz().status) == (503, 503)
    told = json.loads(subject._worker_page().body)
    assert (told["ready"], told["turning"]) == (False, False), "the supervisor is told"
    await asyncio.sleep(0.05)
    assert (subject._livez().status, subject._readyz().status) == (200, 200)
    turning.cancel()


JUDGED = """\
models:
  auto: {policy: main}
policies:
  main: {otherwise: {strategy: s}}
strategies:
  s: {kind: judge, weak: small, strong: large, url: "http://judge:8000/v1", model: j, threshold: 0.5}
"""


async def test_a_reload_keeps_a_judge_that_it_does_not_change(subject: App, file: Path) -> None:
    write(file, GOOD + JUDGED)
    await subject._reload()
    judge = subject._generation.pipeline.judges["s"]
    write(file, GOOD.replace("vllm-large", "vllm-huge") + JUDGED)
    await subject._reload()
    assert subject._generation.number == 3
    assert subject._generation.pipeline.judges["s"] is judge
    write(file, GOOD + JUDGED.replace("model: j", "model: k"))
    await subject._reload()
    assert subject._generation.pipeline.judges["s"] is not judge
    await subject._judges.close()


async def test_a_judge_that_cannot_be_made_is_a_configuration_that_is_refused(
    subject: App, file: Path
) -> None:
    write(file, GOOD + JUDGED.replace("model: j", "model: j, api_key_env: NO_SUCH_KEY"))
    await subject._reload()
    assert subject._generation.number == 1
    assert not successful(subject)


CONTROLLED = (
    GOOD.replace("model: org/large", "model: org/large, metrics: 'http://large/metrics'")
    + """\
policies:
  main: {otherwise: {strategy: pair}}
strategies:
  pair: {kind: threshold, weak: small, strong: large, strong_share: 0.3}
controllers:
  load: {}
  budgets: {pair: {strong_share: 0.3}}
  session: {}
"""
)


async def test_controllers_come_and_go_with_a_reload_and_keep_what_they_know(
    subject: App, file: Path
) -> None:
    assert subject._controllers.status() == {"pools": {}, "budgets": {}, "sessions": None}
    write(file, CONTROLLED)
    await subject._reload()
    for _ in range(5):
        subject._on_load("large", {"running": 1.0, "waiting": 9.0})
        await asyncio.sleep(0.01)
    before = subject._controllers.status()
    assert before["pools"]["large"]["level"] > 0.0
    write(file, CONTROLLED.replace("strong_share: 0.3}}", "strong_share: 0.4}}"))
    await subject._reload()
    after = subject._controllers.status()
    assert after["pools"] == before["pools"]
    assert after["budgets"]["pair"]["target"] == 0.4
    assert subject._generation.number == 3


async def test_a_password_that_changed_is_a_change(subject: App, file: Path) -> None:
    pytest.importorskip("redis", reason="needs the extra valkey")
    for password in ("old", "new"):
        remote = f"{{url: 'valkey://:{password}@localhost', key: 0123456789abcdef}}"
        write(file, CONTROLLED.replace("session: {}", f"session: {{remote: {remote}}}"))
        await subject._reload()
    assert subject._generation.number == 3


async def test_a_shared_memory_without_its_library_changes_nothing(
    subject: App, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "redis", None)
    remote = "{url: 'valkey://localhost', key: 0123456789abcdef}"
    write(file, CONTROLLED.replace("session: {}", f"session: {{remote: {remote}}}"))
    await subject._reload()
    assert not successful(subject)
    assert subject._generation.number == 1


async def test_what_happens_to_a_gpu_is_counted(subject: App) -> None:
    subject._on_encoder(EncoderLost("semroute-minilm"))
    page = subject._metrics.exposition().decode()
    assert 'semroute_gpu_lost{bundle="semroute-minilm"} 1.0' in page


def test_a_reload_that_is_asked_for_before_it_serves_does_not_end_it(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    handlers: list[Any] = []

    def refused(*_: Any) -> None:
        handlers.append(signal.getsignal(signal.SIGHUP))
        raise ConfigError(["enough"])

    before = signal.getsignal(signal.SIGHUP)
    monkeypatch.setattr(app, "load_bundles", refused)
    try:
        with pytest.raises(ConfigError):
            app.serve(file)
    finally:
        signal.signal(signal.SIGHUP, before)
        structlog.reset_defaults()
        logging.getLogger().handlers.clear()
    assert handlers == [signal.SIG_IGN]
