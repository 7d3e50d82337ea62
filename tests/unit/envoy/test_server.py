"""The gRPC side, driven by a raw client over a Unix socket."""

from __future__ import annotations

import asyncio
import json
import socket
import stat
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from builders import POOLS, FakeEncoder, classifier, config, names, plans
from grpc_health.v1 import health_pb2, health_pb2_grpc

from semroute_extproc import events
from semroute_extproc.envoy._pb import external_processor_pb2 as pb
from semroute_extproc.envoy.exchange import Exchange, ExchangeSettings
from semroute_extproc.envoy.server import SERVICE, ConfigSnapshot, GrpcServer, Servicer
from semroute_extproc.events import Decided, Event, Failed, StreamRefused
from semroute_extproc.outcome import Cause, Kind
from semroute_extproc.pipeline.pipeline import Pipeline

CHAT = {":method": "POST", ":path": "/v1/chat/completions", "content-type": "application/json"}
NO_SERVICER = Servicer(lambda: None, events.ignore)  # type: ignore[arg-type, return-value]
BODY = json.dumps({"model": "auto", "messages": [{"role": "user", "content": "hi"}]}).encode()


class Running:
    def __init__(
        self, channel: grpc.aio.Channel, server: GrpcServer, servicer: Servicer, events: list[Event]
    ):
        self.channel, self.server, self.servicer, self.events = channel, server, servicer, events

    @property
    def decided(self) -> list[Decided]:
        return [event for event in self.events if isinstance(event, Decided)]

    def process(self, **options: Any) -> Any:
        call = self.channel.stream_stream(
            f"/{SERVICE}/Process",
            # Bytes are sent as they are.
            request_serializer=lambda sent: sent if isinstance(sent, bytes) else sent.SerializeToString(),
            response_deserializer=pb.ProcessingResponse.FromString,
        )
        return call(**options)

    async def health(self, service: str = SERVICE) -> int:
        stub = health_pb2_grpc.HealthStub(self.channel)
        answer = await stub.Check(health_pb2.HealthCheckRequest(service=service))
        return int(answer.status)


@asynccontextmanager
async def running(
    tmp_path: Path, encoder: FakeEncoder | None = None, drain: float = 0.0, streams_max: int = 100
) -> AsyncIterator[Running]:
    listen = f"unix:{tmp_path}/w0.sock"
    pools = {**POOLS, "large": {**POOLS["large"], "context": 10_000_000}}
    # The longest deadline: an encoder that is slow on purpose must not let a request end too early.
    server_settings = {"listen": listen, "drain_seconds": drain, "streams_max": streams_max}
    settings = config(server={**server_settings, "deadline_ms": 10_000}, pools=pools)
    pipeline = Pipeline(settings, plans(settings), classifier(encoder or FakeEncoder()))
    live = ConfigSnapshot(1, ExchangeSettings("large", "l", settings.server, names(settings)), pipeline)
    seen: list[Event] = []
    servicer = Servicer(lambda: live, seen.append)
    server = GrpcServer(settings.server, servicer)
    await server.start()
    options = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
    try:
        async with grpc.aio.insecure_channel(listen, options=options) as channel:
            yield Running(channel, server, servicer, seen)
    finally:
        await server.drain()


def headers(fields: dict[str, str] | None = None) -> pb.ProcessingRequest:
    message = pb.ProcessingRequest()
    for key, value in (fields or CHAT).items():
        message.request_headers.headers.headers.add(key=key, raw_value=value.encode())
    return message


def body(data: bytes = BODY) -> pb.ProcessingRequest:
    message = pb.ProcessingRequest()
    message.request_body.body = data
    message.request_body.end_of_stream = True
    return message


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.01)


async def test_a_stream_is_answered_message_by_message(tmp_path: Path) -> None:
    async with running(tmp_path) as subject:
        call = subject.process()
        await call.write(headers())
        assert (await call.read()).WhichOneof("response") == "request_headers"
        await call.write(body())
        reply = await call.read()
        sent = json.loads(reply.request_body.response.body_mutation.body)
        assert sent["model"] in ("m-s", "m-l")
        await call.done_writing()
        assert await call.read() is grpc.aio.EOF
        assert await call.code() == grpc.StatusCode.OK
        [event] = subject.decided
        assert event.outcome.pool in ("small", "large")


async def test_a_body_of_ten_mebibytes_gets_through(tmp_path: Path) -> None:
    text = "word " * 2_097_152
    large = json.dumps({"model": "auto", "messages": [{"role": "user", "content": text}]}).encode()
    async with running(tmp_path) as subject:
        call = subject.process()
        await call.write(headers())
        await call.read()
        await call.write(body(large))
        reply = await call.read()
        assert len(reply.request_body.response.body_mutation.body) > len(text)


