"""From request bytes to an outcome."""

from __future__ import annotations

import asyncio
import dataclasses
import gzip
import json
import time
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import pytest
from builders import PAIR, POOLS, FakeEncoder, classifier, config, controller_state, plans, raw, wrong
from pydantic import ValidationError
from tokenizers import Tokenizer

from semroute_extproc.config.models import Config
from semroute_extproc.encoder.counting import TokenCounter
from semroute_extproc.errors import EncoderUnavailable
from semroute_extproc.events import Event, Failed, SessionStoreError, Shadowed
from semroute_extproc.outcome import Cause, Kind, Outcome, facts
from semroute_extproc.pipeline.driver import WAITING_MAX
from semroute_extproc.pipeline.pipeline import Pipeline
from semroute_extproc.policy.context import Agreement, Shadow
from semroute_extproc.request.handover import FAILURE_HEADER, HANDOVER_HEADER
from semroute_extproc.request.view import Api, Decide, RequestHead
from semroute_extproc.settings.pools import VirtualModel
from semroute_extproc.state.controllers import ControllerState
from semroute_extproc.state.shared_sessions import SharedSessions

TOKENIZER = Path(__file__).parents[3] / "models" / "semroute-minilm" / "tokenizer.json"


def pipeline(
    settings: Config | None = None, encoder: FakeEncoder | None = None, **more: Any
) -> tuple[Pipeline, list[str]]:
    settings = settings or config()
    more.setdefault("controllers", controller_state(settings))
    failures: list[str] = []
    told = more.pop("told", [])

    def emit(event: Event) -> None:
        if isinstance(event, Failed):
            failures.append(event.request_id)
        elif isinstance(event, Shadowed):
            told.append(event.shadow)

    plan = more.pop("plans", None) or plans(settings)
    subject = Pipeline(settings, plan, classifier(encoder or FakeEncoder()), emit, **more)
    return subject, failures


def request(body: Any, api: Api = Api.CHAT_COMPLETIONS, **headers: str) -> Decide:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    fields = {key.replace("_", "-"): value for key, value in headers.items()}
    return Decide(RequestHead("POST", "/v1/chat/completions", fields), api, data)


def chat(text: str = "hello", model: str = "auto", **members: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": text}], **members}


async def outcome_of(
    decide: Decide, settings: Config | None = None, encoder: FakeEncoder | None = None
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
    assert outcome.body == b'{"messages":[{"role":"user","content":"h\\u00e9"}],"model":"m-l","n":1.0E+2}'


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
        (gzip.compress(b'{"model": "auto", "messages": []}', mtime=0), "not_json"),
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


LONELY = b'{"model": "auto", "messages": [{"role": "user", "content": "hi \\ud83d"}], "top_p": NaN}'


@pytest.mark.parametrize(
    "body",
    [
        LONELY,
        LONELY.decode().encode("utf-8-sig"),
        LONELY.decode().encode("utf-16"),
        LONELY.decode().encode("utf-16-be"),
        LONELY.decode().encode("utf-32-le"),
        b'{"model": 7, "model": null,' + LONELY[1:],
        b'{"messages": 7,' + LONELY[1:],
    ],
)
async def test_what_only_python_reads_is_routed_and_leaves_as_python_reads_it(body: bytes) -> None:
    outcome = await outcome_of(request(body), encoder=FakeEncoder(lambda _: raw(5.0)))
    assert (outcome.kind, outcome.pool, outcome.text) == (Kind.ROUTED, "large", "hi ?")
    sent = json.loads(outcome.body or b"")
    assert (sent["model"], sent["messages"][0]["content"], repr(sent["top_p"])) == ("m-l", "hi \ud83d", "nan")


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "zstd", "br"])
async def test_a_plain_body_that_is_declared_as_compressed_is_read_because_vllm_reads_it(
    encoding: str,
) -> None:
    outcome = await outcome_of(request(chat(model="m-s", n=1), content_encoding=encoding))
    assert (outcome.kind, outcome.pool, outcome.body) == (Kind.NAMED, "small", None)
    outcome = await outcome_of(request(b"\x1f\x8b nonsense", content_encoding=encoding))
    assert (outcome.kind, outcome.cause) == (Kind.PASSTHROUGH, "bad_encoding")


