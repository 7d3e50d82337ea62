"""Common to every API: paths, errors, tolerance, bounds."""

from __future__ import annotations

import json
from typing import Any

import pytest

from semroute_extproc.errors import BadBody
from semroute_extproc.request import apis
from semroute_extproc.request.apis import reading
from semroute_extproc.request.view import Api, RequestView, Turn

TEXT_FIELD = {
    Api.CHAT_COMPLETIONS: b'"messages":[{"role":"user","content":%s}]',
    Api.COMPLETIONS: b'"prompt":%s',
    Api.RESPONSES: b'"input":%s',
    Api.MESSAGES: b'"messages":[{"role":"user","content":%s}]',
    Api.EMBEDDINGS: b'"input":%s',
}


TEXT_APIS = list(TEXT_FIELD)


def body(api: Api, text: bytes = b'"hello"', more: bytes = b"") -> bytes:
    return b'{"model":"auto",' + TEXT_FIELD[api] % text + more + b"}"


def reason(api: Api, raw: bytes) -> str:
    with pytest.raises(BadBody) as caught:
        apis.parse(api, raw)
    return caught.value.cause


@pytest.mark.parametrize("api", sorted(set(Api) - apis.TEXT_APIS))
def test_of_an_api_without_text_only_the_model_is_read(api: Api):
    assert apis.parse(api, b'{"model":"auto","documents":7,"messages":7}') == RequestView(api, "auto")
    assert reason(api, b'{"model":7}') == "wrong_type"


@pytest.mark.parametrize("api", TEXT_APIS)
def test_a_minimal_body_gives_its_model_and_its_text(api: Api):
    view = apis.parse(api, body(api))
    assert (view.api, view.model) == (api, "auto")
    assert [(turn.role, turn.text) for turn in view.turns] == [("user", "hello")]
    assert view.characters == 5
    assert (view.stream, view.images, view.tools, view.tool_loop, view.json_mode) == (
        False,
        0,
        0,
        False,
        False,
    )
    assert (view.max_output_tokens, view.effort, view.reasoning_set, view.stateful) == (
        None,
        "",
        False,
        False,
    )


@pytest.mark.parametrize("api", TEXT_APIS)
@pytest.mark.parametrize("model", [b'"model":null', b'"other":1'])
def test_a_model_that_is_not_named_is_empty(api: Api, model: bytes):
    assert apis.parse(api, body(api).replace(b'"model":"auto"', model)).model == ""


@pytest.mark.parametrize("api", TEXT_APIS)
@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b" ",
        b"{",
        b"hello",
        b"{'model': 1}",
        b'{"model":"auto"} {}',
        b'\xef\xbb\xbf{"model":"auto"}',
        b'{"model":"a\xff"}',
        b'{"model":"\xed\xa0\x80"}',
        b'{"model":"\\ud800"}',
        b'{"model":"a\nb"}',
        b'{"temperature":NaN}',
        b'{"temperature":01}',
    ],
)
def test_what_is_not_json_is_refused(api: Api, raw: bytes):
    assert reason(api, raw) == "not_json"


@pytest.mark.parametrize("api", TEXT_APIS)
@pytest.mark.parametrize("raw", [b"[]", b"1", b"null", b'"text"'])
def test_json_that_is_no_object_is_of_the_wrong_type(api: Api, raw: bytes):
    assert reason(api, raw) == "wrong_type"


@pytest.mark.parametrize("api", TEXT_APIS)
@pytest.mark.parametrize("value", [b"5", b"true", b'{"text":"hello"}', b"[5.5]"])
def test_a_text_of_the_wrong_type_is_refused(api: Api, value: bytes):
    assert reason(api, body(api, value)) == "wrong_type"


@pytest.mark.parametrize("api", TEXT_APIS)
def test_a_model_of_the_wrong_type_is_refused(api: Api):
    assert reason(api, body(api).replace(b'"auto"', b'["auto"]')) == "wrong_type"


@pytest.mark.parametrize("api", TEXT_APIS)
@pytest.mark.parametrize("raw", [b'"text":', b'"unknown":'])
def test_an_array_nested_a_hundred_thousand_deep_is_refused_wherever_it_is(api: Api, raw: bytes):
    deep = b"[" * 100_000 + b"]" * 100_000
    assert reason(api, body(api, more=b"," + raw + deep)) == "too_deep"


@pytest.mark.parametrize("api", TEXT_APIS)
@pytest.mark.parametrize("text", [b'""', b'" \\n\\t"', b"null", b"[]"])
def test_a_body_without_text_has_nothing_to_read(api: Api, text: bytes):
    assert not any(turn.text.strip() for turn in apis.parse(api, body(api, text)).turns)


@pytest.mark.parametrize("api", TEXT_APIS)
def test_a_body_without_the_text_field_has_nothing_to_read(api: Api):
    assert apis.parse(api, b'{"model":"auto"}').turns in ((), (Turn("user", ""),))