async def test_a_message_of_an_unknown_kind_does_not_end_the_stream(tmp_path: Path) -> None:
    async with running(tmp_path) as subject:
        call = subject.process()
        await call.write(pb.ProcessingRequest())
        await call.write(headers())
        assert (await call.read()).WhichOneof("response") == "request_headers"
        call.cancel()


async def test_a_stream_that_is_cancelled_while_it_is_decided_frees_its_place(tmp_path: Path) -> None:
    encoder = FakeEncoder(delay=0.05)
    async with running(tmp_path, encoder) as subject:
        call = subject.process()
        await call.write(headers())
        await call.read()
        await call.write(body())
        await until(lambda: bool(encoder.texts))
        call.cancel()
        await until(lambda: len(subject.servicer.open) == 0)
        assert subject.decided == []


class Context:
    """Envoy's side of one stream: its messages, and a function for its writes."""

    def __init__(self, write: Callable[[bytes], Awaitable[None]], *messages: pb.ProcessingRequest) -> None:
        self._messages = [*(message.SerializeToString() for message in messages), grpc.aio.EOF]
        self.write = write

    async def read(self) -> Any:
        return self._messages.pop(0)

    def invocation_metadata(self) -> tuple[()]:
        return ()


async def test_a_stream_that_is_reset_before_its_body_is_counted(tmp_path: Path) -> None:
    async def write(_: bytes) -> None:
        pass

    class Reset(Context):
        async def read(self) -> Any:
            if (message := await super().read()) is grpc.aio.EOF:
                raise asyncio.CancelledError
            return message

    async with running(tmp_path) as subject:
        with pytest.raises(asyncio.CancelledError):
            await subject.servicer.process(None, Reset(write, headers()))  # type: ignore[arg-type]
        assert [event.outcome.cause for event in subject.decided] == ["no_body"]
        assert len(subject.servicer.open) == 0


async def test_the_reply_goes_before_the_telling(tmp_path: Path) -> None:
    told: list[int] = []

    async def write(_: bytes) -> None:
        told.append(len(subject.decided))

    async with running(tmp_path) as subject:
        context: Any = Context(write, headers(), body())
        await subject.servicer.process(None, context)
        assert told == [0, 0]
        assert len(subject.decided) == 1


@pytest.mark.parametrize("failure", [asyncio.CancelledError, grpc.aio.UsageError])
async def test_a_decision_whose_reply_cannot_be_written_is_told_once(
    tmp_path: Path, failure: type[BaseException]
) -> None:
    async def write(reply: bytes) -> None:
        if pb.ProcessingResponse.FromString(reply).HasField("request_body"):
            raise failure

    async with running(tmp_path) as subject:
        context: Any = Context(write, headers(), body())
        with pytest.raises(failure):
            await subject.servicer.process(None, context)
        [event] = subject.decided
        assert event.outcome.kind is Kind.ROUTED
        assert len(subject.servicer.open) == 0


async def test_a_failure_in_the_exchange_is_counted_and_still_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise ZeroDivisionError

    async with running(tmp_path) as subject:
        monkeypatch.setattr(Exchange, "receive", broken)
        call = subject.process()
        await call.write(headers())
        assert (await call.read()).WhichOneof("response") == "request_headers"
        await call.done_writing()
        assert await call.code() == grpc.StatusCode.OK
        failed, event = subject.events
        assert failed == Failed("exchange.failed")
        assert isinstance(event, Decided)
        assert (event.outcome.kind, event.outcome.cause) == (Kind.PASSTHROUGH, "internal_error")


async def test_the_parents_of_the_trace_are_envoys_first_then_the_clients(tmp_path: Path) -> None:
    envoy, client = f"00-{'a' * 32}-{'1' * 16}-01", f"00-{'a' * 32}-{'2' * 16}-01"
    async with running(tmp_path) as subject:
        call = subject.process(metadata=(("traceparent", envoy),))
        await call.write(headers({**CHAT, ":method": "GET", "traceparent": client, "x-request-id": "r"}))
        await call.read()
        await call.done_writing()
        assert await call.read() is grpc.aio.EOF
        [event] = subject.decided
        assert event.parents == (envoy, client)
        assert event.request_id == "r"


async def test_health_follows_readiness_and_the_drain(tmp_path: Path) -> None:
    serving, not_serving = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
    async with running(tmp_path, drain=0.3) as subject:
        assert await subject.health() == not_serving
        await subject.server.ready()
        assert await subject.health() == await subject.health("") == serving
        draining = asyncio.create_task(subject.server.drain())
        await asyncio.sleep(0.1)
        assert await subject.health() == not_serving
        call = subject.process()
        await call.write(headers())
        assert (await call.read()).WhichOneof("response") == "request_headers"
        await call.done_writing()
        await draining


