"""Controllers, which change the trade-off of cost and quality at runtime. Pure."""

from typing import Annotated, ClassVar, Literal, Self, TypeVar
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, field_validator, model_validator

from semroute_extproc.settings import base
from semroute_extproc.settings.base import HeaderNames, Model, PoolName, Share, StrategyName, Url

Measure = Literal["queue", "waiting", "running", "kv_cache_usage"]
"""A gauge of a pool, or `queue`: waiting requests per running request."""

STORE_SCHEMES = ("redis://", "rediss://", "valkey://", "valkeys://", "unix://")

SESSION_HEADERS = (
    *("x-semroute-session", "x-claude-code-session-id", "session-id", "session_id", "x-session-id"),
    "x-conversation-id",
)
SESSION_MEMBERS = (
    *("conversation", "prompt_cache_key", "metadata.session_id", "metadata.conversation_id"),
    "metadata.user_id",
)

T = TypeVar("T")
ByStrategy = Annotated[dict[StrategyName, T], Field(max_length=base.STRATEGIES_MAX)]
MemberName = Annotated[str, Field(pattern=r"^(conversation|prompt_cache_key|metadata\..{1,64})$")]


class Ramp(Model):
    """The range of a measure over which its pressure rises from 0 to 1."""

    begin: float = Field(ge=0, description="Highest value without pressure.")
    full: float = Field(gt=0, description="Lowest value with full pressure.")

    @model_validator(mode="after")
    def _ascending(self) -> Self:
        if self.begin >= self.full:
            raise ValueError("begin must be below full")
        return self


Ramps = dict[Measure, Ramp]


class LoadController(Model):
    """Computes pressure from pool gauges; a pool under pressure gets a smaller share of the requests."""

    ramps: Ramps = Field(
        {"queue": Ramp(begin=0.0, full=1.0), "kv_cache_usage": Ramp(begin=0.9, full=1.0)},
        min_length=1,
        description="Ramp per measure; the highest pressure is used. `queue` is waiting / running requests.",
    )
    pools: dict[PoolName, Ramps] = Field({}, max_length=base.POOLS_MAX, description="Ramps of single pools.")
    rise_seconds: float = Field(3, gt=0, le=3_600, description="Time constant of rising pressure.")
    fall_seconds: float = Field(15, gt=0, le=3_600, description="Time constant of falling pressure.")
    dead_band: float = Field(0.05, ge=0, le=0.4, description="Smaller changes of the pressure are ignored.")
    stale_seconds: float = Field(10, gt=0, le=600, description="Age at which gauge values become invalid.")
    floor: Share = Field(0.05, description="Lowest strong share under pressure on the strong pool.")
    ceiling: Share | None = Field(
        None, description="Highest strong share under pressure on the weak pool; default: not raised."
    )


class Budget(Model):
    """Holds a strategy's strong share or cost at a target by a bias on the log-odds of its strong share."""

    strong_share: float | None = Field(None, gt=0, lt=1, description="Target share of the strong pool.")
    dollars_per_thousand: float | None = Field(None, gt=0, description="Target cost of 1000 requests.")
    output_tokens: int = Field(400, ge=1, description="Assumed answer length; limited by the client's limit.")
    window_requests: int | None = Field(
        None, ge=50, le=10_000_000, description="Averaging window in requests; default: 1000."
    )
    window_seconds: float | None = Field(None, ge=1, le=604_800, description="Averaging window, in seconds.")
    bias_max: float = Field(4, gt=0, le=8, description="Largest absolute bias on the log-odds.")
    one_of: ClassVar = ("strong_share", "dollars_per_thousand")

    @model_validator(mode="after")
    def _one_window(self) -> Self:
        if self.window_requests is not None and self.window_seconds is not None:
            raise ValueError("give at most one of window_requests and window_seconds")
        return self


class SharedStore(Model):
    """A Valkey or Redis server that every process of the sidecar shares; needs the extra `valkey`."""

    url: SecretStr = Field(description="`valkey://host:6379/0`, `rediss://…`, or `unix:///path`.")
    key: SecretStr = Field(min_length=16, description="Common key of the hashes that name entries.")
    timeout_ms: float = Field(2, gt=0, le=10, description="Lookup timeout; then the local memory is used.")
    replicas: int = Field(
        ge=1, le=1_000, description="Most processes at a time: replicas × workers, plus rolling updates."
    )

    @field_validator("url")
    @classmethod
    def _scheme(cls, value: SecretStr) -> SecretStr:
        if not value.get_secret_value().startswith(STORE_SCHEMES):
            raise ValueError("must begin with one of " + ", ".join(STORE_SCHEMES))
        try:
            urlsplit(value.get_secret_value()).port  # noqa: B018 - it raises
        except ValueError:
            raise ValueError("has an invalid port; in a password write / as %2F, @ as %40") from None
        return value


