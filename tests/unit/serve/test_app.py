"""A whole sidecar, run in this process: its pages, its signals and its end."""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import os
import signal
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from threading import Thread
from typing import Any

import grpc
import pytest
import pytest_asyncio
import structlog
from builders import BUNDLE
from grpc_health.v1 import health_pb2, health_pb2_grpc
from semroute_demo.process import free_port
from structlog.testing import capture_logs

from semroute_extproc.config import source as config_source
from semroute_extproc.encoder.bundle import DEFAULT
from semroute_extproc.errors import Exit
from semroute_extproc.events import CacheLookup, EncoderLost, Scraped
from semroute_extproc.serve import app
from semroute_extproc.serve.app import Health, Reactions
from semroute_extproc.settings.process import Admin
from semroute_extproc.state.controllers import ControllerState


class Model:
    """Enough of a model for an app that is never asked anything."""

    bundle = BUNDLE
    device = "cpu"
    provider = "fake"
    emit: Any = None
    """Set by the queue that runs the model."""


class Sidecar:
    """A running sidecar as others see it."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "semroute.yaml"
        self.socket = f"unix:{folder}/w0.sock"
        self.port = free_port()
        self.model = Model()
        self.write("vllm-large")
        models: Any = {DEFAULT: self.model}
        self.task = asyncio.create_task(app.run(self.file, config_source.load(self.file, {}), models))

    def write(self, cluster: str) -> None:
        self.file.write_text(
            f"""\
pools:
  small: {{cluster: vllm-small, model: org/small}}
  large: {{cluster: {cluster}, model: org/large}}
default_pool: large
policies:
  main: {{otherwise: {{strategy: pair}}}}
strategies:
  pair: {{kind: threshold, weak: small, strong: large, strong_share: 0.3}}
