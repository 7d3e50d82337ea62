"""Messages survive the conversion between the xds-protos classes and ours, in both directions."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterable
from typing import Any

import pytest
from google.protobuf.json_format import MessageToDict, ParseDict
from google.protobuf.message import Message
from protocol_reference import ask_xds

from semroute_extproc.envoy._pb import external_processor_pb2 as pb

HEADERS = {"headers": [{"key": ":path", "raw_value": "L3Yx"}, {"key": "x-a", "value": "plain"}]}
ATTRIBUTES = {"envoy.filters.http.ext_proc": {"request.id": "7", "nested": {"list": [1.5, True, None]}}}
MUTATION = {
    "set_headers": [
        {"header": {"key": "x-pool", "raw_value": "YQ=="}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"},
        {"header": {"key": "x-b", "raw_value": "/w=="}, "append": True, "keep_empty_value": True},
    ],
    "remove_headers": ["content-length", "x-c"],
}
COMMON = {"status": "CONTINUE_AND_REPLACE", "header_mutation": MUTATION, "clear_route_cache": True}
CHUNK = {
    "body": "AAEC/w==",
    "end_of_stream": True,
    "end_of_stream_without_message": True,
    "grpc_message_compressed": True,
}
MODES = {
    "request_header_mode": "SEND",
    "response_header_mode": "SKIP",
    "request_body_mode": "BUFFERED",
    "response_body_mode": "STREAMED",
    "request_trailer_mode": "SKIP",
    "response_trailer_mode": "SEND",
}
PROTOCOL = {
    "request_body_mode": "FULL_DUPLEX_STREAMED",
    "response_body_mode": "GRPC",
    "send_body_without_waiting_for_header_response": True,
}
REFUSAL = {
    "status": {"code": "PayloadTooLarge"},
    "headers": MUTATION,
    "body": "eyJlcnJvciI6MX0=",
    "grpc_status": {"status": 8},
    "details": "body_too_large",
}
REQUESTS: list[dict[str, Any]] = [
    {"request_headers": {"headers": HEADERS, "end_of_stream": True}, "protocol_config": PROTOCOL},
    {"response_headers": {"headers": HEADERS}},
    {"request_body": CHUNK},
    {"response_body": {"body": "AA=="}, "observability_mode": True},
    {"request_trailers": {"trailers": HEADERS}},
    {"response_trailers": {}},
]
RESPONSES: list[dict[str, Any]] = [
    {"request_headers": {"response": COMMON}, "mode_override": MODES},
    {"response_headers": {"response": {}}, "override_message_timeout": "1.250s"},
    {"request_body": {"response": {"body_mutation": {"body": "e30="}}}, "dynamic_metadata": ATTRIBUTES},
    {"request_body": {"response": {"body_mutation": {"clear_body": True}}}},
    {"response_body": {"response": {"body_mutation": {"streamed_response": CHUNK}}}},
    {"request_trailers": {"header_mutation": MUTATION}},
    {"response_trailers": {}},
    {"immediate_response": REFUSAL},
]
SAMPLES = [("ProcessingRequest", r) for r in REQUESTS] + [("ProcessingResponse", r) for r in RESPONSES]

OURS: list[dict[str, Any]] = [
    json.loads(json.dumps(content).replace('"plain"', '"cGxhaW4="')) for _, content in SAMPLES
]
"""The same in our types: `HeaderValue.value` is bytes, which JSON shows in base 64."""


def as_dict(message: Message) -> dict[str, Any]:
    return MessageToDict(message, preserving_proto_field_name=True)


def set_fields(message: Message) -> set[str]:
    """Return the full names of all fields of our package that are set in a message or below it."""
    found: set[str] = set()
    for field, value in message.ListFields():
        found.add(field.full_name)
        values = list(value.values()) if isinstance(value, dict) else value
        for item in values if isinstance(values, Iterable) and not isinstance(values, bytes) else [values]:
            if isinstance(item, Message) and item.DESCRIPTOR.file.name == pb.DESCRIPTOR.name:
                found |= set_fields(item)
    return found


@pytest.fixture(scope="module")
def wires() -> list[bytes]:
    """Return SAMPLES as xds-protos writes them."""
    return [bytes.fromhex(wire) for wire in ask_xds(encode=SAMPLES)["encoded"]]


def test_messages_written_by_xds_protos_read_the_same_here(wires: list[bytes]) -> None:
    read = [getattr(pb, name).FromString(wire) for (name, _), wire in zip(SAMPLES, wires, strict=True)]
    assert [as_dict(message) for message in read] == OURS


def test_messages_written_here_read_the_same_in_xds_protos(wires: list[bytes]) -> None:
    written = [
        (name, getattr(pb, name).FromString(wire).SerializeToString().hex())
        for (name, _), wire in zip(SAMPLES, wires, strict=True)
    ]
    assert ask_xds(decode=written)["decoded"] == [content for _, content in SAMPLES]


def test_the_samples_set_every_field_that_is_defined() -> None:
    types = pb.DESCRIPTOR.message_types_by_name.values()
    defined = {field.full_name for message in types for field in message.fields}
    covered: set[str] = set()
    for (name, _), content in zip(SAMPLES, OURS, strict=True):
        covered |= set_fields(ParseDict(content, getattr(pb, name)()))
    assert sorted(defined - covered) == []


def test_a_message_of_a_kind_not_known_here_is_read_and_kept() -> None:
    flow_control_init = b"\x62\x02\x08\x05"  # field 12, a message
    read = pb.ProcessingRequest.FromString(flow_control_init)
    assert read.WhichOneof("request") is None
    assert read.SerializeToString() == flow_control_init


@pytest.mark.parametrize("field", [8, 9], ids=["metadata_context", "attributes"])
def test_what_is_not_read_cannot_make_a_message_unreadable(field: int) -> None:
    """Both are maps with strings that a client can choose; protobuf refuses a string that is not UTF-8."""
    entry = b"\x0a\x02\xff\xfe\x12\x00"
    wire = bytes([field << 3 | 2, len(entry) + 2, 0x0A, len(entry)]) + entry
    sent = pb.ProcessingRequest(request_body=pb.HttpBody(body=b"x")).SerializeToString()
    assert pb.ProcessingRequest.FromString(wire + sent).request_body.body == b"x"


def test_a_value_that_is_not_utf_8_is_read_from_either_field() -> None:
    for key, tag in (("value", b"\x12"), ("raw_value", b"\x1a")):
        read = pb.HeaderValue.FromString(tag + b"\x03\xff\x00\xc3")
        assert getattr(read, key) == b"\xff\x00\xc3"


def test_message_classes_know_the_module_that_holds_them() -> None:
    assert pickle.loads(pickle.dumps(pb.HttpBody(body=b"x"))) == pb.HttpBody(body=b"x")
