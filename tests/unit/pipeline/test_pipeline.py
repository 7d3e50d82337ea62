"""From request bytes to an outcome."""

from __future__ import annotations

from typing import Any

import pytest
from builders import POOLS, FakeEncoder, config, raw
from deciding import chat, edited, outcome_of, pipeline, request

from semroute_extproc.errors import EncoderUnavailable
from semroute_extproc.outcome import Cause, Kind
from semroute_extproc.request.view import Api


@pytest.mark.parametrize(("logit", "pool", "model"), [(-5.0, "small", "m-s"), (5.0, "large", "m-l")])
async def test_a_routed_model_goes_where_the_policy_says_under_that_pools_name(
    logit: float, pool: str, model: str
) -> None:
    outcome = await outcome_of(request(chat()), encoder=FakeEncoder(lambda _: raw(logit)))
    assert (outcome.kind, outcome.pool, outcome.model) == (Kind.ROUTED, pool, model)
    assert edited(outcome) == chat(model=model)


async def test_a_named_model_goes_to_its_pool_unread() -> None:
    encoder = FakeEncoder()
    outcome = await outcome_of(request(chat(model="m-s")), encoder=encoder)
    assert (outcome.kind, outcome.pool, outcome.body) == (Kind.NAMED, "small", None)
    assert encoder.texts == []


@pytest.mark.parametrize(
    ("encoder", "cause"),
    [
        (FakeEncoder(delay=5.0), "deadline"),
        (FakeEncoder(EncoderUnavailable(Cause.OVERLOADED)), "overloaded"),
        (FakeEncoder(EncoderUnavailable(Cause.ERROR)), "error"),
    ],
)
async def test_without_signals_in_time_the_default_pool_answers_under_its_own_name(
    encoder: FakeEncoder, cause: str
) -> None:
    settings = config(server={"deadline_ms": 30})
    outcome = await outcome_of(request(chat()), settings, encoder)
    assert (outcome.kind, outcome.cause, outcome.pool) == (Kind.FALLBACK, cause, "large")
    assert edited(outcome)["model"] == "m-l"


async def test_a_failure_nobody_expected_is_told_and_the_default_pool_answers() -> None:
    subject, failures = pipeline(encoder=FakeEncoder(ZeroDivisionError()))
    outcome = await subject.decide(request(chat(), x_request_id="r1"))
    assert (outcome.kind, outcome.cause, outcome.pool) == (Kind.FALLBACK, "internal_error", "large")
    assert edited(outcome)["model"] == "m-l"
    assert failures == ["r1"]


async def test_a_decision_that_needs_no_signal_does_not_ask_the_encoder() -> None:
    encoder = FakeEncoder(delay=60)
    settings = config(policies={"main": {"otherwise": {"pool": "small"}}})
    outcome = await outcome_of(request(chat()), settings, encoder)
    assert (outcome.kind, outcome.pool, encoder.texts) == (Kind.ROUTED, "small", [])
    assert "encode" not in outcome.milliseconds()


HOUSEKEEPING = {"name": "housekeeping", "when": 'request.housekeeping != ""', "pool": "small"}


async def test_a_rule_sends_what_an_application_asks_for_by_itself_to_a_pool() -> None:
    encoder = FakeEncoder(lambda _: raw(9.0))
    settings = config(policies={"main": {"rules": [HOUSEKEEPING], "otherwise": {"strategy": "s"}}})
    log = "Name this chat in six words.\n\nUser: hello\nAssistant: Hello!"
    outcome = await outcome_of(request(chat(log)), settings, encoder)
    assert (outcome.pool, outcome.housekeeping, encoder.texts) == ("small", "title", [])
    outcome = await outcome_of(request(chat("Give me a title for my essay.")), settings, encoder)
    assert (outcome.pool, outcome.housekeeping) == ("large", "")


async def test_the_encoder_reads_the_question_and_what_was_left_out_is_reported() -> None:
    encoder = FakeEncoder()
    outcome = await outcome_of(request(chat("<notes>long</notes>\nWhy is it so?")), encoder=encoder)
    assert encoder.texts == [outcome.text] == ["Why is it so?"]
    assert [left._asdict() for left in outcome.left_out] == [{"kind": "block", "characters": 20}]