controllers: {{failover: {{}}}}
server: {{listen: "{self.socket}", drain_seconds: 0.3}}
admin: {{listen: "127.0.0.1:{self.port}"}}
telemetry: {{decision_log: {{path: log}}}}
"""
        )

    async def get(self, path: str) -> tuple[int, str]:
        return await asyncio.to_thread(self._get, path)

    def _get(self, path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=5) as response:
                return response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except OSError:
            return 0, ""

    async def until(self, path: str, wanted: str) -> None:
        async with asyncio.timeout(20):
            while wanted not in (await self.get(path))[1]:
                assert not self.task.done()
                await asyncio.sleep(0.02)

    async def health(self) -> int:
        async with grpc.aio.insecure_channel(self.socket) as channel:
            answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
            return int(answer.status)


@pytest_asyncio.fixture
async def sidecar(tmp_path: Path) -> AsyncIterator[Sidecar]:
    running = Sidecar(tmp_path)
    await running.until("/readyz", "ok")
    yield running
    if not running.task.done():
        os.kill(os.getpid(), signal.SIGTERM)
    async with asyncio.timeout(20):
        await running.task


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
    structlog.reset_defaults()
    logging.getLogger().handlers.clear()


async def test_its_pages_say_what_is_live(sidecar: Sidecar) -> None:
    assert (await sidecar.get("/livez"))[0] == 200
    page = (await sidecar.get("/metrics"))[1]
    assert 'provider="fake"' in page
    for line in (
        "semroute_inflight_streams 0.0",
        "semroute_queue_depth 0.0",
        "semroute_session_entries 0.0",
        "semroute_config_last_reload_successful 1.0",
    ):
        assert line in page
    config = json.loads((await sidecar.get("/config"))[1])
    assert config["generation"] == 1
    assert config["config"]["pools"]["large"]["cluster"] == "vllm-large"
    assert json.loads((await sidecar.get("/controllers"))[1])["pools"] == {}
    assert config["health"] == {name: {"excluded": False, "why": ""} for name in ("small", "large")}
    assert 'semroute_pool_excluded{pool="small"} 0.0' in page
    traffic = config["traffic"]["pair"]
    assert (traffic["scores"], traffic["realized"]) == (0, None)
    assert f'semroute_traffic_threshold{{strategy="pair"}} {traffic["threshold"]}' in page
    assert f'semroute_traffic_reference{{strategy="pair"}} {traffic["reference"]}' in page
    assert 'semroute_traffic_scores{strategy="pair"} 0.0' in page
    worker = json.loads((await sidecar.get("/worker"))[1])
    assert (worker["ready"], worker["turning"], worker["sha256"]) == (True, True, config["sha256"])
    assert (await sidecar.get("/nothing"))[0] == 404


async def test_outcomes_are_taken_logged_and_counted(sidecar: Sidecar) -> None:
    def post() -> None:
        url, headers = f"http://127.0.0.1:{sidecar.port}/outcomes", {"content-type": "application/json"}
        body = b'{"request_id": "id-1", "label": "good"}'
        with urllib.request.urlopen(urllib.request.Request(url, body, headers), timeout=5) as response:
            assert json.load(response) == {"accepted": 1}

    await asyncio.to_thread(post)
    await sidecar.until("/metrics", 'semroute_reported_total{kind="good",pool="",source="user"} 1.0')
    await sidecar.until("/metrics", "semroute_decision_log_records_total 1.0")
    record = json.loads((sidecar.file.parent / "log" / "decisions-0.jsonl").read_text())
    assert (record["request_id"], record["outcome"], record["source"]) == ("id-1", 1.0, "user")


async def test_sighup_reads_the_file_and_a_change_is_noticed_without_it(sidecar: Sidecar) -> None:
    await asyncio.to_thread(sidecar.write, "vllm-huge")
    os.kill(os.getpid(), signal.SIGHUP)
    await sidecar.until("/config", "vllm-huge")
    await asyncio.sleep(0.3)
    await asyncio.to_thread(sidecar.write, "vllm-gigantic")
    await sidecar.until("/config", "vllm-gigantic")


async def test_a_yaml_bomb_is_refused_and_counted_and_the_next_good_file_is_taken(sidecar: Sidecar) -> None:
    names = "abcdefgh"
    bomb = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
        f"{name}: &{name} [{','.join(f'*{before}' for _ in range(9))}]\n"
        for before, name in itertools.pairwise(names)
    )
    await asyncio.to_thread(sidecar.file.write_text, bomb)
    await sidecar.until("/metrics", "semroute_config_reloads_rejected_total 1.0")
    assert "semroute_config_last_reload_successful 0.0" in (await sidecar.get("/metrics"))[1]
    assert "vllm-large" in (await sidecar.get("/config"))[1]
    await asyncio.to_thread(sidecar.write, "vllm-next")
    await sidecar.until("/config", "vllm-next")
    assert "semroute_config_last_reload_successful 1.0" in (await sidecar.get("/metrics"))[1]


async def test_its_pages_are_guarded_as_configured(sidecar: Sidecar) -> None:
    page = urllib.request.Request(f"http://127.0.0.1:{sidecar.port}/config", headers={"host": "evil.example"})
    with pytest.raises(urllib.error.HTTPError) as refused:
        await asyncio.to_thread(urllib.request.urlopen, page)
    assert refused.value.code == 421
    refused.value.close()
    guards = Admin.model_validate({"token": "t0ken-0123456789", "hosts": ["a.b"]}).guards()
    assert guards == {"token": "t0ken-0123456789", "hosts": ("a.b",)}


async def test_a_lost_encoder_ends_it_after_a_drain_with_69(sidecar: Sidecar) -> None:
    with capture_logs() as logs:
        sidecar.model.emit(EncoderLost("b", "three passes failed"))
        async with asyncio.timeout(20):
            while await sidecar.health() == health_pb2.HealthCheckResponse.SERVING:
                await asyncio.sleep(0.01)
        assert (await sidecar.get("/readyz"))[0] == 503
        assert 'semroute_gpu_lost{bundle="b"} 1.0' in (await sidecar.get("/metrics"))[1]
        assert await sidecar.task == Exit.UNAVAILABLE == 69
    events = [entry["event"] for entry in logs]
    assert events[:2] == ["gpu.lost", "server.draining"]


async def test_it_ends_with_0_when_it_is_told_to(sidecar: Sidecar) -> None:
    os.kill(os.getpid(), signal.SIGTERM)
    assert await sidecar.task == Exit.OK


async def test_an_encoder_may_be_lost_in_any_thread_and_load_reaches_the_controllers() -> None:
    seen: list[Any] = []

    class Seen(ControllerState):
        def __init__(self) -> None:
            pass

        def observe(self, pool: str, load: Any, now: float, failed: bool = False) -> None:
            seen.append((pool, load, failed))

    reactions = Reactions(Seen())
    reactions.handle(Scraped("large", {"running": 1.0}, False))
    reactions.handle(CacheLookup(True))
    reactions.handle(Scraped("large", {}, True))
    assert seen == [("large", {"running": 1.0}, False), ("large", {}, True)]
    assert reactions.status == Exit.OK
    Thread(target=reactions.handle, args=[EncoderLost("b")]).start()
    await asyncio.wait_for(reactions.stop.wait(), 5)
    assert reactions.status == Exit.UNAVAILABLE


async def test_an_event_loop_that_stands_still_is_not_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    """The admin port is another thread and would say ok for ever."""
    monkeypatch.setattr(app, "BEAT_SECONDS", 0.0)
    now = 100.0
    health = Health(lambda: now)
    assert not health.ready
    health.serving = True
    assert (health.alive, health.ready) == (True, True)
    now += app.STALLED_SECONDS_MAX + 1
    assert (health.alive, health.ready) == (False, False), "the loop has shown no sign of life"
    beat = asyncio.create_task(health.beat())
    await asyncio.sleep(0)
    assert (health.alive, health.ready) == (True, True)
    beat.cancel()
