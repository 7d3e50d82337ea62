"""A real Triton and a real MLServer as the encoder, from the repositories that `bundle export` writes."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import pytest
from gateway import Background, Pools, chat, start_gateway, start_sidecar
from semroute_bench.model_servers import ModelServer

from semroute_extproc.encoder import bundle
from semroute_extproc.encoder.bundle import Bundle
from semroute_extproc.encoder.onnx import OnnxModel
from semroute_extproc.encoder.remote import RemoteEncoder
from semroute_extproc.encoder.signals import RawOutput
from semroute_extproc.errors import ConfigError, EncoderUnavailable
from semroute_extproc.settings.process import RemoteEncoding

ENGLISH = bundle.load(bundle.default_bundle(), ("cpu",))
OTHERS = bundle.load(bundle.default_bundle().parent / bundle.MULTILINGUAL_BUNDLE, ("cpu",))
TEXTS = [f"Question {n}: why is the sky {'very ' * n}blue?" for n in range(48)]
"""Of many lengths, so that a batch must be padded."""

BATCH_ERROR = 0.5
"""Of a logit: in a batch, int8 takes the range of its activations from all texts and the padding."""


@asynccontextmanager
async def encoder(server: ModelServer, of: Bundle, **settings: Any) -> AsyncIterator[RemoteEncoder]:
    wanted = RemoteEncoding.model_validate({"url": server.url, "deadline_ms": 10_000, **settings})
    subject = RemoteEncoder(of, wanted, None, 256)
    try:
        yield subject
    finally:
        await subject.close()


async def encode(subject: RemoteEncoder, text: str) -> RawOutput:
    return await subject.encode(text, asyncio.get_running_loop().time() + 30)


async def encode_all(subject: RemoteEncoder) -> list[RawOutput]:
    """Several at once, but not so many that the server refuses some."""
    few = asyncio.Semaphore(8)

    async def one(text: str) -> RawOutput:
        async with few:
            return await encode(subject, text)

    return await asyncio.gather(*map(one, TEXTS))


async def test_texts_at_once_get_the_outputs_of_the_local_graph(server: ModelServer) -> None:
    local = OnnxModel(ENGLISH, "cpu")
    async with encoder(server, ENGLISH) as subject:
        await subject.verify()
        outputs = await encode_all(subject)
    for text, found in zip(TEXTS, outputs, strict=True):
        [expected] = local.run([local.framer.frame(text)])
        np.testing.assert_array_equal(found.embedding, expected.embedding)
        np.testing.assert_array_equal(found.task_logits, expected.task_logits)
        assert found.difficulty_logit == expected.difficulty_logit


async def test_a_batch_on_the_server_keeps_texts_of_different_lengths_apart(server: ModelServer) -> None:
    local = OnnxModel(OTHERS, "cpu")
    async with encoder(server, OTHERS) as subject:
        outputs = await encode_all(subject)
    for text, found in zip(TEXTS, outputs, strict=True):
        [expected] = local.run([local.framer.frame(text)])
        assert found.difficulty_logit == pytest.approx(expected.difficulty_logit, abs=BATCH_ERROR)
        assert float(found.embedding @ expected.embedding) > 0.95


async def test_two_revisions_are_served_side_by_side_and_a_third_is_refused(
    server: ModelServer, another_revision: Path
) -> None:
    another = bundle.load(another_revision, ("cpu",))
    manifest = another.manifest.model_copy(update={"version": "none"})
    third = Bundle(another.path, type(manifest).model_validate(manifest.model_dump()), another.centroids)
    assert len({ENGLISH.revision, another.revision, third.revision}) == 3
    for each in (ENGLISH, another):
        async with encoder(server, each) as subject:
            await subject.verify()
            await encode(subject, "hi")
    async with encoder(server, third) as subject:
        with pytest.raises(ConfigError, match=f"does not serve .* {third.model_version} .*not found"):
            await subject.verify()
        with pytest.raises(EncoderUnavailable, match="remote_revision"):
            await encode(subject, "hi")


async def test_a_server_that_hangs_is_left_at_the_deadline(server: ModelServer) -> None:
    async with encoder(server, ENGLISH, deadline_ms=200) as subject:
        await encode(subject, "hi")
        server.process.send(signal.SIGSTOP)
        try:
            started = asyncio.get_running_loop().time()
            with pytest.raises(EncoderUnavailable, match="remote_timeout"):
                await encode(subject, "hi")
            assert asyncio.get_running_loop().time() - started < 2.0
        finally:
            server.process.send(signal.SIGCONT)


async def test_a_server_that_was_killed_is_used_again_once_it_is_back(server: ModelServer) -> None:
    async with encoder(server, ENGLISH, breaker_seconds=0.5) as subject:
        await encode(subject, "hi")
        server.process.send(signal.SIGKILL)
        server.process.wait(10)
        for _ in range(8):
            with pytest.raises(EncoderUnavailable, match=r"remote_(unavailable|paused)"):
                await encode(subject, "hi")
        server.process.stop()
        server.start()
        async with asyncio.timeout(20):
            while True:
                try:
                    await encode(subject, "hi")
                    break
                except EncoderUnavailable:
                    await asyncio.sleep(0.1)


async def test_behind_envoy_the_decisions_are_those_of_the_local_graph(
    server: ModelServer, tmp_path: Path
) -> None:
    background = Background()
    pools = Pools(background)
    remote = {"ENCODER__REMOTE__URL": server.url, "ENCODER__REMOTE__DEADLINE_MS": "700"}
    found = []
    for name, settings in (("local", {}), ("remote", {**remote, "ENCODER__REMOTE__FALLBACK": "policy"})):
        sidecar = start_sidecar(tmp_path, name, **settings)
        folder = tmp_path / f"envoy-{name}"
        folder.mkdir()
        gateway = start_gateway(folder, [sidecar], pools)
        try:
            async with aiohttp.ClientSession(gateway.url) as session:
                found.append([await _reason(session, text) for text in TEXTS[::8]])
        finally:
            gateway.envoy.stop()
            page = sidecar.read_admin("/metrics")[1]
            sidecar.stop()
    for pool in pools:
        background.run(pool.stop())
    background.close()
    assert found[0] == found[1]
    assert f'semroute_remote_encodes_total{{bundle="semroute-minilm",result="ok"}} {len(found[1])}.0' in page


async def _reason(session: aiohttp.ClientSession, text: str) -> str:
    async with session.post("/v1/chat/completions", json=chat(text, "auto", max_tokens=1)) as response:
        await response.read()
        return response.headers["x-semroute-reason"]
