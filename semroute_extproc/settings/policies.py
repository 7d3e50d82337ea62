"""Policies: rules, first match wins, and the target of all other requests. Pure."""

from typing import Annotated, Any, ClassVar, Self

from pydantic import BeforeValidator, Field, model_validator

from semroute_extproc.settings import base
from semroute_extproc.settings.base import EffortSetting, Model, Name, PolicyName, PoolName, StrategyName


class Band(Model):
    """A reasoning effort for difficulties up to a limit."""

    below: float | None = Field(None, gt=0, le=1, description="Upper limit; the last band has none.")
    effort: EffortSetting = Field(description="Reasoning effort within the band; `off`: none.")


class Reasoning(Model):
    """The reasoning effort to request: one value, or a value per band of difficulty."""

    effort: EffortSetting | None = Field(None, description="One effort for all requests; `off`: none.")
    bands: tuple[Band, ...] | None = Field(None, max_length=8, description="Efforts by ascending difficulty.")
    override: bool = Field(False, description="Replace the effort of the client, if it set one.")
    one_of: ClassVar = ("effort", "bands")

    @model_validator(mode="after")
    def _ascending(self) -> Self:
        if self.bands is not None:
            ends = [band.below for band in self.bands if band.below is not None]
            if len(ends) != len(self.bands) - 1 or self.bands[-1].below is not None:
                raise ValueError("the last band, and only it, must omit `below`")
            if ends != sorted(set(ends)):
                raise ValueError("the bands' `below` must ascend")
        return self


def _plain(value: Any) -> Any:
    return {"effort": value} if isinstance(value, str | bool) else value


ReasoningSetting = Annotated[
    Reasoning, BeforeValidator(_plain, json_schema_input_type=base.EffortInput | Reasoning)
]
"""An effort by itself is short for `{effort: …}`."""


class Target(Model):
    """Where a request goes: a pool, or the pool that a strategy selects; or that it is refused."""

    pool: PoolName | None = Field(None, description="Name of a pool.")
    strategy: StrategyName | None = Field(None, description="Name of a strategy.")
    deny: Annotated[str, Field(min_length=1, max_length=500)] | None = Field(
        None, description="Refuse the request with HTTP 403 and this message."
    )
    reasoning: ReasoningSetting | None = Field(
        None,
        description="Reasoning effort to request if the client set none; `off`: none. Or "
        "`{bands: [{below: 0.3, effort: off}, {effort: high}], override: true}`.",
    )

    one_of: ClassVar = ("pool", "strategy", "deny")


class Rule(Target):
    """A target with a condition."""

    name: Name = Field(description="Shown in the reason of a decision and in metrics.")
    when: str = Field(max_length=4_096, description="A CEL expression over the request and its signals.")


class Policy(Model):
    """Rules, where the first match wins, and the target of all other requests."""

    rules: tuple[Rule, ...] = Field((), max_length=base.RULES_MAX)
    otherwise: Target
    shadow: Annotated[tuple[PolicyName, ...], BeforeValidator(base.several)] = Field(
        (), max_length=4, description="Shadow policies: their decisions are recorded but have no effect."
    )
    shadow_share: base.Share = Field(
        0.0, description="Share of requests for which signals or judgments are computed only for shadows."
    )
