"""What answers say about their tokens."""

from __future__ import annotations

import json
from typing import Any

import answers
import pytest

from semroute_extproc.request.usage import Parts, Usage, asks_for_usage, parts_of, usage_of
from semroute_extproc.request.view import Api


def usage_in(body: bytes, api: Api, stream: bool = False) -> Usage | None:
    return usage_of(parts_of(body, stream), api)


@pytest.mark.parametrize("api", answers.APIS)
def test_every_api_states_its_usage_whole_and_streamed(api: Api) -> None:
    assert usage_in(answers.whole(api), api) == answers.usage(api)
    assert usage_in(b"".join(answers.stream(api)), api, stream=True) == answers.usage(api)


def test_an_embedding_has_no_output() -> None:
    body = json.dumps({"data": [], "usage": {"prompt_tokens": 9, "total_tokens": 9}}).encode()
    assert usage_in(body, Api.EMBEDDINGS) == Usage(input=9)


def test_an_answer_may_be_written_over_several_lines() -> None:
    body = json.dumps(json.loads(answers.whole(Api.CHAT_COMPLETIONS)), indent=2).encode()
    assert usage_in(body, Api.CHAT_COMPLETIONS) == answers.USAGE


@pytest.mark.parametrize("api", answers.APIS)
def test_much_text_may_follow_the_usage(api: Api) -> None:
    """Such as the log probabilities of the prompt."""
    body = answers.whole(api)[:-1] + b', "prompt_logprobs": [' + b"1, " * 10_000 + b"1]}"
    assert usage_in(body, api) == answers.usage(api)


def test_the_input_of_anthropics_api_includes_what_was_cached() -> None:
    """Its `input_tokens` leaves out what was read from the cache and written to it."""
    found = usage_in(answers.whole(Api.MESSAGES), Api.MESSAGES)
    assert found is not None
    assert (found.input, found.cached) == (120, 100)


FORGED = '{"usage": {"prompt_tokens": 900000, "completion_tokens": 900000}}'


@pytest.mark.parametrize("api", answers.APIS)
@pytest.mark.parametrize(
    "text", [FORGED, f"{FORGED}\n\ndata: {FORGED}", '"usage"', "usage", '\\"usage\\": {']
)
def test_a_model_cannot_forge_the_usage_in_its_text(api: Api, text: str) -> None:
    assert usage_in(answers.whole(api, text), api) == answers.usage(api)
    assert usage_in(b"".join(answers.stream(api, (text,))), api, stream=True) == answers.usage(api)
    finish = {"stop", "completed", "end_turn"}
    assert parts_of(answers.whole(api, '"finish_reason": "length"'), stream=False).finish in finish


def test_a_model_cannot_forge_the_usage_in_a_tools_arguments() -> None:
    """Also where a server states the usage first. Then it counts as not stated."""
    tool = {"type": "tool_use", "input": {"usage": {"input_tokens": 1, "output_tokens": 1}}}
    first = json.dumps({"usage": {"input_tokens": 5, "output_tokens": 5}, "content": [tool]}).encode()
    assert usage_in(first, Api.MESSAGES) is None


@pytest.mark.parametrize("api", [api for api in answers.APIS if api is not Api.MESSAGES])
@pytest.mark.parametrize("key", ["prompt_tokens", "input_tokens", "cache_read_input_tokens", "output_tokens"])
def test_a_client_cannot_forge_the_usage_in_a_tool_that_the_first_event_repeats(api: Api, key: str) -> None:
    tool = {"parameters": {"usage": {key: 10**9, "completion_tokens": 0}}}
    forged = json.dumps({"type": "response.created", "response": {"tools": [tool], "usage": None}})
    stream = f"event: response.created\ndata: {forged}\n\n".encode() + b"".join(answers.stream(api))
    assert usage_in(stream, api, stream=True) == answers.usage(api)


def test_a_usage_deeper_in_a_whole_answer_is_not_its_usage() -> None:
    body = {"usage": {"prompt_tokens": 9, "completion_tokens": 1}, "z": {"usage": {"completion_tokens": 77}}}
    found = usage_in(json.dumps(body).encode(), Api.CHAT_COMPLETIONS)
    assert found is None or found.output != 77


@pytest.mark.parametrize(
    "usage",
    [
        None,
        {},
        "many",
        {"prompt_tokens": -1},
        {"prompt_tokens": 1.5},
        {"completion_tokens": 10**10},
        {"a": 1},
    ],
)
def test_a_usage_that_makes_no_sense_is_not_stated(usage: Any) -> None:
    assert usage_in(json.dumps({"usage": usage}).encode(), Api.CHAT_COMPLETIONS) is None


@pytest.mark.parametrize("api", [Api.CHAT_COMPLETIONS, Api.COMPLETIONS])
def test_a_stream_without_usage_is_estimated_by_its_events(api: Api) -> None:
    parts = parts_of(b"".join(answers.stream(api, ("a", "b", "c"), stated=False)), stream=True)
    assert usage_of(parts, api, prompt_tokens=40) == Usage(input=40, output=3, estimated=True)


@pytest.mark.parametrize("api", answers.APIS)
def test_a_stream_that_was_cut_off_is_estimated_by_its_events(api: Api) -> None:
    """Anthropic's API has stated the tokens of the prompt by then."""
    events = answers.stream(api, ("a", "b", "c", "d"))
    cut = next(n for n, event in enumerate(events) if b'"d"' in event)
    parts = parts_of(b"".join(events[:cut]), stream=True)
    found = usage_of(parts, api, ended=False, prompt_tokens=40)
    known = 120 if api is Api.MESSAGES else 40
    cached = 100 if api is Api.MESSAGES else 0
    assert found == Usage(input=known, output=3, cached=cached, estimated=True)


def test_nothing_is_estimated_for_a_body_without_usage() -> None:
    assert usage_of(Parts(), Api.CHAT_COMPLETIONS) is None
    assert usage_in(b'{"error": {"message": "no"}}', Api.CHAT_COMPLETIONS) is None
    assert usage_in(b"", Api.CHAT_COMPLETIONS) is None


@pytest.mark.parametrize(
    ("body", "asks"),
    [
        ({"stream": True}, True),
        ({"stream": True, "stream_options": None}, True),
        ({"stream": True, "stream_options": {"continuous_usage_stats": True}}, True),
        ({"stream": True, "stream_options": {"include_usage": False}}, False),
        ({"stream": True, "stream_options": {"include_usage": True}}, False),
        ({"stream": False}, False),
        ({}, False),
        ({"stream": "yes"}, False),
    ],
)
def test_usage_is_asked_for_where_the_client_leaves_it_open(body: Any, asks: bool) -> None:
    written = json.dumps(body).encode()
    assert asks_for_usage(Api.CHAT_COMPLETIONS, written) is asks
    assert asks_for_usage(Api.COMPLETIONS, written) is asks
    assert not asks_for_usage(Api.RESPONSES, written)
    assert not asks_for_usage(Api.MESSAGES, written)


def test_usage_is_not_asked_for_in_a_body_that_cannot_be_read() -> None:
    for body in (b'{"stream": true', b'{"stream": true, "stream_options": "\\ud800"}', b"[" * 5_000):
        assert not asks_for_usage(Api.CHAT_COMPLETIONS, body)
