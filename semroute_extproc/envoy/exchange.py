"""The state machine of one ext_proc stream: a message in, replies out.

Pure: no gRPC, no clock, no encoder. Everything that decides what may be answered, and when,
stands in this file.

Theory of operation. Envoy opens one stream per HTTP request and sends, per direction, headers,
body and trailers. Each message wants exactly one reply of its own kind, except in full duplex,
where pieces in and pieces out are independent, and in observability mode, where nothing may be
answered at all. A reply of the wrong kind, one too many or an empty one fails the request, and a
stream that ends early lets it go on unrouted; so every path through `receive` ends in a reply or
in a documented silence.

The decision needs the whole request body. How it comes depends on the mode Envoy is configured
with (`protocol_config` of the first message):

    NONE                  the headers reply asks for BUFFERED (mode_override); one body message
    BUFFERED              one body message
    BUFFERED_PARTIAL      asked to become BUFFERED; if it did not, a body that was cut is not routed
    STREAMED              asked to become BUFFERED; if it did not, pieces pass through, not routed
    FULL_DUPLEX_STREAMED  the headers reply is held until the last piece has come

`receive` returns a `Step`: replies to write now and, once a body is complete, the request to
decide; the caller then gives the outcome to `decided`, which returns the rest of the replies.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

import msgspec

from semroute_extproc.envoy import replies as mutations
from semroute_extproc.envoy._pb import external_processor_pb2 as pb
from semroute_extproc.envoy.replies import CONTINUE
from semroute_extproc.outcome import Answer, Cause, Kind, Outcome
from semroute_extproc.request.apis import PATHS
from semroute_extproc.request.view import Api, RequestHead

_Mode = pb.ProcessingMode

HEADERS_MAX = 256
"""Request headers read; more are ignored."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What an exchange needs to know of the configuration."""

    default_pool: str
    default_cluster: str
    body_bytes_max: int
    allow_mode_override: bool
    models: tuple[str, ...]
    """Names that GET /v1/models lists."""


class Decide(msgspec.Struct, frozen=True):
    """A request whose body is complete."""

    head: RequestHead
    api: Api
    body: bytes


class Step(msgspec.Struct, frozen=True):
    """What to do after a message: write `replies`, then decide, or note an `outcome`."""

    replies: tuple[bytes, ...] = ()
    decide: Decide | None = None
    outcome: Outcome | None = None


_NOTHING = Step()
_STEP = {kind: Step((reply,)) for kind, reply in CONTINUE.items()}


class _State(enum.Enum):
    START = enum.auto()
    """Nothing of the request direction has come yet."""
    BODY = enum.auto()
    """The headers reply has gone; the body that decides is to come."""
    HELD = enum.auto()
    """Full duplex: the headers reply is held while the body is collected."""
    DECIDING = enum.auto()
    """The caller has the request."""
    DONE = enum.auto()
    """Decided or passed through: whatever still comes is continued."""
    CLOSED = enum.auto()
    """We answered the client ourselves: nothing may be replied any more."""


