"""The state machine of one ext_proc stream: a message in, replies out.

Pure: no gRPC, no clock, no encoder. This file alone decides which replies are allowed, and when.

Theory of operation. Envoy opens one stream per HTTP request and sends, per direction, headers,
body and trailers. Each message needs exactly one reply of its own kind, except in full duplex,
where input and output pieces are independent, and in observability mode, where no reply is
allowed. A reply of the wrong kind, an extra reply or an empty one fails the request. If the stream
ends early, Envoy forwards the request unrouted. So every path through `receive` returns a reply,
except where this file documents that none is sent.

The decision needs the whole request body. How the body arrives depends on Envoy's configured
mode (`protocol_config` of the first message):

    NONE                  the headers reply asks for BUFFERED (mode_override); one body message
    BUFFERED              one body message
    BUFFERED_PARTIAL      we ask for BUFFERED; if Envoy refuses, a truncated body is not routed
    STREAMED              we ask for BUFFERED; if Envoy refuses, pieces pass through, not routed
    FULL_DUPLEX_STREAMED  the headers reply is held until the last piece has arrived

`receive` returns a `Step`: replies to write now and, once a body is complete, the request to
decide; the caller then passes the outcome to `decided`, which returns the rest of the replies.
"""

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import msgspec

from semroute_extproc.envoy import replies
from semroute_extproc.envoy._pb import external_processor_pb2 as pb
from semroute_extproc.envoy.replies import CLUSTER_HEADER, CONTINUE
from semroute_extproc.outcome import Cause, DirectAnswer, Kind, Outcome
from semroute_extproc.request import answers
from semroute_extproc.request.apis import TEXT_APIS
from semroute_extproc.request.forms import FORM
from semroute_extproc.request.paths import STORED, Place, place_of
from semroute_extproc.request.view import Api, Decide, RequestHead
from semroute_extproc.settings.names import Names
from semroute_extproc.settings.process import Server
from semroute_extproc.state.sessions import stored_in

_Mode = pb.ProcessingMode

HEADERS_MAX = 256  # request headers read; more are ignored
HEADERS_SPARE, HEADER_BYTES_SPARE = 16, 24 * 1024
"""A request is changed only if it is this far below Envoy's limits: room for our headers (the plan has up to
8 KiB) and for headers that Envoy hides. Envoy refuses a request that exceeds a limit after a change."""


@dataclass(frozen=True, slots=True)
class ExchangeSettings:
    """The part of the configuration that an exchange needs."""

    default_pool: str
    default_cluster: str
    server: Server
    names: Names
    stores: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    """Tag of a pool in the IDs of responses to its name and cluster; empty without sessions."""
    refuses: bool = False  # refuse requests that cannot be read, because rules cannot be applied


class Step(msgspec.Struct, frozen=True):
    """The result of a message: write `replies`, then decide the request or record the outcome."""

    replies: tuple[bytes, ...] = ()
    decide: Decide | None = None
    outcome: Outcome | None = None
    waits: bool = False  # for the first piece of the body


_NOTHING = Step()


class _State(enum.Enum):
    START = enum.auto()  # no message of the request direction has arrived
    BODY = enum.auto()  # the headers are answered; waiting for the body
    HELD = enum.auto()  # the headers reply is held while the body is collected
    DECIDING = enum.auto()  # the caller is deciding the request
    PASSED = enum.auto()  # passed through at the headers; in full duplex each piece of the body is echoed
    DONE = enum.auto()  # decided, or passed through at the body; later messages are continued
    CLOSED = enum.auto()  # we answered the client ourselves; no further reply is allowed


_FINAL = (_State.PASSED, _State.DONE, _State.CLOSED)


