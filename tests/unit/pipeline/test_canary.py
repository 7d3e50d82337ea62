"""Shares of requests for another policy."""

from __future__ import annotations

from collections import Counter

import pytest
from builders import POOLS, config, wrong
from deciding import chat, pipeline, request, two_policies
from pydantic import ValidationError

from semroute_extproc.settings.pools import VirtualModel
from semroute_extproc.state.controllers import ControllerState


class TestCanary:
    @pytest.mark.parametrize(("secrets", "alike"), [((None, None), False), (("x" * 16,) * 2, True)])
    async def test_replicas_draw_alike_if_they_have_the_same_secret(
        self, secrets: tuple[str | None, str | None], alike: bool
    ) -> None:
        """Without a configured secret each process has a random one, which no client can know."""
        drawn = []
        for number, secret in enumerate(secrets):
            models = {"auto": {"policy": "main", "canary": {"other": 0.5}}}
            server = {"secret": secret} if secret else {}
            settings = config(
                policies=two_policies(otherwise={"pool": "small"}), models=models, server=server
            )
            subject, _ = pipeline(settings, controllers=ControllerState(b"random %d" % number))
            ids = [f"id-{n}" for n in range(64)]
            drawn.append([(await subject.decide(request(chat(), x_request_id=i))).policy for i in ids])
        assert (drawn[0] == drawn[1]) is alike

    async def test_a_share_of_the_requests_is_decided_by_another_policy(self) -> None:
        models = {"auto": {"policy": "main", "canary": {"other": 0.25}}}
        settings = config(policies=two_policies(otherwise={"pool": "small"}), models=models)
        subject, _ = pipeline(settings)
        ids = [f"id-{n}" for n in range(1_000)]
        drawn = [(await subject.decide(request(chat(), x_request_id=i))).policy for i in ids]
        assert Counter(drawn)["other"] / len(ids) == pytest.approx(0.25, abs=0.04)
        again = [await subject.decide(request(chat(), x_request_id=i)) for i in ids[:50]]
        assert [outcome.policy for outcome in again] == drawn[:50]
        canaries = [outcome.decision.canary for outcome in again if outcome.decision]
        assert canaries == ["other" if policy == "other" else "" for policy in drawn[:50]]

    @pytest.mark.parametrize(
        ("canary", "message"),
        [({"main": 0.5}, "is already the model's main policy"), ({"gone": 0.5}, "there is no policy")],
    )
    def test_a_canary_that_is_none_is_a_configuration_error(
        self, canary: dict[str, float], message: str
    ) -> None:
        models = {"auto": {"policy": "main", "canary": canary}}
        assert any(message in each for each in wrong(policies=two_policies(), models=models))

    def test_shares_beyond_the_whole_are_refused(self) -> None:
        with pytest.raises(ValidationError, match="add up to more than 1"):
            VirtualModel(policy="main", canary={"other": 0.6, "same": 0.6})

    async def test_a_share_of_the_requests_that_name_a_pools_model_is_decided_by_another_policy(self) -> None:
        policies = {"main": {"otherwise": {"pool": "large"}}, "other": {"otherwise": {"pool": "small"}}}
        large = {**POOLS["large"], "policy": "main", "canary": {"other": 0.25}}
        subject, _ = pipeline(config(policies=policies, pools={**POOLS, "large": large}))
        body = chat(model=POOLS["large"]["model"])
        drawn = [(await subject.decide(request(body, x_request_id=f"id-{n}"))).pool for n in range(1_000)]
        assert Counter(drawn)["small"] / len(drawn) == pytest.approx(0.25, abs=0.04)
        assert {*drawn} == {"small", "large"}

    def test_a_pools_canary_needs_a_policy(self) -> None:
        large = {**POOLS["large"], "canary": {"main": 0.5}}
        problems = wrong(policies=two_policies(), pools={**POOLS, "large": large})
        assert any("needs a policy, which the other requests get" in each for each in problems)
