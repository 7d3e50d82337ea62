"""Reasoning efforts and switches in the body for a pool."""

from __future__ import annotations

from typing import Any

import pytest
from builders import POOLS, FakeEncoder, config, raw
from deciding import chat, edited, outcome_of, request


async def test_a_rule_sets_the_reasoning_switch_of_the_pools_family() -> None:
    rules = [{"name": "r", "when": 'domain == "math"', "pool": "small", "reasoning": "off"}]
    settings = config(policies={"main": {"rules": rules, "otherwise": {"strategy": "s"}}})
    body = edited(await outcome_of(request(chat()), settings))
    assert body["chat_template_kwargs"] == {"enable_thinking": False}


async def test_the_clients_own_reasoning_switch_stays() -> None:
    rules = [{"name": "r", "when": "true", "pool": "small", "reasoning": "off"}]
    settings = config(policies={"main": {"rules": rules, "otherwise": {"strategy": "s"}}})
    own = {"chat_template_kwargs": {"enable_thinking": True}}
    body = edited(await outcome_of(request(chat(**own)), settings))
    assert body["chat_template_kwargs"] == {"enable_thinking": True}


async def test_an_override_replaces_the_clients_own_reasoning_switch() -> None:
    reasoning = {"effort": "off", "override": True}
    rules = [{"name": "r", "when": "true", "pool": "small", "reasoning": reasoning}]
    settings = config(policies={"main": {"rules": rules, "otherwise": {"strategy": "s"}}})
    own = {"chat_template_kwargs": {"enable_thinking": True, "other": 1}, "reasoning_effort": "high"}
    body = edited(await outcome_of(request(chat(**own)), settings))
    assert body["chat_template_kwargs"] == {"enable_thinking": False, "other": 1}
    assert body["reasoning_effort"] == "none"


async def test_the_effort_follows_the_difficulty_band() -> None:
    bands = {"bands": [{"below": 0.5, "effort": "off"}, {"effort": "high"}]}
    settings = config(policies={"main": {"otherwise": {"pool": "small", "reasoning": bands}}})
    for logit, thinks in ((-3.0, False), (3.0, True)):
        outcome = await outcome_of(request(chat()), settings, FakeEncoder(lambda _, at=logit: raw(at)))
        assert edited(outcome)["chat_template_kwargs"] == {"enable_thinking": thinks}


class TestClientsReasoning:
    async def members(self, family: str, own: dict[str, Any], **settings: Any) -> dict[str, Any]:
        pools = {"small": {**POOLS["small"], "reasoning": family}, "large": POOLS["large"]}
        fixed = config(pools=pools, policies={"main": {"otherwise": {"pool": "small"}}}, **settings)
        body = edited(await outcome_of(request(chat(**own)), fixed))
        return {name: value for name, value in body.items() if name not in ("model", "messages")}

    @pytest.mark.parametrize(
        ("family", "own", "sent"),
        [
            ("gpt-oss", {"reasoning_effort": "none"}, {"reasoning_effort": "low"}),
            ("gpt-oss", {"reasoning_effort": "max"}, {"reasoning_effort": "high"}),
            ("gpt-oss", {"reasoning_effort": "medium"}, {"reasoning_effort": "medium"}),
            (
                "deepseek-v3",
                {"reasoning_effort": "none"},
                {"reasoning_effort": "none", "chat_template_kwargs": {"thinking": False}},
            ),
            (
                "deepseek-v3",
                {"chat_template_kwargs": {"enable_thinking": True}},
                {"chat_template_kwargs": {"enable_thinking": True, "thinking": True}},
            ),
            ("kimi-k3", {"reasoning_effort": "medium"}, {"reasoning_effort": "high"}),
            (
                "qwen3",
                {"thinking": {"type": "disabled"}},
                {"thinking": {"type": "disabled"}, "chat_template_kwargs": {"enable_thinking": False}},
            ),
            ("always", {"reasoning_effort": "none"}, {"reasoning_effort": "none"}),
            (
                "qwen3",
                {"chat_template_kwargs": {"reasoning_mode": 1}},
                {"chat_template_kwargs": {"reasoning_mode": 1}},
            ),
            ("none", {"thinking_token_budget": 9}, {"thinking_token_budget": None}),
            ("qwen3", {"thinking_token_budget": 9}, {"thinking_token_budget": 9}),
        ],
    )
    async def test_it_is_translated_into_the_words_of_the_pools_family(
        self, family: str, own: dict[str, Any], sent: dict[str, Any]
    ) -> None:
        assert await self.members(family, own) == sent

    async def test_a_family_of_the_operators_own_has_a_switch_efforts_and_a_budget(self) -> None:
        family = {"argument": "deep", "on": True, "efforts": {"max": "ultra"}, "budget": True}
        own = {"reasoning_effort": "max", "thinking": {"type": "enabled", "budget_tokens": 512}}
        assert await self.members("own", own, reasoning_families={"own": family}) == {
            **own,
            "reasoning_effort": "ultra",
            "chat_template_kwargs": {"deep": True},
            "thinking_token_budget": 512,
        }

    async def test_the_switch_of_a_named_model_is_the_clients_own_affair(self) -> None:
        pools = {**POOLS, "small": {**POOLS["small"], "reasoning": "gpt-oss"}}
        asked = request(chat(model="m-s", reasoning_effort="none"))
        assert (await outcome_of(asked, config(pools=pools))).body is None
