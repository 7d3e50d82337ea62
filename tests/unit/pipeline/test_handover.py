"""Requests that a pool did not answer."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from builders import POOLS, FakeEncoder, config, controller_state, raw
from deciding import LONELY, chat, edited, outcome_of, pipeline, request

from semroute_extproc.config.models import Config
from semroute_extproc.outcome import Kind, Outcome
from semroute_extproc.request.handover import FAILURE_HEADER, HANDOVER_HEADER
from semroute_extproc.request.view import Api, Decide, RequestHead


async def test_a_request_that_is_handed_back_is_restored_though_only_python_reads_it() -> None:
    settings = config(controllers={"failover": {}}, policies={"main": {"otherwise": {"pool": "small"}}})
    subject, _ = pipeline(settings)
    first = await subject.decide(request(LONELY))
    assert first.pool == "small"
    assert first.handover is not None
    back = {HANDOVER_HEADER: first.handover.header, FAILURE_HEADER: "503"}
    second = await subject.decide(request(first.body, **back))
    assert (second.pool, second.failed and second.failed.tried) == ("large", ("small",))
    expected = {**json.loads(LONELY), "model": "m-l"}
    assert repr(json.loads(second.body or b"")) == repr(expected)


class TestFailover:
    """`small` is chosen first; `large`, and for a prompt without tools `eyes`, could answer too."""

    SETTINGS = config(controllers={"failover": {}})

    async def handed_back(self, first: Outcome, failure: str = "500", **more: Any) -> Outcome:
        """The outcome after the pool of `first` failed; `more` as of `pipeline`."""
        assert first.handover is not None
        assert first.body is not None
        headers = {HANDOVER_HEADER: first.handover.header, FAILURE_HEADER: failure}
        more.setdefault("encoder", FakeEncoder(lambda _: raw(-5.0)))
        subject, failures = pipeline(more.pop("settings", self.SETTINGS), **more)
        outcome = await subject.decide(
            Decide(RequestHead("POST", "/v1/chat/completions", headers), Api.CHAT_COMPLETIONS, first.body)
        )
        assert failures == []
        return outcome

    async def first(self, body: dict[str, Any] | None = None, settings: Config | None = None) -> Outcome:
        encoder = FakeEncoder(lambda _: raw(-5.0))
        return await outcome_of(request(body or chat()), settings or self.SETTINGS, encoder)

    async def test_a_decision_with_another_pool_left_has_a_plan(self) -> None:
        outcome = await self.first()
        assert (outcome.pool, outcome.cluster) == ("small", "s")
        assert outcome.handover is not None
        assert (outcome.handover.tried, outcome.handover.cluster) == (("small",), "s-or-next")

    async def test_the_policys_next_pool_gets_what_the_client_sent(self) -> None:
        outcome = await self.handed_back(await self.first(chat(seed=7)))
        assert (outcome.kind, outcome.pool) == (Kind.ROUTED, "large")
        assert edited(outcome) == chat(model="m-l", seed=7)
        assert outcome.reason.startswith("small failed (500): ")
        assert outcome.reason.endswith("but small lacks a working server (500)")

    async def test_pools_max_bounds_the_pools_of_a_request(self) -> None:
        second = await self.handed_back(await self.first())
        assert second.handover is not None
        assert second.handover.tried == ("small", "large")
        third = await self.handed_back(second, "503")
        assert third.pool == "eyes"
        assert third.handover is None

    async def test_only_pools_that_can_serve_the_request_are_left(self) -> None:
        tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
        long = [{"role": "user", "content": "some words " * 8_000}]
        first = await self.first(chat(tools=tools, messages=long))
        assert first.pool == "large"
        assert first.handover is None

    async def test_what_a_server_stores_has_no_plan_unless_it_is_allowed(self) -> None:
        assert (await self.first(chat(store=True))).handover is None
        allowed = config(controllers={"failover": {"stored": True}})
        assert (await self.first(chat(store=True), allowed)).handover is not None

    @pytest.mark.parametrize("model", ["m-s", "nobody"])
    async def test_a_request_without_another_pool_has_no_plan(self, model: str) -> None:
        """A named model is served by one pool, and an unknown one goes to the default pool."""
        assert (await self.first(chat(model=model))).handover is None

    async def test_a_named_model_goes_to_the_next_pool_with_that_model(self) -> None:
        twins = {**POOLS, "twin": {**POOLS["small"], "cluster": "t"}}
        settings = config(pools=twins, controllers={"failover": {}})
        first = await self.first(chat(model="m-s"), settings)
        assert first.body is None
        assert first.handover is not None
        sent = msgspec.structs.replace(first, body=json.dumps(chat(model="m-s")).encode())
        second = await self.handed_back(sent, settings=settings)
        assert (second.kind, second.pool, second.handover) == (Kind.NAMED, "twin", None)

    async def test_a_named_model_with_a_policy_goes_to_no_other_model(self) -> None:
        guarded = {name: {**pool, "policy": "guard"} for name, pool in POOLS.items()}
        policies = {"main": {"otherwise": {"pool": "small"}}, "guard": {"otherwise": {"pool": "large"}}}
        twin = {**guarded["large"], "cluster": "t"}
        alone = config(pools=guarded, policies=policies, controllers={"failover": {"failures": 1}})
        assert (await self.first(chat(model="m-l"), alone)).handover is None
        two = config(pools={**guarded, "twin": twin}, policies=policies, controllers=alone.controllers)
        state = controller_state(two)
        first = await self.first(chat(model="m-l"), two)
        assert first.body is None, "Envoy has it as it is"
        sent = msgspec.structs.replace(first, body=json.dumps(chat(model="m-l")).encode())
        second = await self.handed_back(sent, settings=two, controllers=state)
        assert (first.pool, second.pool, second.handover) == ("large", "twin", None)
        assert second.reason == "large failed (500): always large"
        subject, _ = pipeline(two, controllers=state)
        assert (await subject.decide(request(chat(model="m-l")))).pool == "twin"

    async def test_a_named_model_whose_strategy_chose_a_failing_pool_is_answered_by_the_named_one(
        self,
    ) -> None:
        pools = {**POOLS, "large": {**POOLS["large"], "policy": "main"}}
        settings = config(pools=pools, controllers={"failover": {"failures": 1}})
        state = controller_state(settings)
        first = await self.first(chat(model="m-l"), settings)
        second = await self.handed_back(first, settings=settings, controllers=state)
        assert (first.pool, second.pool, second.handover) == ("small", "large", None)
        assert second.model == "m-l"
        assert second.reason.startswith("small failed (500): difficulty ")
        assert second.reason.endswith(", but small fails, so the named model answers")
        subject, _ = pipeline(settings, FakeEncoder(lambda _: raw(-5.0)), controllers=state)
        later = await subject.decide(request(chat(model="m-l")))
        assert (later.pool, later.failed) == ("large", None), "the failing pool is not asked again"

    async def test_a_rule_of_a_named_model_has_no_way_around_it(self) -> None:
        pools = {**POOLS, "large": {**POOLS["large"], "policy": "main"}}
        policies = {"main": {"otherwise": {"pool": "small"}}}
        settings = config(pools=pools, policies=policies, controllers={"failover": {}})
        assert (await self.first(chat(model="m-l"), settings)).handover is None

    async def test_a_failing_pool_is_left_out_before_it_is_asked(self) -> None:
        state = controller_state(config(controllers={"failover": {"failures": 1}}))
        second = await self.handed_back(await self.first(), controllers=state)
        assert second.pool == "large"
        subject, _ = pipeline(self.SETTINGS, FakeEncoder(lambda _: raw(-5.0)), controllers=state)
        outcome = await subject.decide(request(chat()))
        assert (outcome.pool, outcome.failed) == ("large", None)
        assert outcome.reason.endswith("but small lacks a working server (500)")

    async def test_shadows_see_a_request_once(self) -> None:
        policies = {
            "main": {"otherwise": {"strategy": "s"}, "shadow": ["other"]},
            "other": {"otherwise": {"pool": "large"}},
        }
        settings = config(policies=policies, controllers={"failover": {}})
        first = await self.first(settings=settings)
        assert len(first.shadows) == 1
        assert (await self.handed_back(first, settings=settings)).shadows == ()

    async def test_without_the_setting_nothing_is_handed_over_or_back(self) -> None:
        first = await self.first(settings=config())
        assert first.handover is None
        planned = await self.first()
        outcome = await self.handed_back(planned, settings=config())
        assert (outcome.kind, outcome.pool, outcome.failed) == (Kind.NAMED, "small", None)
