"""From entries of Envoy's access log to what answers used and cost."""

from __future__ import annotations

import asyncio
import base64
from pathlib import Path
from typing import Any

import answers
import grpc
import pytest
from builders import POOLS, config

from semroute_extproc.config.models import Config
from semroute_extproc.envoy import accounting
from semroute_extproc.envoy._pb import access_log_pb2 as pb
from semroute_extproc.envoy.accounting import Accountant
from semroute_extproc.envoy.server import GrpcServer, Servicer
from semroute_extproc.events import Accounted, Event, Failed, ignore
from semroute_extproc.request.usage import Usage, parts_of
from semroute_extproc.request.view import Api

PRICES = {
    "small": {**POOLS["small"], "price": {"input": 1.0, "cached": 0.1, "output": 2.0}},
    "large": {**POOLS["large"], "price": {"input": 10.0, "output": 30.0}},
    "eyes": {**POOLS["eyes"], "price": {"input": 20.0, "output": 1.0}},
}
PATHS = {
    Api.CHAT_COMPLETIONS: "/v1/chat/completions",
    Api.COMPLETIONS: "/v1/completions",
    Api.RESPONSES: "/v1/responses",
    Api.MESSAGES: "/v1/messages",
}
ROUTED = {
    "outcome": "routed",
    "pool": "small",
    "model": "m-s",
    "rule": "r",
    "alias": "auto",
    "candidates": "small large",
    "prompt_tokens": 40,
}
START = 1_700_000_000_000
SECOND = 1_000


def settings(**changes: Any) -> Config:
    return config(pools=PRICES, **{"accounting": True, **changes})


def kept(api: Api, stream: bool = False, coding: str = "", body: bytes | None = None) -> dict[str, Any]:
    """What the filter keeps of an answer that took three seconds, the first one until it began."""
    whole = b"".join(answers.stream(api)) if stream else answers.whole(api)
    body = whole if body is None else body
    times = {"first": START + SECOND, "last": START + 3 * SECOND}
    found = {"status": "200", "stream": stream, "ended": True, "events": 0, **times}
    if coding:
        packed = answers.ENCODINGS[coding](body) if coding in answers.ENCODINGS else body
        return {**found, "coding": coding, "encoded": base64.b64encode(packed).decode()}
    parts = parts_of(body, stream)
    texts = {"opening": parts.opening.decode(), "closing": parts.closing.decode(), "finish": parts.finish}
    return {**found, "events": parts.events, **{key: text for key, text in texts.items() if text}}


def message(
    answer: dict[str, Any],
    decision: dict[str, Any] = ROUTED,
    path: str = PATHS[Api.CHAT_COMPLETIONS],
    **headers: bytes,
) -> bytes:
    written = pb.StreamAccessLogsMessage()
    entry = written.http_logs.log_entry.add()
    entry.common_properties.start_time.FromMilliseconds(START - 500)
    entry.common_properties.time_to_last_rx_byte.FromMilliseconds(500)
    for space, values in (("semroute.answer", answer), ("semroute", decision)):
        entry.common_properties.metadata.filter_metadata[space].update(values)
    entry.request.path = path.encode()
    entry.request.request_id = b"id-1"
    for key, value in headers.items():
        entry.request.request_headers[key.replace("_", "-")] = value
    return written.SerializeToString()


async def events_of(*messages: bytes, live: Config | None = None) -> list[Event]:
    seen: list[Event] = []
    found = live or settings()
    accountant = Accountant(lambda: found, seen.append)
    for each in messages:
        await accountant.receive(each)
    return seen


async def accounted(written: bytes, live: Config | None = None) -> Accounted:
    [event] = await events_of(written, live=live)
    assert isinstance(event, Accounted)
    return event


@pytest.mark.parametrize("api", answers.APIS)
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("coding", ["", *answers.ENCODINGS])
async def test_an_answer_of_any_api_form_and_encoding_is_read(api: Api, stream: bool, coding: str) -> None:
    event = await accounted(message(kept(api, stream, coding), path=PATHS[api]))
    assert (event.usage, event.problem, event.api) == (answers.usage(api), "", api)
    assert (event.pool, event.rule, event.model, event.served) == ("small", "r", "auto", "m-s")
    assert event.finish in ("stop", "end_turn", "completed")
    assert event.request_id == "id-1"


async def test_the_times_of_a_stream_are_the_clients() -> None:
    """One second from the last byte of the request to the first token, then two for six more."""
    event = await accounted(message(kept(Api.CHAT_COMPLETIONS, stream=True)))
    assert event.first_token_seconds == pytest.approx(1.0)
    assert event.tokens_per_second == pytest.approx(3.0)
    assert (event.started_ns, event.ended_ns) == ((START - 500) * 10**6, (START + 3_000) * 10**6)
    whole = await accounted(message(kept(Api.CHAT_COMPLETIONS)))
    assert (whole.first_token_seconds, whole.tokens_per_second) == (None, None)


