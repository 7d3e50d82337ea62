"""Policies: rules, and where everything else goes.

Pure.
"""

from __future__ import annotations

from pydantic import Field, model_validator

from semroute_extproc.config.base import RULES_MAX, EffortSetting, Model, Name


class Target(Model):
    """Where a request goes: to a pool, or to what a strategy picks."""

    pool: str | None = Field(None, description="Name of a pool.")
    strategy: str | None = Field(None, description="Name of a strategy.")
    reasoning: EffortSetting | None = Field(
        None, description="Reasoning effort to ask for, unless the client set one; `off` for none."
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
