"""Any messages in any order: the exchange answers as Envoy allows, and never fails."""

from __future__ import annotations

from collections.abc import Iterable

from builders import config, names
from hypothesis import given
from hypothesis import strategies as st

from semroute_extproc.envoy._pb import external_processor_pb2 as pb
from semroute_extproc.envoy.exchange import Exchange, ExchangeSettings
from semroute_extproc.outcome import Kind, Outcome
from semroute_extproc.request.paths import PATHS
from semroute_extproc.settings.process import Server
from semroute_extproc.state.sessions import response_id, tag

MODE = pb.ProcessingMode
STORED = f"/v1/responses/{response_id('small', '1', '0' * 16)}/cancel"
PREFIXES = ("/openai", "/anthropic", "/api")
STORES = {tag("small"): ("small", "vllm-small")}
SERVER = Server(body_bytes_max=5_000, path_prefixes=PREFIXES)
SETTINGS = ExchangeSettings("large", "vllm-large", SERVER, names(config()), STORES)
OUTCOME = Outcome(Kind.ROUTED, "strategy", pool="small", cluster="vllm-small", body=b'{"model":"small"}')
MODES = st.sampled_from(
    [MODE.NONE, MODE.STREAMED, MODE.BUFFERED, MODE.BUFFERED_PARTIAL, MODE.FULL_DUPLEX_STREAMED]
)
HEADERS = st.one_of(
    st.builds(
        lambda prefix, path, kind: {":method": "POST", ":path": prefix + path, "content-type": kind},
        st.sampled_from(["", *PREFIXES, "/openai/deployments/auto"]),
        st.sampled_from([*PATHS, "/v1/chat/completions/?model=auto", "/chat/completions", STORED]),
        st.sampled_from(["application/json", "text/json, x", "multipart/form-data; boundary=x"]),
    ),
    st.dictionaries(
        st.sampled_from(
            [":method", ":path", "content-type", "content-length", "upgrade", "content-encoding"]
        ),
        st.one_of(
            st.text(max_size=12), st.sampled_from(["POST", "GET", "/v1/models", "/v1/messages", "6000"])
        ),
    ),
)


def headers(fields: dict[str, str], mode: int, end: bool) -> pb.ProcessingRequest:
    message = pb.ProcessingRequest()
    message.protocol_config.request_body_mode = mode
    for key, value in fields.items():
        message.request_headers.headers.headers.add(key=key, raw_value=value.encode("utf-8", "surrogatepass"))
    message.request_headers.end_of_stream = end
    return message


def body(kind: str, data: bytes, end: bool) -> pb.ProcessingRequest:
    message = pb.ProcessingRequest()
    getattr(message, kind).body = data
    getattr(message, kind).end_of_stream = end
    return message


def bare(kind: str) -> pb.ProcessingRequest:
    message = pb.ProcessingRequest()
    getattr(message, kind).SetInParent()
    return message


ANY_MESSAGE = st.one_of(
    st.builds(headers, HEADERS, MODES, st.booleans()),
    st.builds(
        body, st.sampled_from(["request_body", "response_body"]), st.binary(max_size=6_000), st.booleans()
    ),
    st.sampled_from(["request_trailers", "response_headers", "response_trailers"]).map(bare),
    st.just(pb.ProcessingRequest()),
)


def play(exchange: Exchange, messages: Iterable[pb.ProcessingRequest]) -> list[list[pb.ProcessingResponse]]:
    """The replies to each message; every requested decision is made."""
    answers = []
    for message in messages:
        step = exchange.receive(message)
        raw = list(step.replies)
        if step.decide is not None:
            raw += exchange.decided(OUTCOME)
        answers.append([pb.ProcessingResponse.FromString(reply) for reply in raw])
    return answers


@given(st.lists(ANY_MESSAGE, max_size=12))
def test_whatever_comes_every_reply_has_a_kind_and_nothing_follows_an_answer_of_ours(
    messages: list[pb.ProcessingRequest],
) -> None:
    answered = False
    for replies in play(Exchange(SETTINGS), messages):
        assert not (answered and replies)
        for reply in replies:
            kind = reply.WhichOneof("response")
            assert kind is not None
            answered = answered or kind == "immediate_response"


@given(st.lists(ANY_MESSAGE, max_size=12), st.integers(0, 11))
def test_in_observability_mode_nothing_is_ever_answered(
    messages: list[pb.ProcessingRequest], at: int
) -> None:
    for message in messages:
        message.observability_mode = True
    assert all(replies == [] for replies in play(Exchange(SETTINGS), messages))


@st.composite
def legal(draw: st.DrawFn) -> tuple[int, bytes, list[pb.ProcessingRequest]]:
    """A request as Envoy may send it, with messages of the response in between."""
    mode = draw(MODES)
    data = b"{" + draw(st.binary(max_size=4_000)) + b"}"
    fields = {":method": "POST", ":path": "/v1/completions", "content-type": "application/json"}
    trailers = draw(st.booleans())
    pieces = [data]
    if mode == MODE.FULL_DUPLEX_STREAMED:
        cuts = sorted(draw(st.lists(st.integers(0, len(data)), max_size=5)))
        pieces = [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]
    messages = [headers(fields, mode, False)]
    messages += [
        body("request_body", piece, index == len(pieces) - 1 and not trailers)
        for index, piece in enumerate(pieces)
    ]
    if trailers:
        messages.append(bare("request_trailers"))
    responses = [bare("response_headers"), body("response_body", b"x", True)]
    for response in draw(st.permutations(responses))[: draw(st.integers(0, 2))]:
        messages.insert(draw(st.integers(1, len(messages))), response)
    return mode, data, messages


@given(legal())
def test_every_legal_exchange_is_answered_as_envoy_expects(
    case: tuple[int, bytes, list[pb.ProcessingRequest]],
) -> None:
    mode, _, messages = case
    answers = play(Exchange(SETTINGS), messages)
    flat = [reply for replies in answers for reply in replies]
    kinds = [reply.WhichOneof("response") for reply in flat]
    request_side = [kind for kind in kinds if kind and kind.startswith("request")]
    if mode == MODE.FULL_DUPLEX_STREAMED:
        assert request_side[0] == "request_headers"
        streamed = [
            reply.request_body.response.body_mutation.streamed_response
            for reply in flat
            if reply.WhichOneof("response") == "request_body"
        ]
        assert b"".join(piece.body for piece in streamed) == OUTCOME.body
        ends = [piece.end_of_stream for piece in streamed]
        trailers = any(message.WhichOneof("request") == "request_trailers" for message in messages)
        assert ends == [False] * (len(ends) - 1) + [not trailers]
        assert (request_side[-1] == "request_trailers") == trailers
    else:
        for message, replies in zip(messages, answers, strict=True):
            assert [reply.WhichOneof("response") for reply in replies] == [message.WhichOneof("request")]


@given(legal())
def test_a_routed_request_always_carries_the_routing_header(
    case: tuple[int, bytes, list[pb.ProcessingRequest]],
) -> None:
    _, _, messages = case
    written = [
        option.header.raw_value
        for replies in play(Exchange(SETTINGS), messages)
        for reply in replies
        for common in (reply.request_headers.response, reply.request_body.response)
        for option in common.header_mutation.set_headers
        if option.header.key == "x-semroute-cluster"
    ]
    assert written == [b"vllm-small"]