class Exchange:
    """One stream."""

    def __init__(self, settings: ExchangeSettings) -> None:
        self.head = RequestHead("", "")  # empty before the headers have come
        self.observed = False  # Envoy runs us in observability mode: no reply is allowed
        self._settings = settings
        self._state = _State.START
        self._mode: int | None = None
        self._response_mode = 0
        self._override = False  # Envoy honors a mode override
        self._duplex = False
        self._place = Place("")
        self._pieces: list[bytes] = []
        self._collected = 0
        self._trailers = False

    @property
    def finished(self) -> bool:
        """Whether the stream can end: every further reply would only let Envoy continue, as the end does."""
        if self.observed or self._mode is None:
            return False
        echoes = self._duplex and self._state is _State.PASSED
        return self._state in _FINAL and not (echoes or self._response_mode == _Mode.FULL_DUPLEX_STREAMED)

    def receive(self, message: pb.ProcessingRequest, size: int = 0) -> Step:
        """Take one message from Envoy; `size` is its length in bytes."""
        if self._mode is None:
            config = message.protocol_config  # protobuf builds a new object on every access
            self._mode, self._response_mode = config.request_body_mode, config.response_body_mode
            eager = config.send_body_without_waiting_for_header_response
            self._override = self._settings.server.allow_mode_override and not eager
            self._duplex = self._mode == _Mode.FULL_DUPLEX_STREAMED
        self.observed = self.observed or message.observability_mode
        kind = message.WhichOneof("request")
        # A message kind of a newer Envoy reads as None: any reply to it would be spurious.
        step = _NOTHING if kind is None else self._transition(kind, message, size)
        return Step((), step.decide, step.outcome, step.waits) if self.observed else step

    def decided(self, outcome: Outcome) -> tuple[bytes, ...]:
        """The replies that carry the outcome of a `Decide`."""
        written = () if self.observed else self._written(outcome)
        # Not earlier: if building the replies fails, `rescue` needs the state and the body.
        self._state = _State.DONE if outcome.answer is None else _State.CLOSED
        self._pieces.clear()
        return written

    def ended(self, cause: Cause = Cause.NO_BODY) -> Outcome | None:
        """The outcome, if the request has none yet when its stream ends because of `cause`."""
        begun = self._state in (_State.BODY, _State.HELD)
        if not begun and (self._state is not _State.START or cause is Cause.NO_BODY):
            return None
        self._state = _State.DONE
        return self._passthrough(cause)

    def rescue(self, kind: str | None) -> Step:
        """The replies that pass a request through after we failed on a message of `kind`.

        The stream must not end early: Envoy would forward the request unrouted and uncounted. The
        step has an outcome if the request had none.
        """
        if self.observed or self._state is _State.CLOSED or kind is None:
            return _NOTHING
        if kind.startswith("response"):
            return Step((CONTINUE[kind],))
        state, at_headers = self._state, kind == "request_headers"
        self._state = _State.PASSED if at_headers or state is _State.PASSED else _State.DONE
        outcome = self._passthrough(Cause.INTERNAL_ERROR)
        new = None if state in (_State.PASSED, _State.DONE) else outcome
        written: tuple[bytes, ...] = (CONTINUE[kind],)
        if at_headers:
            written = (replies.headers_reply(outcome, self._place.rewritten),)
        elif self._duplex and state in (_State.HELD, _State.DECIDING):
            written = self._written(outcome)
            self._pieces.clear()
        elif kind == "request_body":
            written = (replies.body_reply(outcome, self._place.rewritten),)
        return Step(written, outcome=new)

    def _transition(self, kind: str, message: pb.ProcessingRequest, size: int) -> Step:
        match self._state, kind:
            case _State.CLOSED, _:
                return _NOTHING
            case _, "request_headers":
                return self._headers(message.request_headers, size)
            case _State.BODY | _State.HELD, "request_body":
                return self._body(message.request_body)
            case _State.PASSED, "request_body" if self._duplex:
                piece = message.request_body
                return Step(replies.pieces(kind, piece.body, piece.end_of_stream))
            case _, "request_body" if self._duplex:
                return _NOTHING  # a second end of stream, which some versions of Envoy send
            case _State.BODY, "request_trailers":
                return self._pass(Cause.EMPTY_BODY, CONTINUE["request_trailers"])
            case _State.HELD, "request_trailers":
                self._trailers = True
                return self._complete()
            case _, "response_body" if self._response_mode == _Mode.FULL_DUPLEX_STREAMED:
                piece = message.response_body
                return Step(replies.pieces(kind, piece.body, piece.end_of_stream))
            case _:
                return Step((CONTINUE[kind],))

    def _headers(self, message: pb.HttpHeaders, size: int) -> Step:
        self.head = head = read_head(fields := message.headers.headers)
        server = self._settings.server
        self._place = place = place_of(head.path, server.path_prefixes)
        anthropic = "anthropic-version" in head.headers
        if head.method == "GET" and (answer := answers.models(place.path, self._settings.names, anthropic)):
            return self._answer(Kind.ANSWERED, Cause.MODELS, answer)
        near = len(fields) > server.max_headers_count - HEADERS_SPARE
        near = near or size > server.max_request_headers_kb * 1024 - HEADER_BYTES_SPARE
        if near and self._settings.refuses:
            answer = answers.too_many_headers(place.api or Api.OTHER)
            return self._answer(Kind.REJECTED, Cause.TOO_MANY_HEADERS, answer)
        if near and CLUSTER_HEADER not in head.headers:  # a client's own must be removed
            self._state = _State.PASSED
            return Step((CONTINUE["request_headers"],), outcome=self._passthrough(Cause.TOO_MANY_HEADERS))
        length, most = head.headers.get("content-length", ""), server.body_bytes_max
        fits = length.isdigit() and int(length) <= most
        cause = _unroutable(head, place.api, fits) or (Cause.EMPTY_BODY if message.end_of_stream else None)
        if cause is not None:
            return self._pass_headers(cause)
        if length.isdigit() and not fits:
            return self._too_large()
        if self.observed or self._duplex:
            self._state = _State.HELD
            return Step(waits=True)
        if not self._override and self._mode in (_Mode.NONE, _Mode.STREAMED):
            return self._pass_headers(Cause.NO_BODY)
        self._state = _State.BODY
        override = self._override and self._mode != _Mode.BUFFERED
        return Step((replies.ask_for_body(self._response_mode if override else None),), waits=True)

    def _pass_headers(self, cause: Cause) -> Step:
        outcome, names = self._passthrough(cause), self._settings.names
        named = names.find(self._place.model)
        pool = names.pools.get(named.pool) if named else None
        stored = STORED.fullmatch(self._place.path)
        tag, affinity = stored_in(stored[1]) if stored else ("", "")
        if (store := self._settings.stores.get(tag)) is not None:
            cause = Cause.STORED_RESPONSE
            outcome = Outcome(Kind.PASSTHROUGH, cause, *store, reason=cause.words, affinity=affinity)
        elif named and pool and pool.policy is None:
            cause = Cause.NAMED_MODEL
            outcome = Outcome(Kind.NAMED, cause, named.pool, pool.cluster, pool.model, cause.words)
        skip = self._override and self._mode in (_Mode.BUFFERED, _Mode.BUFFERED_PARTIAL)
        mode = self._response_mode if skip else None
        reply = replies.headers_reply(outcome, self._place.rewritten, mode)
        self._state = _State.PASSED
        return Step((reply,), outcome=outcome)

    def _body(self, message: pb.HttpBody) -> Step:
        """A whole body, or in state HELD a piece of one."""
        whole, body = self._state is _State.BODY, message.body
        if whole and not message.end_of_stream and self._mode in (_Mode.STREAMED, _Mode.BUFFERED_PARTIAL):
            # Trailers follow; or Envoy ignored the override: a piece, whose headers are already forwarded.
            ends = body.rstrip(b" \t\r\n\0").endswith((b"}", b"--"))  # as a JSON object or a form does
            if not ends and "content-encoding" not in self.head.headers:
                return self._pass(Cause.STREAMED_BODY, CONTINUE["request_body"])
        self._collected += len(body)
        if self._collected > self._settings.server.body_bytes_max:
            self._pieces.clear()
            return self._too_large()
        self._pieces.append(body)
        return self._complete() if whole or message.end_of_stream else _NOTHING

    def _complete(self) -> Step:
        if not self._collected:
            return self._pass(Cause.EMPTY_BODY)
        self._state = _State.DECIDING
        body = b"".join(self._pieces)
        self._pieces = [body]
        assert self._place.api is not None
        return Step(decide=Decide(self.head, self._place.api, body, self._place.model))

    def _pass(self, cause: Cause, reply: bytes | None = None) -> Step:
        """Pass the request through at its body; without `reply`, set the routing header."""
        outcome = self._passthrough(cause)
        written = (reply,) if reply else self._written(outcome)
        self._state = _State.DONE
        return Step(written, outcome=outcome)

    def _written(self, outcome: Outcome) -> tuple[bytes, ...]:
        """The replies that carry an outcome once the body has arrived."""
        if outcome.answer is not None:
            return (replies.immediate(outcome),)
        if self._duplex:
            body = b"".join(self._pieces)
            return replies.duplex_replies(outcome, body, self._trailers, self._place.rewritten)
        return (replies.body_reply(outcome, self._place.rewritten),)

    def _passthrough(self, cause: Cause) -> Outcome:
        pool, cluster = self._settings.default_pool, self._settings.default_cluster
        return Outcome(Kind.PASSTHROUGH, cause, pool, cluster, reason=f"passed through: {cause.words}")

    def _too_large(self) -> Step:
        answer = answers.too_large(self._settings.server.body_bytes_max, self._place.api or Api.OTHER)
        return self._answer(Kind.REJECTED, Cause.BODY_TOO_LARGE, answer)

    def _answer(self, kind: Kind, cause: Cause, answer: DirectAnswer) -> Step:
        outcome = Outcome(kind, cause, answer=answer, reason=cause.words)
        reply = replies.immediate(outcome)
        self._state = _State.CLOSED
        return Step((reply,), outcome=outcome)


