"""A GPU that fails is given up for the CPU's graph, and taken again once it works."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import fake_gpu
import pytest
from builders import config
from fake_gpu import Gpu

from semroute_extproc.encoder import bundle, failover
from semroute_extproc.encoder import queue as batcher
from semroute_extproc.encoder.classifier import Classifier
from semroute_extproc.encoder.cuda import open_model
from semroute_extproc.encoder.failover import FAILURES_MAX, Failover
from semroute_extproc.errors import EncoderUnavailable
from semroute_extproc.serve import app

SHIPPED = bundle.load(bundle.default_bundle())
SECONDS_MAX = 20.0
"""To open a graph on a busy machine."""


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Gpu:
    device = Gpu()
    fake_gpu.install(device, monkeypatch)
    monkeypatch.setattr(failover, "RETRY_SECONDS_MIN", 0.01)
    monkeypatch.setattr(failover, "RETRY_SECONDS_MAX", 0.04)
    return device


class Service:
    """A classifier on the GPU as the server composes it, and what it told."""

    def __init__(self, loaded: bundle.Bundle) -> None:
        settings = config(encoder={"device": "cuda", "cache_entries": 0})
        self.events: list[str] = []
        models = {app.DEFAULT: open_model(loaded, "cuda")}
        self.classifier: Classifier = app.make_classifier(
            settings, models, on_gpu=lambda _, event: self.events.append(event)
        )
        encoder = self.classifier._default.encoder
        assert isinstance(encoder, Failover)
        self.encoder = encoder

    async def decide(self, count: int = 1, seconds: float = SECONDS_MAX) -> list[str]:
        """What becomes of so many texts at once: `done`, or why not."""
        deadline = asyncio.get_running_loop().time() + seconds
        outputs = await asyncio.gather(
            *(self.encoder.encode("What is photosynthesis?", deadline) for _ in range(count)),
            return_exceptions=True,
        )
        return [out.cause if isinstance(out, EncoderUnavailable) else "done" for out in outputs]

    async def until(self, event: str) -> None:
        """Until it was told."""
        async with asyncio.timeout(SECONDS_MAX):
            while event not in self.events:
                await asyncio.sleep(0.01)

    async def fail(self) -> None:
        """Until the GPU is given up."""
        for _ in range(FAILURES_MAX):
            assert await self.decide() == ["error"]

    @property
    def provider(self) -> str:
        return self.encoder.describe()["provider"]


@pytest.fixture
async def service(gpu: Gpu) -> AsyncIterator[Service]:
    subject = Service(SHIPPED)
    yield subject
    await subject.classifier.close()


async def test_a_pass_without_memory_loses_no_text(gpu: Gpu, service: Service) -> None:
    gpu.texts_max = 3
    assert await service.decide(40) == ["done"] * 40
    assert set(service.events) == {"out_of_memory"}
    assert service.provider == "CUDAExecutionProvider"


async def test_one_failure_costs_its_texts_their_signals_and_no_more(gpu: Gpu, service: Service) -> None:
    gpu.there = False
    assert await service.decide() == ["error"]
    gpu.there = True
    assert await service.decide() == ["done"]
    assert service.events == []


async def test_a_gpu_that_keeps_failing_is_replaced_by_the_cpu(
    gpu: Gpu, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[Any] = []
    keep = SimpleNamespace(error=lambda *_, exc_info: kept.append(exc_info))
    monkeypatch.setattr(batcher, "log", keep)  # as a handler does that sends records elsewhere
    gpu.there = False
    await service.fail()
    await service.until("on_cpu")
    assert service.provider == "CPUExecutionProvider"
    assert service.encoder.describe()["graph"] == "model.int8.onnx"
    assert await service.decide(4) == ["done"] * 4
    assert len(kept) == FAILURES_MAX
    assert gpu.open == 0, "the session's memory was not freed"


async def test_a_device_that_has_no_memory_left_at_all_is_replaced_too(gpu: Gpu, service: Service) -> None:
    gpu.texts_max = 0
    await service.fail()
    await service.until("on_cpu")
    assert await service.decide() == ["done"]


async def test_a_driver_that_hangs_is_left_alone_and_the_cpu_encodes(
    gpu: Gpu, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(failover, "STALL_SECONDS_MAX", 0.1)
    monkeypatch.setattr(batcher, "CLOSE_SECONDS_MAX", 0.05)
    gpu.answers.clear()
    try:
        async with asyncio.timeout(SECONDS_MAX):
            while "lost" not in service.events:
                assert await service.decide(seconds=0.05) in (["deadline"], ["overloaded"])
        await service.until("on_cpu")
        assert await service.decide() == ["done"]
    finally:
        gpu.answers.set()
    await service.until("recovered")
    assert await service.decide() == ["done"]


async def test_texts_that_come_too_late_beside_others_in_time_do_not_lose_the_gpu(
    gpu: Gpu, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(failover, "STALL_SECONDS_MAX", 0.05)
    for _ in range(5):
        assert await service.decide(seconds=0.0) != ["done"]
        assert await service.decide() == ["done"]
        await asyncio.sleep(0.03)
    assert service.events == []


async def test_the_gpu_is_taken_again_once_it_works(gpu: Gpu, service: Service) -> None:
    gpu.there = False
    await service.fail()
    await service.until("retry_failed")
    gpu.there = True
    await service.until("recovered")
    assert service.provider == "CUDAExecutionProvider"
    gpu.shapes.clear()
    assert await service.decide() == ["done"]
    assert gpu.shapes, "the CPU still encodes"


async def test_what_comes_while_nothing_can_encode_falls_back_at_once(gpu: Gpu) -> None:
    manifest = SHIPPED.manifest.model_copy(update={"graphs": {"cuda": SHIPPED.manifest.graphs["cuda"]}})
    service = Service(bundle.Bundle(SHIPPED.path, manifest, SHIPPED.centroids))
    gpu.there = False
    await service.fail()
    started = asyncio.get_running_loop().time()
    assert await service.decide(100) == ["error"] * 100
    assert asyncio.get_running_loop().time() - started < 1.0
    assert service.provider == "none"
    gpu.there = True
    await service.until("recovered")
    assert await service.decide() == ["done"]
    assert "on_cpu" not in service.events
    await service.classifier.close()


async def test_pauses_grow_between_tries_to_a_bound_and_start_anew_after_a_steady_time(
    gpu: Gpu, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu.there = False
    await service.fail()
    async with asyncio.timeout(SECONDS_MAX):
        while service.events.count("retry_failed") < 4:
            await asyncio.sleep(0.01)
    assert service.encoder._pause == failover.RETRY_SECONDS_MAX
    gpu.there = True
    await service.until("recovered")
    monkeypatch.setattr(failover, "STEADY_SECONDS", 0.0)
    monkeypatch.setattr(failover, "RETRY_SECONDS_MIN", 5.0)
    gpu.there = False
    await service.fail()
    assert service.encoder._pause == 5.0


async def test_closing_ends_the_tries(gpu: Gpu) -> None:
    service = Service(SHIPPED)
    gpu.there = False
    await service.fail()
    await service.classifier.close()
    tries = len(service.events)
    await asyncio.sleep(0.1)
    assert len(service.events) == tries
    assert await service.decide() == ["closed"]


async def test_on_the_cpu_there_is_nothing_in_between() -> None:
    models = {app.DEFAULT: open_model(SHIPPED, "cpu")}
    classifier = app.make_classifier(config(), models)
    assert not isinstance(classifier._default.encoder, Failover)
    await classifier.close()