class Exchange:
    """One stream."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._state = _State.START
        self._first = True
        self._observe = False
        self._mode: int = _Mode.NONE
        self._response_mode: int = _Mode.NONE
        self._head = RequestHead("", "")
        self._api = Api.CHAT_COMPLETIONS
        self._pieces: list[bytes] = []
        self._collected = 0
        self._trailers = False
        self._passed_at_headers = False

    @property
    def head(self) -> RequestHead:
        """The request's headers, empty before they have come."""
        return self._head

    @property
    def observed(self) -> bool:
        """Envoy runs us in observability mode, and nothing may be answered."""
        return self._observe

    def receive(self, message: pb.ProcessingRequest) -> Step:
        """Take one message of Envoy's."""
        if self._first:
            self._first = False
            self._mode = message.protocol_config.request_body_mode
            self._response_mode = message.protocol_config.response_body_mode
        self._observe = self._observe or message.observability_mode
        kind = message.WhichOneof("request")
        if self._state is _State.CLOSED or kind is None:
            # A message of a kind that a newer Envoy knows: any reply to it would be spurious.
            return _NOTHING
        if kind == "request_headers":
            step = self._request_headers(message.request_headers)
        elif kind == "request_body":
            step = self._request_body(message.request_body)
        elif kind == "request_trailers":
            step = self._request_trailers()
        elif kind == "response_body" and self._response_mode == _Mode.FULL_DUPLEX_STREAMED:
            body = message.response_body
            step = Step(tuple(mutations.echo("response_body", body.body, body.end_of_stream)))
        else:
            step = _STEP[kind]
        return self._silenced(step)

    def decided(self, outcome: Outcome) -> tuple[bytes, ...]:
        """The replies that carry the outcome of a `Decide`."""
        replies = () if self._observe else self._decision(outcome)
        # Only now: had the replies failed to be built, `rescue` would still have to give them.
        answered = outcome.answer is not None and not self._observe
        self._state = _State.CLOSED if answered else _State.DONE
        self._pieces.clear()
        return replies

    def ended(self) -> Outcome | None:
        """The stream is over: the outcome of a request whose body never came, if it has none yet.

        The client left while it sent it, or Envoy's filter does not allow the override we asked for.
        """
        if self._state not in (_State.BODY, _State.HELD):
            return None
        self._state = _State.DONE
        return self._passthrough(Cause.NO_BODY)

    def _decision(self, outcome: Outcome) -> tuple[bytes, ...]:
        if outcome.answer is not None:
            return (mutations.immediate(outcome),)
        if not self._held:
            return (mutations.body_reply(outcome),)
        return tuple(mutations.duplex_replies(outcome, b"".join(self._pieces), self._trailers))

    def rescue(self, kind: str | None) -> Step:
        """The replies that pass a request through after we failed on a message of `kind`.

        Never an early end of the stream: Envoy would send the request on unrouted and uncounted. The
        step has an outcome if the request had none yet.
        """
        if self._observe or self._state is _State.CLOSED or kind is None:
            return _NOTHING
        state, self._state = self._state, _State.DONE
        outcome = self._passthrough(Cause.INTERNAL_ERROR)
        told = outcome if kind.startswith("request") and state is not _State.DONE else None
        if self._mode == _Mode.FULL_DUPLEX_STREAMED and kind in ("request_body", "request_trailers"):
            body = b"".join(self._pieces)
            self._pieces.clear()
            if state in (_State.HELD, _State.DECIDING):
                return Step(tuple(mutations.duplex_replies(outcome, body, self._trailers)), outcome=told)
        if kind == "request_headers":
            self._passed_at_headers = True
            return Step((mutations.headers_reply(outcome),), outcome=told)
        if kind == "request_body":
            return Step((mutations.body_reply(outcome),), outcome=told)
        return Step((CONTINUE[kind],), outcome=told)

    @property
    def _held(self) -> bool:
        return self._mode == _Mode.FULL_DUPLEX_STREAMED

    def _silenced(self, step: Step) -> Step:
        return Step((), step.decide, step.outcome) if self._observe else step

    def _request_headers(self, message: pb.HttpHeaders) -> Step:
        self._head = read_head(message.headers)
        head, settings = self._head, self._settings
        if (answer := self._models(head)) is not None:
            return self._answer(Kind.ANSWERED, Cause.MODELS, answer)
        cause = _unroutable(head) or (Cause.EMPTY_BODY if message.end_of_stream else None)
        if cause:
            return self._pass_headers(cause)
        self._api = PATHS[_plain_path(head.path)]
        length = head.headers.get("content-length", "")
        if length.isdigit() and int(length) > settings.body_bytes_max:
            return self._too_large()
        if self._observe or self._held:
            self._state = _State.HELD
            return _NOTHING
        if not settings.allow_mode_override and self._mode in (_Mode.NONE, _Mode.STREAMED):
            return self._pass_headers(Cause.NO_BODY)
        self._state = _State.BODY
        if self._mode == _Mode.BUFFERED or not settings.allow_mode_override:
            return Step((_WAIT_FOR_BODY,))
        return Step((mutations.ask_for_body(self._response_mode),))

    def _request_body(self, message: pb.HttpBody) -> Step:
        if self._state is _State.HELD:
            return self._collect(message)
        if self._state is not _State.BODY:
            return self._continue_body(message)
        if not message.end_of_stream and self._mode in (_Mode.STREAMED, _Mode.BUFFERED_PARTIAL):
            # The override was not honoured: this is a piece, and the headers have left already.
            self._state = _State.DONE
            return Step((CONTINUE["request_body"],), outcome=self._passthrough(Cause.STREAMED_BODY))
        if len(message.body) > self._settings.body_bytes_max:
            return self._too_large()
        if not message.body:
            self._state = _State.DONE
            outcome = self._passthrough(Cause.EMPTY_BODY)
            return Step((mutations.body_reply(outcome),), outcome=outcome)
        self._state = _State.DECIDING
        return Step(decide=Decide(self._head, self._api, message.body))

    def _collect(self, message: pb.HttpBody) -> Step:
        self._collected += len(message.body)
        if self._collected > self._settings.body_bytes_max:
            self._pieces.clear()
            return self._too_large()
        if message.body:
            self._pieces.append(message.body)
        return self._complete() if message.end_of_stream else _NOTHING

    def _complete(self) -> Step:
        if not self._collected:
            self._state = _State.DONE
            outcome = self._passthrough(Cause.EMPTY_BODY)
            return Step(tuple(mutations.duplex_replies(outcome, b"", self._trailers)), outcome=outcome)
        self._state = _State.DECIDING
        self._pieces = [b"".join(self._pieces)]
        return Step(decide=Decide(self._head, self._api, self._pieces[0]))

    def _continue_body(self, message: pb.HttpBody) -> Step:
        if not self._held:
            return _STEP["request_body"]
        if self._passed_at_headers:
            return Step(tuple(mutations.echo("request_body", message.body, message.end_of_stream)))
        return _NOTHING  # a second end of stream, which some versions of Envoy send

    def _request_trailers(self) -> Step:
        if self._state is _State.HELD:
            self._trailers = True
            return self._complete()
        if self._state is _State.BODY:
            self._state = _State.DONE
            return Step((CONTINUE["request_trailers"],), outcome=self._passthrough(Cause.EMPTY_BODY))
        return _STEP["request_trailers"]

    def _pass_headers(self, cause: Cause) -> Step:
        self._state = _State.DONE
        self._passed_at_headers = True
        outcome = self._passthrough(cause)
        skip_body = self._settings.allow_mode_override and self._mode in (
            _Mode.BUFFERED,
            _Mode.BUFFERED_PARTIAL,
        )
        reply = mutations.headers_reply(outcome, skip_body, self._response_mode)
        return Step((reply,), outcome=outcome)

    def _passthrough(self, cause: Cause) -> Outcome:
        settings = self._settings
        return Outcome(
            Kind.PASSTHROUGH,
            cause,
            pool=settings.default_pool,
            cluster=settings.default_cluster,
            reason=f"passed through: {cause.words}",
        )

    def _too_large(self) -> Step:
        limit = self._settings.body_bytes_max
        return self._answer(Kind.REJECTED, Cause.BODY_TOO_LARGE, too_large_answer(limit, self._api))

    def _answer(self, kind: Kind, cause: Cause, answer: Answer) -> Step:
        self._state = _State.DONE if self._observe else _State.CLOSED
        outcome = Outcome(kind, cause, answer=answer, reason=cause.words)
        return Step((mutations.immediate(outcome),), outcome=outcome)

    def _models(self, head: RequestHead) -> Answer | None:
        """The answer to a request for the list of models, or for one of them."""
        path = _plain_path(head.path)
        if head.method != "GET" or not path.startswith("/v1/models"):
            return None
        if path == "/v1/models":
            return mutations.models_answer(self._settings.models)
        name = path.removeprefix("/v1/models/")
        if name in self._settings.models:
            return mutations.model_answer(name)
        return None


