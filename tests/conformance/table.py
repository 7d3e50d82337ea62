"""The cases of the conformance suite: what Envoy may send, and what must come back.

Two tables. `RAW` are conversations on the sidecar's socket, `ENVOY` are requests at a real Envoy. Both are
products of a mode or a variant of the filter with an event, so that a new mode or event is one line.

Words of a conversation, one for each message that is sent:

    ask       the headers reply asks for the buffered body (mode override)
    read      the headers reply changes no mode: Envoy sends the body anyway
    skip P    the request goes to pool P at its headers, and the body is not wanted (mode override)
    P         the request goes to pool P (`small`, `large`); `P*` with a new body
    same      a reply of its kind that changes nothing, or the end of the stream, which says the same
    echo      full duplex: the piece is returned
    200, 413  the sidecar answers the client itself
    -         no reply

A conversation may end with `end CODE`, the status of a stream that the sidecar ends. In full duplex the
replies to the last piece are the held ones, as one word. After `/` stands the outcome that is counted.
"""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from semroute_extproc.envoy._pb import external_processor_pb2 as pb

CAP = 32 * 1024 * 1024  # `server.body_bytes_max`
PROMPT = "a prompt that no log may repeat"

Mode = pb.ProcessingMode
MODES: dict[str, dict[str, Any]] = {
    "NONE": {"request_body_mode": Mode.NONE},
    "BUFFERED": {"request_body_mode": Mode.BUFFERED},
    "BUFFERED_PARTIAL": {"request_body_mode": Mode.BUFFERED_PARTIAL},
    "STREAMED": {"request_body_mode": Mode.STREAMED},
    "STREAMED at once": {
        "request_body_mode": Mode.STREAMED,
        "send_body_without_waiting_for_header_response": True,
    },
    "FULL_DUPLEX_STREAMED": {"request_body_mode": Mode.FULL_DUPLEX_STREAMED},
    "GRPC": {"request_body_mode": Mode.GRPC},
    "observability": {"request_body_mode": Mode.STREAMED},
}
CHAT = {":method": "POST", ":path": "/v1/chat/completions", "content-type": "application/json"}


@dataclass(frozen=True)
class Raw:
    """One conversation: messages as bytes, and what must come back."""

    area: str
    name: str
    sent: tuple[bytes, ...]
    words: tuple[str, ...]  # one for each message that is sent, as far as the stream goes
    outcome: str = ""  # `outcome cause`; empty if none may be counted
    end: str = "OK"  # the status of the stream


@dataclass(frozen=True)
class AtEnvoy:
    """One request at a variant of the gateway; `tests/conformance/test_envoy.py` knows how to send it."""

    area: str
    name: str
    variant: str
    event: str
    expected: str
    more: dict[str, Any] = field(default_factory=dict)


def chat(model: str = "auto-weak", **more: Any) -> bytes:
    body = {"model": model, "messages": [{"role": "user", "content": PROMPT}], **more}
    return json.dumps(body, separators=(",", ":")).encode()


# --- Messages ---


def headers(fields: dict[str, Any], mode: str = "NONE", *, end: bool = False, **more: Any) -> bytes:
    """Request headers; a value is text or bytes, and a key with `=` goes into the field `value`."""
    message = pb.ProcessingRequest(protocol_config=MODES[mode], observability_mode=mode == "observability")
    message.request_headers.end_of_stream = end
    for key, value in {**fields, **more}.items():
        data = value if isinstance(value, bytes) else value.encode()
        name, old, _ = key.partition("=")
        message.request_headers.headers.headers.add(key=name, **{"value" if old else "raw_value": data})
    return message.SerializeToString()


def body(data: bytes, *, end: bool = True, kind: str = "request_body") -> bytes:
    message = pb.ProcessingRequest()
    getattr(message, kind).body = data
    getattr(message, kind).end_of_stream = end
    return message.SerializeToString()


def bare(kind: str) -> bytes:
    message = pb.ProcessingRequest()
    getattr(message, kind).SetInParent()
    return message.SerializeToString()


TRAILERS, RESPONSE_HEADERS = bare("request_trailers"), bare("response_headers")
ENTRY = b"\x0a\x02\xff\xfe\x12\x00"  # of a map: a key that is not UTF-8
NOT_READ = b"".join(bytes([number << 3 | 2, len(ENTRY)]) + ENTRY for number in (8, 9))
OBSERVED_FIELD = b"\x50\x01"  # `observability_mode`, which Envoy sets in each message
UNKNOWN_KIND = b"\x62\x02\x08\x05"  # flow control of a newer Envoy
BAD_NAME = headers({"XX": "1"}).replace(b"XX", b"\xff\xfe")
RESPONSES = [RESPONSE_HEADERS, body(b"data: x\n\n", kind="response_body"), bare("response_trailers")]


