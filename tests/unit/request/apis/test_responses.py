"""`/v1/responses`."""

from __future__ import annotations

import json
from typing import Any

import pytest

from semroute_extproc.errors import BadBody
from semroute_extproc.request import apis
from semroute_extproc.request.view import Api, RequestView


def parse(given: Any, **fields: Any) -> RequestView:
    return apis.parse(Api.RESPONSES, json.dumps({"model": "auto", "input": given, **fields}).encode())


def turns(view: RequestView) -> list[tuple[str, str]]:
    return [(turn.role, turn.text) for turn in view.turns]


def message(text: str, role: str = "user", kind: str = "input_text") -> dict[str, Any]:
    return {"type": "message", "role": role, "content": [{"type": kind, "text": text}]}


CALL = {"type": "function_call", "call_id": "c1", "name": "ls", "arguments": '{"path":"/"}'}
RESULT = {"type": "function_call_output", "call_id": "c1", "output": "etc usr"}


def test_instructions_come_before_the_input():
    assert turns(parse("Hi", instructions="Be brief.")) == [("system", "Be brief."), ("user", "Hi")]


def test_an_empty_input_is_an_empty_turn():
    assert turns(parse("", instructions="Be brief.")) == [("system", "Be brief."), ("user", "")]


def test_message_items_keep_their_order_and_their_roles():
    view = parse(
        [
            {"role": "developer", "content": "Be brief."},
            message("Hi"),
            message("Hello.", "assistant", "output_text"),
            {"role": "user", "content": "Bye"},
        ]
    )
    assert turns(view) == [("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello."), ("user", "Bye")]


def test_images_and_files_among_the_parts_are_counted():
    item = message("What is this?")
    item["content"].append({"type": "input_image", "image_url": "data:image/png;base64," + "A" * 50_000})
    item["content"].append({"type": "input_file", "file_data": "A" * 50_000})
    view = parse([item])
    assert (view.images, view.files, view.characters) == (1, 1, len("What is this?"))


def test_a_function_result_at_the_end_is_a_tool_loop():
    view = parse([message("ls"), CALL, RESULT])
    assert view.tool_loop
    assert turns(view) == [("user", "ls"), ("tool", "etc usr")]
    assert view.characters == len("lsetc usr") + len(json.dumps(CALL["arguments"]))
    assert not parse([message("ls"), CALL, RESULT, message("thanks")]).tool_loop


@pytest.mark.parametrize(
    ("output", "text", "images"),
    [
        ([{"type": "input_text", "text": "etc"}, {"type": "input_image", "image_url": "x"}], "etc", 1),
        ({"type": "computer_screenshot", "image_url": "x"}, "", 1),
        (None, "", 0),
        (5, "", 0),
    ],
)
def test_results_may_be_parts_or_one_medium(output: Any, text: str, images: int):
    view = parse([message("ls"), {"type": "computer_call_output", "call_id": "c", "output": output}])
    assert (turns(view)[-1], view.images) == (("tool", text), images)


def test_other_items_are_no_turns():
    view = parse(
        [
            {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]},
            {"type": "item_reference", "id": "x"},
            {"type": "web_search_call", "action": {"query": "x"}},
            {"type": "something_new", "content": 5},
            message("Hi"),
        ]
    )
    assert turns(view) == [("user", "Hi")]


def test_a_message_whose_content_is_of_the_wrong_type_is_refused():
    with pytest.raises(BadBody) as caught:
        parse([{"type": "message", "role": "user", "content": 5}])
    assert caught.value.cause == "wrong_type"


def test_a_previous_response_ties_the_request_to_its_server():
    assert parse([RESULT], previous_response_id="resp_1").stateful
    assert not parse("Hi", previous_response_id=None).stateful


def test_what_continues_a_response_is_a_request_even_without_text():
    assert parse([], previous_response_id="resp_1").turns == ()


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"text": {"format": {"type": "json_schema", "schema": {}}}}, True),
        ({"text": {"format": {"type": "json_object"}}}, True),
        ({"text": {"format": {"type": "text"}}}, False),
        ({"text": {"verbosity": "low"}}, False),
    ],
)
def test_json_mode(fields: dict[str, Any], expected: bool):
    assert parse("x", **fields).json_mode is expected


@pytest.mark.parametrize(
    ("reasoning", "effort", "is_set"),
    [
        ({"effort": "high"}, "high", True),
        ({"effort": "none"}, "none", True),
        ({"effort": None}, "", False),
        ({"summary": "auto"}, "", False),
        (None, "", False),
    ],
)
def test_the_requested_effort_is_seen(reasoning: Any, effort: str, is_set: bool):
    view = parse("x", reasoning=reasoning)
    assert (view.effort, view.reasoning_set) == (effort, is_set)


def test_the_output_limit_is_seen():
    assert parse("x", max_output_tokens=9).max_output_tokens == 9


def test_the_switches_a_policy_can_replace_are_named() -> None:
    assert parse("x", reasoning={"effort": "low"}).reasoning_paths == (("reasoning", "effort"),)
    assert parse("x", reasoning={"summary": "auto"}).reasoning_paths == ()
