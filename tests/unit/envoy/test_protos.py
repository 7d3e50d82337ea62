"""The protocol definitions agree with Envoy's, field by field.

There are two independent references: the xds-protos package, and the descriptors inside the Envoy binary of
the tests. Every difference from either is listed below with its reason; an unlisted one fails, and so does a
listed one that no longer exists.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
)
from protocol_reference import ROOT, envoy_files, xds_files

from semroute_extproc.envoy import accounting
from semroute_extproc.envoy._pb import access_log_pb2 as access_log
from semroute_extproc.envoy._pb import external_processor_pb2 as pb

PROTO = ROOT / "protos" / "semroute" / "extproc" / "v1" / "external_processor.proto"

NOT_USED = {
    "HttpHeaders.attributes = 2 is left out": "deprecated; Envoy never fills it",
    "CommonResponse.trailers = 4 is left out": "not implemented in Envoy",
    "ProcessingRequest.metadata_context = 8 is left out": "not read, and may hold strings of a client",
    "ProcessingRequest.attributes = 9 is left out": "not read, and may hold strings of a client",
    "HeaderValue.value is (2, 9, '', 1, False, '', False) there": "bytes here: a value need not be UTF-8",
}
NOT_USED_BUT_NEW = {
    "ProcessingRequest.flow_control_init = 12": "flow control is not used",
    "ProcessingRequest.client_window_update = 13": "flow control is not used",
    "ProcessingResponse.streamed_immediate_response = 11": "refusals are short",
    "ProcessingResponse.request_drain = 12": "deprecated, and 11 in xds-protos",
    "ProcessingResponse.typed_dynamic_metadata = 13": "untyped metadata is enough",
    "ProcessingResponse.server_window_update = 14": "flow control is not used",
    "ProcessingResponse.request_drain_requests = 15": "the server never asks for a drain",
    "ProcessingResponse.request_drain_responses = 16": "the server never asks for a drain",
    "HttpBody.drain_complete = 5": "the end of a drain, which the server never asks for",
    "StreamedBodyResponse.drain_complete = 5": "the end of a drain, which the server never asks for",
}
"""Fields of Envoy 1.40 that xds-protos lacks or numbers differently, and that this server does not use."""


def unknown_to_xds() -> set[str]:
    """Return the sentences for these fields: name and number are reserved here and absent there."""
    sentences = {"ProcessingResponse.request_drain = 11 is left out"}
    for field in NOT_USED_BUT_NEW:
        message, name, number = re.split(r"\.| = ", field)
        sentences.add(f"{message} reserves {name}, which is unknown there")
        sentences.add(f"{message} reserves {number}, which is unknown there")
    # xds-protos is older than Envoy 1.40 and has request_drain at 11: that name and number are known there.
    sentences.remove("ProcessingResponse reserves request_drain, which is unknown there")
    sentences.remove("ProcessingResponse reserves 11, which is unknown there")
    return sentences


KNOWN_DIFFERENCES = {
    "envoy": {*NOT_USED, *(f"{field} is left out" for field in NOT_USED_BUT_NEW)},
    "xds-protos": {*NOT_USED, *unknown_to_xds()},
}


@pytest.fixture(scope="module", params=["envoy", "xds-protos"])
def reference(request: pytest.FixtureRequest) -> tuple[str, list[FileDescriptorProto]]:
    """Return a reference's name and its descriptors, in the order of ENVOY_FILES."""
    if request.param == "envoy":
        return "envoy", envoy_files()
    return "xds-protos", xds_files()


def our_file() -> FileDescriptorProto:
    return FileDescriptorProto.FromString(pb.DESCRIPTOR.serialized_pb)


def messages(file: FileDescriptorProto) -> Iterator[tuple[str, DescriptorProto]]:
    """Yield all messages of a file, nested ones too, by their name below the package."""
    pending = [(message.name, message) for message in file.message_type]
    while pending:
        name, message = pending.pop()
        yield name, message
        pending.extend((f"{name}.{nested.name}", nested) for nested in message.nested_type)


def enums(file: FileDescriptorProto) -> Iterator[tuple[str, EnumDescriptorProto]]:
    yield from ((enum.name, enum) for enum in file.enum_type)
    for name, message in messages(file):
        yield from ((f"{name}.{enum.name}", enum) for enum in message.enum_type)


def fields(message: DescriptorProto, packages: list[str]) -> dict[str, tuple[object, ...]]:
    """Return all that the wire format and the API depend on, by field name; the number comes first."""
    table: dict[str, tuple[object, ...]] = {}
    for field in message.field:
        oneof = message.oneof_decl[field.oneof_index].name if field.HasField("oneof_index") else ""
        type_name = field.type_name
        for package in packages:
            type_name = type_name.removeprefix(f".{package}.")
        rest = (field.type, type_name, field.label, field.proto3_optional, oneof, field.options.deprecated)
        table[field.name] = (field.number, *rest)
    return table


def reserved_numbers(message: DescriptorProto) -> set[int]:
    return {number for r in message.reserved_range for number in range(r.start, r.end)}


def message_differences(
    name: str, ours: DescriptorProto, theirs: DescriptorProto, packages: list[str]
) -> set[str]:
    mine, other = fields(ours, [our_file().package]), fields(theirs, packages)
    found = {
        f"{name}.{field} is {other.get(field)} there" for field in mine if mine[field] != other.get(field)
    }
    left_out = {field: other[field][0] for field in other.keys() - mine.keys()}
    found |= {f"{name}.{field} = {number} is left out" for field, number in left_out.items()}
    ours_reserved = {*map(str, reserved_numbers(ours)), *ours.reserved_name}
    gaps = {
        *map(str, left_out.values()),
        *left_out,
        *map(str, reserved_numbers(theirs)),
        *theirs.reserved_name,
    }
    found |= {f"{name} reserves {word}, which is unknown there" for word in ours_reserved - gaps}
    found |= {f"{name} does not reserve {word}" for word in gaps - ours_reserved}
    if ours.options.map_entry != theirs.options.map_entry:
        found.add(f"{name} is a map entry on one side only")
    return found