# --- Modes and events ---

ASKING = ("NONE", "BUFFERED_PARTIAL", "STREAMED", "GRPC")
DUPLEX, EAGER, OBSERVED = "FULL_DUPLEX_STREAMED", "STREAMED at once", "observability"


def first(mode: str) -> str:
    """The reply to the headers of a request whose body is wanted."""
    return {"BUFFERED": "read", DUPLEX: "-", OBSERVED: "-", EAGER: "large"}.get(mode, "ask")


def events(mode: str) -> Iterator[Raw]:
    """Every event in one mode."""

    def case(name: str, sent: Sequence[bytes], words: str, outcome: str = "", end: str = "OK") -> Raw:
        said = tuple(words.split("|"))
        if mode == OBSERVED:
            said, sent = ("-",) * len(said), [each + OBSERVED_FIELD for each in sent]
        return Raw(f"mode {mode}", name, tuple(sent), said, outcome, end)

    def begin(fields: dict[str, Any] = CHAT, **more: Any) -> bytes:
        return headers(fields, mode, **more)

    def read(outcome: str) -> str:
        """The outcome of a body; `STREAMED at once` gets none: the headers have left before."""
        return "passthrough no_body" if eager else outcome

    ask, eager, pieces = first(mode), mode == EAGER, mode in (DUPLEX, OBSERVED)
    small, as_is, large = ("same",) * 3 if eager else ("small*", "small", "large")
    at_headers = "skip large" if mode in ("BUFFERED", "BUFFERED_PARTIAL") else "large"
    echo = "echo" if mode == DUPLEX else "same"
    plain, weak, routed = begin(), body(chat()), read("routed strategy")
    cut = body(chat(), end=False)
    # A message of the body that does not end the stream is a piece, or a whole body that trailers follow.
    first_cut = f"{ask}|-|{small}" if pieces else f"{ask}|{small}|same"

    yield case("a whole body", [plain, weak], f"{ask}|{small}", routed)
    yield case(
        "a named pool", [plain, body(chat("small-model"))], f"{ask}|{as_is}", read("named named_model")
    )
    yield case(
        "an unknown model", [plain, body(chat("x"))], f"{ask}|{large}", read("passthrough unknown_model")
    )
    yield case("not JSON", [plain, body(b"{no}")], f"{ask}|{large}", read("passthrough not_json"))
    yield case("a body, then trailers", [plain, cut, TRAILERS], first_cut, routed)
    yield case("an empty last piece", [plain, cut, body(b"")], first_cut, routed)
    no_body = "large" if mode == DUPLEX else "same"
    yield case("trailers and no body", [plain, TRAILERS], f"{ask}|{no_body}", read("passthrough empty_body"))
    yield case("an empty body", [plain, body(b"")], f"{ask}|{large}", read("passthrough empty_body"))
    again = "-" if mode == DUPLEX else "same"
    yield case("a second end of the body", [plain, weak, body(b"")], f"{ask}|{small}|{again}", routed)
    yield case("headers that end the stream", [begin(end=True)], at_headers, "passthrough empty_body")
    yield case("a GET", [begin({**CHAT, ":method": "GET"}, end=True)], at_headers, "passthrough method")
    models = {":method": "GET", ":path": "/v1/models"}
    yield case("a GET of the models", [begin(models, end=True)], "200", "answered models")
    elsewhere = [begin({**CHAT, ":path": "/x"}), weak]
    yield case("an unknown path", elsewhere, f"{at_headers}|{echo}", "passthrough unknown_path")
    text = [begin({**CHAT, "content-type": "text/plain"}), weak]
    yield case("another content type", text, f"{at_headers}|{echo}", "passthrough content_type")
    yield case("an upgrade", [begin(upgrade="websocket")], at_headers, "passthrough upgrade")
    declared = begin(**{"content-length": str(CAP + 1)})
    yield case("a declared length over the limit", [declared], "413", "rejected body_too_large")
    yield case("the answer first", [RESPONSE_HEADERS], "same")
    yield case("the answer before the body", [plain, RESPONSE_HEADERS, weak], f"{ask}|same|{small}", routed)
    yield case(
        "the answer after the body", [plain, weak, *RESPONSES], f"{ask}|{small}|same|same|same", routed
    )
    zipped = [begin(**{"content-encoding": "gzip"}), body(gzip.compress(chat()))]
    yield case("a compressed body", zipped, f"{ask}|{small}", routed)
    many = begin({**CHAT, **{f"x-{number}": "y" for number in range(120)}})
    yield case("many headers", [many, weak], f"same|{echo}", "passthrough too_many_headers")
    yield case("large headers", [begin(x="y" * 80_000), weak], f"same|{echo}", "passthrough too_many_headers")
    values = begin(**{"x-a": b"\xff\xfe", "x-b=": b"\xc3("})
    yield case("values that are not UTF-8", [values, weak], f"{ask}|{small}", routed)
    unread = [plain + NOT_READ, weak + NOT_READ]
    yield case("attributes and metadata that are not UTF-8", unread, f"{ask}|{small}", routed)
    end = "OK" if eager else "INVALID_ARGUMENT"
    unreadable = read("passthrough unreadable_message")
    yield case("a message that cannot be read", [plain, BAD_NAME], f"{ask}|-", unreadable, end)
    yield case("a stream that ends without a body", [plain], ask, "passthrough no_body")
    if mode != OBSERVED:  # The first message says the mode, and this one says none.
        newer = [UNKNOWN_KIND, plain, UNKNOWN_KIND, weak]
        yield case("messages of a newer Envoy", newer, "-|ask|-|small*", "routed strategy")
    if pieces:
        parts = [body(chat()[:20], end=False), body(chat()[20:40], end=False), body(chat()[40:])]
        yield case("a body in pieces", [plain, *parts], f"-|-|-|{small}", routed)
    elif mode in ("STREAMED", "BUFFERED_PARTIAL"):
        parts = [body(chat()[:20], end=False), body(chat()[20:])]
        ignored = "passthrough streamed_body"
        yield case("a mode override that was ignored", [plain, *parts], "ask|same|same", ignored)


