"""Our part of the Open Inference Protocol agrees with that of its servers, field by field."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from google.protobuf.descriptor_pb2 import DescriptorProto, FileDescriptorProto
from protocol_reference import embedded_file, installed

from semroute_extproc.encoder import remote
from semroute_extproc.encoder._pb import inference_pb2

REFERENCES = {
    "triton": ("tritonclient==2.73.0", "tritonclient/grpc/service_pb2.py"),
    "mlserver": ("mlserver==1.7.1", "mlserver/grpc/dataplane_pb2.py"),
}
"""Two independent statements of the protocol: package and generated module."""

OURS = FileDescriptorProto.FromString(inference_pb2.DESCRIPTOR.serialized_pb)


@pytest.fixture(scope="module", params=REFERENCES)
def reference(request: pytest.FixtureRequest) -> FileDescriptorProto:
    package, module = REFERENCES[request.param]
    return embedded_file(installed(package.replace("==", "-"), package) / module)


def messages(file: FileDescriptorProto) -> Iterator[tuple[str, DescriptorProto]]:
    for message in file.message_type:
        yield message.name, message
        yield from ((f"{message.name}.{nested.name}", nested) for nested in message.nested_type)


def fields(file: FileDescriptorProto, message: DescriptorProto) -> dict[str, tuple[object, ...]]:
    """Everything that the wire format depends on, by name."""
    names = ((each, each.type_name.removeprefix(f".{file.package}.")) for each in message.field)
    return {each.name: (each.number, each.type, type_name, each.label) for each, type_name in names}


def test_every_field_has_the_protocols_name_number_and_type(reference: FileDescriptorProto) -> None:
    theirs = dict(messages(reference))
    for name, message in messages(OURS):
        known = fields(reference, theirs[name])
        for field, found in fields(OURS, message).items():
            assert found == known[field], f"{name}.{field}"


def test_what_is_left_out_is_reserved(reference: FileDescriptorProto) -> None:
    theirs = dict(messages(reference))
    for name, message in messages(OURS):
        known, ours = fields(reference, theirs[name]), fields(OURS, message)
        left_out = {field: known[field][0] for field in known.keys() - ours.keys()}
        reserved = {number for each in message.reserved_range for number in range(each.start, each.end)}
        assert (set(message.reserved_name), reserved) == (set(left_out), set(left_out.values())), name


def test_the_method_is_the_services(reference: FileDescriptorProto) -> None:
    [service] = [each for each in reference.service if each.name == "GRPCInferenceService"]
    method = next(each for each in service.method if each.name == "ModelInfer")
    assert f"/{reference.package}.{service.name}/{method.name}" == remote.METHOD
    assert [method.input_type, method.output_type] == [
        f".{reference.package}.{each}" for each in ("ModelInferRequest", "ModelInferResponse")
    ]
    assert not method.client_streaming
    assert not method.server_streaming
