"""Every body that `json.loads` reads as an object is routed by what it reads, and reaches the pool as such.

FastAPI, and so vLLM, reads bodies with `json.loads`. A body that only one of us reads escapes the rules.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from builders import FakeEncoder, classifier, config, plans
from hypothesis import example, given
from hypothesis import strategies as st

from semroute_extproc.outcome import Kind, Outcome
from semroute_extproc.pipeline.pipeline import Pipeline
from semroute_extproc.request.view import Api, Decide, RequestHead

CODECS = ("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be")
SETTINGS = config(policies={"main": {"otherwise": {"pool": "small"}}})
MODELS = {"auto": Kind.ROUTED, "m-s": Kind.NAMED}

texts = st.text(st.characters() | st.characters(categories=["Cs"]), max_size=8)
numbers = st.integers() | st.floats() | st.sampled_from([10**400, -(10**400), 0, -0.0])
scalars = st.none() | st.booleans() | numbers | texts
anything = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
messages = st.lists(st.fixed_dictionaries({"role": st.just("user"), "content": texts}), max_size=3)
named = st.sampled_from([*MODELS, *MODELS, "gpt-9", None, 7])
members = st.lists(
    st.one_of(
        st.tuples(st.just("model"), named | anything),
        st.tuples(st.just("messages"), messages | anything),
        st.tuples(st.sampled_from(["stream", "temperature", "metadata", "n"]) | texts, anything),
    ),
    max_size=4,
)


def outcome_of(body: bytes) -> Outcome:
    subject = Pipeline(SETTINGS, plans(SETTINGS), classifier(FakeEncoder()), emit=pytest.fail)
    head = RequestHead("POST", "/v1/chat/completions")
    return asyncio.run(subject.decide(Decide(head, Api.CHAT_COMPLETIONS, body)))


def read(body: bytes) -> Any:
    """What a server in Python reads; None if it refuses the body."""
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None


def replaced(text: str) -> str:
    return text.encode("utf-8", "replace").decode()


def check(body: bytes) -> None:
    outcome, found = outcome_of(body), read(body)
    sent = body if outcome.body is None else outcome.body
    if not isinstance(found, dict):
        assert read(sent) == found or not isinstance(read(sent), dict)
        return
    kind = MODELS.get(found["model"]) if isinstance(found.get("model"), str) else None
    if kind is None:
        assert outcome.kind is Kind.PASSTHROUGH
        assert repr(read(sent)) == repr(found)
        return
    if outcome.kind is Kind.FALLBACK:  # an API's members of the wrong type, which the pool refuses
        assert outcome.cause == "wrong_type"
    else:
        assert outcome.kind is kind
    assert repr(read(sent)) == repr({**found, "model": "m-s"})
    if outcome.kind is Kind.ROUTED and outcome.view is not None:
        asked = [each.get("content") for each in found.get("messages") or []]
        if all(isinstance(content, str) for content in asked):  # and no list of parts
            assert [turn.text for turn in outcome.view.turns] == [replaced(content) for content in asked]


@given(
    st.lists(st.tuples(named, messages), min_size=1, max_size=2),
    members,
    st.booleans(),
    st.sampled_from(CODECS),
)
def test_a_body_is_read_as_python_reads_it(
    last: list[tuple[Any, Any]], others: list[tuple[str, Any]], escaped: bool, codec: str
) -> None:
    spelled = [*others, *(each for model, said in last for each in (("model", model), ("messages", said)))]
    text = ",".join(
        f"{json.dumps(name, ensure_ascii=escaped)}: {json.dumps(value, ensure_ascii=escaped)}"
        for name, value in spelled
    )
    check(("{" + text + "}").encode(codec, "surrogatepass"))


@given(members, st.sampled_from(CODECS), st.integers(0, 200), st.binary(max_size=3), st.integers(0, 3))
@example([("model", "auto")], "utf-8", 1, b'"\\ud800":NaN,', 0)
@example([], "utf-8-sig", 0, b"\xef\xbb\xbf", 0)
@example([], "utf-16", 0, b"\xef\xbb\xbf", 0)
def test_a_damaged_body_too(
    spelled: list[tuple[str, Any]], codec: str, position: int, put: bytes, cut: int
) -> None:
    text = ",".join(f"{json.dumps(name)}:{json.dumps(value)}" for name, value in spelled)
    body = ("{" + text + "}").encode(codec)
    position %= len(body) + 1
    check(body[:position] + put + body[position + cut :])


@given(st.binary(max_size=60) | st.text('{}[]":,\\ud8NaInfity-0"model""auto"', max_size=60).map(str.encode))
def test_any_bytes_too(body: bytes) -> None:
    check(body)


@pytest.mark.parametrize("depth", [10, 100, 400])
def test_a_nested_body_too(depth: int) -> None:
    nested = b"[" * depth + b"NaN" + b"]" * depth
    check(b'{"model":"auto","messages":[],"x":' + nested + b"}")
