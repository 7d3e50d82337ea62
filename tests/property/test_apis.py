"""Readers of requests against arbitrary JSON and arbitrary bytes."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from semroute_extproc.errors import BadBody
from semroute_extproc.request import apis
from semroute_extproc.request.view import Api, RequestView

FIELDS = (
    *(
        "model",
        "messages",
        "input",
        "prompt",
        "system",
        "instructions",
        "stream",
        "tools",
        "functions",
        "text",
    ),
    *("response_format", "structured_outputs", "max_tokens", "max_completion_tokens", "max_output_tokens"),
    *(
        "reasoning_effort",
        "reasoning",
        "thinking",
        "chat_template_kwargs",
        "output_config",
        "previous_response_id",
    ),
    *("user", "metadata", "thinking_token_budget", "prompt_cache_key", "conversation", "request_id"),
    *("truncate_prompt_tokens", "truncation", "texts"),
)
INNER = (
    *(
        "role",
        "content",
        "type",
        "text",
        "refusal",
        "tool_calls",
        "function_call",
        "output",
        "arguments",
        "input",
    ),
    *("source", "data", "format", "effort", "json", "enable_thinking", "image_url"),
    *("tool_call_id", "tool_use_id", "call_id", "budget_tokens", "enabled"),
)
WORDS = (
    *(
        "user",
        "system",
        "assistant",
        "tool",
        "text",
        "input_text",
        "image",
        "image_url",
        "tool_result",
        "tool_use",
    ),
    *(
        "document",
        "search_result",
        "message",
        "function_call",
        "function_call_output",
        "json_object",
        "disabled",
    ),
    *("high", "none", "hello world", "", " ", "é法\n"),
)
REASONS = {"not_json", "too_deep", "wrong_type", "too_many_parts"}
ROLES = {"system", "user", "assistant", "tool"}

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-5, 5) | st.integers(),
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from(WORDS),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=5),
)
anything = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(INNER), inner, max_size=5),
    max_leaves=25,
)
part = st.fixed_dictionaries(
    {"type": st.sampled_from(WORDS)}, optional={name: anything for name in INNER if name != "type"}
)
message = st.fixed_dictionaries(
    {"role": st.sampled_from(WORDS), "content": st.sampled_from(WORDS) | st.lists(part, max_size=4)},
    optional={"type": st.sampled_from(WORDS), "tool_calls": anything, "output": anything},
)
likely = st.fixed_dictionaries(
    {
        "messages": st.lists(message, max_size=4),
        "input": st.sampled_from(WORDS) | st.lists(message, max_size=4),
    },
    optional={name: anything for name in FIELDS if name not in ("messages", "input")},
)
unlikely = st.dictionaries(st.sampled_from(FIELDS), anything, max_size=6)
api_of = st.sampled_from(Api)


def view_of(api: Api, body: bytes) -> RequestView | None:
    try:
        view = apis.parse(api, body)
    except BadBody as error:
        return None if error.cause in REASONS else pytest.fail(f"unknown reason {error.cause}")
    assert view.api is api
    assert {turn.role for turn in view.turns} <= ROLES
    assert min(view.images, view.audio, view.video, view.files, view.tools) >= 0
    assert view.thinking_tokens is None or view.thinking_tokens > 0
    assert all(isinstance(value, str) for value in (view.user, *view.metadata.values()))
    assert view.max_output_tokens is None or view.max_output_tokens > 0
    assert view.reasoning_set or not view.effort
    if api not in (Api.COMPLETIONS, Api.EMBEDDINGS):
        assert view.characters >= sum(len(turn.text) for turn in view.turns)
    return view


@given(api=api_of, body=likely | unlikely | anything)
def test_any_json_gives_a_sound_view_or_bad_body(api: Api, body: Any):
    view_of(api, json.dumps(body).encode())


@given(
    api=api_of,
    body=st.binary(max_size=80) | st.text('{}[]":,\\u0 "messages"input', max_size=80).map(str.encode),
)
def test_any_bytes_give_a_sound_view_or_bad_body(api: Api, body: bytes):
    view_of(api, body)


@given(api=api_of, body=likely)
def test_spelling_does_not_matter(api: Api, body: dict[str, Any]):
    """White space, escapes and unknown fields change nothing but the length of declarations."""
    plain = view_of(api, json.dumps(body, ensure_ascii=False).encode())
    other = view_of(api, json.dumps({"unknown": [body], **body}, indent=3).encode())
    assert (plain is None) == (other is None)
    if plain is None or other is None:
        return
    assert (plain.turns, plain.images, plain.tools) == (other.turns, other.images, other.tools)
    assert (plain.effort, plain.reasoning_set, plain.json_mode) == (
        other.effort,
        other.reasoning_set,
        other.json_mode,
    )


@given(api=api_of, body=likely, position=st.integers(0, 10_000))
def test_a_body_cut_short_is_not_json(api: Api, body: dict[str, Any], position: int):
    text = json.dumps(body).encode()
    assert view_of(api, text[: position % len(text)]) is None