async def test_dollars_follow_the_prices_with_cached_tokens_and_the_most_expensive_candidate() -> None:
    """20 tokens of input, 100 cached ones, 7 of output."""
    event = await accounted(message(kept(Api.CHAT_COMPLETIONS)))
    assert event.dollars == pytest.approx((20 * 1.0 + 100 * 0.1 + 7 * 2.0) / 1e6)
    assert event.cache_saved_dollars == pytest.approx(100 * 0.9 / 1e6)
    assert event.baseline_dollars == pytest.approx((120 * 10.0 + 7 * 30.0) / 1e6)
    both = {**ROUTED, "candidates": "small large eyes"}
    event = await accounted(message(kept(Api.CHAT_COMPLETIONS), both))
    assert event.baseline_dollars == pytest.approx((120 * 20.0 + 7 * 1.0) / 1e6)


async def test_a_fixed_baseline_holds_for_what_was_routed_only() -> None:
    live = settings(accounting={"baseline": "eyes"})
    event = await accounted(message(kept(Api.CHAT_COMPLETIONS)), live)
    assert event.baseline_dollars == pytest.approx((120 * 20.0 + 7 * 1.0) / 1e6)
    named = {"outcome": "named", "pool": "small", "model": "m-s", "candidates": "small"}
    event = await accounted(message(kept(Api.CHAT_COMPLETIONS), named), live)
    assert event.baseline_dollars == event.dollars
    assert event.model == "m-s"


async def test_a_pool_without_a_price_or_without_settings_costs_nothing() -> None:
    event = await accounted(message(kept(Api.CHAT_COMPLETIONS)), config(accounting=True))
    assert (event.dollars, event.baseline_dollars) == (0.0, 0.0)
    gone = {**ROUTED, "pool": "gone", "candidates": "gone"}
    event = await accounted(message(kept(Api.CHAT_COMPLETIONS), gone))
    assert (event.pool, event.dollars, event.usage) == ("gone", 0.0, answers.USAGE)


async def test_a_stream_without_usage_is_estimated_and_says_so() -> None:
    body = b"".join(answers.stream(Api.CHAT_COMPLETIONS, ("a", "b"), stated=False))
    event = await accounted(message(kept(Api.CHAT_COMPLETIONS, stream=True, body=body)))
    assert event.usage == Usage(input=40, output=2, estimated=True)
    assert event.problem == "no_usage"
    assert event.dollars == pytest.approx((40 * 1.0 + 2 * 2.0) / 1e6)


async def test_a_stream_that_is_cut_off_is_estimated_and_says_so() -> None:
    answer = {"status": "200", "stream": True, "first": START, "last": START + SECOND, "events": 33}
    event = await accounted(message(answer))
    assert event.usage == Usage(input=40, output=32, estimated=True)
    assert (event.problem, event.finish) == ("cut", "")
    answer["coding"] = "gzip"
    event = await accounted(message({**answer, "events": 0}))
    assert (event.problem, event.usage) == ("cut", Usage())


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"coding": "snappy"}, "encoding"),
        ({"coding": "gzip", "encoded": base64.b64encode(b"not gzip").decode()}, "encoding"),
        ({"coding": "gzip", "encoded": "%%%"}, "encoding"),
        ({"coding": "gzip", "encoded": None}, "too_long"),
        ({"stream": None}, "content_type"),
        ({"coding": None}, "no_usage"),
    ],
)
async def test_what_cannot_be_read_is_counted_by_its_reason(change: dict[str, Any], problem: str) -> None:
    answer = {**kept(Api.CHAT_COMPLETIONS, coding="gzip"), **change}
    event = await accounted(message({key: value for key, value in answer.items() if value is not None}))
    assert (event.problem, event.usage) == (problem, Usage())


async def test_an_answer_that_unpacks_to_too_much_is_too_long() -> None:
    bomb = b" " * (accounting.PLAIN_BYTES_MAX + 1)
    event = await accounted(message(kept(Api.CHAT_COMPLETIONS, coding="gzip", body=bomb)))
    assert event.problem == "too_long"


async def test_an_error_of_a_pool_has_no_usage_and_no_problem() -> None:
    event = await accounted(message({"status": "429"}))
    assert (event.finish, event.problem, event.usage, event.dollars) == ("error", "", Usage(), 0.0)


