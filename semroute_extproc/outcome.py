"""What became of one request: produced by the pipeline, written by `mutations`, told by telemetry.

Pure. What is made anew for every request is a msgspec structure: a dataclass as frozen takes ten times as
long to make.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

import msgspec

from semroute_extproc.encoder.signals import Signals
from semroute_extproc.policy.context import Decision
from semroute_extproc.policy.shadow import Shadow
from semroute_extproc.request.view import RequestView


class Kind(enum.StrEnum):
    """How a request was dealt with; a metric label."""

    ROUTED = "routed"
    """A policy decided."""
    NAMED = "named"
    """The client named a pool's model; it was not classified."""
    PASSTHROUGH = "passthrough"
    """Not ours to route: the default pool has it, untouched."""
    FALLBACK = "fallback"
    """A policy was wanted and could not decide in time; the default pool has it."""
    REJECTED = "rejected"
    """We answered with an error."""
    ANSWERED = "answered"
    """We answered: the list of models."""


class Stage(msgspec.Struct, frozen=True):
    """One stage of a decision."""

    name: str
    start_ms: float
    """Since the body was complete."""
    ms: float


@dataclass(frozen=True, slots=True)
class Answer:
    """A response that we give ourselves instead of sending the request on."""

    status: int
    body: bytes
    details: str
    """Short token for Envoy's access log (`%RESPONSE_CODE_DETAILS%`)."""


class Outcome(msgspec.Struct, frozen=True):
    """What became of one request."""

    kind: Kind
    cause: str
    """Bounded token: why it is of this kind (`not_json`, `unknown_path`, `deadline`, a rule's kind …)."""
    pool: str = ""
    cluster: str = ""
    model: str = ""
    """The model the pool is asked for."""
    reason: str = ""
    """One short sentence for people."""
    body: bytes | None = None
    """The new body; None leaves the client's as it is."""
    decoded: bool = False
    """`body` is not compressed although the client's was."""
    answer: Answer | None = None
    decision: Decision | None = None
    policy: str = ""
    """The policy that decided."""
    session: str = ""
    """What the conversation's pool meant; see `Controllers.decided`. Empty if sessions are off."""
    shadows: tuple[Shadow, ...] = ()
    """What the policies beside it would have done."""
    view: RequestView | None = None
    signals: Signals | None = None
    text: str = ""
    """The classified text; reaches a log only if the operator asked for it."""
    stages: tuple[Stage, ...] = ()
    total_ms: float = 0.0

    def milliseconds(self) -> dict[str, float]:
        """Time per stage: parse, policy, encode, judge, edit."""
        total: dict[str, float] = {}
        for stage in self.stages:
            total[stage.name] = total.get(stage.name, 0.0) + stage.ms
        return total
