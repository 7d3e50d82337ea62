"""`/v1/chat/completions`."""

from __future__ import annotations

import json
from typing import Any

import pytest

from semroute_extproc.request import apis
from semroute_extproc.request.apis.reading import METADATA_MAX
from semroute_extproc.request.view import Api, RequestView


def parse(*messages: Any, **fields: Any) -> RequestView:
    body = {"model": "auto", "messages": list(messages), **fields}
    return apis.parse(Api.CHAT_COMPLETIONS, json.dumps(body).encode())


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def turns(view: RequestView) -> list[tuple[str, str]]:
    return [(turn.role, turn.text) for turn in view.turns]


CALL = {"id": "c1", "type": "function", "function": {"name": "ls", "arguments": '{"path":"/"}'}}


def test_a_conversation_keeps_its_order_and_its_roles():
    view = parse(
        {"role": "system", "content": "Be brief."},
        user("Hi"),
        {"role": "assistant", "content": "Hello."},
        user("What is 2+2?"),
    )
    assert turns(view) == [
        ("system", "Be brief."),
        ("user", "Hi"),
        ("assistant", "Hello."),
        ("user", "What is 2+2?"),
    ]
    assert view.characters == len("Be brief.HiHello.What is 2+2?")


@pytest.mark.parametrize(
    ("sent", "role"),
    [
        ("developer", "system"),
        ("function", "tool"),
        ("ipython", "tool"),
        ("critic", "user"),
        (None, "user"),
    ],
)
def test_other_roles_are_read_as_the_nearest_one(sent: str | None, role: str):
    assert turns(parse({"role": sent, "content": "x"}, user("y")))[0] == (role, "x")


def test_text_parts_are_joined_and_media_counted():
    view = parse(
        user(
            [
                {"type": "text", "text": "What is"},
                {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
                {"type": "text", "text": "this?"},
            ]
        )
    )
    assert turns(view) == [("user", "What is\nthis?")]
    assert view.images == 1


@pytest.mark.parametrize(
    ("part", "medium"),
    [
        ({"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}, "images"),
        ({"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}, "audio"),
        ({"type": "audio_url", "audio_url": {"url": "https://example.org/a.wav"}}, "audio"),
        ({"type": "video_url", "video_url": {"url": "https://example.org/a.mp4"}}, "video"),
        ({"type": "file", "file": {"file_data": "AAAA"}}, "files"),
        ({"type": "image_embeds", "image_embeds": "AAAA"}, "images"),
        ({"image_url": "https://example.org/a.png"}, "images"),
        ({"type": "something_new", "payload": [1]}, "images"),
    ],
)
def test_every_medium_is_counted_by_its_kind(part: dict[str, Any], medium: str):
    view = parse(user([part, {"type": "text", "text": "?"}]))
    counts = {name: getattr(view, name) for name in ("images", "audio", "video", "files")}
    assert counts == {**dict.fromkeys(counts, 0), medium: 1}


@pytest.mark.parametrize(
    ("call", "foreign"), [("aB3dE6gH9", False), ("call_abc123", True), ("toolu_01A", True)]
)
def test_tool_calls_whose_ids_mistral_would_refuse_are_foreign(call: str, foreign: bool):
    assert parse(user("x"), {"role": "tool", "tool_call_id": call, "content": "4"}).foreign is foreign
    assert not parse(user("x"), {"role": "tool", "tool_call_id": None, "content": "4"}).foreign


def test_the_user_and_the_metadata_are_read():
    view = parse(user("x"), user="ann", metadata={"team": "a", "n": 7})
    assert (view.user, view.metadata) == ("ann", {"team": "a"})
    assert parse(user("x"), user=7, metadata="odd").metadata == {}
    many = {str(number): "x" for number in range(METADATA_MAX + 1)}
    assert len(parse(user("x"), metadata=many).metadata) == METADATA_MAX


@pytest.mark.parametrize(
    ("part", "text"),
    [
        ("plain", "plain"),
        ({"text": "untyped"}, "untyped"),
        ({"type": "input_text", "text": "other API"}, "other API"),
        ({"type": "refusal", "refusal": "No."}, "No."),
        ({"type": "thinking", "thinking": "hm"}, ""),
        ({"type": "text", "text": None}, ""),
    ],
)
def test_parts_without_media_are_no_images(part: Any, text: str):
    view = parse(user([part]), user("x"))
    assert (turns(view)[0], view.images) == (("user", text), 0)


def test_an_image_alone_is_still_a_request():
    view = parse(user([{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}]))
    assert (view.images, view.characters, turns(view)) == (1, 0, [("user", "")])


def test_characters_leave_base64_data_out_whatever_its_size():
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 100_000}}
    assert parse(user([image, {"type": "text", "text": "abc"}])).characters == 3


def test_an_assistant_turn_that_only_calls_tools_is_an_empty_turn():
    view = parse(user("ls"), {"role": "assistant", "content": None, "tool_calls": [CALL]}, user("go on"))
    assert turns(view)[1] == ("assistant", "")
    assert view.characters == len("lsgo on") + len(json.dumps([CALL]))


def test_calls_that_are_null_count_for_nothing():
    answer = {"role": "assistant", "content": "x", "tool_calls": None, "function_call": None}
    assert parse(user("x"), answer).characters == 2


def test_a_tool_result_at_the_end_is_a_tool_loop():
    messages = [user("ls"), {"role": "assistant", "content": None, "tool_calls": [CALL]}]
    result = {"role": "tool", "tool_call_id": "c1", "content": [{"type": "text", "text": "etc usr"}]}
    assert parse(*messages, result).tool_loop
    assert turns(parse(*messages, result))[-1] == ("tool", "etc usr")
    assert not parse(*messages, result, user("thanks")).tool_loop
    assert not parse(*messages).tool_loop


def test_older_functions_count_as_tools():
    view = parse(user("x"), tools=[{"a": 1}], functions=[{"name": "f"}, {"name": "g"}])
    assert view.tools == 3


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"response_format": {"type": "json_object"}}, True),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": {}}}}, True),
        ({"response_format": {"type": "text"}}, False),
        ({"response_format": None}, False),
        ({"structured_outputs": {"json": {"type": "object"}}}, True),
        ({"structured_outputs": {"json_object": True}}, True),
        ({"structured_outputs": {"regex": "a+"}}, False),
    ],
)
def test_json_mode(fields: dict[str, Any], expected: bool):
    assert parse(user("x"), **fields).json_mode is expected