async def test_tenants_beyond_the_limit_share_a_label(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accounting, "COMBINATIONS_MAX", 2)
    answer = kept(Api.CHAT_COMPLETIONS)
    tenants = [b"a", b"b", b"c", b"a", b"\xff" * 500]
    events = await events_of(*(message(answer, x_semroute_tenant=tenant) for tenant in tenants))
    assert [event.tenant for event in events if isinstance(event, Accounted)] == [
        "a",
        "b",
        "other",
        "a",
        "other",
    ]
    [event] = await events_of(message(answer, x_semroute_tenant=b"\xff" * 500))
    assert isinstance(event, Accounted)
    assert len(event.tenant) == accounting.NAME_CHARACTERS_MAX


async def test_the_trace_is_that_of_the_request() -> None:
    event = await accounted(message(kept(Api.CHAT_COMPLETIONS), traceparent=b"00-1-2-01"))
    assert event.parents == ("00-1-2-01",)


async def test_without_accounting_nothing_is_read() -> None:
    assert await events_of(message(kept(Api.CHAT_COMPLETIONS)), live=settings(accounting=False)) == []


async def test_a_message_that_cannot_be_read_is_counted_and_the_next_one_is_read() -> None:
    good = message(kept(Api.CHAT_COMPLETIONS))
    first, second, third = await events_of(b"\xff\xff", message({"first": 1}), good)
    assert first == Failed("accounting.failed")
    assert second == Failed("accounting.failed", "id-1")
    assert isinstance(third, Accounted)


class TestServed:
    """Through gRPC, as Envoy sends it."""

    async def test_entries_are_accounted_for_until_the_server_drains(self, tmp_path: Path) -> None:
        seen: asyncio.Queue[Event] = asyncio.Queue()
        live = settings(server={"listen": f"unix:{tmp_path}/w0.sock", "drain_seconds": 0})
        accountant = Accountant(lambda: live, seen.put_nowait)
        server = GrpcServer(live.server, Servicer(lambda: None, ignore), 0, accountant)  # type: ignore[arg-type, return-value]
        await server.start()
        async with grpc.aio.insecure_channel(live.server.address(0)) as channel:
            call = channel.stream_unary(f"/{accounting.SERVICE}/StreamAccessLogs")()
            for _ in range(2):
                await call.write(message(kept(Api.CHAT_COMPLETIONS)))
                event = await asyncio.wait_for(seen.get(), 10)
                assert isinstance(event, Accounted)
            # Envoy never ends a stream. The server's grace is five seconds.
            await asyncio.wait_for(server.drain(), 3)
            assert await call.code() is grpc.StatusCode.OK

    async def test_streams_beyond_the_limit_are_refused(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(accounting, "STREAMS_MAX", 1)
        seen: asyncio.Queue[Event] = asyncio.Queue()
        live = settings(server={"listen": f"unix:{tmp_path}/w0.sock", "drain_seconds": 0})
        accountant = Accountant(lambda: live, seen.put_nowait)
        server = GrpcServer(live.server, Servicer(lambda: None, ignore), 0, accountant)  # type: ignore[arg-type, return-value]
        await server.start()
        try:
            async with grpc.aio.insecure_channel(live.server.address(0)) as channel:
                first = channel.stream_unary(f"/{accounting.SERVICE}/StreamAccessLogs")()
                await first.write(message(kept(Api.CHAT_COMPLETIONS)))
                await asyncio.wait_for(seen.get(), 10)
                second = channel.stream_unary(f"/{accounting.SERVICE}/StreamAccessLogs")()
                with pytest.raises(grpc.aio.AioRpcError) as refused:
                    await second
                assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        finally:
            await server.drain()


async def test_what_a_client_or_a_pool_wrote_is_cut() -> None:
    """Envoy accepts 96 KiB of a request's headers, and each answer is a line in the log."""
    written = pb.StreamAccessLogsMessage.FromString(
        message({**kept(Api.CHAT_COMPLETIONS), "finish": "f" * 16_000}, traceparent=b"t" * 90_000)
    )
    written.http_logs.log_entry[0].request.request_id = b"i" * 90_000
    event = await accounted(written.SerializeToString())
    assert len(event.request_id) == len(event.parents[0]) == accounting.TEXT_BYTES_MAX
    assert len(event.finish) == accounting.NAME_CHARACTERS_MAX


async def test_an_answer_nested_too_deep_after_its_usage_is_counted() -> None:
    deep = b'{"usage":{"prompt_tokens":1,"completion_tokens":2},"x":' + b"[" * 7_000 + b"]" * 7_000 + b"}"
    event = await accounted(message(kept(Api.CHAT_COMPLETIONS, body=deep)))
    assert (event.usage, event.problem) == (Usage(), "no_usage")
