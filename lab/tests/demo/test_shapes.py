"""What a simulated pool answers to a request with tools or a schema, in the shape of each API."""

from __future__ import annotations

import json
from typing import Any

import pytest
from semroute_demo import shapes
from semroute_demo.shapes import Answer, instance

from semroute_extproc.request.view import Api

SCHEMA = {
    "type": "object",
    "properties": {
        "city": {"type": "string"},
        "days": {"type": "array", "items": {"type": "integer"}},
        "unit": {"enum": ["celsius", "kelvin"]},
        "place": {"anyOf": [{"type": "object", "properties": {"lat": {"type": "number"}}}, {"type": "null"}]},
        "note": {"type": ["string", "null"]},
        "kind": {"const": "forecast"},
    },
}
VALUE = {
    "city": "text",
    "days": [1],
    "unit": "celsius",
    "place": {"lat": 0.5},
    "note": "text",
    "kind": "forecast",
}
FUNCTION = {"name": "weather", "parameters": SCHEMA}
ASK = {"role": "user", "content": "How is the weather?"}


def answer(api: Api, **request: Any) -> Answer:
    return shapes.answer(api, request, "small", "m", "id", 0)


def events(made: Answer) -> list[dict[str, Any]]:
    lines = [line for event, _ in shapes.events(made) for line in event.decode().splitlines()]
    data = [line.removeprefix("data: ") for line in lines if line.startswith("data: {")]
    return [json.loads(each) for each in data]


def test_a_schema_has_an_instance() -> None:
    assert instance(SCHEMA) == VALUE


@pytest.mark.parametrize("schema", [None, True, {}, {"type": "object"}, {"$ref": "#/a"}])
def test_a_schema_that_says_little_has_an_instance(schema: object) -> None:
    assert instance(schema) in ("text", {})


def test_a_schema_that_contains_itself_ends() -> None:
    endless: dict[str, Any] = {"type": "object", "properties": {}}
    endless["properties"]["next"] = endless
    assert json.dumps(instance(endless)).count("next") == shapes.INSTANCE_DEPTH_MAX


class TestTools:
    def test_a_chat_completion_calls_the_first_tool(self) -> None:
        made = answer(
            Api.CHAT_COMPLETIONS, messages=[ASK], tools=[{"type": "function", "function": FUNCTION}]
        )
        [choice] = shapes.body(made)["choices"]
        [call] = choice["message"]["tool_calls"]
        assert (choice["finish_reason"], call["function"]["name"]) == ("tool_calls", "weather")
        assert json.loads(call["function"]["arguments"]) == VALUE

    def test_a_stream_of_chunks_has_the_arguments_in_pieces(self) -> None:
        tools = [{"type": "function", "function": FUNCTION}]
        chunks = events(answer(Api.CHAT_COMPLETIONS, messages=[ASK], tools=tools, stream=True))
        deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
        calls = [call for delta in deltas for call in delta.get("tool_calls", ())]
        assert [call["function"]["name"] for call in calls if "id" in call] == ["weather"]
        assert json.loads("".join(call["function"]["arguments"] for call in calls)) == VALUE
        assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"

    @pytest.mark.parametrize("stream", [False, True])
    def test_a_message_uses_it(self, stream: bool) -> None:
        tools = [{"name": "weather", "input_schema": SCHEMA}]
        made = answer(Api.MESSAGES, messages=[ASK], tools=tools, stream=stream)
        body = shapes.body(made)
        assert (body["stop_reason"], body["content"][0]["input"]) == ("tool_use", VALUE)
        deltas = [event["delta"].get("partial_json", "") for event in events(made) if "delta" in event]
        assert json.loads("".join(deltas)) == VALUE

    @pytest.mark.parametrize("stream", [False, True])
    def test_a_response_calls_it(self, stream: bool) -> None:
        tools = [{"type": "function", **FUNCTION}]
        made = answer(Api.RESPONSES, input="How is the weather?", tools=tools, stream=stream)
        [item] = shapes.body(made)["output"]
        assert (item["type"], item["name"], json.loads(item["arguments"])) == (
            "function_call",
            "weather",
            VALUE,
        )
        pieces = [event["delta"] for event in events(made) if event["type"].endswith("arguments.delta")]
        assert json.loads("".join(pieces)) == VALUE

    @pytest.mark.parametrize(
        ("api", "last"),
        [
            (Api.CHAT_COMPLETIONS, {"messages": [ASK, {"role": "tool", "content": "rain"}]}),
            (Api.MESSAGES, {"messages": [{"role": "user", "content": [{"type": "tool_result"}]}]}),
            (Api.RESPONSES, {"input": [{"type": "function_call_output", "output": "rain"}]}),
            (Api.CHAT_COMPLETIONS, {"messages": [ASK], "tool_choice": "none"}),
            (Api.CHAT_COMPLETIONS, {"messages": [ASK], "max_tokens": 1}),
        ],
    )
    def test_text_answers_a_result_and_a_client_that_allows_no_call(
        self, api: Api, last: dict[str, Any]
    ) -> None:
        made = answer(api, tools=[{"type": "function", "function": FUNCTION}], **last)
        assert made.tool == ""
        assert "simulated" in "".join(made.pieces) or len(made.pieces) == 1


class TestSchemas:
    @pytest.mark.parametrize(
        ("api", "request_"),
        [
            (
                Api.CHAT_COMPLETIONS,
                {"response_format": {"type": "json_schema", "json_schema": {"schema": SCHEMA}}},
            ),
            (Api.RESPONSES, {"text": {"format": {"type": "json_schema", "schema": SCHEMA}}}),
        ],
    )
    def test_the_answer_follows_it(self, api: Api, request_: dict[str, Any]) -> None:
        made = answer(api, messages=[ASK], **request_)
        assert json.loads("".join(made.pieces)) == VALUE

    def test_any_object_is_an_empty_one(self) -> None:
        made = answer(Api.CHAT_COMPLETIONS, messages=[ASK], response_format={"type": "json_object"})
        assert "".join(made.pieces) == "{}"