class Limit(Model):
    """What requests may spend in pools above the cheapest one; after that, they get the cheapest."""

    dollars: float | None = Field(None, gt=0, description="Dollars, by the pools' prices; else set `tokens`.")
    tokens: float | None = Field(None, gt=0, description="Limit in tokens of prompts and answers.")
    window_seconds: float = Field(
        86_400, ge=10, le=604_800, description="Length of a window; windows begin at multiples since 1970."
    )
    output_tokens: int = Field(400, ge=1, description="Assumed answer length; limited by the client's limit.")

    one_of: ClassVar = ("dollars", "tokens")


class Limits(Model):
    """Spending limits, each held by all processes together with `controllers.store`."""

    strategies: ByStrategy[Limit] = Field({}, description="By strategy.")
    tenants: dict[Annotated[str, Field(max_length=128)], Limit] = Field(
        {},
        max_length=1_024,
        description="By `x-semroute-tenant`, for each tenant; `*`: for each tenant that is not listed.",
    )


class SessionController(Model):
    """A conversation keeps its pool, and with it its prefix cache, unless a request is clearly harder."""

    strategies: tuple[StrategyName, ...] | None = Field(
        None, max_length=base.STRATEGIES_MAX, description="Strategies that sessions apply to; default: all."
    )
    headers: HeaderNames = Field(
        SESSION_HEADERS, description="Headers that name a conversation; the first one in the request counts."
    )
    members: tuple[MemberName, ...] = Field(
        SESSION_MEMBERS,
        max_length=base.NAMES_MAX,
        description="Members of the body that name it if no header does: `conversation`, `prompt_cache_key`, "
        "or `metadata.NAME`. In `metadata.user_id` only a session's ID counts, as Claude Code writes it.",
    )
    identity: HeaderNames = Field(
        ("x-semroute-tenant", "authorization", "x-api-key", "x-envoy-external-address"),
        description="Headers that identify a client; the first that Envoy forwards counts.",
    )
    response_ids: bool = Field(
        True, description="Set the ID of each response (vLLM's `request_id`), so that it identifies its pool."
    )
    margin: Share = Field(
        0.3,
        description="Part of the strong pool's scored traffic, lowest scores first, that does not move a "
        "conversation there. With a strong share of 0.2 and a margin of 0.3, the highest 14 % of scores do.",
    )
    ttl_seconds: float = Field(1_800, gt=0, le=604_800, description="Idle time until a conversation expires.")
    entries_max: int = Field(65_536, ge=1, le=16_777_216, description="Remembered requests; LRU eviction.")


class Failover(Model):
    """A request goes to the policy's next pool if its pool fails; needs clusters as in envoy/envoy.yaml."""

    cluster_suffix: str = Field(
        "-or-next",
        pattern=r"^[A-Za-z0-9_.:/@-]{1,32}$",
        description="A pool's `cluster` with this suffix is the Envoy cluster that reports its failures.",
    )
    pools_max: int = Field(3, ge=1, le=8, description="Most pools per request; 1: failures are final.")
    stored: bool = Field(
        False, description="Also repeat requests that ask a server to store something: `store`, `background`."
    )
    failures: int = Field(3, ge=1, le=1_000, description="Failures that exclude a pool, if half fail.")
    exclude_seconds: float = Field(
        15, gt=0, le=3_600, description="Window of the failures, and time until a request tests the pool."
    )
    envoy_admin: Url | None = Field(
        None,
        pattern=r"^http://[^\s/@]+/?$",
        max_length=256,
        description="Envoy's admin address, such as `http://127.0.0.1:9901`: a pool whose cluster has no "
        "healthy host there is excluded.",
    )


class Controllers(Model):
    """Controllers change the trade-off at runtime; each one is off unless it is configured."""

    load: LoadController | None = Field(None, description="Reduces the load of pools with `metrics`.")
    budgets: ByStrategy[Budget] = Field({}, description="By strategy.")
    limits: Limits | None = Field(None, description="Limits of dollars or tokens in a window.")
    session: SessionController | None = Field(None, description="Keeps a conversation in its pool.")
    store: SharedStore | None = Field(
        None, description="Shares conversations, limits, live scores and outcomes between processes."
    )
    failover: Failover | None = Field(None, description="Sends requests to another pool if one fails.")

    @property
    def envoy_admin(self) -> str | None:
        """Envoy's admin address, if it is known."""
        return self.failover.envoy_admin if self.failover else None
