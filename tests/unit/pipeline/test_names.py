"""Models under other names, and policies of pools that a client names."""

from __future__ import annotations

import json
from typing import Any

import pytest
from builders import POOLS, config
from deciding import chat, edited, named, outcome_of, request
from pydantic import ValidationError

from semroute_extproc.outcome import Cause, Kind
from semroute_extproc.policy.context import Agreement, Shadow
from semroute_extproc.request.view import Api


class TestNames:
    MODELS = {"auto": {"policy": "main", "aliases": "claude-*"}}
    ALIASED = {**POOLS, "small": {**POOLS["small"], "aliases": "gpt-4o-mini"}}

    @pytest.mark.parametrize("asked", ["gpt-4o-mini", "GPT-4o-mini", "M-S"])
    async def test_another_name_of_a_pool_is_replaced_with_its_own(self, asked: str) -> None:
        outcome = await outcome_of(request(chat(model=asked)), config(pools=self.ALIASED))
        assert (outcome.kind, outcome.pool) == (Kind.NAMED, "small")
        assert edited(outcome) == chat(model="m-s")

    @pytest.mark.parametrize("asked", ["Auto", "claude-opus-5", "Claude-Haiku"])
    async def test_another_name_of_a_routed_model_is_routed(self, asked: str) -> None:
        outcome = await outcome_of(request(chat(model=asked)), config(models=self.MODELS))
        assert outcome.kind is Kind.ROUTED
        assert outcome.view is not None
        assert outcome.view.model == asked

    @pytest.mark.parametrize("body", [chat(), chat(model="m-l"), {"messages": chat()["messages"]}])
    async def test_the_model_of_the_path_wins_over_that_of_the_body(self, body: dict[str, Any]) -> None:
        outcome = await outcome_of(named(request(body), "m-s"))
        assert (outcome.kind, outcome.pool, edited(outcome)["model"]) == (Kind.NAMED, "small", "m-s")
        assert (await outcome_of(named(request(body), "auto"))).kind is Kind.ROUTED

    @pytest.mark.parametrize("api", sorted(set(Api) - {Api.CHAT_COMPLETIONS}))
    async def test_a_pools_own_name_is_honored_on_every_path(self, api: Api) -> None:
        outcome = await outcome_of(request({"model": "m-s", "query": "x"}, api))
        assert (outcome.kind, outcome.pool, outcome.body) == (Kind.NAMED, "small", None)

    @pytest.mark.parametrize("api", [Api.TOKENIZE, Api.OTHER, Api.COUNT_TOKENS])
    async def test_what_every_pool_serves_follows_the_policy_without_text(self, api: Api) -> None:
        fixed = config(policies={"main": {"otherwise": {"pool": "small"}}})
        outcome = await outcome_of(request({"model": "auto", "prompt": "x"}, api), fixed)
        assert (outcome.kind, outcome.pool, edited(outcome)["model"]) == (Kind.ROUTED, "small", "m-s")
        outcome = await outcome_of(request({"model": "auto", "prompt": "x"}, api))
        assert (outcome.kind, outcome.cause, outcome.pool) == (Kind.FALLBACK, Cause.NO_TEXT, "large")
        assert edited(outcome)["model"] == "m-l", "the default pool is asked for its own model"

    @pytest.mark.parametrize("api", [Api.RERANK, Api.SCORE, Api.POOLING, Api.CLASSIFY, Api.SPEECH])
    async def test_an_api_of_some_models_goes_to_a_pool_that_serves_it(self, api: Api) -> None:
        pools = {**POOLS, "small": {**POOLS["small"], "apis": [api.value]}}
        outcome = await outcome_of(request({"model": "auto"}, api), config(pools=pools))
        assert (outcome.pool, edited(outcome)) == ("small", {"model": "m-s"})
        outcome = await outcome_of(request({"model": "auto"}, api))
        assert (outcome.kind, outcome.cause) == (Kind.REJECTED, Cause.NO_POOL)
        assert f"the {api} API" in outcome.reason


class TestPoliciesOfNamedModels:
    RULES = [
        {"name": "interns", "when": 'request.tenant == "interns"', "deny": "Ask for access to m-l"},
        {"name": "spare", "when": "max_output_tokens > 100", "pool": "small"},
    ]
    GUARDED = config(
        pools={**POOLS, "large": {**POOLS["large"], "policy": "guard"}},
        policies={
            "main": {"otherwise": {"strategy": "s"}},
            "guard": {"rules": RULES, "otherwise": {"pool": "large"}},
        },
    )

    async def test_a_rule_may_deny_a_request_that_names_a_pool(self) -> None:
        asked = request(chat(model="m-l"), x_semroute_tenant="interns")
        outcome = await outcome_of(asked, self.GUARDED)
        assert (outcome.kind, outcome.cause) == (Kind.REJECTED, Cause.DENIED)
        assert outcome.answer is not None
        assert outcome.answer.status == 403
        error = json.loads(outcome.answer.body)["error"]
        assert (error["code"], error["message"]) == ("denied", "Ask for access to m-l.")

    async def test_a_denial_has_the_shape_of_the_api(self) -> None:
        asked = request(chat(model="m-l"), Api.MESSAGES, x_semroute_tenant="interns")
        answer = (await outcome_of(asked, self.GUARDED)).answer
        assert answer is not None
        assert json.loads(answer.body)["type"] == "error"

    async def test_a_rule_may_send_it_to_another_pool_and_without_one_it_stays(self) -> None:
        moved = await outcome_of(request(chat(model="m-l", max_tokens=200)), self.GUARDED)
        assert (moved.kind, moved.pool, edited(moved)["model"]) == (Kind.ROUTED, "small", "m-s")
        stays = await outcome_of(request(chat(model="m-l")), self.GUARDED)
        assert (stays.kind, stays.pool) == (Kind.ROUTED, "large")

    async def test_a_pool_without_a_policy_is_named_as_before(self) -> None:
        asked = request(chat(model="m-s"), x_semroute_tenant="interns")
        assert (await outcome_of(asked, self.GUARDED)).kind is Kind.NAMED

    async def test_a_shadow_that_would_deny_is_undecided(self) -> None:
        policies = {
            "main": {"otherwise": {"pool": "large"}, "shadow": "no"},
            "no": {"otherwise": {"deny": "No"}},
        }
        outcome = await outcome_of(request(chat()), config(policies=policies))
        assert (outcome.pool, outcome.shadows) == ("large", (Shadow("main", "no", Agreement.UNDECIDED),))

    def test_an_unknown_policy_is_a_configuration_error(self) -> None:
        pools = {**POOLS, "large": {**POOLS["large"], "policy": "gard"}}
        with pytest.raises(ValidationError, match="there is no policy 'gard'"):
            config(pools=pools)