# --- What does not depend on the mode ---


def variants_of_headers() -> Iterator[Raw]:
    """One field at a time, as clients and proxies write it."""
    area, weak = "headers", body(chat())
    many = {**CHAT, **{f"x-{number}": "y" for number in range(120)}}
    routed: list[tuple[str, dict[str, Any]]] = [
        ("values in the field of older proxies", {f"{key}=": value for key, value in CHAT.items()}),
        ("a charset", {**CHAT, "content-type": "application/json; charset=utf-8"}),
        ("an uppercase content type", {**CHAT, "content-type": "Application/JSON"}),
        ("a suffix of the content type", {**CHAT, "content-type": "application/vnd.x+json"}),
        ("a query", {**CHAT, ":path": "/v1/chat/completions?a=b"}),
        ("a query that is not UTF-8", {**CHAT, ":path": b"/v1/chat/completions?a=\xff"}),
        ("a final slash", {**CHAT, ":path": "/v1/chat/completions/"}),
        ("a missing version", {**CHAT, ":path": "/chat/completions"}),
        ("a prefix", {**CHAT, ":path": "/openai/v1/chat/completions"}),
        ("an escaped path", {**CHAT, ":path": "/v1/chat%2Fcompletions"}),
        ("a declared length that fits", {**CHAT, "content-length": str(len(chat()))}),
        ("a trace that is not one", {**CHAT, "traceparent": b"\xff"}),
        ("a quality that is not a number", {**CHAT, "x-semroute-quality": "9" * 5_000}),
        ("an empty value", {**CHAT, "x-empty": ""}),
        ("112 headers in all", {**CHAT, **{f"x-{n}": "y" for n in range(108)}}),
        ("70 kB of headers", {**CHAT, "x": "y" * 70_000}),
        ("a spoofed cluster", {**CHAT, "x-semroute-cluster": "vllm-large"}),
        ("a spoofed cluster among many headers", {**many, "x-semroute-cluster": "vllm-large"}),
        ("a spoofed affinity", {**CHAT, "x-semroute-affinity": "1"}),
        ("a spoofed handover", {**CHAT, "x-semroute-failover": "large e30=", "x-semroute-failed": "500"}),
    ]
    for name, fields in routed:
        yield Raw(area, name, (headers(fields), weak), ("ask", "small*"), "routed strategy")
    passed: list[tuple[str, dict[str, Any], str]] = [
        ("no headers at all", {}, "method"),
        ("a method that is not UTF-8", {**CHAT, ":method": b"\xff"}, "method"),
        ("a path that is not UTF-8", {**CHAT, ":path": b"/v1/\xff"}, "unknown_path"),
        ("an empty content type", {**CHAT, "content-type": ""}, "content_type"),
        ("PUT", {**CHAT, ":method": "PUT"}, "method"),
        ("CONNECT", {":method": "CONNECT", ":authority": "x:443"}, "method"),
        ("113 headers in all", {**CHAT, **{f"x-{n}": "y" for n in range(109)}}, "too_many_headers"),
    ]
    for name, fields, cause in passed:
        word = "same" if cause == "too_many_headers" else "large"
        yield Raw(area, name, (headers(fields),), (word,), f"passthrough {cause}")


