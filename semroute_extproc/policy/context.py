"""What a policy looks at and what it gives.

Pure.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from semroute_extproc.encoder.signals import Signals
from semroute_extproc.outcome import Cause
from semroute_extproc.request.view import RequestHead, RequestView
from semroute_extproc.settings.base import Effort
from semroute_extproc.settings.pools import Pool


@dataclass(frozen=True, slots=True)
class Conditions:
    """What is known of the moment rather than of the request: a snapshot that the controllers take."""

    pressure: Mapping[str, float] = field(default_factory=dict)
    """Pool to how pressed it is, 0 (quiet) to 1 (full); a pool that is not there is quiet or unknown."""
    bias: Mapping[str, float] = field(default_factory=dict)
    """Strategy to what its budget adds to the log-odds of the strong share; absent is 0."""
    floor: float = 0.0
    """Strong share that pressure on the strong pool leaves at least."""
    ceiling: float | None = None
    """Strong share up to which pressure on the weak pool may push; None: it never pushes up."""


class Lock(enum.StrEnum):
    """What forbids a conversation to change its pool."""

    NONE = ""
    TOOL_LOOP = "tool loop"
    """The model is in the middle of its work."""
    STATEFUL = "state on the server"
    """The conversation so far is with the pool that answered last (`previous_response_id`)."""


@dataclass(frozen=True, slots=True)
class Held:
    """The pool a conversation is in."""

    pool: str
    lock: Lock = Lock.NONE
    margin: float = 0.0
    """The part (0..1) of the reference traffic above the threshold that does not move it up."""
    strategies: Collection[str] | None = None
    """Strategies whose choices it holds against; None for all."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """What came of asking a judge."""

    score: float | None
    """Probability that the strong model wins; None if there is no answer."""
    result: str
    """`ok`, `cache`, `timeout`, `breaker`, `busy`, `connection`, `http`, `unparsable` or `error`."""


@dataclass(frozen=True, slots=True)
class JudgeWanted:
    """No decision yet: it takes the judgement of a strategy's judge."""

    strategy: str


@dataclass(frozen=True, slots=True)
class RoutingContext:
    """Everything known of one request when it is decided."""

    head: RequestHead
    view: RequestView
    language: str
    prompt_tokens: int
    """Estimate of the whole prompt, system prompt and tool declarations included."""
    quality: float | None = None
    """The trade-off asked for by the client or by the model's entry, 0 (cheapest) to 1 (best)."""
    signals: Signals | None = None
    fallback: Cause | None = None
    """Why there will be no signals: `deadline`, `overloaded`, `error`, `closed`, `no_text`; None if they
    may come."""
    conditions: Conditions = field(default_factory=Conditions)
    judgements: Mapping[str, Judgement] = field(default_factory=dict)
    """Strategy to what its judge said, where it was asked."""
    bias: float = 0.0
    """`conditions.bias` of the strategy that is asked; the policy fills it in."""
    held: Held | None = None
    """The pool the conversation is in, if it is known."""

    @property
    def hard_preference(self) -> bool:
        """The trade-off asked for is one of its ends, which holds whatever the score."""
        return self.quality is not None and not 0.0 < self.quality < 1.0

    def with_signals(self, signals: Signals) -> RoutingContext:
        """The same facts with the encoder's signals."""
        return dataclasses.replace(self, signals=signals)

    def with_judgement(self, strategy: str, judgement: Judgement) -> RoutingContext:
        """The same facts with what a strategy's judge said."""
        return dataclasses.replace(self, judgements={**self.judgements, strategy: judgement})

    def with_fallback(self, reason: Cause) -> RoutingContext:
        """The same facts, and no signals will come."""
        return dataclasses.replace(self, fallback=reason)


@dataclass(frozen=True, slots=True)
class Candidates:
    """The pools that could answer a request, and why the others could not."""

    pools: Mapping[str, Pool]
    """In the order in which they stand in for a pool that could not answer: the default pool first."""
    excluded: Mapping[str, str] = field(default_factory=dict)
    """Pool to the constraint that removed it."""

    def first_of(self, *preferred: str) -> str:
        """The first of `preferred` that could answer, else the first pool that could."""
        return next((name for name in preferred if name in self.pools), next(iter(self.pools)))


@dataclass(frozen=True, slots=True)
class Choice:
    """What a strategy picks."""

    pool: str
    """What it wants; the policy finds a stand-in if that pool could not answer."""
    reason: str
    stand_ins: tuple[str, ...] = ()
    """What it would take instead, best first."""
    score: float | None = None
    threshold: float | None = None
    share: float | None = None
    """The strong share in force, where controllers moved it."""
    rise: float | None = None
    """How far the score is beyond the threshold, if it calls for the strong pool: the part (0..1) of the
    reference traffic above the threshold that it leaves behind. Else None."""
    moved: tuple[tuple[str, str], ...] = ()
    """Controllers that moved the trade-off, and in words how."""


@dataclass(frozen=True, slots=True)
class TraceStep:
    """One step of the way to a decision, for people."""

    what: str
    """`constraint`, `rule`, `canary`, `strategy`, `controller` or `reasoning`."""
    name: str
    result: str


@dataclass(frozen=True, slots=True)
class Decision:
    """Where a request goes and why."""

    pool: str
    reason: str
    """One short ASCII sentence; goes into metadata and from there into a response header."""
    rule: str = ""
    strategy: str = ""
    reasoning: Effort | None = None
    score: float | None = None
    """What the strategy compared, the difficulty for `threshold`."""
    threshold: float | None = None
    """What the score was compared with."""
    fallback: Cause | None = None
    """Why the decision was made without the encoder although it was wanted; None if it was not."""
    judge: str = ""
    """What came of asking the strategy's judge, a `Judgement.result`; empty if it was not asked."""
    override: bool = False
    """`reasoning` replaces what the client asked for."""
    share: float | None = None
    """The strong share in force, where controllers moved it."""
    session: str = ""
    """What the conversation's pool had to do with it: `locked`, `kept` or `moved`; empty if nothing."""
    canary: str = ""
    """The strategy that drew `strategy` by weight."""
    trace: tuple[TraceStep, ...] = ()


class Strategy(Protocol):
    """Picks one of the pools that could answer."""

    needs_signals: bool
    hard_preferences: bool
    """It knows the cheapest and the best pool: a quality of 0 or 1 holds even without signals."""

    def wants_judgement(self, context: RoutingContext) -> bool:
        """Whether a judge must be asked before it can choose."""
        return False

    def choose(self, context: RoutingContext, candidates: Candidates) -> Choice:
        """The pool and why; `context.signals` is there if `needs_signals`, except for a hard preference."""
        ...
