"""From an outcome to bytes for Envoy: header and body mutations and dynamic metadata.

Pure. Each reply is serialized once; constant replies are built at import. Three rules of Envoy apply: a
header's value goes into `raw_value` (a value in `value` arrives empty), the route is evaluated again only
if `clear_route_cache` comes with a header mutation, and a changed body needs its exact `content-length`
(in full duplex, none).
"""

from functools import lru_cache
from typing import Any

import msgspec

from semroute_extproc.envoy._pb import external_processor_pb2 as pb
from semroute_extproc.outcome import Outcome, facts
from semroute_extproc.request.handover import HANDOVER_HEADER

CLUSTER_HEADER = "x-semroute-cluster"  # set only by us: Envoy's route reads the cluster from it
AFFINITY_HEADER = "x-semroute-affinity"  # set only by us: Envoy chooses a replica of the cluster by it
METADATA_NAMESPACE = "semroute"  # of the dynamic metadata; Envoy must list it in `receiving_namespaces`
CHUNK_BYTES = 62_000  # of a body in full duplex; Envoy takes at most 64 KiB in one message
REPLIES_MAX = 256  # cached replies to requests without a decision; one for each pool and cause

_Mode = pb.ProcessingMode
_OVERWRITE = pb.HeaderValueOption.OVERWRITE_IF_EXISTS_OR_ADD

_KINDS = [f"{side}_{part}" for side in ("request", "response") for part in ("headers", "body", "trailers")]
_EMPTY: Any = {}
CONTINUE = {kind: pb.ProcessingResponse(**{kind: _EMPTY}).SerializeToString() for kind in _KINDS}
"""The reply that changes nothing, for each kind of message."""


@lru_cache(maxsize=16)
def ask_for_body(response_body_mode: int | None) -> bytes:
    """Ask for the buffered body and keep the response side's mode; None if Envoy already buffers."""
    response = pb.ProcessingResponse()
    common = response.request_headers.response
    # For a gateway that does not strip them early.
    common.header_mutation.remove_headers.extend((CLUSTER_HEADER, AFFINITY_HEADER))
    common.clear_route_cache = True
    if response_body_mode is not None:
        _override(response, _Mode.BUFFERED, response_body_mode)
    return response.SerializeToString()


def headers_reply(outcome: Outcome, path: str = "", response_body_mode: int | None = None) -> bytes:
    """Decide at the headers; given the response side's mode, tell Envoy not to send the body."""
    response, _ = _routed("request_headers", outcome, path)
    if response_body_mode is not None:
        _override(response, _Mode.NONE, response_body_mode)
    return response.SerializeToString()


def body_reply(outcome: Outcome, path: str = "") -> bytes:
    """Decide at the buffered body: headers, body, metadata and the route in one reply."""
    is_plain = outcome.decision is None and outcome.body is None and outcome.handover is None
    if is_plain and not (path or outcome.affinity):
        plain = (outcome.kind, outcome.cause, outcome.pool, outcome.cluster, outcome.model, outcome.reason)
        return _plain_body_reply(outcome.candidates, *plain)
    return _body_reply(outcome, path)


@lru_cache(maxsize=REPLIES_MAX)
def _plain_body_reply(candidates: tuple[str, ...], *plain: Any) -> bytes:
    """The reply without a decision or a new body: the same for every such request."""
    return _body_reply(msgspec.structs.replace(Outcome(*plain), candidates=candidates), "")


def _body_reply(outcome: Outcome, path: str) -> bytes:
    response, common = _routed("request_body", outcome, path)
    if outcome.body is not None:
        _set(common.header_mutation, "content-length", str(len(outcome.body)))
        common.body_mutation.body = outcome.body
    return response.SerializeToString()


def duplex_replies(outcome: Outcome, body: bytes, trailers: bool, path: str = "") -> tuple[bytes, ...]:
    """Decide in full duplex: the held headers reply, then the body in pieces, then the trailers.

    Removes `content-length`: Envoy would keep the client's value and truncate the new body to it.
    """
    response, common = _routed("request_headers", outcome, path)
    common.header_mutation.remove_headers.append("content-length")
    head = response.SerializeToString()
    new = body if outcome.body is None else outcome.body
    if not trailers:
        return (head, *pieces("request_body", new, last=True))
    return (head, *(pieces("request_body", new, last=False) if new else ()), CONTINUE["request_trailers"])


def pieces(kind: str, body: bytes, last: bool) -> tuple[bytes, ...]:
    """A full-duplex body in messages of the kind; with `last` it ends the stream."""
    replies = []
    for start in range(0, max(len(body), 1), CHUNK_BYTES):
        response = pb.ProcessingResponse()
        streamed = getattr(response, kind).response.body_mutation.streamed_response
        streamed.body = body[start : start + CHUNK_BYTES]
        streamed.end_of_stream = last and start + CHUNK_BYTES >= len(body)
        replies.append(response.SerializeToString())
    return tuple(replies)


def immediate(outcome: Outcome) -> bytes:
    """Answer instead of sending the request on."""
    assert outcome.answer is not None
    response = pb.ProcessingResponse()
    reply = response.immediate_response
    # The wire format takes any number; the enum has only some of them.
    reply.status.code = outcome.answer.status  # type: ignore[assignment]
    reply.body = outcome.answer.body
    reply.details = outcome.answer.details
    _set(reply.headers, "content-type", "application/json")
    _write_metadata(response, outcome)
    return response.SerializeToString()


def _routed(kind: str, outcome: Outcome, path: str) -> tuple[pb.ProcessingResponse, pb.CommonResponse]:
    """A reply that routes: the routing header, a new path, the route evaluated again, and the metadata."""
    response = pb.ProcessingResponse()
    common: pb.CommonResponse = getattr(response, kind).response
    # In full duplex there is no handover: Envoy cannot repeat a request whose body it streamed.
    handover = outcome.handover if kind == "request_body" else None
    _set(common.header_mutation, CLUSTER_HEADER, handover.cluster if handover else outcome.cluster)
    if handover is not None:
        _set(common.header_mutation, HANDOVER_HEADER, handover.header)
    if path:
        _set(common.header_mutation, ":path", path)
    if outcome.affinity:
        _set(common.header_mutation, AFFINITY_HEADER, outcome.affinity)
    else:
        common.header_mutation.remove_headers.append(AFFINITY_HEADER)
    if outcome.body is not None and outcome.decoded:
        common.header_mutation.remove_headers.append("content-encoding")
    common.clear_route_cache = True
    _write_metadata(response, outcome)
    return response, common


def _set(mutation: pb.HeaderMutation, key: str, value: str) -> None:
    option = mutation.set_headers.add()
    option.header.key = key
    option.header.raw_value = value.encode("ascii")
    option.append_action = _OVERWRITE


def _override(response: pb.ProcessingResponse, request_body: int, response_body: int) -> None:
    """Body mode NONE is a value and does not mean "unchanged", so both body modes are always written."""
    response.mode_override.request_body_mode = request_body  # type: ignore[assignment]
    response.mode_override.response_body_mode = response_body  # type: ignore[assignment]


def _write_metadata(response: pb.ProcessingResponse, outcome: Outcome) -> None:
    # Field by field, because the update method of protobuf's Struct takes 50 % longer.
    fields = response.dynamic_metadata.fields[METADATA_NAMESPACE].struct_value.fields
    for key, value in facts(outcome).items():
        if isinstance(value, bool):
            fields[key].bool_value = value
        elif isinstance(value, str):
            fields[key].string_value = value
        else:
            fields[key].number_value = value