MANY = chat(model="auto", tools=[], messages=[{"content": "x"}] * 16_500)
DEEP = b'{"model": "auto", "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
UNREADABLE = [
    (json.dumps(MANY).encode(), "too_many_parts"),
    (json.dumps(chat(pad=[""] * 200_000)).encode(), "too_many_parts"),
    (json.dumps(chat()).encode() + b"]", "not_json"),
    (b'{"model": "auto", "messages": "hi"}', "wrong_type"),
    (DEEP, "too_deep"),
    (b"nonsense", "not_json"),
]
FREE = {"name": "free", "when": '"x-tier" in request.headers', "pool": "small"}
BY_TEXT = {"name": "short", "when": "turns < 5 || request.text == ''", "pool": "eyes"}
NOBODY = {"name": "nobody", "when": 'request.tenant == "mallory"', "deny": "Go away."}
GUARDED = {"main": {"rules": [BY_TEXT, NOBODY, FREE], "otherwise": {"strategy": "s"}}}


@pytest.mark.parametrize(("body", "cause"), UNREADABLE[:4:3])
async def test_rules_that_need_no_body_decide_about_an_unreadable_one(body: bytes, cause: str) -> None:
    settings = config(policies=GUARDED)
    outcome = await outcome_of(request(body, x_tier="free"), settings)
    assert (outcome.kind, outcome.cause, outcome.pool) == (Kind.FALLBACK, cause, "small")
    assert edited(outcome) == {**json.loads(body), "model": "m-s"}
    assert facts(outcome)["rule"] == "free"
    outcome = await outcome_of(request(body), settings)
    assert (outcome.kind, outcome.cause, outcome.pool) == (Kind.FALLBACK, cause, "large")
    assert edited(outcome)["model"] == "m-l"
    outcome = await outcome_of(request(body, x_semroute_tenant="mallory"), settings)
    assert (outcome.kind, outcome.cause) == (Kind.REJECTED, "denied")


@pytest.mark.parametrize("more", [{}, {"controllers": {"failover": {}}}])
async def test_a_body_that_only_we_could_read_goes_where_the_rules_say(more: dict[str, Any]) -> None:
    """No server in Python reads it, and it cannot be edited."""
    body = b'{"model":"auto","messages":[],"\xff":1}'
    outcome = await outcome_of(request(body, x_tier="free"), config(policies=GUARDED, **more))
    assert (outcome.kind, outcome.cause, outcome.pool) == (Kind.PASSTHROUGH, "not_json", "small")
    assert (outcome.body, outcome.handover) == (None, None)


@pytest.mark.parametrize("more", [{}, {"controllers": {"failover": {}}}])
@pytest.mark.parametrize("parts", [200_000, 1_200_000])  # the second is not even read for its model
async def test_a_body_with_too_many_parts_is_edited_without_decoding_it(
    parts: int, more: dict[str, Any]
) -> None:
    body = json.dumps(chat(pad=[""] * parts)).encode()
    outcome = await outcome_of(request(body, x_tier="free"), config(policies=GUARDED, **more))
    assert (outcome.kind, outcome.cause, outcome.pool) == (Kind.FALLBACK, "too_many_parts", "small")
    assert edited(outcome) == {**json.loads(body), "model": "m-s"}
    assert outcome.handover is None
    alias = json.dumps({**json.loads(body), "model": "M-S"}).encode()
    outcome = await outcome_of(request(alias), config(**more))
    assert (outcome.kind, outcome.pool, edited(outcome)["model"]) == (Kind.NAMED, "small", "m-s")


