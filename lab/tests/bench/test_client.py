"""The client of the processor: it plays Envoy on a gRPC server, and notices a server that fails."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from semroute_bench import floor, load
from semroute_bench.client import Client, ClientError, connect
from semroute_bench.measuring import Samples
from semroute_bench.servers import Target

from semroute_extproc.envoy._pb import external_processor_pb2 as pb

REQUEST = load.exchange(b"{}")
Behavior = Callable[[Any, Any], Awaitable[None]]


async def answer(_: Any, context: Any) -> None:
    for reply in floor.REPLIES:
        await context.read()
        await context.write(reply)
    await context.read()


@asynccontextmanager
async def server(folder: Path, behavior: Behavior = answer) -> AsyncIterator[Client]:
    subject = grpc.aio.server()
    subject.add_generic_rpc_handlers((floor.handler(behavior),))
    subject.add_insecure_port(f"unix:{folder}/s.sock")
    await subject.start()
    try:
        async with connect(folder / "s.sock") as client:
            yield client
    finally:
        await subject.stop(None)


async def test_every_request_is_answered_and_timed(tmp_path: Path) -> None:
    async with server(tmp_path) as client:
        for count, at_once in ((7, 1), (100, 16), (3, 16), (0, 4)):
            answers = await client.closed([REQUEST] * count, at_once)
            assert len(answers) == count
            assert all(answer.ms > 0 and answer.reply == floor.REPLIES[1] for answer in answers)


async def test_arrivals_are_sent_when_their_time_has_come_whatever_became_of_the_others(
    tmp_path: Path,
) -> None:
    most: list[Any] = []

    async def process(unused: Any, context: Any) -> None:
        most.append(context)
        await asyncio.sleep(0.1)
        await answer(unused, context)

    async with server(tmp_path, process) as client:
        answers = await client.open(REQUEST, rate=200, seconds=0.2)
    assert 15 < len(answers) < 70
    assert len(most) == len(answers)
    assert all(answer.ms > 0 for answer in answers)


async def test_arrivals_that_are_not_answered_are_counted(tmp_path: Path) -> None:
    number = 0

    async def process(unused: Any, context: Any) -> None:
        nonlocal number
        number += 1
        if number % 2:
            await asyncio.Event().wait()
        await answer(unused, context)

    async with server(tmp_path, process) as client:
        answers = await client.open(REQUEST, rate=100, seconds=0.2, last=0.3)
        assert [answer.outcome for answer in answers if not answer.reply] == [""] * ((number + 1) // 2)
        assert len(answers) == number


async def test_the_server_gets_headers_and_body_as_envoy_sends_them(tmp_path: Path) -> None:
    got: list[Any] = []

    async def process(_: Any, context: Any) -> None:
        for reply in floor.REPLIES:
            got.append(await context.read())
            await context.write(reply)
        assert await context.read() is grpc.aio.EOF, "the stream was not half-closed"

    async with server(tmp_path, process) as client:
        await client.closed([REQUEST], 1)
    assert [message.WhichOneof("request") for message in got] == ["request_headers", "request_body"]
    assert got[1].request_body.body == b"{}"


async def test_more_is_sent_than_the_server_grants_at_once(tmp_path: Path) -> None:
    async with server(tmp_path) as client:
        assert len(await client.closed([load.exchange(b"x" * 16_000)] * 200, 32)) == 200
        assert len(await client.closed([load.exchange(b"x" * 3_000_000)], 1)) == 1


async def test_a_count_is_shared_among_the_workers_and_its_cost_is_sampled(tmp_path: Path) -> None:
    samples = Samples()
    async with server(tmp_path) as one, connect(tmp_path / "s.sock") as two:
        target = Target([one, two], [os.getpid()])
        assert len(await target.measure(samples, "both", REQUEST, 7, 2)) == 8
    assert samples["both a second"][0] > 0
    assert samples["both cpu ms"][0] > 0


async def test_at_most_so_many_are_under_way(tmp_path: Path) -> None:
    running = most = 0

    async def process(unused: Any, context: Any) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await answer(unused, context)
        running -= 1

    async with server(tmp_path, process) as client:
        await client.closed([REQUEST] * 40, 5)
    assert 2 <= most <= 5 + 1, "one may begin while another's end is on its way"


async def test_a_stream_that_ends_early_is_an_error(tmp_path: Path) -> None:
    async def process(_: Any, context: Any) -> None:
        await context.read()
        await context.write(floor.REPLIES[0])

    async with server(tmp_path, process) as client:
        with pytest.raises(ClientError, match="a stream ended after 1 replies"):
            await client.closed([REQUEST], 1)


async def test_a_server_that_says_nothing_is_an_error(tmp_path: Path) -> None:
    async def process(_: Any, context: Any) -> None:
        await asyncio.Event().wait()

    async with server(tmp_path, process) as client:
        with pytest.raises(ClientError, match=r"took longer than 0\.1 s"):
            await client.closed([REQUEST], 1, limit=0.1)


async def test_a_server_that_goes_away_is_an_error(tmp_path: Path) -> None:
    async def hang_up(_: Any, writer: asyncio.StreamWriter) -> None:
        writer.close()

    path = tmp_path / "s.sock"
    async with await asyncio.start_unix_server(hang_up, path), connect(path) as client:
        with pytest.raises(ClientError, match="closed the connection"):
            await client.closed([REQUEST], 1)


async def test_the_do_nothing_server_asks_for_the_body_and_runs_a_pass_for_it(tmp_path: Path) -> None:
    passes: list[int] = []
    async with server(tmp_path, floor.process(lambda: passes.append(1))) as client:
        answers = await client.closed([REQUEST] * 3, 1)
    assert [answer.reply for answer in answers] == [floor.REPLIES[1]] * 3
    assert len(passes) == 3


def test_a_reply_is_a_processing_response() -> None:
    assert pb.ProcessingResponse.FromString(floor.REPLIES[0]).HasField("request_headers")