async def test_the_socket_is_for_user_and_group(tmp_path: Path) -> None:
    async with running(tmp_path):
        mode = stat.S_IMODE((tmp_path / "w0.sock").stat().st_mode)
    assert mode == 0o660


async def test_an_address_that_cannot_be_had_is_an_os_error(tmp_path: Path) -> None:
    settings = config(server={"listen": f"unix:{tmp_path}/missing/w0.sock"})
    server = GrpcServer(settings.server, NO_SERVICER)
    with pytest.raises(OSError, match=r"cannot listen on .*: there is no folder .*/missing"):
        await server.start()


async def test_the_socket_of_a_live_server_is_not_taken_over_and_a_dead_ones_is(tmp_path: Path) -> None:
    async with running(tmp_path) as subject:
        settings = config(server={"listen": f"unix:{tmp_path}/w0.sock"}).server
        with pytest.raises(OSError, match="another process is serving there"):
            await GrpcServer(settings, NO_SERVICER).start()
        assert await subject.health()
    with socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(f"{tmp_path}/w0.sock")
    async with running(tmp_path) as subject:
        assert await subject.health()


async def test_a_decision_that_cannot_be_told_is_still_carried_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> None:
        raise ZeroDivisionError

    written: list[bytes] = []

    async def write(reply: bytes) -> None:
        written.append(reply)

    async with running(tmp_path) as subject:
        context: Any = Context(write, headers(), body())
        monkeypatch.setattr(context, "invocation_metadata", broken)
        await subject.servicer.process(None, context)
        sent = pb.ProcessingResponse.FromString(written[-1]).request_body.response.body_mutation.body
        assert json.loads(sent)["model"] in ("m-s", "m-l")
        assert subject.events == [Failed("telemetry.failed")]


async def test_a_server_with_all_its_streams_in_use_is_not_dead(tmp_path: Path) -> None:
    encoder = FakeEncoder(delay=30)
    async with running(tmp_path, encoder, streams_max=2) as subject:
        await subject.server.ready()
        calls = [subject.process() for _ in range(2)]
        for call in calls:
            await call.write(headers())
            await call.read()
            await call.write(body())
        await until(lambda: len(encoder.texts) == 2)
        async with grpc.aio.insecure_channel(
            f"unix:{tmp_path}/w0.sock", options=[("grpc.use_local_subchannel_pool", 1)]
        ) as channel:
            other = Running(channel, subject.server, subject.servicer, subject.events)
            refused = other.process()
            with pytest.raises(grpc.aio.AioRpcError, match="too many streams"):
                await refused.read()
            assert subject.events == [StreamRefused()]
            assert await other.health() == health_pb2.HealthCheckResponse.SERVING
        for call in calls:
            call.cancel()


NOT_UTF_8 = pb.ProcessingRequest(
    request_headers={"headers": {"headers": [{"key": "XX", "raw_value": b"1"}]}}
).SerializeToString()
NOT_UTF_8 = NOT_UTF_8.replace(b"XX", b"\xff\xfe")


async def test_a_value_that_is_not_utf_8_does_not_keep_a_request_from_its_pool(tmp_path: Path) -> None:
    """In the headers, the attributes (as Envoy sends `request.id`), the metadata and the trailers."""
    entry = b"\x0a\x02id\x12\x00".replace(b"id", b"\xff\xfe")
    attributes = b"".join(bytes([tag, len(entry)]) + entry for tag in (0x42, 0x4A))
    message = headers()
    for name in ("x-request-id", ":path", "x-semroute-session", "traceparent"):
        message.request_headers.headers.headers.add(key=name, raw_value=b"\xff\xfe\xc3")
        message.request_headers.headers.headers.add(key=name, value=b"\xff\xfe\xc3")
    message.request_headers.headers.headers.add(key=":path", raw_value=b"/v1/chat/completions?x=\xff")
    async with running(tmp_path) as subject:
        call = subject.process()
        await call.write(message.SerializeToString() + attributes)
        assert (await call.read()).WhichOneof("response") == "request_headers"
        await call.write(body().SerializeToString() + attributes)
        assert (await call.read()).request_body.response.clear_route_cache
        assert await call.code() == grpc.StatusCode.OK
        [event] = subject.decided
        assert event.outcome.kind is Kind.ROUTED


@pytest.mark.parametrize("before", [0, 1])
async def test_a_message_that_cannot_be_read_ends_an_undecided_stream_with_an_outcome(
    tmp_path: Path, before: int
) -> None:
    """Envoy then does what its `failure_mode_allow` says, and the sidecar's metrics show the request."""
    async with running(tmp_path) as subject:
        call = subject.process()
        for _ in range(before):
            await call.write(headers())
            await call.read()
        await call.write(NOT_UTF_8)
        with pytest.raises(grpc.aio.AioRpcError, match="unreadable message"):
            await call.read()
        assert await call.code() == grpc.StatusCode.INVALID_ARGUMENT
        failed, event = subject.events
        assert failed == Failed("message.unreadable")
        assert isinstance(event, Decided)
        assert (event.outcome.kind, event.outcome.cause) == (Kind.PASSTHROUGH, Cause.UNREADABLE_MESSAGE)
        assert len(subject.servicer.open) == 0