_WAIT_FOR_BODY = mutations.wait_for_body()


def too_large_answer(limit: int, api: Api) -> Answer:
    """413 for a body over `limit` bytes."""
    return mutations.error_answer(
        413,
        "invalid_request_error",
        "request_too_large",
        f"The request body is larger than {limit} bytes.",
        anthropic=api is Api.MESSAGES,
    )


def read_head(headers: pb.HeaderMap) -> RequestHead:
    """The request's headers; Envoy fills `raw_value`, older ones `value`.

    Of a header that comes several times the values are joined with a comma (RFC 9110, 5.3).
    """
    method = path = ""
    fields: dict[str, str] = {}
    for header in headers.headers[:HEADERS_MAX]:
        key, raw = header.key, header.raw_value  # each look makes them anew
        value = raw.decode("utf-8", "replace") if raw else header.value
        if key[:1] != ":":
            fields[key] = f"{fields[key]}, {value}" if key in fields else value
        elif key == ":method":
            method = value
        elif key == ":path":
            path = value
    return RequestHead(method, path, fields)


def _plain_path(path: str) -> str:
    return path.partition("?")[0]


def _unroutable(head: RequestHead) -> Cause | None:
    """Why a request is not ours to route; None if it is."""
    if head.method != "POST":
        return Cause.METHOD
    if _plain_path(head.path) not in PATHS:
        return Cause.UNKNOWN_PATH
    if "upgrade" in head.headers:
        return Cause.UPGRADE
    media = head.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media != "application/json" and not media.endswith("+json"):
        return Cause.CONTENT_TYPE
    return None