def differences(files: list[FileDescriptorProto]) -> set[str]:
    """Return a sentence for every difference between our file and a reference's files."""
    packages = [file.package for file in files]
    their_messages = {name: message for file in files for name, message in messages(file)}
    their_enums = {name: enum for file in files for name, enum in enums(file)}
    found: set[str] = set()
    for name, message in messages(our_file()):
        if name in their_messages:
            found |= message_differences(name, message, their_messages[name], packages)
        else:
            found.add(f"message {name} is not there")
    for name, enum in enums(our_file()):
        ours = {(value.name, value.number) for value in enum.value}
        theirs = (
            {(value.name, value.number) for value in their_enums[name].value}
            if name in their_enums
            else set()
        )
        found |= {f"{name}: {value} is on one side only" for value in ours ^ theirs}
    return found


def test_every_name_number_type_and_label_is_the_references(
    reference: tuple[str, list[FileDescriptorProto]],
) -> None:
    name, files = reference
    found, known = differences(files), KNOWN_DIFFERENCES[name]
    assert sorted(found - known) == [], "differences that are not known"
    assert sorted(known - found) == [], "known differences that are no longer there: take them off the list"


@pytest.mark.parametrize("change", ["number", "type", "label", "enum value", "gap", "message"])
def test_the_comparison_notices_a_change_of_every_sort(change: str) -> None:
    other = our_file()
    by_name = {message.name: message for message in other.message_type}
    if change == "number":
        by_name["HeaderValue"].field[2].number = 4
    elif change == "type":
        by_name["ImmediateResponse"].field[2].type = FieldDescriptorProto.TYPE_STRING
    elif change == "label":
        by_name["HttpTrailers"].field[0].label = FieldDescriptorProto.LABEL_REPEATED
    elif change == "enum value":
        by_name["ProcessingMode"].enum_type[1].value[2].number = 7
    elif change == "gap":
        by_name["HttpBody"].field.add(name="novel", number=9, type=8, label=1)
    else:
        other.message_type.remove(by_name["GrpcStatus"])
    assert differences([our_file()]) == set()
    assert differences([other]) != set()


def test_the_service_path_in_the_definitions_is_the_references(
    reference: tuple[str, list[FileDescriptorProto]],
) -> None:
    file = reference[1][0]
    (service,) = file.service
    (method,) = service.method
    assert f"/{file.package}.{service.name}/{method.name}\n" in PROTO.read_text(encoding="utf-8")
    assert method.client_streaming
    assert method.server_streaming
    assert method.input_type.endswith(".ProcessingRequest")
    assert method.output_type.endswith(".ProcessingResponse")


def test_the_file_registers_under_a_name_of_its_own() -> None:
    assert pb.DESCRIPTOR.name == PROTO.relative_to(ROOT / "protos").as_posix()
    assert pb.DESCRIPTOR.package == "semroute.extproc.v1"


def test_the_readme_lists_every_message_with_its_fields_and_numbers() -> None:
    rows = (ROOT / "protos" / "README.md").read_text(encoding="utf-8").splitlines()
    listed = {row.split("|")[1].strip(" `"): row.split("|")[2].strip() for row in rows if row.count("|") == 5}
    for message in our_file().message_type:
        numbered = sorted((field.number, field.name) for field in message.field)
        assert listed.get(message.name) == ", ".join(f"`{name}` {number}" for number, name in numbered)


AS_BYTES = {"HTTPRequestProperties.path", "HTTPRequestProperties.request_id", "RequestHeadersEntry.value"}
"""Strings of Envoy that are bytes here: a client wrote them, and they may not be UTF-8."""


def test_the_access_log_is_a_subset_of_the_references(
    reference: tuple[str, list[FileDescriptorProto]],
) -> None:
    files = reference[1]
    theirs = {name.rpartition(".")[2]: message for file in files for name, message in messages(file)}
    packages, as_bytes = [file.package for file in files], set()
    ours = FileDescriptorProto.FromString(access_log.DESCRIPTOR.serialized_pb)
    for full_name, message in messages(ours):
        name = full_name.rpartition(".")[2]
        other = fields(theirs[name], packages)
        for field, (number, kind, *rest) in fields(message, [ours.package]).items():
            if kind == FieldDescriptorProto.TYPE_BYTES:
                as_bytes.add(f"{name}.{field}")
                kind = FieldDescriptorProto.TYPE_STRING
            type_name, *more = rest
            found = (number, kind, *more)
            assert (other[field][0], other[field][1], *other[field][3:]) == found, (name, field)
            assert str(other[field][2]).rpartition(".")[2] == str(type_name).rpartition(".")[2]
    assert as_bytes == AS_BYTES


def test_the_service_of_the_access_log_is_the_references(
    reference: tuple[str, list[FileDescriptorProto]],
) -> None:
    [file] = [file for file in reference[1] if file.name.endswith("als.proto")]
    [service] = file.service
    [method] = service.method
    assert (f"{file.package}.{service.name}", method.name) == (accounting.SERVICE, "StreamAccessLogs")
    assert (method.client_streaming, method.server_streaming) == (True, False)