@pytest.mark.parametrize("api", TEXT_APIS)
def test_of_duplicate_keys_the_last_one_counts(api: Api):
    raw = body(api, b'"first"', b"," + TEXT_FIELD[api] % b'"last"' + b',"model":"other"')
    view = apis.parse(api, raw)
    assert (view.model, view.turns[0].text) == ("other", "last")


OPTIONAL = (
    *(
        "stream",
        "tools",
        "functions",
        "response_format",
        "structured_outputs",
        "system",
        "instructions",
        "text",
    ),
    *("max_tokens", "max_completion_tokens", "max_output_tokens", "previous_response_id", "output_config"),
    *("reasoning_effort", "chat_template_kwargs", "thinking_token_budget", "thinking", "reasoning"),
    *("temperature", "unknown"),
)
ODD = [
    b"null",
    b"true",
    b"-1",
    b"1E400",
    b"9" * 5_000,
    b'"odd"',
    b"[]",
    b"[[1]]",
    b"{}",
    b'{"type":7,"effort":{}}',
]


@pytest.mark.parametrize("api", TEXT_APIS)
@pytest.mark.parametrize("odd", ODD)
def test_an_optional_field_of_the_wrong_type_never_fails_a_request(api: Api, odd: bytes):
    for name in OPTIONAL:
        view = apis.parse(api, body(api, more=b',"%s":%s' % (name.encode(), odd)))
        assert view.turns[-1].text == "hello"


@pytest.mark.parametrize("api", [Api.CHAT_COMPLETIONS, Api.RESPONSES, Api.MESSAGES])
@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        (b"100", 100),
        (b"1e2", 100),
        (b'"100"', 100),
        (b"0", None),
        (b"-5", None),
        (b"1.5", None),
        (b"1E400", None),
    ],
)
def test_the_output_limit_is_a_positive_number_or_nothing(api: Api, tokens: bytes, expected: int | None):
    name = b"max_output_tokens" if api is Api.RESPONSES else b"max_tokens"
    assert apis.parse(api, body(api, more=b',"%s":%s' % (name, tokens))).max_output_tokens == expected


@pytest.mark.parametrize("api", [Api.CHAT_COMPLETIONS, Api.COMPLETIONS, Api.RESPONSES, Api.MESSAGES])
def test_streaming_is_seen(api: Api):
    assert apis.parse(api, body(api, more=b',"stream":true')).stream
    assert not apis.parse(api, body(api, more=b',"stream":false')).stream


@pytest.mark.parametrize("api", [Api.CHAT_COMPLETIONS, Api.RESPONSES, Api.MESSAGES])
def test_tools_are_counted_and_their_declarations_measured(api: Api):
    tools = b'[{"type":"function","name":"a"}, {"type":"function","name":"b"}]'
    view = apis.parse(api, body(api, more=b',"tools":' + tools))
    assert view.tools == 2
    assert view.characters == len("hello") + len(tools)


@pytest.mark.parametrize("api", [Api.CHAT_COMPLETIONS, Api.RESPONSES, Api.MESSAGES])
@pytest.mark.parametrize(
    ("kwargs", "effort", "is_set"),
    [
        ({"enable_thinking": False}, "none", True),
        ({"enable_thinking": True}, "medium", True),
        ({"thinking": False}, "none", True),
        ({"thinking_mode": "enabled"}, "medium", True),
        ({"Reasoning_Mode": 1}, "", True),
        ({"reasoning_effort": "high"}, "high", True),
        ({"enable_thinking": None}, "", False),
        ({"documents": []}, "", False),
        ({}, "", False),
        (None, "", False),
    ],
)
def test_reasoning_switches_among_template_arguments_are_seen(
    api: Api, kwargs: dict[str, Any] | None, effort: str, is_set: bool
):
    more = b',"chat_template_kwargs":' + json.dumps(kwargs).encode()
    view = apis.parse(api, body(api, more=more))
    assert (view.effort, view.reasoning_set) == (effort, is_set)


@pytest.mark.parametrize("api", [Api.CHAT_COMPLETIONS, Api.RESPONSES, Api.MESSAGES])
def test_more_messages_than_the_bound_are_refused_before_they_are_read(api: Api):
    name = "input" if api is Api.RESPONSES else "messages"
    one = {"role": "user", "content": "x"}
    assert reason(api, json.dumps({name: [one] * (reading.ELEMENTS_MAX + 1)}).encode()) == "too_many_parts"
    assert len(apis.parse(api, json.dumps({name: [one] * 1_000}).encode()).turns) == 1_000


def test_the_bound_holds_for_parts_of_all_messages_together():
    message = {"role": "user", "content": [{"type": "text", "text": "x"}] * 1_000}
    raw = json.dumps({"messages": [message] * 17}).encode()
    assert reason(Api.CHAT_COMPLETIONS, raw) == "too_many_parts"


def test_an_error_says_where_but_never_quotes_the_text():
    with pytest.raises(BadBody) as caught:
        apis.parse(Api.CHAT_COMPLETIONS, b'{"messages":[{"role":"user","content":{"secret":"hunter2"}}]}')
    assert "$.messages[0].content" in str(caught.value)
    assert "hunter2" not in str(caught.value)
