"""Several workers behind one Envoy."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections import Counter
from collections.abc import Callable

import aiohttp
import grpc
import pytest
from gateway import Gateway, chat, wait_for
from semroute_demo.sidecar import Sidecar

from semroute_extproc.envoy._pb import external_processor_pb2 as pb
from semroute_extproc.envoy.server import SERVICE

MakeGateway = Callable[..., Gateway]
MakeSidecar = Callable[..., Sidecar]


def _workers(sidecar: Sidecar) -> list[dict[str, object]]:
    return list(json.loads(sidecar.read_admin("/workers")[1]))


def _decided(sidecar: Sidecar, worker: int) -> float:
    label = f'worker="{worker}"'
    lines = sidecar.read_admin("/metrics")[1].splitlines()
    return sum(
        float(line.rpartition(" ")[2])
        for line in lines
        if line.startswith("semroute_decisions_total{") and label in line
    )


async def test_workers_without_a_configured_secret_draw_alike(make_sidecar: MakeSidecar) -> None:
    """A request that Envoy hands back may reach another worker, and must meet the same arm of the canary."""
    models = "{auto: {policy: fixed, canary: {other: 0.5}}}"
    sidecar = make_sidecar(SERVER__WORKERS="2", MODELS=models, POLICIES__OTHER="{otherwise: {pool: large}}")
    drawn = []
    for path in sidecar.sockets:
        async with grpc.aio.insecure_channel(f"unix:{path}") as channel:
            drawn.append([await _pool(channel, str(number)) for number in range(64)])
    assert drawn[0] == drawn[1]
    assert {"vllm-small", "vllm-large"} == set(drawn[0])


async def _pool(channel: grpc.aio.Channel, request_id: str) -> str:
    """The cluster that a worker chooses for a request."""
    read = pb.ProcessingResponse.FromString
    call = channel.stream_stream(f"/{SERVICE}/Process", response_deserializer=read)()
    first, second = pb.ProcessingRequest(), pb.ProcessingRequest()
    fields = {":method": "POST", ":path": "/v1/chat/completions", "content-type": "application/json"}
    for key, value in {**fields, "x-request-id": request_id}.items():
        first.request_headers.headers.headers.add(key=key, raw_value=value.encode())
    second.request_body.body, second.request_body.end_of_stream = (
        json.dumps(chat(model="auto")).encode(),
        True,
    )
    for message in (first, second):
        await call.write(message.SerializeToString())
        reply = await call.read()
    await call.done_writing()
    return str(reply.request_body.response.header_mutation.set_headers[0].header.raw_value.decode())


@pytest.mark.failure
async def test_a_worker_killed_under_load_fails_no_request_and_comes_back(
    make_gateway: MakeGateway, make_sidecar: MakeSidecar
) -> None:
    """The streams that the worker held, and few more, fail open to the default pool.

    Envoy tries the other worker for a stream that the dead one refuses, so what is lost is the decision
    of requests that were under way, and never a request.
    """
    sidecar = make_sidecar(SERVER__WORKERS="2", SERVER__DEADLINE_MS="1000")
    gateway = make_gateway([sidecar], health_interval="0.3s")
    seen: Counter[tuple[int, str]] = Counter()
    stop = asyncio.Event()

    async def load(client: aiohttp.ClientSession) -> None:
        while not stop.is_set():
            async with client.post("/v1/chat/completions", json=chat(model="auto-weak")) as response:
                await response.read()
                seen[response.status, response.headers.get("x-semroute-pool", "")] += 1

    async with aiohttp.ClientSession(gateway.url) as client:
        tasks = [asyncio.create_task(load(client)) for _ in range(8)]
        await asyncio.sleep(1)
        before = await asyncio.to_thread(_workers, sidecar)
        assert [worker["ready"] for worker in before] == [True, True]
        os.kill(int(str(before[0]["pid"])), signal.SIGKILL)
        await asyncio.sleep(0.5)
        await asyncio.to_thread(wait_for, sidecar.ready, 30, "the worker to come back")
        # Envoy has seen it too, and sends it its share again.
        await asyncio.to_thread(wait_for, lambda: _decided(sidecar, 0) > 0, 10, "the worker to be used again")
        stop.set()
        await asyncio.gather(*tasks)
    after = await asyncio.to_thread(_workers, sidecar)
    assert [worker["restarts"] for worker in after] == [1, 0]
    assert after[1]["pid"] == before[1]["pid"]
    assert {status for status, _ in seen} == {200}
    assert seen[200, ""] <= 3 * len(tasks), "many more requests than were under way lost their decision"
    assert seen[200, "small"] > 50
