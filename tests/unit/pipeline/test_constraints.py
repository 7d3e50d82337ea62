"""Pools that cannot serve a request are not chosen."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from builders import POOLS, FakeEncoder, config, raw
from deciding import chat, edited, outcome_of, pipeline, request
from tokenizers import Tokenizer

from semroute_extproc.encoder.counting import TokenCounter
from semroute_extproc.outcome import Cause, Kind, facts
from semroute_extproc.request.view import Api

TOKENIZER = Path(__file__).parents[3] / "models" / "semroute-minilm" / "tokenizer.json"


async def test_a_request_no_pool_can_serve_is_refused_with_what_is_missing() -> None:
    settings = config(
        pools={"small": {"cluster": "s", "model": "m"}},
        default_pool="small",
        policies={"main": {"otherwise": {"pool": "small"}}},
        strategies={},
    )
    parts = [
        {"type": "text", "text": "what is this"},
        {"type": "image_url", "image_url": {"url": "http://x/y.png"}},
    ]
    body = {"model": "auto", "messages": [{"role": "user", "content": parts}]}
    outcome = await outcome_of(request(body), settings)
    assert outcome.answer is not None
    assert outcome.answer.status == 400
    error = json.loads(outcome.answer.body)["error"]
    assert "image input" in error["message"]
    assert error["code"] == "no_pool_for_request"


class TestContext:
    """A prompt near the limit of a pool's context."""

    TEXT = "word " * 1_000  # about 1,000 tokens

    @staticmethod
    def pools(**small: Any) -> dict[str, Any]:
        return {**POOLS, "small": {**POOLS["small"], **small}}

    async def test_a_pool_that_the_prompt_may_not_fit_is_not_chosen(self) -> None:
        subject, _ = pipeline(config(pools=self.pools(context=1_050)), FakeEncoder(lambda _: raw(-5.0)))
        outcome = await subject.decide(request(chat(self.TEXT)))
        assert outcome.pool == "large"
        assert "small may lack a context of about" in outcome.reason

    async def test_its_tokenizer_says_whether_it_fits(self) -> None:
        settings = config(pools=self.pools(context=1_050), server={"deadline_ms": 5_000})
        counter = TokenCounter({"small": Tokenizer.from_file(str(TOKENIZER))})
        counter.tokenizers["small"].no_truncation()
        subject, _ = pipeline(settings, FakeEncoder(lambda _: raw(-5.0)), counter=counter)
        outcome = await subject.decide(request(chat(self.TEXT)))
        assert outcome.pool == "small"
        assert "count" in outcome.milliseconds()
        far = await subject.decide(request(chat("hello")))
        assert "count" not in far.milliseconds()

    async def test_a_limit_of_the_answer_is_lowered_to_what_is_left_and_that_is_told(self) -> None:
        settings = config(pools=self.pools(context=8_000, clamp=True))
        subject, _ = pipeline(settings, FakeEncoder(lambda _: raw(-5.0)))
        outcome = await subject.decide(request(chat(self.TEXT, max_tokens=32_000)))
        assert outcome.pool == "small"
        assert 6_000 < edited(outcome)["max_tokens"] < 7_000
        assert facts(outcome)["clamped"] == edited(outcome)["max_tokens"]
        short = await subject.decide(request(chat(self.TEXT, max_tokens=100)))
        assert edited(short)["max_tokens"] == 100
        assert "clamped" not in facts(short)

    async def test_a_limit_that_no_float_holds_leads_around_no_spending_limit(self) -> None:
        priced = {name: {**pool, "price": {"input": 1, "output": 1}} for name, pool in POOLS.items()}
        pools = {name: {**pool, "clamp": True} for name, pool in priced.items()}
        limits = {"tenants": {"*": {"dollars": 1, "window_seconds": 3_600}}}
        outcome = await outcome_of(
            request(chat(max_tokens=10**400)),
            config(pools=pools, controllers={"limits": limits}),
            FakeEncoder(lambda _: raw(-5.0)),
        )
        assert (outcome.kind, outcome.pool) == (Kind.ROUTED, "small")
        assert edited(outcome)["max_tokens"] < 10**6


class TestMedia:
    @pytest.mark.parametrize(
        ("part", "flag"),
        [
            ({"type": "input_audio", "input_audio": {}}, "audio"),
            ({"type": "video_url", "video_url": {}}, "video"),
            ({"type": "file", "file": {}}, "files"),
            ({"type": "image_url", "image_url": {}}, "images"),
        ],
    )
    async def test_a_medium_goes_only_to_a_pool_that_reads_it(self, part: dict[str, Any], flag: str) -> None:
        pools = {"able": {"cluster": "a", "model": "m-a", flag: True}, "large": POOLS["large"]}
        settings = config(pools=pools, policies={"main": {"otherwise": {"pool": "large"}}}, strategies={})
        asked = {
            "model": "auto",
            "messages": [{"role": "user", "content": [part, {"type": "text", "text": "?"}]}],
        }
        outcome = await outcome_of(request(asked), settings)
        assert outcome.pool == "able"
        refused = await outcome_of(
            request(asked),
            config(
                pools={"large": POOLS["large"]},
                strategies={},
                policies={"main": {"otherwise": {"pool": "large"}}},
            ),
        )
        assert refused.cause is Cause.NO_POOL
        assert f"{flag.removesuffix('s')} input" in refused.reason

    @pytest.mark.parametrize(("call", "pool"), [("call_123", "large"), ("aB3dE6gH9", "small")])
    @pytest.mark.parametrize("api", [Api.CHAT_COMPLETIONS, Api.MESSAGES, Api.RESPONSES])
    async def test_a_history_with_foreign_tool_calls_avoids_a_pool_that_refuses_it(
        self, api: Api, call: str, pool: str
    ) -> None:
        messages = {
            Api.CHAT_COMPLETIONS: {"messages": [{"role": "tool", "tool_call_id": call, "content": "4"}]},
            Api.MESSAGES: {
                "messages": [{"role": "user", "content": [{"type": "tool_result", "tool_use_id": call}]}]
            },
            Api.RESPONSES: {"input": [{"type": "function_call_output", "call_id": call, "output": "4"}]},
        }
        pools = {**POOLS, "small": {**POOLS["small"], "foreign_history": False}}
        settings = config(pools=pools, policies={"main": {"otherwise": {"pool": "small"}}})
        assert (await outcome_of(request({"model": "auto", **messages[api]}, api), settings)).pool == pool
