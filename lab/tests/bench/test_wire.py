"""The cheap client: it speaks HTTP/2 as a gRPC server wants it, and notices a server that fails."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from semroute_bench import floor, load, wire
from semroute_bench.wire import Wire, WireError, connect

from semroute_extproc.envoy._pb import external_processor_pb2 as pb


@asynccontextmanager
async def server(folder: Path, behaviour: Callable[..., Any]) -> AsyncIterator[Wire]:
    subject = grpc.aio.server()
    subject.add_generic_rpc_handlers((floor._handler(behaviour),))
    subject.add_insecure_port(f"unix:{folder}/s.sock")
    await subject.start()
    client = await connect(f"{folder}/s.sock")
    try:
        yield client
    finally:
        client.close()
        await subject.stop(None)


def test_a_frame_is_length_kind_flags_stream_and_payload() -> None:
    assert wire.frame(wire.DATA, wire.END_STREAM, 5, b"abc") == b"\0\0\3\0\1\0\0\0\5abc"


def test_a_message_has_its_length_in_front() -> None:
    assert wire.message(b"abc") == b"\0\0\0\0\3abc"


async def test_every_request_is_answered_and_timed(tmp_path: Path) -> None:
    replies: list[bytes] = []
    request = load.exchange(load.chat("m"))
    async with server(tmp_path, floor.process) as client:
        for count, at_once in ((7, 1), (100, 16), (3, 16), (0, 4)):
            ms = await client.closed([request] * count, at_once, replies.append)
            assert len(ms) == count
            assert all(value > 0 for value in ms)
    assert set(replies) == {floor.REPLIES[1]}


async def test_arrivals_are_sent_when_their_time_has_come_whatever_became_of_the_others(
    tmp_path: Path,
) -> None:
    waiting: list[Any] = []

    async def process(unused: Any, context: Any) -> None:
        waiting.append(context)
        await asyncio.sleep(0.1)
        await floor.process(unused, context)

    async with server(tmp_path, process) as client:
        answers = await client.open(load.exchange(b"{}"), rate=200, seconds=0.2)
    assert 15 < len(answers) < 70
    assert len(waiting) == len(answers)
    assert all(answer.ms > 0 for answer in answers)
    assert {answer.outcome for answer in answers} == {wire._outcome(floor.REPLIES[1])}


async def test_arrivals_that_are_not_answered_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire, "PER_STREAM_SECONDS_MAX", 0.3)
    number = 0

    async def process(unused: Any, context: Any) -> None:
        nonlocal number
        number += 1
        if number % 2:
            await asyncio.sleep(60)
        await floor.process(unused, context)

    async with server(tmp_path, process) as client:
        answers = await client.open(load.exchange(b"{}"), rate=100, seconds=0.2)
    unanswered = [answer for answer in answers if answer.ms == 0]
    assert len(unanswered) == (number + 1) // 2
    assert len(answers) == number


async def test_the_server_gets_headers_and_body_as_envoy_sends_them(tmp_path: Path) -> None:
    got: list[Any] = []

    async def process(_: Any, context: Any) -> None:
        for reply in floor.REPLIES:
            got.append(await context.read())
            await context.write(reply)
        assert await context.read() is grpc.aio.EOF, "the stream was not half-closed"

    async with server(tmp_path, process) as client:
        await client.closed([load.exchange(b"{}")], 1)
    assert [message.WhichOneof("request") for message in got] == ["request_headers", "request_body"]
    assert got[1].request_body.body == b"{}"


async def test_more_is_sent_than_the_server_grants_at_once(tmp_path: Path) -> None:
    body = b"x" * 16_000
    async with server(tmp_path, floor.process) as client:
        assert len(await client.closed([load.exchange(body)] * 200, 32)) == 200


async def test_at_most_so_many_are_under_way(tmp_path: Path) -> None:
    running = most = 0

    async def process(unused: Any, context: Any) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.001)
        await floor.process(unused, context)
        running -= 1

    async with server(tmp_path, process) as client:
        await client.closed([load.exchange(b"{}")] * 40, 5)
    assert 2 <= most <= 5 + 1, "one may begin while another's end is on its way"


async def test_a_stream_that_ends_early_is_an_error(tmp_path: Path) -> None:
    async def process(_: Any, context: Any) -> None:
        await context.read()
        await context.write(floor.REPLIES[0])

    async with server(tmp_path, process) as client:
        with pytest.raises(WireError, match=r"ended after 1 replies|ended a stream"):
            await client.closed([load.exchange(b"{}")], 1)


async def test_a_server_that_says_nothing_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def process(_: Any, context: Any) -> None:
        await asyncio.sleep(30)

    monkeypatch.setattr(wire, "SILENCE_SECONDS_MAX", 0.1)
    async with server(tmp_path, process) as client:
        with pytest.raises(WireError, match=r"nothing came for 0\.1 s"):
            await client.closed([load.exchange(b"{}")], 1)


async def test_a_server_that_goes_away_is_an_error(tmp_path: Path) -> None:
    async def hang_up(_: Any, writer: asyncio.StreamWriter) -> None:
        writer.close()

    path = str(tmp_path / "s.sock")
    async with await asyncio.start_unix_server(hang_up, path):
        client = await connect(path)
        with pytest.raises(WireError, match="closed the connection"):
            await client.closed([load.exchange(b"{}")], 1)


def test_a_reply_is_a_processing_response() -> None:
    assert pb.ProcessingResponse.FromString(floor.REPLIES[0]).HasField("request_headers")
