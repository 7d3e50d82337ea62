"""What a policy and its strategies see of a request, and what they return. Pure."""

import enum
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, Protocol

from semroute_extproc.outcome import Cause
from semroute_extproc.request.envelope import LeftOut
from semroute_extproc.request.signals import Signals
from semroute_extproc.request.view import RequestHead, RequestView
from semroute_extproc.settings.base import Effort
from semroute_extproc.settings.pools import Pool

if TYPE_CHECKING:
    from semroute_extproc.state.ledger import Ledger
    from semroute_extproc.state.live import LiveScores


@dataclass(frozen=True, slots=True)
class Conditions:
    """The controllers' state: a snapshot, except for `traffic` and `limits`."""

    pressure: Mapping[str, float] = field(default_factory=dict)  # By pool, 0 (quiet or unknown) to 1 (full).
    bias: Mapping[str, float] = field(default_factory=dict)  # By strategy, on the log-odds of its share.
    traffic: "Mapping[str, LiveScores]" = field(default_factory=dict)  # By strategy that follows its traffic.
    floor: float = 0.0
    ceiling: float | None = None
    """Bounds of the strong share under pressure; without a ceiling, pressure never raises the share."""
    failing: Mapping[str, str] = field(default_factory=dict)  # Pools excluded after failures, and why.
    limits: "Mapping[str, Ledger]" = field(default_factory=dict)  # By strategy; the tenant's under "".


class Lock(enum.StrEnum):
    """Why a conversation must not change its pool: for STATEFUL, the pool stores its earlier turns."""

    NONE = ""
    TOOL_LOOP = "tool loop"
    STATEFUL = "state on the server"


@dataclass(frozen=True, slots=True)
class Held:
    """The pool a conversation is in."""

    pool: str
    lock: Lock = Lock.NONE
    margin: float = 0.0  # Fraction of the traffic above the threshold that does not move the conversation up.
    strategies: Collection[str] | None = None  # Strategies whose choices it may overrule; None for all.


class Judgment(NamedTuple):
    """The result of asking a judge."""

    score: float | None  # Probability that the strong model wins; None without an answer.
    result: str  # `ok`, `cache`, `timeout`, `breaker`, `busy`, `connection`, `http`, `unparsable`, `error`.


@dataclass(frozen=True, slots=True)
class RoutingContext:
    """Everything known about one request when it is decided."""

    head: RequestHead
    view: RequestView
    language: str
    prompt_tokens: int  # Likely tokens of the whole prompt, with system prompt and tool declarations.
    text: str = ""  # What is classified.
    quality: float | None = None  # Set by the client or the model's entry, 0 (cheapest) to 1 (best).
    left_out: tuple[LeftOut, ...] = ()  # Text of the turns that is not classified.
    housekeeping: str = ""  # What an application requests by itself, such as a title; else empty.
    signals: Signals | None = None
    fallback: Cause | None = None  # Why there are no signals; None if they are present or can be requested.
    draw_key: bytes = b""  # Keys the draws, see `policy.draw`.
    conditions: Conditions = field(default_factory=Conditions)
    judgments: Mapping[str, Judgment] = field(default_factory=dict)  # By strategy.
    bias: float = 0.0  # `conditions.bias` of the strategy that chooses; set by the policy.
    traffic: "LiveScores | None" = None  # `conditions.traffic` of that strategy.
    held: Held | None = None
    tried: Mapping[str, str] = field(default_factory=dict)  # Pools that failed this request, and how.
    bounds: tuple[int, int] | None = None  # Fewest and most tokens of the prompt; None if exact.
    counted: Mapping[str, tuple[int, int]] = field(default_factory=dict)  # By pool, from its tokenizer.
    unread: bool = False  # The body cannot be read: facts of it are not known.

    def bounds_in(self, pool: str) -> tuple[int, int]:
        """Fewest and most tokens of the prompt in a pool."""
        return self.counted.get(pool) or self.bounds or (self.prompt_tokens, self.prompt_tokens)

    @property
    def hard_preference(self) -> bool:
        """Whether the quality is 0 or 1: the cheapest or the best pool, whatever the score."""
        return self.quality is not None and not 0.0 < self.quality < 1.0


