"""Controllers: what moves the trade-off at runtime. Pure.

load      scraped gauges to pressure, and how far pressure may move a strong share
budgets   a strategy's strong share or cost, held to a target
session   a conversation keeps its pool
"""

from __future__ import annotations

from typing import Literal
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, field_validator, model_validator

from semroute_extproc.settings.base import POOLS_MAX, STRATEGIES_MAX, Model

Measure = Literal["queue", "waiting", "running", "kv_cache_usage"]
"""A gauge of a pool, or `queue`: waiting requests per running request."""

REMOTE_SCHEMES = ("redis://", "rediss://", "valkey://", "valkeys://", "unix://")
"""Schemes of the address of a Valkey or Redis."""

KEY_CHARACTERS_MIN = 16
"""Shortest shared key for the hashes of conversations."""


class Ramp(Model):
    """Where a measure's pressure begins, and where it is full."""

    begin: float = Field(ge=0, description="No pressure up to here.")
    full: float = Field(gt=0, description="Full pressure from here on.")

    @model_validator(mode="after")
    def _ascending(self) -> Ramp:
        if self.begin >= self.full:
            raise ValueError("begin must be below full")
        return self


Ramps = dict[Measure, Ramp]


def _ramps() -> Ramps:
    return {"queue": Ramp(begin=0.0, full=1.0), "kv_cache_usage": Ramp(begin=0.9, full=1.0)}


class LoadController(Model):
    """Pressure from the pools' gauges: a strong pool under pressure gives its easiest requests away."""

    ramps: Ramps = Field(
        default_factory=_ramps,
        min_length=1,
        description="Measure to ramp; the highest pressure counts. `queue` is waiting over running.",
    )
    pools: dict[str, Ramps] = Field({}, max_length=POOLS_MAX, description="Pool to ramps of its own.")
    rise_seconds: float = Field(3, gt=0, le=3_600, description="Time constant of a growing pressure.")
    fall_seconds: float = Field(15, gt=0, le=3_600, description="Time constant of a falling pressure.")
    dead_band: float = Field(0.05, ge=0, le=0.4, description="Smaller changes of the pressure are ignored.")
    stale_seconds: float = Field(
        10, gt=0, le=600, description="A load older than this is unknown; the pressure then falls."
    )
    floor: float = Field(
        0.05, ge=0, le=1, description="Strong share that pressure on the strong pool leaves at least."
    )
    ceiling: float | None = Field(
        None,
        ge=0,
        le=1,
        description="Strong share up to which pressure on the weak pool may push; none: it never pushes up.",
    )


class Budget(Model):
    """Holds a strategy of a pair to a target by a bias on the log-odds of its strong share."""

    strong_share: float | None = Field(None, gt=0, lt=1, description="Share that the strong pool gets.")
    dollars_per_thousand: float | None = Field(None, gt=0, description="Dollars per thousand requests.")
    output_tokens: int = Field(400, ge=1, description="Tokens of an answer; a client's lower limit counts.")
    window_requests: int | None = Field(
        None, ge=50, le=10_000_000, description="The target holds over this many requests; default 1000."
    )
    window_seconds: float | None = Field(
        None, ge=1, le=604_800, description="The target holds over this much time, instead."
    )
    bias_max: float = Field(4, gt=0, le=8, description="Largest bias on the log-odds, either way.")

    @model_validator(mode="after")
    def _one_of_each(self) -> Budget:
        if (self.strong_share is None) == (self.dollars_per_thousand is None):
            raise ValueError("give exactly one of strong_share and dollars_per_thousand")
        if self.window_requests is not None and self.window_seconds is not None:
            raise ValueError("give at most one of window_requests and window_seconds")
        return self


class RemoteSessions(Model):
    """A Valkey or Redis that the workers share; needs the extra `valkey`."""

    url: SecretStr = Field(description="`valkey://host:6379/0`, `rediss://…`, or `unix:///path`.")
    key: SecretStr = Field(
        description="Key of the hashes of conversations, the same in all workers; 16 characters or more."
    )
    timeout_ms: float = Field(2, gt=0, le=10, description="Longest lookup; else the local memory counts.")

    @field_validator("url")
    @classmethod
    def _scheme(cls, value: SecretStr) -> SecretStr:
        if not value.get_secret_value().startswith(REMOTE_SCHEMES):
            raise ValueError("must begin with one of " + ", ".join(REMOTE_SCHEMES))
        try:
            urlsplit(value.get_secret_value()).port  # noqa: B018 - it raises
        except ValueError:
            raise ValueError("has no port that can be read; in a password write / as %2F, @ as %40") from None
        return value

    @field_validator("key")
    @classmethod
    def _length(cls, value: SecretStr) -> SecretStr:
        if len(value.get_secret_value()) < KEY_CHARACTERS_MIN:
            raise ValueError(f"must have {KEY_CHARACTERS_MIN} characters or more")
        return value


class SessionController(Model):
    """A conversation keeps its pool, and with it its prefix cache, unless its need clearly rises."""

    strategies: tuple[str, ...] | None = Field(
        None, max_length=STRATEGIES_MAX, description="Strategies whose choices are held; default: all."
    )
    margin: float = Field(
        0.3,
        ge=0,
        le=1,
        description="The part of the strong pool's reference traffic, lowest scores first, that does not "
        "move a conversation there: with a strong share of 0.2, 0.3 leaves the highest 0.14. With 0 every "
        "score from the threshold on moves it, with 1 none within that traffic.",
    )
    ttl_seconds: float = Field(
        1_800, gt=0, le=604_800, description="A conversation without requests for this long is forgotten."
    )
    entries_max: int = Field(
        65_536, ge=1, le=16_777_216, description="Requests remembered to recognize conversations; LRU."
    )
    remote: RemoteSessions | None = None


class Controllers(Model):
    """What moves the trade-off at runtime; each part is off unless it is given."""

    load: LoadController | None = Field(None, description="Pressure from the gauges of pools with `metrics`.")
    budgets: dict[str, Budget] = Field({}, max_length=STRATEGIES_MAX, description="Strategy to its target.")
    session: SessionController | None = Field(None, description="A conversation keeps its pool.")
