"""One stream, message by message: which replies are allowed, and when."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from builders import config, names
from msgspec import structs

from semroute_extproc.envoy._pb import external_processor_pb2 as pb
from semroute_extproc.envoy.exchange import Exchange, ExchangeSettings, Step
from semroute_extproc.outcome import Kind, Outcome
from semroute_extproc.request.handover import Handover
from semroute_extproc.request.paths import PATHS
from semroute_extproc.request.view import Api, Decide
from semroute_extproc.settings.process import Server
from semroute_extproc.state.sessions import response_id, tag

MODE = pb.ProcessingMode
POOLS = {
    "large": {"cluster": "vllm-large", "model": "big-model", "context": 4_096},
    "small": {"cluster": "vllm-small", "model": "org/small", "aliases": "mini-*"},
}
SETTINGS = ExchangeSettings(
    default_pool="large",
    default_cluster="vllm-large",
    server=Server(body_bytes_max=1_000_000, path_prefixes=("/openai", "/llm/gw")),
    names=names(config(pools=POOLS)),
    stores={tag("small"): ("small", "vllm-small")},
)
CHAT = {":method": "POST", ":path": "/v1/chat/completions", "content-type": "application/json"}
ROUTED = Outcome(
    Kind.ROUTED, "strategy", pool="small", cluster="vllm-small", model="m", body=b'{"model":"m"}'
)


def headers(fields: dict[str, str], *, mode: int = MODE.NONE, end: bool = False) -> pb.ProcessingRequest:
    message = pb.ProcessingRequest()
    message.protocol_config.request_body_mode = mode
    for key, value in fields.items():
        message.request_headers.headers.headers.add(key=key, raw_value=value.encode())
    message.request_headers.end_of_stream = end
    return message


def body(data: bytes, end: bool = True) -> pb.ProcessingRequest:
    message = pb.ProcessingRequest()
    message.request_body.body = data
    message.request_body.end_of_stream = end
    return message


def bare(kind: str) -> pb.ProcessingRequest:
    message = pb.ProcessingRequest()
    getattr(message, kind).SetInParent()
    return message


def replies(step: Step | tuple[bytes, ...]) -> list[pb.ProcessingResponse]:
    raw = step.replies if isinstance(step, Step) else step
    return [pb.ProcessingResponse.FromString(reply) for reply in raw]


def only(step: Step | tuple[bytes, ...]) -> pb.ProcessingResponse:
    found = replies(step)
    assert len(found) == 1
    return found[0]


def sets(mutation: pb.HeaderMutation) -> dict[str, bytes]:
    return {option.header.key: option.header.raw_value for option in mutation.set_headers}


def decide(step: Step) -> Decide:
    assert step.decide is not None
    return step.decide


def test_without_a_body_mode_the_headers_reply_asks_for_the_buffered_body() -> None:
    reply = only(Exchange(SETTINGS).receive(headers(CHAT)))
    assert reply.WhichOneof("response") == "request_headers"
    assert reply.mode_override.request_body_mode == MODE.BUFFERED
    assert reply.mode_override.response_body_mode == MODE.NONE


def test_the_response_side_of_the_mode_stays_as_configured() -> None:
    message = headers(CHAT)
    message.protocol_config.response_body_mode = MODE.STREAMED
    assert only(Exchange(SETTINGS).receive(message)).mode_override.response_body_mode == MODE.STREAMED


def test_a_spoofed_routing_header_is_removed_while_the_body_is_awaited() -> None:
    common = only(Exchange(SETTINGS).receive(headers(CHAT))).request_headers.response
    assert list(common.header_mutation.remove_headers) == ["x-semroute-cluster", "x-semroute-affinity"]
    assert common.clear_route_cache


def test_configured_buffered_is_not_overridden() -> None:
    reply = only(Exchange(SETTINGS).receive(headers(CHAT, mode=MODE.BUFFERED)))
    assert not reply.HasField("mode_override")


@pytest.mark.parametrize("mode", [MODE.NONE, MODE.BUFFERED, MODE.BUFFERED_PARTIAL, MODE.STREAMED])
def test_a_whole_body_is_decided_and_answered_in_one_body_reply(mode: int) -> None:
    exchange = Exchange(SETTINGS)
    exchange.receive(headers(CHAT, mode=mode))
    request = decide(exchange.receive(body(b"{}")))
    assert (request.api, request.body) == (Api.CHAT_COMPLETIONS, b"{}")
    reply = only(exchange.decided(ROUTED))
    common = reply.request_body.response
    assert sets(common.header_mutation) == {"x-semroute-cluster": b"vllm-small", "content-length": b"13"}
    assert common.body_mutation.body == ROUTED.body
    assert common.clear_route_cache
    assert reply.dynamic_metadata.fields["semroute"].struct_value.fields["pool"].string_value == "small"


def test_an_unchanged_body_is_not_sent_back() -> None:
    exchange = Exchange(SETTINGS)
    exchange.receive(headers(CHAT))
    exchange.receive(body(b"{}"))
    named = Outcome(Kind.NAMED, "named_model", pool="small", cluster="vllm-small")
    common = only(exchange.decided(named)).request_body.response
    assert not common.HasField("body_mutation")
    assert sets(common.header_mutation) == {"x-semroute-cluster": b"vllm-small"}


def test_a_body_followed_by_trailers_is_decided_and_the_trailers_continued() -> None:
    exchange = Exchange(SETTINGS)
    exchange.receive(headers(CHAT))
    decide(exchange.receive(body(b"{}", end=False)))
    exchange.decided(ROUTED)
    assert only(exchange.receive(bare("request_trailers"))).WhichOneof("response") == "request_trailers"


def test_trailers_without_a_body_are_continued_to_the_default_pool() -> None:
    exchange = Exchange(SETTINGS)
    exchange.receive(headers(CHAT))
    step = exchange.receive(bare("request_trailers"))
    assert only(step).WhichOneof("response") == "request_trailers"
    assert step.outcome is not None
    assert step.outcome.cause == "empty_body"


WHOLE = {
    "JSON": (b'{"model":"auto"}\r\n', {}),
    "UTF-16": ('{"model":"auto"} '.encode("utf-16-le"), {}),
    "a form": (b"--x--\r\n", {"content-type": "multipart/form-data; boundary=x", "content-length": "7"}),
    "compressed": (b"\x1f\x8b...", {"content-encoding": "gzip"}),
}


@pytest.mark.parametrize("mode", [MODE.NONE, MODE.BUFFERED, MODE.BUFFERED_PARTIAL, MODE.STREAMED])
@pytest.mark.parametrize(("data", "fields"), WHOLE.values(), ids=WHOLE)
def test_a_whole_body_that_trailers_follow_is_decided_in_every_mode(
    mode: int, data: bytes, fields: dict[str, str]
) -> None:
    exchange = Exchange(SETTINGS)
    path = "/v1/audio/transcriptions" if "content-type" in fields else CHAT[":path"]
    exchange.receive(headers({**CHAT, ":path": path, **fields}, mode=mode))
    assert decide(exchange.receive(body(data, end=False))).body == data
    common = only(exchange.decided(ROUTED)).request_body.response
    assert sets(common.header_mutation)["x-semroute-cluster"] == b"vllm-small"
    assert only(exchange.receive(bare("request_trailers"))).WhichOneof("response") == "request_trailers"


@pytest.mark.parametrize("mode", [MODE.STREAMED, MODE.NONE])
def test_an_envoy_that_sends_the_body_at_once_is_not_asked_for_it_another_way(mode: int) -> None:
    """It ignores mode overrides then, and the headers have left before the body has been read."""
    exchange = Exchange(SETTINGS)
    message = headers(CHAT, mode=mode)
    message.protocol_config.send_body_without_waiting_for_header_response = True
    step = exchange.receive(message)
    reply = only(step)
    assert not reply.HasField("mode_override")
    assert sets(reply.request_headers.response.header_mutation)["x-semroute-cluster"] == b"vllm-large"
    assert step.outcome is not None
    assert step.outcome.cause == "no_body"
    for end in (False, True):
        assert only(exchange.receive(body(b"{}", end=end))).WhichOneof("response") == "request_body"


@pytest.mark.parametrize("mode", [MODE.STREAMED, MODE.BUFFERED_PARTIAL])
def test_pieces_of_a_streamed_body_pass_through_untouched(mode: int) -> None:
    exchange = Exchange(SETTINGS)
    exchange.receive(headers(CHAT, mode=mode))
    first = exchange.receive(body(b'{"model":"auto","messages":[{"content":"{', end=False))
    assert first.outcome is not None
    assert first.outcome.cause == "streamed_body"
    for step in (first, exchange.receive(body(b"}", end=True))):
        reply = only(step)
        assert reply.WhichOneof("response") == "request_body"
        assert not reply.request_body.response.HasField("body_mutation")


def test_full_duplex_holds_the_headers_reply_until_the_last_piece() -> None:
    exchange = Exchange(SETTINGS)
    assert exchange.receive(headers(CHAT, mode=MODE.FULL_DUPLEX_STREAMED)).replies == ()
    assert exchange.receive(body(b'{"a":', end=False)).replies == ()
    assert decide(exchange.receive(body(b"1}"))).body == b'{"a":1}'
    first, *pieces = replies(exchange.decided(ROUTED))
    assert first.WhichOneof("response") == "request_headers"
    assert sets(first.request_headers.response.header_mutation)["x-semroute-cluster"] == b"vllm-small"
    assert "content-length" in first.request_headers.response.header_mutation.remove_headers
    streamed = [piece.request_body.response.body_mutation.streamed_response for piece in pieces]
    assert b"".join(piece.body for piece in streamed) == ROUTED.body
    assert [piece.end_of_stream for piece in streamed] == [True]


def test_full_duplex_cuts_a_long_body_below_64_kib_and_ends_it_once() -> None:
    exchange = Exchange(SETTINGS)
    exchange.receive(headers(CHAT, mode=MODE.FULL_DUPLEX_STREAMED))
    long = b"x" * 200_000
    decide(exchange.receive(body(long)))
    _, *pieces = replies(exchange.decided(Outcome(Kind.NAMED, "named_model", cluster="c")))
    streamed = [piece.request_body.response.body_mutation.streamed_response for piece in pieces]
    assert b"".join(piece.body for piece in streamed) == long
    assert max(len(piece.body) for piece in streamed) <= 64 * 1024
    assert [piece.end_of_stream for piece in streamed] == [False, False, False, True]


def test_full_duplex_with_trailers_ends_with_the_trailers_reply() -> None:
    exchange = Exchange(SETTINGS)
    exchange.receive(headers(CHAT, mode=MODE.FULL_DUPLEX_STREAMED))
    exchange.receive(body(b"{}", end=False))
    decide(exchange.receive(bare("request_trailers")))
    kinds = [reply.WhichOneof("response") for reply in replies(exchange.decided(ROUTED))]
    assert kinds == ["request_headers", "request_body", "request_trailers"]


def test_full_duplex_ends_on_a_separate_empty_piece() -> None:
    exchange = Exchange(SETTINGS)
    exchange.receive(headers(CHAT, mode=MODE.FULL_DUPLEX_STREAMED))
    exchange.receive(body(b"{}", end=False))
    assert decide(exchange.receive(body(b"", end=True))).body == b"{}"


def test_full_duplex_ignores_a_second_end_of_stream() -> None:
    exchange = Exchange(SETTINGS)
    exchange.receive(headers(CHAT, mode=MODE.FULL_DUPLEX_STREAMED))
    exchange.receive(body(b"{}"))
    exchange.decided(ROUTED)
    assert exchange.receive(body(b"")).replies == ()


def test_full_duplex_passes_pieces_of_an_unroutable_request_through() -> None:
    exchange = Exchange(SETTINGS)
    upload = {**CHAT, ":path": "/v1/uploads/1/parts"}
    assert only(exchange.receive(headers(upload, mode=MODE.FULL_DUPLEX_STREAMED)))
    piece = only(exchange.receive(body(b"abc", end=False)))
    streamed = piece.request_body.response.body_mutation.streamed_response
    assert (streamed.body, streamed.end_of_stream) == (b"abc", False)


@pytest.mark.parametrize(
    ("fields", "cause"),
    [
        ({":method": "GET"}, "method"),
        ({":path": "/v1/unknown"}, "unknown_path"),
        ({"content-type": "multipart/form-data; boundary=x"}, "content_type"),
        ({"upgrade": "websocket"}, "upgrade"),
    ],
)
def test_what_is_not_ours_goes_to_the_default_pool_at_the_headers(fields: dict[str, str], cause: str) -> None:
    step = Exchange(SETTINGS).receive(headers({**CHAT, **fields}))
    assert step.outcome is not None
    assert (step.outcome.kind, step.outcome.cause) == (Kind.PASSTHROUGH, cause)
    common = only(step).request_headers.response
    assert sets(common.header_mutation) == {"x-semroute-cluster": b"vllm-large"}
    assert common.clear_route_cache


def test_a_request_without_a_body_is_decided_at_the_headers() -> None:
    step = Exchange(SETTINGS).receive(headers(CHAT, end=True))
    assert step.outcome is not None
    assert step.outcome.cause == "empty_body"


def test_an_empty_chunked_body_goes_to_the_default_pool() -> None:
    exchange = Exchange(SETTINGS)
    exchange.receive(headers(CHAT))
    step = exchange.receive(body(b""))
    assert step.outcome is not None
    assert step.outcome.cause == "empty_body"
    assert sets(only(step).request_body.response.header_mutation)["x-semroute-cluster"] == b"vllm-large"


@pytest.mark.parametrize("media", ["application/json; charset=utf-8", "application/json, application/json"])
def test_a_query_and_a_charset_or_a_repeated_header_do_not_hide_a_known_path(media: str) -> None:
    fields = {**CHAT, ":path": "/v1/chat/completions?api-version=1", "content-type": media}
    assert only(Exchange(SETTINGS).receive(headers(fields))).mode_override.request_body_mode == MODE.BUFFERED


def test_the_models_are_listed_by_us() -> None:
    exchange = Exchange(SETTINGS)
    reply = only(exchange.receive(headers({":method": "GET", ":path": "/v1/models"}, end=True)))
    assert reply.immediate_response.status.code == 200
    listed = json.loads(reply.immediate_response.body)
    assert [model["id"] for model in listed["data"]] == ["auto", "big-model", "org/small"]


def test_one_model_is_described_and_an_unknown_one_is_left_to_the_pool() -> None:
    one = only(
        Exchange(SETTINGS).receive(headers({":method": "GET", ":path": "/v1/models/org/small"}, end=True))
    )
    assert json.loads(one.immediate_response.body)["id"] == "org/small"
    other = Exchange(SETTINGS).receive(headers({":method": "GET", ":path": "/v1/models/nope"}, end=True))
    assert only(other).WhichOneof("response") == "request_headers"


def test_a_declared_length_over_the_cap_is_refused_before_the_upload() -> None:
    exchange = Exchange(SETTINGS)
    reply = only(exchange.receive(headers({**CHAT, "content-length": "1000001"})))
    assert reply.immediate_response.status.code == 413
    error = json.loads(reply.immediate_response.body)["error"]
    assert error["code"] == "request_too_large"
    assert set(error) == {"message", "type", "param", "code"}


@pytest.mark.parametrize("mode", [MODE.NONE, MODE.FULL_DUPLEX_STREAMED])
def test_a_body_over_the_cap_is_refused_and_nothing_follows(mode: int) -> None:
    exchange = Exchange(SETTINGS)
    exchange.receive(headers(CHAT, mode=mode))
    reply = only(exchange.receive(body(b"x" * 1_000_001, end=False)))
    assert reply.immediate_response.status.code == 413
    assert exchange.receive(body(b"x")).replies == ()
    assert exchange.receive(bare("response_headers")).replies == ()


def test_anthropic_clients_get_their_error_shape_too() -> None:
    fields = {**CHAT, ":path": "/v1/messages", "content-length": "99999999"}
    answer = json.loads(only(Exchange(SETTINGS).receive(headers(fields))).immediate_response.body)
    assert answer["type"] == "error"
    assert answer["error"]["message"]


def test_response_headers_may_come_first() -> None:
    reply = only(Exchange(SETTINGS).receive(bare("response_headers")))
    assert reply.WhichOneof("response") == "response_headers"


@pytest.mark.parametrize("kind", ["response_headers", "response_body", "response_trailers"])
def test_the_response_direction_may_interleave_with_a_body_still_to_come(kind: str) -> None:
    exchange = Exchange(SETTINGS)
    exchange.receive(headers(CHAT))
    assert only(exchange.receive(bare(kind))).WhichOneof("response") == kind
    assert exchange.receive(body(b"{}")).decide is not None


def test_a_full_duplex_response_is_passed_piece_by_piece() -> None:
    exchange = Exchange(SETTINGS)
    first = bare("response_headers")
    first.protocol_config.response_body_mode = MODE.FULL_DUPLEX_STREAMED
    exchange.receive(first)
    message = pb.ProcessingRequest()
    message.response_body.body = b"data: x\n\n"
    streamed = only(exchange.receive(message)).response_body.response.body_mutation.streamed_response
    assert streamed.body == b"data: x\n\n"


def test_a_message_of_an_unknown_kind_is_not_answered() -> None:
    assert Exchange(SETTINGS).receive(pb.ProcessingRequest()) == Step()


def test_observability_mode_decides_and_never_answers() -> None:
    exchange = Exchange(SETTINGS)
    message = headers(CHAT, mode=MODE.STREAMED)
    message.observability_mode = True
    assert exchange.receive(message).replies == ()
    assert exchange.receive(body(b"{", end=False)).replies == ()
    assert decide(exchange.receive(body(b"}"))).body == b"{}"
    assert exchange.decided(ROUTED) == ()
    assert exchange.receive(bare("response_headers")).replies == ()


def test_an_answer_of_ours_after_the_body_closes_the_exchange() -> None:
    exchange = Exchange(SETTINGS)
    exchange.receive(headers(CHAT))
    exchange.receive(headers({**CHAT, "content-length": "99999999"}))
    assert exchange.receive(body(b"{}")).replies == ()


@pytest.mark.parametrize("kind", ["request_headers", "request_body", "request_trailers", "response_headers"])
def test_a_failure_of_ours_is_rescued_with_a_reply_of_the_same_kind(kind: str) -> None:
    exchange = Exchange(SETTINGS)
    exchange.receive(headers(CHAT))
    assert only(exchange.rescue(kind)).WhichOneof("response") == kind


@pytest.mark.parametrize("mode", [MODE.NONE, MODE.BUFFERED, MODE.FULL_DUPLEX_STREAMED])
def test_a_request_whose_body_never_comes_has_an_outcome(mode: Any) -> None:
    exchange = Exchange(SETTINGS)
    exchange.receive(headers(CHAT, mode=mode))
    outcome = exchange.ended()
    assert outcome is not None
    assert (outcome.kind, outcome.cause) == (Kind.PASSTHROUGH, "no_body")
    assert exchange.ended() is None


def test_a_stream_that_ends_after_its_outcome_has_no_other() -> None:
    exchange = Exchange(SETTINGS)
    assert exchange.ended() is None
    exchange.receive(headers({**CHAT, ":method": "GET"}))
    assert exchange.ended() is None


def test_a_rescued_request_has_one_outcome() -> None:
    exchange = Exchange(SETTINGS)
    exchange.receive(headers(CHAT))
    outcome = exchange.rescue("request_body").outcome
    assert outcome is not None
    assert (outcome.kind, outcome.cause, outcome.pool) == (Kind.PASSTHROUGH, "internal_error", "large")
    assert exchange.rescue("request_trailers").outcome is None
    assert exchange.rescue("response_headers").outcome is None


def test_a_failure_in_full_duplex_gives_the_collected_body_back() -> None:
    exchange = Exchange(SETTINGS)
    exchange.receive(headers(CHAT, mode=MODE.FULL_DUPLEX_STREAMED))
    exchange.receive(body(b"abc", end=False))
    exchange.receive(body(b"def"))
    first, piece = replies(exchange.rescue("request_body"))
    assert sets(first.request_headers.response.header_mutation)["x-semroute-cluster"] == b"vllm-large"
    assert piece.request_body.response.body_mutation.streamed_response.body == b"abcdef"


def test_a_failure_at_the_headers_in_full_duplex_still_lets_the_body_through() -> None:
    exchange = Exchange(SETTINGS)
    with pytest.raises(ValueError):
        exchange.receive(headers({**CHAT, "content-length": "9" * 5_000}, mode=MODE.FULL_DUPLEX_STREAMED))
    assert only(exchange.rescue("request_headers")).WhichOneof("response") == "request_headers"
    piece = only(exchange.receive(body(b"abc"))).request_body.response.body_mutation.streamed_response
    assert (piece.body, piece.end_of_stream) == (b"abc", True)


def test_an_outcome_that_cannot_be_written_is_rescued_with_the_whole_body() -> None:
    exchange = Exchange(SETTINGS)
    exchange.receive(headers(CHAT, mode=MODE.FULL_DUPLEX_STREAMED))
    exchange.receive(body(b"abc"))
    with pytest.raises(UnicodeEncodeError):
        exchange.decided(structs.replace(ROUTED, cluster="größer"))
    first, piece = replies(exchange.rescue("request_body"))
    assert sets(first.request_headers.response.header_mutation)["x-semroute-cluster"] == b"vllm-large"
    assert piece.request_body.response.body_mutation.streamed_response.body == b"abc"


@pytest.mark.parametrize("mode", [MODE.NONE, MODE.BUFFERED, MODE.STREAMED, MODE.FULL_DUPLEX_STREAMED])
@pytest.mark.parametrize(("more", "size"), [(110, 0), (0, 72 * 1024 + 1)])
def test_a_request_close_to_envoys_limits_on_headers_is_not_changed(mode: int, more: int, size: int) -> None:
    """Envoy refuses a request that our headers take over a limit, whatever its failure mode."""
    exchange = Exchange(SETTINGS)
    fields = {**CHAT, **{f"x-{number}": "y" for number in range(more)}}
    step = exchange.receive(headers(fields, mode=mode), size)
    assert only(step) == pb.ProcessingResponse(request_headers={})
    assert step.outcome is not None
    assert (step.outcome.kind, step.outcome.cause) == (Kind.PASSTHROUGH, "too_many_headers")
    reply = only(exchange.receive(body(b"{}")))
    assert not reply.request_body.response.HasField("header_mutation")


@pytest.mark.parametrize(("more", "size"), [(109, 0), (0, 72 * 1024)])
def test_a_request_that_leaves_room_for_our_headers_is_decided(more: int, size: int) -> None:
    exchange = Exchange(SETTINGS)
    exchange.receive(headers({**CHAT, **{f"x-{number}": "y" for number in range(more)}}), size)
    assert exchange.receive(body(b"{}")).decide is not None


def test_a_spoofed_routing_header_is_removed_also_from_a_request_with_many_headers() -> None:
    fields = {**CHAT, **{f"x-{number}": "y" for number in range(110)}, "x-semroute-cluster": "vllm-small"}
    common = only(Exchange(SETTINGS).receive(headers(fields))).request_headers.response
    assert "x-semroute-cluster" in common.header_mutation.remove_headers


def test_every_header_value_is_written_raw_and_overwrites() -> None:
    exchange = Exchange(SETTINGS)
    exchange.receive(headers(CHAT))
    exchange.receive(body(b"{}"))
    for option in only(exchange.decided(ROUTED)).request_body.response.header_mutation.set_headers:
        assert option.header.raw_value
        assert not option.header.value
        assert option.append_action == pb.HeaderValueOption.OVERWRITE_IF_EXISTS_OR_ADD


def test_headers_that_leave_no_room_are_refused_where_a_pool_is_guarded() -> None:
    many = {**CHAT, **{f"x-{number}": "y" for number in range(125)}}
    step = Exchange(dataclasses.replace(SETTINGS, refuses=True)).receive(headers(many))
    assert step.outcome is not None
    assert (step.outcome.kind, step.outcome.cause) == (Kind.REJECTED, "too_many_headers")
    assert only(step).immediate_response.status.code == 431


@pytest.mark.parametrize(("method", "below"), [("GET", ""), ("DELETE", ""), ("POST", "/cancel")])
def test_a_stored_response_is_at_the_pool_and_replica_of_its_id(method: str, below: str) -> None:
    issued = response_id("small", "00ff00ff00ff00ff", "0" * 16)
    sent = {":method": method, ":path": f"/v1/responses/{issued}{below}"}
    step = Exchange(SETTINGS).receive(headers(sent, end=True))
    assert step.outcome is not None
    assert (step.outcome.cause, step.outcome.pool) == ("stored_response", "small")
    given = sets(only(step).request_headers.response.header_mutation)
    assert given == {"x-semroute-cluster": b"vllm-small", "x-semroute-affinity": b"00ff00ff00ff00ff"}


def test_a_response_of_another_pool_or_server_goes_to_the_default_pool() -> None:
    below_a_stored_one = f"{response_id('small', '', '0' * 16)}/chat"
    for name in (response_id("gone", "", "0" * 16), "resp_1", below_a_stored_one):
        step = Exchange(SETTINGS).receive(
            headers({":method": "GET", ":path": f"/v1/responses/{name}"}, end=True)
        )
        assert step.outcome is not None
        assert (step.outcome.cause, step.outcome.pool) == ("method", "large")


def test_a_decompressed_body_loses_its_content_encoding() -> None:
    exchange = Exchange(SETTINGS)
    exchange.receive(headers(CHAT))
    exchange.receive(body(b"\x1f\x8b"))
    outcome = Outcome(Kind.ROUTED, "strategy", cluster="c", body=b"{}", decoded=True)
    removed = only(exchange.decided(outcome)).request_body.response.header_mutation.remove_headers
    assert list(removed) == ["x-semroute-affinity", "content-encoding"]


def test_a_reason_becomes_one_printable_ascii_line() -> None:
    exchange = Exchange(SETTINGS)
    exchange.receive(headers(CHAT))
    exchange.receive(body(b"{}"))
    outcome = Outcome(Kind.ROUTED, "strategy", cluster="c", reason="naïve\r\nx-evil: 1\x00" + "y" * 500)
    fields = only(exchange.decided(outcome)).dynamic_metadata.fields["semroute"].struct_value.fields
    assert fields["reason"].string_value == ("na?ve x-evil: 1" + "y" * 500)[:160]


@pytest.mark.parametrize("path", ["/v1/models", "/openai/v1/models", "/v1/models/"])
def test_the_list_has_owners_and_the_length_of_the_context(path: str) -> None:
    reply = only(Exchange(SETTINGS).receive(headers({":method": "GET", ":path": path}, end=True)))
    listed = json.loads(reply.immediate_response.body)
    assert listed["object"] == "list"
    assert listed["data"][0] == {
        "id": "auto",
        "object": "model",
        "created": 0,
        "owned_by": "semroute",
        "max_model_len": 32_768,
    }
    assert [(each["owned_by"], each["max_model_len"]) for each in listed["data"][1:]] == [
        ("vllm", 4_096),
        ("vllm", 32_768),
    ]


def test_anthropic_clients_get_the_list_in_their_shape() -> None:
    fields = {":method": "GET", ":path": "/anthropic/v1/models?limit=20", "anthropic-version": "2023-06-01"}
    exchange = Exchange(dataclasses.replace(SETTINGS, server=Server(path_prefixes=("/anthropic",))))
    listed = json.loads(only(exchange.receive(headers(fields, end=True))).immediate_response.body)
    assert (listed["has_more"], listed["first_id"], listed["last_id"]) == (False, "auto", "org/small")
    assert listed["data"][1] == {
        "type": "model",
        "id": "big-model",
        "display_name": "big-model",
        "created_at": "1970-01-01T00:00:00Z",
        "max_input_tokens": 4_096,
    }


@pytest.mark.parametrize(
    ("asked", "context"),
    [("org/small", 32_768), ("org%2Fsmall", 32_768), ("Big-Model", 4_096), ("mini-4", 32_768)],
)
def test_one_model_is_described_under_any_of_its_names(asked: str, context: int) -> None:
    fields = {":method": "GET", ":path": f"/v1/models/{asked}"}
    card = json.loads(only(Exchange(SETTINGS).receive(headers(fields, end=True))).immediate_response.body)
    assert (card["id"], card["max_model_len"]) == (asked.replace("%2F", "/"), context)


@pytest.mark.parametrize("mode", [MODE.NONE, MODE.BUFFERED, MODE.FULL_DUPLEX_STREAMED])
@pytest.mark.parametrize(
    ("sent", "pools"),
    [
        ("/llm/gw/v1/chat/completions?a=b", b"/v1/chat/completions?a=b"),
        ("/v1/chat/completions/", b"/v1/chat/completions"),
        ("/openai/deployments/auto/chat/completions", b"/v1/chat/completions"),
    ],
)
def test_the_pool_gets_the_path_that_it_knows(mode: int, sent: str, pools: bytes) -> None:
    exchange = Exchange(SETTINGS)
    exchange.receive(headers({**CHAT, ":path": sent}, mode=mode))
    assert decide(exchange.receive(body(b"{}"))).model == ("auto" if "deployments" in sent else "")
    reply = replies(exchange.decided(ROUTED))[0]
    common = getattr(reply, reply.WhichOneof("response") or "").response
    assert sets(common.header_mutation)[":path"] == pools


def test_a_request_that_is_not_read_keeps_its_body_and_gets_its_path_too() -> None:
    fields = {**CHAT, ":path": "/openai/v1/chat/completions", "content-type": "text/plain"}
    common = only(Exchange(SETTINGS).receive(headers(fields))).request_headers.response
    assert sets(common.header_mutation) == {
        "x-semroute-cluster": b"vllm-large",
        ":path": b"/v1/chat/completions",
    }


@pytest.mark.parametrize(
    ("fields", "end"),
    [
        ({":method": "GET", ":path": "/v1/realtime?model=org/small", "upgrade": "websocket"}, True),
        (
            {":path": "/v1/uploads?model=org%2Fsmall", "content-type": "multipart/form-data; boundary=x"},
            False,
        ),
        ({":path": "/v1/audio/transcriptions?model=mini-asr", "content-type": "multipart/form-data"}, False),
        ({":method": "DELETE", ":path": "/openai/deployments/org%2Fsmall/files"}, True),
    ],
)
def test_a_path_or_a_query_names_the_pool_of_a_request_whose_body_is_not_read(
    fields: dict[str, str], end: bool
) -> None:
    step = Exchange(SETTINGS).receive(headers({**CHAT, **fields}, end=end))
    assert step.outcome is not None
    assert (step.outcome.kind, step.outcome.pool) == (Kind.NAMED, "small")
    assert sets(only(step).request_headers.response.header_mutation)["x-semroute-cluster"] == b"vllm-small"


def test_a_pool_with_a_policy_cannot_be_named_past_its_policy() -> None:
    guarded = {**POOLS, "small": {**POOLS["small"], "policy": "main"}}
    exchange = Exchange(dataclasses.replace(SETTINGS, names=names(config(pools=guarded))))
    fields = {":method": "GET", ":path": "/v1/realtime?model=org/small"}
    step = exchange.receive(headers(fields, end=True))
    assert step.outcome is not None
    assert (step.outcome.kind, step.outcome.pool) == (Kind.PASSTHROUGH, "large")


@pytest.mark.parametrize(
    ("length", "cause"), [("1000000", ""), ("1000001", "upload"), ("", "upload"), ("odd", "upload")]
)
def test_a_form_is_read_if_its_declared_length_fits_and_else_passes_unread(length: str, cause: str) -> None:
    """A large or chunked upload is not held up, and not refused."""
    form = {":path": "/v1/audio/transcriptions", "content-type": "Multipart/Form-Data; boundary=x"}
    step = Exchange(SETTINGS).receive(headers({**CHAT, **form, "content-length": length}))
    assert (step.outcome.cause if step.outcome else "") == cause
    assert only(step).mode_override.request_body_mode == (MODE.NONE if cause else MODE.BUFFERED)


@pytest.mark.parametrize("path", PATHS)
def test_the_body_of_every_known_path_is_asked_for(path: str) -> None:
    exchange = Exchange(SETTINGS)
    exchange.receive(headers({**CHAT, ":path": path}))
    assert decide(exchange.receive(body(b"{}"))).api is PATHS[path]


def test_a_decision_that_may_be_handed_back_goes_to_the_cluster_that_does_it() -> None:
    plan = Handover(("small",), {}, cluster="vllm-small-or-next")
    for outcome in (ROUTED, structs.replace(ROUTED, kind=Kind.NAMED, body=None)):
        subject = Exchange(SETTINGS)
        subject.receive(headers(CHAT))
        subject.receive(body(b"{}"))
        mutation = only(subject.decided(structs.replace(outcome, handover=plan))).request_body.response
        found = sets(mutation.header_mutation)
        assert found["x-semroute-cluster"] == b"vllm-small-or-next"
        assert found["x-semroute-failover"] == plan.header.encode()


def test_in_full_duplex_nothing_is_handed_back() -> None:
    """Envoy does not keep a body that it streams, so it could not repeat the request."""
    subject = Exchange(SETTINGS)
    subject.receive(headers(CHAT, mode=MODE.FULL_DUPLEX_STREAMED))
    subject.receive(body(b"{}"))
    plan = Handover(("small",), {}, cluster="vllm-small-or-next")
    head, _ = replies(subject.decided(structs.replace(ROUTED, handover=plan)))
    assert sets(head.request_headers.response.header_mutation) == {"x-semroute-cluster": b"vllm-small"}