@dataclass(frozen=True, slots=True)
class Candidates:
    """The pools that can serve a request, the default pool first, and what the others lack.

    If pools failed, the others are ordered by cost.
    """

    pools: Mapping[str, Pool]
    excluded: Mapping[str, str] = field(default_factory=dict)
    untried: tuple[str, ...] = ()  # Those in `pools`, and the pools that are excluded after failures.
    doubtful: Mapping[str, str] = field(default_factory=dict)
    """Pools that the prompt may not fit, while it fits another: used only for a rule or stored state."""

    def first_of(self, *preferred: str) -> str:
        """The first of `preferred` that is a candidate, else the first candidate."""
        return next((name for name in preferred if name in self.pools), next(iter(self.pools)))


@dataclass(frozen=True, slots=True)
class Choice:
    """A strategy's choice."""

    pool: str  # If it is not a candidate, the first candidate in `stand_ins` replaces it.
    reason: str
    stand_ins: tuple[str, ...] = ()
    score: float | None = None
    threshold: float | None = None
    share: float | None = None  # The strong share, if controllers changed it.
    source: str = ""  # Where the threshold comes from, in words.
    sample: tuple[float, float, bool] | None = None  # For `LiveScores.learn`, if it is to learn.
    rise: float | None = None  # Fraction of the traffic above the threshold with a lower score.
    moved: tuple[tuple[str, str], ...] = ()  # Controllers that changed the trade-off, and how, in words.
    propensity: float | None = None  # Probability of the pool, if it was drawn.


class Near(NamedTuple):
    """A stored prompt or a cluster that a text is close to, for display."""

    name: str
    closeness: float  # A cosine or a membership.
    result: str


class Strategy(Protocol):
    """Chooses one of the candidate pools."""

    needs_signals: bool
    hard_preferences: bool  # Whether a quality of 0 or 1 selects a pool even without signals.
    follows: tuple[float, Sequence[float]] | None = None
    """Strong share and reference quantiles, if the share follows the strategy's own traffic."""

    def wants_judgment(self, context: RoutingContext) -> bool:
        """Whether to ask this strategy's judge first; False once the context has its judgment."""
        return False

    def near(self, signals: Signals) -> Sequence[Near]:
        """What the strategy knows of texts like this one, nearest first; for display."""
        return ()

    def choose(self, context: RoutingContext, candidates: Candidates) -> Choice:
        """Choose a pool; with `needs_signals`, signals are missing only if a hard preference decides."""
        ...


class Agreement(enum.StrEnum):
    """How a shadow's decision compares with the live one; a metric label."""

    AGREE = "agree"
    DIFFER = "differ"
    UNDECIDED = "undecided"  # Signals or a judgment are missing, or no pool can answer.
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class Shadow:
    """The decision of the policy `shadow`, compared with the live one of `policy`; never applied."""

    policy: str
    shadow: str
    agreement: Agreement
    pool: str = ""
    reason: str = ""


class TraceStep(NamedTuple):
    """One step of a decision, for display."""

    what: str  # `constraint`, `rule`, `judge`, `strategy`, `threshold`, `controller` or `reasoning`.
    name: str
    result: str


@dataclass(frozen=True, slots=True)
class Decision:
    """Where a request goes and why."""

    pool: str
    reason: str  # One short ASCII sentence; goes into metadata and from there into a response header.
    rule: str = ""
    strategy: str = ""
    choice: Choice | None = None  # The strategy's, even if the conversation stays in its pool.
    reasoning: Effort | None = None
    fallback: Cause | None = None  # Why the needed signals were missing; None if they were not.
    judge: str = ""  # `Judgment.result`; empty if no judge was asked.
    override: bool = False  # `reasoning` replaces the client's own setting.
    session: str = ""  # How the conversation's pool affected it: `locked`, `kept` or `moved`; else empty.
    canary: str = ""  # The policy, if a model's canary drew it.
    propensity: float | None = None  # Probability of the policy, if its model has a canary.
    limited: str = ""  # The limit that excluded pools: `strategy` or `tenant`.
    others: tuple[str, ...] = ()  # Pools that could serve the request if `pool` fails.
    trace: tuple[TraceStep, ...] = ()
