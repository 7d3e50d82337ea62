"""The outcome of one request: made by the pipeline, written by `envoy.replies`, recorded by telemetry.

Pure. Types built per request are msgspec structs: creating a frozen dataclass takes ten times as long.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from semroute_extproc.policy.context import Decision, RoutingContext, Shadow
    from semroute_extproc.request.envelope import LeftOut
    from semroute_extproc.request.handover import Handover
    from semroute_extproc.request.signals import Signals
    from semroute_extproc.request.view import RequestView

REASON_CHARACTERS_MAX = 160  # longest reason put into metadata, and through it into a response header


class Kind(enum.StrEnum):
    """How a request was handled; a metric label."""

    ROUTED = "routed"  # a policy decided
    NAMED = "named"  # the client named a pool's model; it was not classified
    PASSTHROUGH = "passthrough"  # not routed: sent to the default pool unchanged
    FALLBACK = "fallback"  # a policy could not decide in time; sent to the default pool
    REJECTED = "rejected"  # we answered with an error
    ANSWERED = "answered"  # we answered with the list of models


class Cause(enum.StrEnum):
    """Why an outcome is of its kind; a metric label, documented in docs/errors.md."""

    RULE = "rule"
    STRATEGY = "strategy"
    POOL = "pool"
    NAMED_MODEL = "named_model"
    METHOD = "method"
    UNKNOWN_PATH = "unknown_path"
    CONTENT_TYPE = "content_type"
    UPGRADE = "upgrade"
    UPLOAD = "upload"
    EMPTY_BODY = "empty_body"
    NO_BODY = "no_body"
    STREAMED_BODY = "streamed_body"
    TOO_MANY_UPLOADS = "too_many_uploads"
    TOO_MANY_HEADERS = "too_many_headers"
    UNREADABLE_MESSAGE = "unreadable_message"
    NOT_JSON = "not_json"
    TOO_DEEP = "too_deep"
    WRONG_TYPE = "wrong_type"
    TOO_MANY_PARTS = "too_many_parts"
    NO_TEXT = "no_text"
    BAD_ENCODING = "bad_encoding"
    NO_MODEL = "no_model"
    UNKNOWN_MODEL = "unknown_model"
    DEADLINE = "deadline"
    OVERLOADED = "overloaded"
    ERROR = "error"
    CLOSED = "closed"
    REMOTE_TIMEOUT = "remote_timeout"
    REMOTE_UNAVAILABLE = "remote_unavailable"
    REMOTE_ERROR = "remote_error"
    REMOTE_INVALID = "remote_invalid"
    REMOTE_REVISION = "remote_revision"
    REMOTE_PAUSED = "remote_paused"
    REMOTE_BUSY = "remote_busy"
    INTERNAL_ERROR = "internal_error"
    BODY_TOO_LARGE = "body_too_large"
    UNSUPPORTED_ENCODING = "unsupported_encoding"
    NO_POOL = "no_pool"
    DENIED = "denied"
    MODELS = "models"
    STORED_RESPONSE = "stored_response"

    @property
    def words(self) -> str:
        """The cause in words: `unknown path`."""
        return self.value.replace("_", " ")


class Stage(msgspec.Struct, frozen=True):
    """One stage of a decision."""

    name: str  # parse, controllers, policy, encode, judge or edit
    start_ms: float  # since the body was complete
    ms: float


class DirectAnswer(msgspec.Struct, frozen=True):
    """A response that we send to the client instead of sending the request on."""

    status: int
    body: bytes
    details: str  # identifier for Envoy's access log (`%RESPONSE_CODE_DETAILS%`)


class Outcome(msgspec.Struct, frozen=True):
    """The outcome of one request."""

    kind: Kind
    cause: Cause
    pool: str = ""
    cluster: str = ""
    model: str = ""  # the model name that is sent to the pool
    reason: str = ""  # one short sentence that explains it
    body: bytes | None = None  # the new body; None keeps the client's
    decoded: bool = False  # `body` is not compressed although the client's was
    answer: DirectAnswer | None = None
    decision: Decision | None = None
    policy: str = ""  # the policy that decided
    max_output_tokens: int | None = None  # the answer's limit, if the pool's `clamp` lowered it
    alias: str = ""  # the routed model that the client named
    candidates: tuple[str, ...] = ()  # with accounting, the pools that could have answered
    prompt_tokens: int = 0  # likely tokens of the whole prompt; 0 if unknown
    affinity: str = ""  # a hash of the conversation, by which Envoy chooses a replica
    session: str = ""  # how the conversation's pool affected the decision, see `ControllerState.decided`
    shadows: tuple[Shadow, ...] = ()  # what the shadow policies would have done
    view: RequestView | None = None
    signals: Signals | None = None
    context: RoutingContext | None = None  # what the policy decided on
    text: str = ""  # the classified text; logged only with `telemetry.log_prompts`
    left_out: tuple[LeftOut, ...] = ()  # see `RoutingContext`
    housekeeping: str = ""  # see `RoutingContext`
    failed: Handover | None = None  # the pools that failed this request before
    handover: Handover | None = None  # the plan if `pool` fails; None if that is final
    stages: tuple[Stage, ...] = ()
    total_ms: float = 0.0

    def milliseconds(self) -> dict[str, float]:
        """Total time per stage; a stage may occur more than once."""
        total: dict[str, float] = {}
        for stage in self.stages:
            total[stage.name] = total.get(stage.name, 0.0) + stage.ms
        return total


def facts(outcome: Outcome) -> dict[str, str | float | bool]:
    """The facts of an outcome that metadata, log and spans share, without empty values.

    Envoy's access log, routes and response headers may use them. The list is in docs/configuration.md.
    """
    found: dict[str, str | float | bool] = {
        "outcome": outcome.kind.value,
        "cause": outcome.cause,
        "pool": outcome.pool,
        "cluster": outcome.cluster,
        "model": outcome.model,
        "reason": header_safe(outcome.reason),
    }
    if (decision := outcome.decision) is not None:
        found["decision_ms"] = round(outcome.total_ms, 3)
        found["policy"] = outcome.policy
        found["rule"] = decision.rule
        found["strategy"] = decision.strategy
        found["canary"] = decision.canary
        found["fallback"] = decision.fallback or ""
        found["judge"] = decision.judge
        found["session"] = outcome.session
        if decision.choice is not None and decision.choice.share is not None:
            found["share"] = round(decision.choice.share, 4)
        if decision.reasoning is not None:
            found["reasoning"] = decision.reasoning
            by_client = outcome.view is not None and outcome.view.reasoning_set and not decision.override
            found["reasoning_from"] = "client" if by_client else "policy"
        found["clamped"] = outcome.max_output_tokens or ""
        shadows = (f"{each.shadow}={each.pool or each.agreement.value}" for each in outcome.shadows)
        found["shadow"] = " ".join(shadows)
        found["housekeeping"] = outcome.housekeeping
        found["left_out"] = sum(each.characters for each in outcome.left_out) or ""
    if outcome.candidates:
        found["candidates"], found["alias"] = " ".join(outcome.candidates), outcome.alias
        found["prompt_tokens"] = outcome.prompt_tokens or ""
    if (failed := outcome.failed) is not None:
        found["failed_pools"], found["failure"] = " ".join(failed.tried), failed.failure
    if (signals := outcome.signals) is not None:
        found["domain"] = signals.domain
        found["task"] = signals.task
        found["language"] = signals.language
        found["difficulty"] = round(signals.difficulty, 4)
        found["unknown"] = signals.unknown
        found["truncated"] = signals.truncated
    return {key: value for key, value in found.items() if value != ""}


def header_safe(text: str) -> str:
    """Printable ASCII on one line, cut at `REASON_CHARACTERS_MAX`."""
    line = " ".join(text.split())
    if not (line.isascii() and line.isprintable()):
        line = "".join(c for c in line.encode("ascii", "replace").decode() if c.isprintable())
    return line[:REASON_CHARACTERS_MAX]
