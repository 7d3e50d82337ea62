"""One encoder on a server, behind the real Envoy: the same decisions, and a reason for every failure."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import grpc
import pytest
from gateway import Background, Gateway, chat, wait_for
from inference_server import Act, InferenceServer, honest
from semroute_demo.process import ProcessError
from semroute_demo.sidecar import Sidecar

from semroute_extproc.encoder import bundle
from semroute_extproc.encoder._pb.inference_pb2 import ModelInferResponse

Make = Callable[..., Any]

BUNDLES = {"ENCODER__BY_LANGUAGE": "{}"}  # one bundle, and so one server
DEADLINE_MS = 300.0
PROMPTS = (
    *("What is the capital of Australia?", "Prove that there are infinitely many primes.", "hi"),
    *("Write a lock-free queue in C++ and prove that it is linearizable.", "word " * 200),
)


@pytest.fixture(scope="module")
def background() -> Iterator[Background]:
    running = Background()
    yield running
    running.close()


@pytest.fixture
def server(background: Background) -> Iterator[InferenceServer]:
    running = InferenceServer(bundle.load(bundle.default_bundle(), ("cpu",)))
    background.run(running.start())
    yield running
    background.run(running.stop())


def settings(server: InferenceServer, fallback: str = "local") -> dict[str, str]:
    own = {"URL": server.url, "DEADLINE_MS": str(DEADLINE_MS), "FALLBACK": fallback}
    own["BREAKER_FAILURES"] = "1000"  # never pause the server
    return {**BUNDLES, **{f"ENCODER__REMOTE__{key}": value for key, value in own.items()}}


@asynccontextmanager
async def client(gateway: Gateway) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(gateway.url) as session:
        yield session


async def ask(session: aiohttp.ClientSession, text: str) -> tuple[str, str]:
    """The pool and the reason."""
    async with session.post("/v1/chat/completions", json=chat(text, "auto", max_tokens=1)) as response:
        await response.read()
        assert response.status == 200
        return response.headers["x-semroute-pool"], response.headers["x-semroute-reason"]


def encodes(sidecar: Sidecar) -> dict[str, float]:
    """How many texts had which result."""
    lines = sidecar.read_admin("/metrics")[1].splitlines()
    found = (line.rpartition(" ") for line in lines if line.startswith("semroute_remote_encodes_total"))
    return {labels.partition('result="')[2].partition('"')[0]: float(value) for labels, _, value in found}


async def test_decisions_are_those_of_the_local_graph_and_only_the_setting_differs(
    make_sidecar: Make, make_gateway: Make, server: InferenceServer
) -> None:
    gateways = [make_gateway([make_sidecar(**each)]) for each in (BUNDLES, settings(server))]
    found = []
    for gateway in gateways:
        async with client(gateway) as session:
            found.append([await ask(session, text) for text in PROMPTS])
    assert found[0] == found[1]
    assert len(server.requests) == 1 + len(PROMPTS)  # one at the start
    assert encodes(gateways[1].sidecars[0]) == {"ok": len(PROMPTS)}


async def never(*_: object) -> bytes:
    return await asyncio.get_running_loop().create_future()  # type: ignore[no-any-return]


async def garbage(*_: object) -> bytes:
    return b"\xff" * 64


async def not_a_number(response: ModelInferResponse, _: object) -> ModelInferResponse:
    response.raw_output_contents[0] = b"\xff" * len(response.raw_output_contents[0])
    return response


async def another_revision(response: ModelInferResponse, _: object) -> ModelInferResponse:
    response.model_version = "7"
    return response


async def failing(_: object, context: grpc.aio.ServicerContext) -> bytes:
    await context.abort(grpc.StatusCode.INTERNAL, "out of memory")
    raise AssertionError


FAILURES = {
    "remote_timeout": never,
    "remote_invalid": not_a_number,
    "remote_revision": another_revision,
    "remote_error": failing,
    "remote_unavailable": None,  # it is gone
}


@pytest.mark.parametrize("fallback", ["local", "policy"])
async def test_whatever_the_server_does_the_request_is_decided_in_time_and_the_reason_says_how(
    make_sidecar: Make, make_gateway: Make, server: InferenceServer, background: Background, fallback: str
) -> None:
    sidecar = make_sidecar(**settings(server, fallback), ENCODER__CACHE_ENTRIES="0")
    gateway, text = make_gateway([sidecar]), PROMPTS[0]
    async with client(gateway) as session:
        pool, reason = await ask(session, text)
        for cause, act in FAILURES.items():
            if act is None:
                background.run(server.stop())
            else:
                server.act = act
            started = asyncio.get_running_loop().time()
            failed = await ask(session, text)
            assert asyncio.get_running_loop().time() - started < 3.0
            if fallback == "local":
                assert failed == (pool, f"{reason} (local encoder: {cause.replace('_', ' ')})")
            else:
                assert failed == ("large", f"fallback: {cause}")
        server.act = honest
        background.run(server.start())  # on the same port
        async with asyncio.timeout(10):
            while (found := await ask(session, text)) != (pool, reason):
                assert "remote" in found[1]
    counted = encodes(sidecar)
    assert counted.keys() == FAILURES.keys() | {"ok"}
    assert (counted["remote_timeout"], counted["remote_revision"], counted["ok"]) == (1, 1, 2)


@pytest.mark.parametrize("act", [another_revision, garbage])
def test_a_server_with_another_graph_keeps_the_sidecar_from_starting(
    make_sidecar: Make, server: InferenceServer, act: Act
) -> None:
    server.act = act
    says = r"exited with 78[\s\S]*encoder\.remote: .* does not serve semroute-minilm"
    with pytest.raises(ProcessError, match=says):
        make_sidecar(**settings(server))


async def test_a_reload_is_refused_while_the_server_has_another_graph(
    make_sidecar: Make, make_gateway: Make, server: InferenceServer
) -> None:
    sidecar = make_sidecar(**settings(server))
    gateway = make_gateway([sidecar])

    server.act = another_revision
    sidecar.process.send(signal.SIGHUP)
    says = "does not serve semroute-minilm in version"
    wait_for(lambda: says in sidecar.process.log_tail(), 10, "the reload to be refused")
    assert "semroute_config_reloads_rejected_total 1.0" in sidecar.read_admin("/metrics")[1]
    async with client(gateway) as session:
        assert "(local encoder: remote revision)" in (await ask(session, PROMPTS[1]))[1]