@pytest.mark.parametrize(
    "body", [*(each for each, _ in UNREADABLE[2:]), json.dumps(chat(model="gpt-9")).encode(), b'{"n": 1}']
)
async def test_without_a_known_model_the_rules_of_the_default_pool_decide(body: bytes) -> None:
    pools = {**POOLS, "large": {**POOLS["large"], "policy": "main"}}
    settings = config(pools=pools, policies=GUARDED)
    if body == UNREADABLE[3][0]:
        return  # its model is known
    assert (await outcome_of(request(body, x_tier="free"), settings)).pool == "small"
    assert (await outcome_of(request(body), settings)).pool == "large"
    denied = await outcome_of(request(body, x_semroute_tenant="mallory"), settings)
    assert (denied.kind, denied.cause) == (Kind.REJECTED, "denied")
    unguarded = await outcome_of(request(body, x_semroute_tenant="mallory"), config(policies=GUARDED))
    assert (unguarded.kind, unguarded.pool) == (Kind.PASSTHROUGH, "large")


@pytest.mark.parametrize(("body", "cause"), UNREADABLE)
async def test_unreadable_bodies_are_refused_if_the_operator_wants_it(body: bytes, cause: str) -> None:
    outcome = await outcome_of(request(body), config(unreadable="refuse"))
    assert (outcome.kind, outcome.cause) == (Kind.REJECTED, cause)
    assert outcome.answer is not None
    error = json.loads(outcome.answer.body)["error"]
    assert (outcome.answer.status, error["code"]) == (400, "unreadable_body")
    assert cause in error["message"]
    assert (await outcome_of(request(chat()), config(unreadable="refuse"))).kind is Kind.ROUTED
    unknown = await outcome_of(request(chat(model="gpt-9")), config(unreadable="refuse"))
    assert unknown.kind is Kind.PASSTHROUGH, "it can be read"


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


def large_chat(**members: Any) -> bytes:
    return json.dumps(chat("word " * 20_000, **members)).encode()


async def test_a_large_request_does_not_hold_the_event_loop() -> None:
    subject, _ = pipeline()
    ran: list[str] = []

    def small() -> None:
        ran.append("small")

    asyncio.get_running_loop().call_soon(small)
    for quick in (chat(model="m-l"), large_chat(model="m-l")):
        await subject.decide(request(quick))
    assert ran == [], "a request that names its pool is decided at once"
    await subject.decide(request(large_chat()))
    assert ran == ["small"]


async def test_large_requests_beyond_a_bound_are_decided_by_rules_that_need_no_body() -> None:
    pools = {**POOLS, "small": {**POOLS["small"], "context": 100_000}}
    policies = {"main": {"rules": [FREE], "otherwise": {"strategy": "s"}}}
    subject, failures = pipeline(config(pools=pools, policies=policies))
    bodies = [request(large_chat(), x_tier="free") for _ in range(3 * WAITING_MAX)]
    outcomes = await asyncio.gather(*map(subject.decide, bodies))
    causes = Counter(outcome.cause for outcome in outcomes)
    assert causes["overloaded"] > 0
    assert causes["overloaded"] + causes["rule"] == len(bodies)
    assert {outcome.pool for outcome in outcomes} == {"small"}
    assert {edited(outcome)["model"] for outcome in outcomes} == {"m-s"}
    compressed = request(gzip.compress(large_chat()), content_encoding="gzip", x_tier="free")
    outcomes = await asyncio.gather(*(subject.decide(compressed) for _ in range(3 * WAITING_MAX)))
    refused = [outcome.answer.status for outcome in outcomes if outcome.answer]
    assert refused, "a pool could not decode it"
    assert set(refused) == {503}
    assert failures == []


async def test_a_cancelled_large_request_leaves_no_work_behind() -> None:
    subject, _ = pipeline()
    tasks = [asyncio.create_task(subject.decide(request(large_chat()))) for _ in range(WAITING_MAX)]
    await asyncio.sleep(0)
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    outcome = await subject.decide(request(large_chat()))
    assert outcome.kind is Kind.ROUTED, "those that were cancelled wait no longer"


async def test_a_compressed_body_is_read_and_leaves_uncompressed() -> None:
    body = gzip.compress(json.dumps(chat()).encode())
    outcome = await outcome_of(request(body, content_encoding="gzip"))
    assert outcome.decoded
    assert edited(outcome)["model"] == "m-l" if outcome.pool == "large" else "m-s"