def damaged() -> Iterator[Raw]:
    """A message of a real stream, cut or with wrong bytes: the stream is decided or ends with an outcome."""
    whole = headers({**CHAT, "x-request-id": "damaged", "x-a": "b"}) + NOT_READ
    area, chance = "damaged bytes", random.Random(7)
    for length in range(1, len(whole), 6):
        yield Raw(area, f"the first {length} bytes", (whole[:length],), ("?",), "?", "?")
    for number in range(40):
        data = bytearray(whole)
        for _ in range(chance.randint(1, 4)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        yield Raw(area, f"wrong bytes, {number + 1}", (bytes(data),), ("?",), "?", "?")
    others = {
        "no bytes": b"",
        "random bytes": chance.randbytes(200),
        "zeros": bytes(64),
        "a length beyond the end": b"\x12\xff\xff\xff\x7f",
        "an endless number": b"\xff" * 12,
        "groups without end": b"\x0b" * 5_000,
    }
    for name, data in others.items():
        yield Raw(area, name, (data,), ("?",), "?", "?")


RAW: list[Raw] = [
    *(case for mode in MODES for case in events(mode)),
    *variants_of_headers(),
    *damaged(),
]


# --- At Envoy ---

VARIANTS: dict[str, dict[str, Any]] = {
    "as shipped": {},
    "over TCP": {"cluster": "semroute-tcp"},
    "BUFFERED": {"mode": {"request_body_mode": "BUFFERED", "request_trailer_mode": "SEND"}},
    "BUFFERED_PARTIAL": {"mode": {"request_body_mode": "BUFFERED_PARTIAL", "request_trailer_mode": "SEND"}},
    "BUFFERED_PARTIAL alone": {"mode": {"request_body_mode": "BUFFERED_PARTIAL"}, "override": False},
    "STREAMED": {"mode": {"request_body_mode": "STREAMED", "request_trailer_mode": "SEND"}},
    "STREAMED at once": {
        "mode": {"request_body_mode": "STREAMED"},
        "ext_proc": {"send_body_without_waiting_for_header_response": True},
    },
    "FULL_DUPLEX_STREAMED": {
        "mode": {"request_body_mode": "FULL_DUPLEX_STREAMED", "request_trailer_mode": "SEND"},
        "retries": False,  # Envoy repeats the body of a request with trailers
    },
    "the response too": {
        "mode": {
            "response_header_mode": "SEND",
            "response_body_mode": "STREAMED",
            "response_trailer_mode": "SEND",
        }
    },
    "two processors": {"twice": True},
    "enabled per route": {"per_route": True},
    "attributes": {"ext_proc": {"request_attributes": ["request.id", "request.path", "request.headers"]}},
}
"""Changes of the shipped filter, each on a listener of its own."""

EVENTS: dict[str, str] = {
    "JSON": "small",
    "chunked": "small",
    "a late last chunk": "small",
    "trailers": "small",
    "large": "small",
    "HTTP/2": "small",
    "HTTP/2 trailers": "small",
    "empty": "large",
    "not JSON": "large",
    "GET": "200",
    "unknown path": "404",
    "request ID": "small",
    "header": "small",
}
"""Event to the pool that answers, or the status."""


def at_envoy() -> Iterator[AtEnvoy]:
    for variant in VARIANTS:
        for event, expected in EVENTS.items():
            # Envoy has forwarded the headers before the sidecar can read the body.
            late = variant == "STREAMED at once" and expected == "small"
            area = f"Envoy, {variant}"
            yield AtEnvoy(area, event, variant, event, "large" if late else expected)
    for count in range(85, 119):
        limit = "small" if count <= 105 else "large"
        yield AtEnvoy("Envoy, headers", f"{count} headers", "as shipped", "headers", limit, {"count": count})
    yield AtEnvoy("Envoy, headers", "129 headers", "as shipped", "headers", "431", {"count": 129})
    for size in range(58_000, 62_500, 250):
        more = {"size": size}
        yield AtEnvoy("Envoy, headers", f"{size} bytes of headers", "as shipped", "headers", "small", more)
    for event, expected in {
        "spoofed": "large",
        "spoofed on retry": "small",
        "absolute form": "small",
        "pipelined": "small small",
        "HTTP/1.0": "426",
        "two lengths": "400",
        "length and encoding": "400",
        "CONNECT": "404",
        "reset": "small",
        "held": "small",
        "upgrade": "101",
        "upgrade, the response too": "101",
        "credentials": "small",
        "handed over with 100 headers": "large",
        "spoofed while paused": "large",
    }.items():
        variant = "over TCP" if event == "held" else "as shipped"
        yield AtEnvoy("Envoy, clients", event, variant, event, expected)


ENVOY: list[AtEnvoy] = list(at_envoy())
