"""How bodies are read, and how they leave."""

from __future__ import annotations

import gzip
import json
from typing import Any

import pytest
from builders import POOLS, FakeEncoder, config, raw
from deciding import FREE, LONELY, chat, edited, outcome_of, request

from semroute_extproc.outcome import Kind, facts


async def test_only_the_models_bytes_differ() -> None:
    body = b'{ "messages" : [{"role":"user","content":"h\\u00e9"}],  "model":"auto", "n": 1.0E+2 }'
    outcome = await outcome_of(request(body), encoder=FakeEncoder(lambda _: raw(5.0)))
    assert outcome.body == b'{"messages":[{"role":"user","content":"h\\u00e9"}],"model":"m-l","n":1.0E+2}'


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


BY_TEXT = {"name": "short", "when": "turns < 5 || request.text == ''", "pool": "eyes"}
DENIES = {"name": "nobody", "when": 'request.tenant == "mallory"', "deny": "Go away."}
GUARDED = {"main": {"rules": [BY_TEXT, DENIES, FREE], "otherwise": {"strategy": "s"}}}


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