async def test_trailers_that_are_not_utf_8_do_not_keep_a_request_from_its_pool(tmp_path: Path) -> None:
    trailers, part = pb.ProcessingRequest(), body()
    trailers.request_trailers.trailers.headers.add(key="x-check", value=b"\xff")
    part.request_body.end_of_stream = False
    begin = headers()
    begin.protocol_config.request_body_mode = pb.ProcessingMode.FULL_DUPLEX_STREAMED
    async with running(tmp_path) as subject:
        call = subject.process()
        for message in (begin, part, trailers):
            await call.write(message)
        kinds = [(await call.read()).WhichOneof("response") for _ in range(3)]
        assert kinds == ["request_headers", "request_body", "request_trailers"]
        assert await call.code() == grpc.StatusCode.OK
        assert [event.outcome.kind for event in subject.decided] == [Kind.ROUTED]


async def test_a_decided_stream_ends_and_makes_room_while_its_answer_goes_on(tmp_path: Path) -> None:
    """Envoy keeps the streams that we keep until its client has read the answer."""
    async with running(tmp_path, streams_max=2) as subject:
        for _ in range(5):
            call = subject.process()
            for message in (headers(), body()):
                await call.write(message)
                assert await call.read() is not grpc.aio.EOF
            assert await call.read() is grpc.aio.EOF
            assert await call.code() == grpc.StatusCode.OK
        assert [event.outcome.kind for event in subject.decided] == [Kind.ROUTED] * 5
        assert not subject.servicer.open


async def test_when_most_streams_wait_for_a_body_the_oldest_are_passed_through(tmp_path: Path) -> None:
    async with running(tmp_path, streams_max=8) as subject:
        calls = []
        for number in range(20):
            calls.append(call := subject.process())
            await call.write(headers({**CHAT, "x-request-id": str(number)}))
            assert (await call.read()).WhichOneof("response") == "request_headers"
        await until(lambda: len(subject.servicer.open) == 6)
        passed = [(event.request_id, event.outcome.cause) for event in subject.decided]
        assert passed == [(str(number), Cause.TOO_MANY_UPLOADS) for number in range(14)]
        for call in calls[:14]:
            assert await call.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        for call in calls[14:]:
            await call.write(body())
            assert (await call.read()).request_body.response.clear_route_cache
            await call.done_writing()
        await until(lambda: not subject.servicer.open)
        assert not subject.servicer.waiting
        assert StreamRefused() not in subject.events


async def test_a_stream_whose_body_has_begun_to_arrive_is_not_passed_through(tmp_path: Path) -> None:
    """In full duplex Envoy has given the piece away, and the request could not be sent on without it."""
    async with running(tmp_path, streams_max=8) as subject:
        calls, waiting = [subject.process() for _ in range(8)], subject.servicer.waiting
        for call in calls:  # one after the other: too many that wait at once are passed through
            message = headers()
            message.protocol_config.request_body_mode = pb.ProcessingMode.FULL_DUPLEX_STREAMED
            await call.write(message)
            await until(lambda: len(waiting) == 1)
            piece = body(b"{")
            piece.request_body.end_of_stream = False
            await call.write(piece)
            await until(lambda: not waiting)
        assert len(subject.servicer.open) == 8
        assert subject.decided == []
        for call in calls:
            call.cancel()


async def test_more_refusals_at_once_than_streams_are_all_counted(tmp_path: Path) -> None:
    encoder = FakeEncoder(delay=30)
    async with running(tmp_path, encoder, streams_max=2) as subject:
        calls = [subject.process() for _ in range(2)]
        for call in calls:
            await call.write(headers())
            await call.read()
            await call.write(body())
        await until(lambda: len(encoder.texts) == 2)
        refused = [subject.process() for _ in range(100)]
        assert {await call.code() for call in refused} == {grpc.StatusCode.RESOURCE_EXHAUSTED}
        assert subject.events.count(StreamRefused()) == 100
        for call in calls:
            call.cancel()


async def test_a_chunked_body_between_our_cap_and_envoys_is_refused_by_us(tmp_path: Path) -> None:
    """A body over gRPC's own limit is an error of the stream, and the request would fail open."""
    async with running(tmp_path) as subject:
        call = subject.process()
        await call.write(headers())
        await call.read()
        await call.write(body(b"x" * 33_619_968))
        assert (await call.read()).immediate_response.status.code == 413