async def test_a_compressed_body_of_a_named_model_leaves_uncompressed_because_vllm_reads_no_encoding() -> (
    None
):
    body = gzip.compress(json.dumps(chat(model="m-s")).encode())
    outcome = await outcome_of(request(body, content_encoding="gzip"))
    assert (outcome.kind, outcome.decoded) == (Kind.NAMED, True)
    assert edited(outcome) == chat(model="m-s")


@pytest.mark.parametrize(
    "plain", [b'{"messages":[]}', b'{"model":"gpt-9"}', b'{"model":null}', b"not json"], ids=bytes.decode
)
async def test_a_compressed_body_that_names_no_known_model_leaves_uncompressed_too(plain: bytes) -> None:
    outcome = await outcome_of(request(gzip.compress(plain), content_encoding="gzip"))
    assert (outcome.kind, outcome.body, outcome.decoded) == (Kind.PASSTHROUGH, plain, True)


async def test_a_compressed_body_that_is_too_large_is_refused() -> None:
    settings = config(server={"body_bytes_max": 10_000})
    outcome = await outcome_of(request(gzip.compress(b" " * 1_000_000), content_encoding="gzip"), settings)
    assert outcome.kind is Kind.REJECTED
    assert outcome.answer is not None
    assert outcome.answer.status == 413


async def test_an_encoding_we_cannot_read_is_refused() -> None:
    outcome = await outcome_of(request(b"x", content_encoding="compress"))
    assert outcome.answer is not None
    assert outcome.answer.status == 415
    assert "compress" in json.loads(outcome.answer.body)["error"]["message"]
    assert "'compress'" not in outcome.reason, "it is a header's value, and reasons are logged"


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


TURNS = [
    {"role": "user", "content": "hello"},
    {"role": "assistant", "content": "hi"},
    {"role": "user", "content": "prove it"},
]
TOOL_LOOP = [*TURNS, {"role": "tool", "content": "42", "tool_call_id": "1"}]


def conversation(messages: list[dict[str, Any]]) -> dict[str, Any]:
    return {"model": "auto", "messages": messages}


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

            async def set(self, name: str, value: str, ex: int) -> object:
                raise ConnectionError

            async def aclose(self) -> None:
                pass

        counted: list[Event] = []
        shared = SharedSessions(Dead(), 2.0, 60.0, counted.append)
        settings = config(server={"deadline_ms": 1_000}, controllers={"session": {}})
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
        assert (found["scores"], found["realised"]) == (601, pytest.approx(0.3, abs=0.03))

    async def test_a_strategy_that_does_not_follow_keeps_its_threshold(self) -> None:
        settings = config(strategies={"s": {**PAIR, "follow_traffic": False}})
        subject, controllers = self.following(settings)
        assert set(await self.pools(subject, range(100))) == {"small"}
        assert controllers.status()["traffic"] == {}

    async def test_a_shadow_decides_as_the_live_policy_does_and_teaches_nothing(self) -> None:
        settings = config(policies=two_policies(shadow="same"))
        with_shadow, learnt = self.following(settings)
        without, alone = self.following(config())
        for number in range(300):
            outcome = await with_shadow.decide(request(chat(f"question {37 * number}")))
            assert [shadow.agreement for shadow in outcome.shadows] == [Agreement.AGREE]
        await self.pools(without, range(300))
        assert learnt.status() == alone.status()

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


def two_policies(**main: Any) -> dict[str, Any]:
    return {
        "main": {"otherwise": {"strategy": "s"}, **main},
        "other": {"otherwise": {"pool": "eyes"}},
        "same": {"otherwise": {"strategy": "s"}},
    }


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
        [
            ({"main": 0.5}, "is already the model's main policy"),
            ({"gone": 0.5}, "there is no policy"),
        ],
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


def named(decide: Decide, model: str) -> Decide:
    """The request with a model that its path or query names."""
    return msgspec.structs.replace(decide, model=model)


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
            (
                "kimi-k3",
                {"reasoning_effort": "medium"},
                {"reasoning_effort": "high"},
            ),
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
