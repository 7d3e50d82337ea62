"""Policies: rules, first match wins, and the target of everything else. Pure."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, GetJsonSchemaHandler, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from semroute_extproc.settings.base import EFFORTS, RULES_MAX, EffortSetting, Model, Name, several

BANDS_MAX = 8
"""Most bands of difficulty of one target."""

SHADOWS_MAX = 4
"""Most shadows of one policy."""


class Band(Model):
    """An effort up to a difficulty."""

    below: float | None = Field(None, gt=0, le=1, description="The band ends here; the last band is open.")
    effort: EffortSetting = Field(description="Reasoning effort within the band; `off` for none.")


class Reasoning(Model):
    """How hard the model is asked to think: one effort, or an effort by difficulty."""

    effort: EffortSetting | None = Field(None, description="One effort for all; `off` for none.")
    bands: tuple[Band, ...] | None = Field(
        None,
        max_length=BANDS_MAX,
        description="Efforts by difficulty, ascending; the last band has no `below`.",
    )
    override: bool = Field(False, description="Replace the client's own effort; else the client's stays.")

    @model_validator(mode="after")
    def _one_way(self) -> Reasoning:
        if (self.effort is None) == (self.bands is None):
            raise ValueError("give exactly one of effort and bands")
        if self.bands is not None:
            ends = [band.below for band in self.bands]
            if not ends or ends[-1] is not None or None in ends[:-1]:
                raise ValueError("the last band, and no other, has no `below`")
            numbers = [end for end in ends if end is not None]
            if any(low >= high for low, high in itertools.pairwise(numbers)):
                raise ValueError("the bands' `below` must ascend")
        return self

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        """An effort may be given by itself."""
        full = handler.resolve_ref_schema(handler(schema))
        effort = {"enum": ["off", "on", *EFFORTS, False, True]}
        return {"anyOf": [effort, full], "description": full.get("description", "")}


def _plain(value: Any) -> Any:
    return {"effort": value} if isinstance(value, str | bool) else value


ReasoningSetting = Annotated[Reasoning, BeforeValidator(_plain)]
"""An effort by itself is short for `{effort: …}`."""


class Target(Model):
    """Where a request goes: to a pool, or to the choice of a strategy."""

    pool: str | None = Field(None, description="Name of a pool.")
    strategy: str | None = Field(None, description="Name of a strategy.")
    reasoning: ReasoningSetting | None = Field(
        None,
        description="Reasoning effort to ask for, unless the client set one; `off` for none. Or "
        "`{bands: [{below: 0.3, effort: off}, {effort: high}], override: true}`.",
    )

    @model_validator(mode="after")
    def _one_target(self) -> Target:
        if (self.pool is None) == (self.strategy is None):
            raise ValueError("give exactly one of pool and strategy")
        return self


class Rule(Target):
    """A target with a condition."""

    name: Name = Field(description="Shown in the decision's reason and in metrics.")
    when: str = Field(max_length=4_096, description="A CEL expression over the request and its signals.")


class Policy(Model):
    """Rules, first match wins, and where everything else goes."""

    rules: tuple[Rule, ...] = Field((), max_length=RULES_MAX)
    otherwise: Target
    shadow: Annotated[tuple[str, ...], BeforeValidator(several)] = Field(
        (),
        max_length=SHADOWS_MAX,
        description="Policies that decide in the shadow of this one; recorded, never acted on.",
    )
    shadow_share: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Share of the requests for which a shadow lacks signals or a judgement, drawn by request "
        "id, that get them for the shadows alone.",
    )

    def targets(self) -> Iterator[tuple[tuple[str | int, ...], Target]]:
        """Every target with its place in the policy."""
        yield from ((("rules", index), rule) for index, rule in enumerate(self.rules))
        yield ("otherwise",), self.otherwise