def test_the_newer_output_limit_beats_the_older_one():
    assert parse(user("x"), max_tokens=5, max_completion_tokens=7).max_output_tokens == 7
    assert parse(user("x"), max_tokens=5, max_completion_tokens=None).max_output_tokens == 5


@pytest.mark.parametrize(
    ("fields", "effort", "is_set"),
    [
        ({"reasoning_effort": "high"}, "high", True),
        ({"reasoning_effort": "none"}, "none", True),
        ({"reasoning_effort": "enormous"}, "", True),
        ({"reasoning_effort": None}, "", False),
        ({"thinking_token_budget": 512}, "", True),
        ({"thinking": {"type": "disabled"}}, "none", True),
        ({"thinking": {"type": "enabled", "budget_tokens": 512}}, "medium", True),
        ({"reasoning": {"effort": "high"}}, "high", True),
        ({"reasoning": {"enabled": False}}, "none", True),
        ({"reasoning": {"max_tokens": 5}}, "", True),
        ({"reasoning_effort": "low", "chat_template_kwargs": {"reasoning_effort": "high"}}, "low", True),
        ({}, "", False),
    ],
)
def test_reasoning_switches_of_the_client_are_seen(fields: dict[str, Any], effort: str, is_set: bool):
    view = parse(user("x"), **fields)
    assert (view.effort, view.reasoning_set) == (effort, is_set)


def test_the_switches_a_policy_can_replace_are_named() -> None:
    kwargs = {"enable_thinking": True, "thinking_mode": None, "other": 1}
    view = parse(user("x"), reasoning_effort="low", thinking={}, chat_template_kwargs=kwargs)
    assert view.reasoning_paths == (("reasoning_effort",), ("chat_template_kwargs", "enable_thinking"))
    assert parse(user("x")).reasoning_paths == ()