async def test_the_names_of_the_configuration_are_used() -> None:
    settings = config(text={"envelopes": {"ask": ["ticket"]}})
    outcome = await outcome_of(request(chat("<ticket>Why is it so?</ticket>\nBe kind.")), settings)
    assert outcome.text == "Why is it so?"


async def test_the_stages_are_timed_in_order() -> None:
    outcome = await outcome_of(request(chat()))
    assert [stage.name for stage in outcome.stages] == ["parse", "policy", "encode", "policy", "edit"]
    starts = [stage.start_ms for stage in outcome.stages]
    assert starts == sorted(starts)
    assert outcome.total_ms >= sum(outcome.milliseconds().values()) * 0.99


class TestWithoutText:
    FIXED = config(
        pools={
            **POOLS,
            "small": {**POOLS["small"], "apis": ["embeddings", "completions", "chat_completions"]},
        },
        policies={"main": {"otherwise": {"pool": "small"}}},
    )

    @pytest.mark.parametrize(
        ("api", "body"),
        [
            (Api.EMBEDDINGS, {"input": [[1, 2], [3]]}),
            (Api.EMBEDDINGS, {"input": [1, 2]}),
            (Api.COMPLETIONS, {"prompt": [1, 2]}),
            (Api.COMPLETIONS, {"prompt_embeds": "AAAA"}),
            (Api.COMPLETIONS, {"prompt": None, "prompt_embeds": ["AAAA"]}),
            (Api.CHAT_COMPLETIONS, {"messages": []}),
        ],
    )
    async def test_a_policy_that_needs_no_text_decides(self, api: Api, body: dict[str, Any]) -> None:
        outcome = await outcome_of(request({"model": "auto", **body}, api), self.FIXED)
        assert (outcome.kind, outcome.pool) == (Kind.ROUTED, "small")
        assert edited(outcome) == {"model": "m-s", **body}

    async def test_a_prompt_template_of_the_responses_api_is_routed_by_its_facts(self) -> None:
        body = {"model": "auto", "prompt": {"id": "pmpt_1", "variables": {"city": "Oslo"}}}
        settings = config(policies={"main": {"otherwise": {"pool": "large"}}})
        outcome = await outcome_of(request(body, Api.RESPONSES), settings)
        assert (outcome.kind, outcome.pool) == (Kind.ROUTED, "large")

    async def test_a_strategy_falls_back_to_the_default_pool_under_that_pools_name(self) -> None:
        outcome = await outcome_of(request({"model": "auto", "prompt": [1, 2]}, Api.COMPLETIONS))
        assert (outcome.kind, outcome.cause, outcome.pool) == (Kind.FALLBACK, Cause.NO_TEXT, "large")
        assert edited(outcome)["model"] == "m-l"

    @pytest.mark.parametrize("asked", ["auto", "m-s", "M-S"])
    @pytest.mark.parametrize("file_first", [True, False])
    async def test_a_form_is_routed_and_only_its_model_is_replaced(
        self, asked: str, file_first: bool
    ) -> None:
        parts = [b'name="model"\r\n\r\n' + asked.encode(), b'name="file"; filename="a"\r\n\r\n\0\1\2']
        parts = parts[::-1] if file_first else parts
        written = b"".join(b"--x\r\nContent-Disposition: form-data; " + part + b"\r\n" for part in parts)
        form = written + b"--x--\r\n"
        pools = {**POOLS, "small": {**POOLS["small"], "apis": ["transcriptions"]}}
        asking = request(form, Api.TRANSCRIPTIONS, content_type="multipart/form-data; boundary=x")
        outcome = await outcome_of(asking, config(pools=pools))
        assert (outcome.pool, outcome.model) == ("small", "m-s")
        assert (outcome.body or form) == form.replace(b"\r\n\r\n" + asked.encode(), b"\r\n\r\nm-s")
