"""A new routing idea is one file and one line in the registry: nothing else has to know it."""

from __future__ import annotations

from typing import Any

import pytest
from builders import POOLS, decided, plans
from longest_context import LongestContextSettings
from pydantic import Field, ValidationError

from semroute_extproc.config.models import Config, contradictions, names_in
from semroute_extproc.policy.context import RoutingContext
from semroute_extproc.request.view import Api, RequestHead, RequestView
from semroute_extproc.strategies.registry import IDEAS, setting_of

SETTING: Any = setting_of((*IDEAS, LongestContextSettings))


class Extended(Config):
    """The configuration with the toy's line in the registry."""

    strategies: dict[str, SETTING] = Field(default_factory=dict)


def extended(controllers: dict[str, Any] | None = None, **settings: Any) -> Extended:
    document = {
        "pools": POOLS,
        "default_pool": "small",
        "models": {"auto": {"policy": "main"}},
        "policies": {"main": {"otherwise": {"strategy": "s"}}},
        "controllers": controllers or {},
        "strategies": {"s": {"kind": "longest-context", "pools": ["small", "eyes", "large"], **settings}},
    }
    return Extended.model_validate(document, context=names_in(document))


def test_a_new_idea_routes() -> None:
    view = RequestView(api=Api.CHAT_COMPLETIONS, model="auto")
    request = RoutingContext(RequestHead("POST", "/"), view, "en", 10)
    decision = decided(plans(extended())["main"], request)
    assert (decision.pool, decision.strategy, decision.reason) == ("large", "s", "longest context")


def test_its_settings_are_checked_like_all_others() -> None:
    with pytest.raises(ValidationError):
        extended(pool="small")
    with pytest.raises(ValidationError, match=r"there is no pool 'larg' \(did you mean 'large'\?\)"):
        extended(pools=["small", "larg"])
    [problem] = contradictions(extended({"budgets": {"s": {"strong_share": 0.5}}}))
    assert problem.message.startswith("this strategy has no weak and strong pool")
