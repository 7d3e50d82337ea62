"""What Envoy is told so that an answer can be accounted for."""

from __future__ import annotations

import msgspec
import pytest
from builders import FakeEncoder, config, raw
from deciding import chat, edited, outcome_of, request

from semroute_extproc.outcome import facts


class TestAccounting:
    """What Envoy is told so that an answer can be accounted for."""

    async def test_the_pools_that_could_have_answered_and_the_routed_model_are_told(self) -> None:
        encoder = FakeEncoder(lambda _: raw(-5.0))
        outcome = await outcome_of(request(chat()), config(accounting=True), encoder)
        assert outcome.candidates == ("small", "large", "eyes")
        told = facts(outcome)
        assert (told["candidates"], told["alias"]) == ("small large eyes", "auto")
        assert told["prompt_tokens"] == outcome.prompt_tokens > 0

    async def test_a_named_model_and_what_passes_through_have_their_pool_alone(self) -> None:
        settings = config(accounting=True)
        for body in (chat(model="m-s"), chat(model="unheard-of")):
            outcome = await outcome_of(request(body), settings)
            assert outcome.candidates == (outcome.pool,)
            assert "alias" not in facts(outcome)

    async def test_without_accounting_nothing_more_is_told(self) -> None:
        for body in (chat(), chat(model="m-s"), chat(model="unheard-of")):
            outcome = await outcome_of(request(body))
            assert outcome.candidates == ()
            assert facts(outcome).keys().isdisjoint({"candidates", "alias", "prompt_tokens"})

    @pytest.mark.parametrize("model", ["auto", "m-s"])
    async def test_usage_is_asked_for_if_the_operator_wants_it(self, model: str) -> None:
        encoder, body = FakeEncoder(lambda _: raw(-5.0)), chat(model=model, stream=True)
        asks = config(accounting={"include_usage": True})
        outcome = await outcome_of(request(body), asks, encoder)
        assert edited(outcome) == {**body, "model": "m-s", "stream_options": {"include_usage": True}}
        own = {"include_usage": False, "continuous_usage_stats": True}
        outcome = await outcome_of(request(chat(stream=True, stream_options=own)), asks, encoder)
        assert edited(outcome)["stream_options"] == own
        outcome = await outcome_of(request(body), config(accounting=True), encoder)
        assert outcome.body is None or "stream_options" not in edited(outcome)

    async def test_the_next_pool_gets_the_clients_own_options(self) -> None:
        settings = config(accounting={"include_usage": True}, controllers={"failover": {}})
        first = await outcome_of(request(chat(stream=True)), settings, FakeEncoder(lambda _: raw(-5.0)))
        assert first.handover is not None
        assert first.handover.original["stream_options"] == msgspec.Raw(b"null")
