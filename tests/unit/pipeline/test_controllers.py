"""Conversations, pressure, budgets and live traffic in decisions."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from builders import PAIR, POOLS, FakeEncoder, config, controller_state, plans, raw
from deciding import TURNS, chat, conversation, edited, outcome_of, pipeline, request, two_policies

from semroute_extproc.config.models import Config
from semroute_extproc.events import Event, SessionStoreError
from semroute_extproc.outcome import Kind
from semroute_extproc.pipeline.pipeline import Pipeline
from semroute_extproc.policy.context import Agreement
from semroute_extproc.request.view import Api
from semroute_extproc.state.controllers import ControllerState
from semroute_extproc.state.shared import SharedState


@pytest.mark.parametrize(
    ("header", "pool"),
    [
        *[
            ("0", "small"),
            ("1", "large"),
            ("0.4", "small"),
            (".4", "small"),
            ("1e-05", "small"),
            ("1.", "large"),
        ],
        *[(nonsense, "large") for nonsense in ("2", "nan", "cheap", "", "-0", "0_0", "٠", "0" * 5_000)],
    ],
)
async def test_the_clients_quality_moves_the_trade_off_and_nonsense_does_not(header: str, pool: str) -> None:
    settings = config(
        strategies={"s": {"kind": "threshold", "weak": "small", "strong": "large", "threshold": 0.4}}
    )
    outcome = await outcome_of(
        request(chat(), x_semroute_quality=header), settings, FakeEncoder(lambda _: raw(0.0))
    )
    assert outcome.pool == pool


async def test_the_quality_of_the_models_entry_holds_where_the_client_sends_none() -> None:
    settings = config(models={"auto": {"policy": "main", "quality": 0.0}})
    assert (await outcome_of(request(chat()), settings, FakeEncoder(lambda _: raw(9.0)))).pool == "small"
    asked = request(chat(), x_semroute_quality="1")
    assert (await outcome_of(asked, settings, FakeEncoder(lambda _: raw(-9.0)))).pool == "large"


TOOL_LOOP = [*TURNS, {"role": "tool", "content": "42", "tool_call_id": "1"}]


class TestConversations:
    async def test_an_id_that_we_issued_finds_the_pool_and_the_replica_again(self) -> None:
        settings = config(controllers={"session": {}})
        subject, _ = pipeline(settings, FakeEncoder(lambda text: raw(5.0 if "prove" in text else -5.0)))
        first = await subject.decide(request({"model": "auto", "input": "hello"}, Api.RESPONSES))
        issued = edited(first)["request_id"]
        later = {"model": "auto", "input": "prove it", "previous_response_id": issued}
        outcome = await subject.decide(request(later, Api.RESPONSES))
        assert (outcome.pool, outcome.session) == ("small", "locked")
        assert outcome.affinity == first.affinity != ""
        assert edited(outcome)["request_id"] != issued

    @pytest.mark.parametrize(
        ("session", "body", "api"),
        [
            ({}, {"input": "hello", "request_id": "resp_mine"}, Api.RESPONSES),
            ({"response_ids": False}, {"input": "hello"}, Api.RESPONSES),
            ({}, {"messages": TURNS[:1]}, Api.CHAT_COMPLETIONS),
            (None, {"input": "hello"}, Api.RESPONSES),
        ],
    )
    async def test_no_id_is_issued_otherwise(
        self, session: dict[str, Any] | None, body: dict[str, Any], api: Api
    ) -> None:
        settings = config(controllers={} if session is None else {"session": session})
        subject, _ = pipeline(settings, FakeEncoder())
        outcome = await subject.decide(request({"model": "auto", **body}, api))
        assert edited(outcome).get("request_id") == body.get("request_id")

    async def test_a_named_pool_keeps_the_replica_of_a_named_conversation(self) -> None:
        subject, _ = pipeline(config(controllers={"session": {}}), FakeEncoder())
        named = config().pools["small"].model
        outcome = await subject.decide(request(chat(model=named), session_id="7"))
        assert (outcome.kind, len(outcome.affinity)) == (Kind.NAMED, 16)
        assert (await subject.decide(request(chat(model=named)))).affinity == ""

    async def test_a_conversation_keeps_its_pool_and_a_tool_loop_asks_no_encoder(self) -> None:
        encoder = FakeEncoder(lambda text: raw(3.0 if "prove" in text else -3.0))
        settings = config(controllers={"session": {"margin": 0.9}})
        subject, _ = pipeline(settings, encoder)
        first = await subject.decide(request(conversation(TURNS[:1])))
        assert (first.pool, first.session) == ("small", "new")
        later = await subject.decide(request(conversation(TURNS)))
        assert (later.pool, later.session) == ("small", "kept")
        encoder.texts.clear()
        loop = await subject.decide(request(conversation(TOOL_LOOP)))
        assert (loop.pool, loop.session, encoder.texts) == ("small", "locked", [])

    async def test_a_response_goes_where_its_state_is_if_the_client_names_the_conversation(self) -> None:
        settings = config(controllers={"session": {}})
        subject, _ = pipeline(settings, FakeEncoder(lambda text: raw(5.0 if "prove" in text else -5.0)))
        first = {"model": "auto", "input": "hello"}
        later = {"model": "auto", "input": "prove it", "previous_response_id": "resp_1"}
        named = {"x_semroute_session": "7"}
        assert (await subject.decide(request(first, Api.RESPONSES, **named))).pool == "small"
        locked = await subject.decide(request(later, Api.RESPONSES, **named))
        assert (locked.pool, locked.session) == ("small", "locked")
        lost = await subject.decide(request(later, Api.RESPONSES))
        assert (lost.pool, lost.session) == ("large", "lost")

    @pytest.mark.parametrize("delay", [0.0, 60.0])
    async def test_a_dead_shared_memory_is_counted_and_decided_without_in_time(self, delay: float) -> None:
        class Dead:
            async def get(self, name: str) -> bytes | None:
                await asyncio.sleep(delay)
                raise ConnectionError

        counted: list[Event] = []
        store = {"url": "valkey://dead", "key": "0123456789abcdef", "replicas": 1}
        settings = config(server={"deadline_ms": 1_000}, controllers={"session": {}, "store": store})
        shared = SharedState(ControllerState(), counted.append, connect=lambda _: Dead())
        shared.configure(settings.controllers.store, 60.0)
        subject, failures = pipeline(settings, shared=shared)
        started = time.perf_counter()
        outcome = await subject.decide(request(chat(), x_semroute_session="7"))
        assert (outcome.kind, failures) == (Kind.ROUTED, [])
        assert time.perf_counter() - started < 0.9
        await asyncio.sleep(0)
        assert counted[0] == SessionStoreError("timeout" if delay else "error")


class TestMoment:
    async def test_pressure_on_the_strong_pool_sends_its_easiest_requests_away(self) -> None:
        pools = {**POOLS, "large": {**POOLS["large"], "metrics": "http://large/metrics"}}
        settings = config(pools=pools, controllers={"load": {"rise_seconds": 0.001}})
        encoder, controllers = FakeEncoder(lambda _: raw(1.1)), controller_state(settings)
        assert (await outcome_of(request(chat()), settings, encoder)).pool == "large"
        now = asyncio.get_running_loop().time()
        for moment in (now - 2.0, now - 1.0):
            controllers.observe("large", {"running": 1.0, "waiting": 9.0}, moment)
        subject, _ = pipeline(settings, encoder, controllers=controllers)
        pressed = await subject.decide(request(chat()))
        assert pressed.pool == "small"
        assert "load share 0.30 to 0.05" in pressed.reason

    async def test_a_budget_moves_the_share_of_identical_traffic_to_its_target(self) -> None:
        scores = iter([*([2.0, -2.0] * 3_000)])
        settings = config(controllers={"budgets": {"s": {"strong_share": 0.2, "window_requests": 50}}})
        subject, _ = pipeline(settings, FakeEncoder(lambda _: raw(next(scores))))
        pools = [(await subject.decide(request(chat()))).pool for _ in range(1_500)]
        assert pools[500:].count("large") / 1_000 == pytest.approx(0.2, abs=0.03)


class TestTraffic:
    """The reference scores are uniform; the texts of these requests are all easier than 90 % of them."""

    @staticmethod
    def following(settings: Config, **more: Any) -> tuple[Pipeline, ControllerState]:
        controllers, plan = controller_state(settings), plans(settings)
        controllers.follow(plan["main"].strategies)
        encoder = FakeEncoder(lambda text: raw(-9.0 + int(text.split()[-1]) % 100 / 20, **more))
        subject, failures = pipeline(settings, encoder, controllers=controllers, plans=plan)
        assert failures == []
        return subject, controllers

    @staticmethod
    async def pools(subject: Pipeline, numbers: range, **headers: str) -> list[str]:
        requests = (request(chat(f"question {37 * number}"), **headers) for number in numbers)
        return [(await subject.decide(each)).pool for each in requests]

    async def test_a_share_is_one_of_the_operators_traffic(self) -> None:
        subject, controllers = self.following(config())
        pools = await self.pools(subject, range(1_000))
        assert pools[:500].count("large") / 500 == pytest.approx(0.3, abs=0.03)
        assert pools[500:].count("large") / 500 == pytest.approx(0.3, abs=0.03)
        found = controllers.status()["traffic"]["s"]
        assert (found["scores"], found["realized"]) == (601, pytest.approx(0.3, abs=0.03))

    async def test_a_strategy_that_does_not_follow_keeps_its_threshold(self) -> None:
        settings = config(strategies={"s": {**PAIR, "follow_traffic": False}})
        subject, controllers = self.following(settings)
        assert set(await self.pools(subject, range(100))) == {"small"}
        assert controllers.status()["traffic"] == {}

    async def test_a_shadow_decides_as_the_live_policy_does_and_teaches_nothing(self) -> None:
        settings = config(policies=two_policies(shadow="same"))
        with_shadow, learned = self.following(settings)
        without, alone = self.following(config())
        for number in range(300):
            outcome = await with_shadow.decide(request(chat(f"question {37 * number}")))
            assert [shadow.agreement for shadow in outcome.shadows] == [Agreement.AGREE]
        await self.pools(without, range(300))
        assert learned.status() == alone.status()

    async def test_a_canary_and_the_main_policy_share_what_their_strategy_learns(self) -> None:
        models = {"auto": {"policy": "main", "canary": {"same": 0.5}}}
        subject, controllers = self.following(config(models=models, policies=two_policies()))
        await self.pools(subject, range(50))
        assert controllers.status()["traffic"]["s"]["scores"] == 50

    @pytest.mark.parametrize(
        ("headers", "output"), [({"x_semroute_quality": "1"}, {}), ({}, {"unk_share": 1.0})]
    )
    async def test_hard_preferences_and_unknown_texts_teach_nothing(
        self, headers: dict[str, str], output: dict[str, Any]
    ) -> None:
        subject, controllers = self.following(config(), **output)
        assert set(await self.pools(subject, range(20), **headers)) == {"large"}
        assert controllers.status()["traffic"]["s"]["scores"] == 0

    async def test_a_quality_is_a_share_of_the_operators_traffic_too(self) -> None:
        subject, _ = self.following(config())
        await self.pools(subject, range(300))
        pools = await self.pools(subject, range(300, 800), x_semroute_quality="0.6")
        assert pools.count("large") / 500 == pytest.approx(0.6, abs=0.03)
