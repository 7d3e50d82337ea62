"""Shadow policies."""

from __future__ import annotations

import asyncio
import dataclasses

from builders import FakeEncoder, config, controller_state, plans, raw
from deciding import TURNS, chat, conversation, outcome_of, pipeline, request, two_policies

from semroute_extproc.outcome import Kind
from semroute_extproc.policy.context import Agreement, Shadow
from semroute_extproc.request.view import Api


class TestShadows:
    async def test_shadows_are_recorded_and_not_acted_on(self) -> None:
        settings = config(policies=two_policies(shadow=["other", "same"]))
        outcome = await outcome_of(request(chat()), settings, FakeEncoder(lambda _: raw(5.0)))
        assert (outcome.pool, outcome.policy) == ("large", "main")
        found = [(s.policy, s.shadow, s.pool, s.agreement) for s in outcome.shadows]
        assert found == [
            ("main", "other", "eyes", Agreement.DIFFER),
            ("main", "same", "large", Agreement.AGREE),
        ]

    async def test_a_shadow_causes_no_encoder_pass_of_its_own(self) -> None:
        encoder = FakeEncoder()
        settings = config(policies=two_policies(shadow="same", otherwise={"pool": "small"}))
        outcome = await outcome_of(request(chat()), settings, encoder)
        assert [shadow.agreement for shadow in outcome.shadows] == [Agreement.UNDECIDED]
        assert encoder.texts == []

    async def test_a_share_may_be_encoded_for_shadows_after_the_request_has_gone(self) -> None:
        told: list[Shadow] = []
        encoder = FakeEncoder(lambda _: raw(5.0), delay=0.2)
        policies = two_policies(shadow="same", shadow_share=0.5, otherwise={"pool": "small"})
        settings = config(server={"deadline_ms": 5_000}, policies=policies)
        subject, _ = pipeline(settings, encoder, told=told)
        outcomes = [await subject.decide(request(chat(f"q{n}"), x_request_id=f"id-{n}")) for n in range(40)]
        at_once = [outcome for outcome in outcomes if outcome.shadows]
        while len(told) + len(at_once) < 40:
            await asyncio.sleep(0.02)
        assert 8 < len(told) < 32
        assert {(shadow.pool, shadow.agreement) for shadow in told} == {("large", Agreement.DIFFER)}
        assert min(outcome.total_ms for outcome in outcomes) < 100.0

    async def test_a_shadow_that_fails_is_counted_and_the_request_goes_its_way(self) -> None:
        settings = config(policies=two_policies(shadow="other"))
        broken = dataclasses.replace(plans(settings)["other"], pools={})
        found = {**plans(settings), "other": broken}
        subject, failures = pipeline(settings, FakeEncoder(lambda _: raw(5.0)), plans=found)
        outcome = await subject.decide(request(chat(), x_request_id="r1"))
        assert (outcome.kind, outcome.pool) == (Kind.ROUTED, "large")
        assert [shadow.agreement for shadow in outcome.shadows] == [Agreement.ERROR]
        assert failures == ["r1"]

    async def test_a_pass_for_shadows_that_fails_is_counted_and_leaves_them_undecided(self) -> None:
        told: list[Shadow] = []
        policies = two_policies(shadow="same", shadow_share=1.0, otherwise={"pool": "small"})
        subject, failures = pipeline(config(policies=policies), FakeEncoder(ZeroDivisionError()), told=told)
        assert (await subject.decide(request(chat(), x_request_id="r1"))).kind is Kind.ROUTED
        async with asyncio.timeout(5):
            while not told:
                await asyncio.sleep(0.01)
        assert [shadow.agreement for shadow in told] == [Agreement.UNDECIDED]
        assert failures == ["r1"]

    async def test_a_shadow_does_not_know_which_pool_the_live_conversation_is_in(self) -> None:
        encoder = FakeEncoder(lambda text: raw(3.0 if "prove" in text else -3.0))
        settings = config(policies=two_policies(shadow="same"), controllers={"session": {"margin": 0.9}})
        subject, _ = pipeline(settings, encoder)
        await subject.decide(request(conversation(TURNS[:1])))
        later = await subject.decide(request(conversation(TURNS)))
        assert (later.pool, later.session) == ("small", "kept")
        assert [shadow.pool for shadow in later.shadows] == ["large"]

    async def test_a_shadow_that_no_pool_can_answer_for_is_undecided(self) -> None:
        settings = config(policies=two_policies(shadow="other", otherwise={"pool": "small"}))
        blind = {"large": settings.pools["large"].model_copy(update={"apis": (Api.EMBEDDINGS,)})}
        found = plans(settings)
        found["other"] = dataclasses.replace(found["other"], pools=blind)
        subject, failures = pipeline(settings, plans=found)
        outcome = await subject.decide(request(chat()))
        assert [shadow.agreement for shadow in outcome.shadows] == [Agreement.UNDECIDED]
        assert failures == []

    async def test_a_shadow_teaches_the_controllers_nothing(self) -> None:
        settings = config(
            policies=two_policies(shadow="same", otherwise={"pool": "small"}),
            controllers={"budgets": {"s": {"strong_share": 0.3}}, "session": {}},
        )
        controllers = controller_state(settings)
        subject, _ = pipeline(settings, controllers=controllers)
        await subject.decide(request(chat()))
        assert controllers.status()["budgets"]["s"]["requests"] == 0
