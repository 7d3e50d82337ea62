"""From request bytes to an outcome."""

from __future__ import annotations

import gzip
import json
from typing import Any

import pytest
from builders import MANIFEST, FakeEncoder, classifier, config, raw

from semroute_extproc import policy
from semroute_extproc.config import Config
from semroute_extproc.encoder import Encoder
from semroute_extproc.errors import EncoderUnavailable
from semroute_extproc.exchange import Decide
from semroute_extproc.outcome import Kind, Outcome
from semroute_extproc.pipeline import Pipeline
from semroute_extproc.request import Api, RequestHead


def pipeline(settings: Config | None = None, encoder: Encoder | None = None) -> tuple[Pipeline, list[str]]:
    settings = settings or config()
    policies, problems = policy.build(settings, MANIFEST)
    assert problems == []
    failures: list[str] = []
    return Pipeline(settings, policies, classifier(encoder or FakeEncoder()), failures.append), failures


def request(body: Any, api: Api = Api.CHAT_COMPLETIONS, **headers: str) -> Decide:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    fields = {key.replace("_", "-"): value for key, value in headers.items()}
    return Decide(RequestHead("POST", "/v1/chat/completions", fields), api, data)


def chat(text: str = "hello", model: str = "auto", **members: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": text}], **members}


async def outcome_of(
    decide: Decide, settings: Config | None = None, encoder: Encoder | None = None
) -> Outcome:
    subject, failures = pipeline(settings, encoder)
    outcome = await subject.decide(decide)
    assert failures == []
    return outcome


def edited(outcome: Outcome) -> dict[str, Any]:
    assert outcome.body is not None
    found: dict[str, Any] = json.loads(outcome.body)
    return found


@pytest.mark.parametrize(("logit", "pool", "model"), [(-5.0, "small", "m-s"), (5.0, "large", "m-l")])
async def test_a_routed_model_goes_where_the_policy_says_under_that_pools_name(
    logit: float, pool: str, model: str
) -> None:
    outcome = await outcome_of(request(chat()), encoder=FakeEncoder(lambda _: raw(logit)))
    assert (outcome.kind, outcome.pool, outcome.model) == (Kind.ROUTED, pool, model)
    assert edited(outcome) == chat(model=model)


async def test_only_the_models_bytes_differ() -> None:
    body = b'{ "messages" : [{"role":"user","content":"h\\u00e9"}],  "model":"auto", "n": 1.0E+2 }'
    outcome = await outcome_of(request(body), encoder=FakeEncoder(lambda _: raw(5.0)))
    assert outcome.body == body.replace(b'"auto"', b'"m-l"')


async def test_a_named_model_goes_to_its_pool_unread() -> None:
    encoder = FakeEncoder()
    outcome = await outcome_of(request(chat(model="m-s")), encoder=encoder)
    assert (outcome.kind, outcome.pool, outcome.body) == (Kind.NAMED, "small", None)
    assert encoder.texts == []


@pytest.mark.parametrize(
    ("body", "cause"),
    [
        (b"not json", "not_json"),
        (b"", "not_json"),
        (b'"auto"', "wrong_type"),
        (b"\xff\xfe", "not_json"),
        (b'{"model": 7}', "wrong_type"),
        (b'{"model": "auto", "messages": "hi"}', "wrong_type"),
        (b'{"model": "auto", "messages": []}', "no_text"),
        (b'{"messages": []}', "no_model"),
        (b'{"model": "gpt-9", "messages": []}', "unknown_model"),
        (b'{"model": "auto", "messages": ' + b"[" * 100_000, "too_deep"),
    ],
)
async def test_what_cannot_be_read_passes_through_untouched(body: bytes, cause: str) -> None:
    outcome = await outcome_of(request(body))
    assert (outcome.kind, outcome.cause, outcome.pool, outcome.body) == (
        Kind.PASSTHROUGH,
        cause,
        "large",
        None,
    )


async def test_a_compressed_body_is_read_and_leaves_uncompressed() -> None:
    body = gzip.compress(json.dumps(chat()).encode())
    outcome = await outcome_of(request(body, content_encoding="gzip"))
    assert outcome.decoded
    assert edited(outcome)["model"] == "m-l" if outcome.pool == "large" else "m-s"


async def test_a_compressed_body_of_a_named_model_stays_compressed() -> None:
    body = gzip.compress(json.dumps(chat(model="m-s")).encode())
    outcome = await outcome_of(request(body, content_encoding="gzip"))
    assert (outcome.kind, outcome.body) == (Kind.NAMED, None)


async def test_a_compressed_body_that_is_too_large_is_refused() -> None:
    settings = config(server={"body_bytes_max": 10_000})
    outcome = await outcome_of(request(gzip.compress(b" " * 1_000_000), content_encoding="gzip"), settings)
    assert outcome.kind is Kind.REJECTED
    assert outcome.answer is not None
    assert outcome.answer.status == 413


async def test_an_encoding_we_cannot_read_is_refused() -> None:
    outcome = await outcome_of(request(b"x", content_encoding="zstd"))
    assert outcome.answer is not None
    assert outcome.answer.status == 415
    assert "zstd" in json.loads(outcome.answer.body)["error"]["message"]


async def test_a_request_no_pool_can_serve_is_refused_with_what_is_missing() -> None:
    settings = config(
        pools={"small": {"cluster": "s", "model": "m"}},
        default_pool="small",
        strategies={"s": {"kind": "fixed", "pool": "small"}},
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


@pytest.mark.parametrize(
    ("encoder", "cause"),
    [
        (FakeEncoder(delay=5.0), "deadline"),
        (FakeEncoder(EncoderUnavailable("overloaded")), "overloaded"),
        (FakeEncoder(EncoderUnavailable("error")), "error"),
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


@pytest.mark.parametrize(
    ("header", "pool"),
    [("0", "small"), ("1", "large"), ("0.4", "small"), ("2", "large"), ("nan", "large"), ("cheap", "large")],
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


async def test_a_decision_that_needs_no_signal_does_not_ask_the_encoder() -> None:
    encoder = FakeEncoder(delay=60)
    settings = config(strategies={"s": {"kind": "fixed", "pool": "small"}})
    outcome = await outcome_of(request(chat()), settings, encoder)
    assert (outcome.kind, outcome.pool, encoder.texts) == (Kind.ROUTED, "small", [])
    assert "encode" not in outcome.milliseconds()


async def test_the_stages_are_timed_in_order() -> None:
    outcome = await outcome_of(request(chat()))
    assert [stage.name for stage in outcome.stages] == ["parse", "policy", "encode", "policy", "edit"]
    starts = [stage.start_ms for stage in outcome.stages]
    assert starts == sorted(starts)
    assert outcome.total_ms >= sum(outcome.milliseconds().values()) * 0.99