def read_head(headers: Sequence[pb.HeaderValue]) -> RequestHead:
    """The request's headers; repeated ones are joined with a comma (RFC 9110, 5.3)."""
    method = path = ""
    fields: dict[str, str] = {}
    for header in headers[:HEADERS_MAX]:
        key, raw = header.key, header.raw_value
        value = (raw or header.value).decode("utf-8", "replace")  # some proxies fill `value`
        if key[:1] != ":":
            fields[key] = f"{fields[key]}, {value}" if key in fields else value
        elif key == ":method":
            method = value
        elif key == ":path":
            path = value
    return RequestHead(method, path, fields)


def _unroutable(head: RequestHead, api: Api | None, fits: bool) -> Cause | None:
    """Why Envoy is not asked for the body, if so. `fits`: its length is declared and within the limit."""
    if head.method != "POST":
        return Cause.METHOD
    if api is None:
        return Cause.UNKNOWN_PATH
    if "upgrade" in head.headers:
        return Cause.UPGRADE
    media = head.headers.get("content-type", "").partition(";")[0].partition(",")[0].strip().lower()
    if media == FORM and api not in TEXT_APIS:
        return None if fits else Cause.UPLOAD
    if media != "application/json" and not media.endswith("+json"):
        return Cause.CONTENT_TYPE
    return None
