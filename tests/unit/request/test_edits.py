"""Byte-preserving edits."""

from __future__ import annotations

import json

import pytest
from msgspec import Raw

from semroute_extproc.errors import BadBody
from semroute_extproc.request import edits
from semroute_extproc.request.edits import set_members

MODEL = {("model",): "qwen"}
SWITCH = {("chat_template_kwargs", "enable_thinking"): False}


def reason(body: bytes) -> str:
    with pytest.raises(BadBody) as caught:
        set_members(body, MODEL)
    return caught.value.cause


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"model":"auto"}', b'{"model":"qwen"}'),
        (b'{"model":null}', b'{"model":"qwen"}'),
        (b'{"model":{"a":[1]},"b":2}', b'{"model":"qwen","b":2}'),
        (b' \n{ "a" : 1 ,\t"model"  :\r "auto" } ', b' \n{ "a" : 1 ,\t"model"  :\r "qwen" } '),
        (
            b'{"a":"model","b":{"model":"x"},"model":"auto"}',
            b'{"a":"model","b":{"model":"x"},"model":"qwen"}',
        ),
        (b'{"Model":1,"model":2,"model ":3}', b'{"Model":1,"model":"qwen","model ":3}'),
    ],
)
def test_only_the_span_of_the_value_changes(body: bytes, expected: bytes):
    assert set_members(body, MODEL) == expected


@pytest.mark.parametrize(
    "rest",
    [
        b'"a":1E400',
        b'"a":-0.0',
        b'"a":12345678901234567890123',
        b'"a":1.10',
        b'"a":"\\u00e9\\/\\u0000"',
        b'"a":"\xc3\xa9"',
        b'"a":"\xff"',
        b'"a":"\\"}{,:model"',
        b'"a":"\\\\"',
        b'"a":[{"model":"inner"},[]]',
        b'"a":1,"a":1.0,"a":[1],"a":{}',
        b'"":0',
    ],
)
def test_every_other_byte_stays(rest: bytes):
    assert set_members(b'{%s,"model":"auto"}' % rest, MODEL) == b'{%s,"model":"qwen"}' % rest
    assert set_members(b'{"model":"auto",%s}' % rest, MODEL) == b'{"model":"qwen",%s}' % rest


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"{}", b'{"model":"qwen"}'),
        (b"{ \n}", b'{"model":"qwen" \n}'),
        (b'{ "a":1}', b'{"model":"qwen", "a":1}'),
    ],
)
def test_a_missing_member_is_put_first(body: bytes, expected: bytes):
    assert set_members(body, MODEL) == expected


def test_several_missing_members_keep_the_order_they_were_given_in():
    assert (
        set_members(b'{"z":0}', {("b",): 1, ("a", "c"): 2, ("a", "b"): 3})
        == b'{"b":1,"a":{"c":2,"b":3},"z":0}'
    )


@pytest.mark.parametrize(
    "values",
    [
        [b'"a"', b'"b"'],
        [b'"a"', b'"a"', b'"a"'],
        [b"1", b"12"],
        [b"12", b"1"],
        [b"1", b"1.5"],
        [b"1e5", b"1"],
        [b'"a"', b'"a\\"b"', b'"c"'],
        [b'[1,{"model":2}]', b"{}", b'"auto"'],
        [b'{"x":1}', b"null", b"[]", b'{"x":1,"y":[2]}'],
    ],
)
def test_every_occurrence_of_a_duplicate_key_is_set(values: list[bytes]):
    body = b"{" + b", ".join(b'"model": ' + value for value in values) + b"}"
    assert set_members(body, MODEL) == b"{" + b", ".join([b'"model": "qwen"'] * len(values)) + b"}"


def test_an_earlier_duplicate_is_not_taken_to_be_as_long_as_the_last_one():
    """Seven bytes into the first value stands a comma and then what looks like a member of the body."""
    body = b'{"a":{"b":12,"model":"inner"},"model":"auto","a":"12345"}'
    assert len(b'{"b":12') == len(b'"12345"')
    assert set_members(body, MODEL) == body.replace(b'"auto"', b'"qwen"')


@pytest.mark.parametrize("key", [rb"\u006dodel", rb"mod\u0065l", rb"\u006D\u006F\u0064\u0065\u006C"])
def test_a_key_written_with_escapes_is_that_key(key: bytes):
    assert set_members(b'{"%s":"auto","model":"b"}' % key, MODEL) == b'{"%s":"qwen","model":"qwen"}' % key


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"{}", b'{"chat_template_kwargs":{"enable_thinking":false}}'),
        (b'{"a":1}', b'{"chat_template_kwargs":{"enable_thinking":false},"a":1}'),
        (b'{"chat_template_kwargs":{}}', b'{"chat_template_kwargs":{"enable_thinking":false}}'),
        (
            b'{"chat_template_kwargs": {"x":1.0} }',
            b'{"chat_template_kwargs": {"enable_thinking":false,"x":1.0} }',
        ),
        (
            b'{"chat_template_kwargs":{"enable_thinking":true}}',
            b'{"chat_template_kwargs":{"enable_thinking":false}}',
        ),
        (b'{"chat_template_kwargs":null}', b'{"chat_template_kwargs":{"enable_thinking":false}}'),
        (b'{"chat_template_kwargs":[1]}', b'{"chat_template_kwargs":{"enable_thinking":false}}'),
        (
            b'{"chat_template_kwargs":{"a":1},"chat_template_kwargs":null}',
            b'{"chat_template_kwargs":{"enable_thinking":false,"a":1},"chat_template_kwargs":{"enable_thinking":false}}',
        ),
    ],
)
def test_a_member_inside_an_object_is_set_or_the_object_made(body: bytes, expected: bytes):
    assert set_members(body, SWITCH) == expected


def test_several_members_are_set_at_once():
    body = b'{"reasoning":{"summary":"auto","effort":"low"},"model":"auto"}'
    members = {("model",): "qwen", ("reasoning", "effort"): "high", ("user",): None}
    assert set_members(body, members) == (
        b'{"user":null,"reasoning":{"summary":"auto","effort":"high"},"model":"qwen"}'
    )


@pytest.mark.parametrize("value", ['é "x"\n\u2028', 1.5, None, True, {"type": "disabled"}, [1, "a"]])
def test_values_of_every_type_are_written(value: object):
    assert json.loads(set_members(b'{"a":1}', {("a",): value})) == {"a": value}


def test_raw_values_are_written_as_they_are():
    assert set_members(b'{"a":1}', {("a",): Raw(b"1E400")}) == b'{"a":1E400}'


def test_nothing_to_set_changes_nothing():
    assert set_members(b' {"a" : 1} ', {}) == b' {"a" : 1} '


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" ",
        b"[]",
        b'"model"',
        b"null",
        b"{",
        b'{"model"}',
        b'{"model":}',
        b'{"model":1,}',
        b'{"model":1}}',
        b'{"model":1} {"model":2}',
        b'{"a":tru,"model":1}',
        b'{"a":[1}],"model":1}',
        b'{"a":"\n","model":1}',
        b'{"a":"\\ud800","model":1}',
        b'{"\xff":1,"model":1}',
        b"{'model':1}",
        b'\xef\xbb\xbf{"model":1}',
        '{"model":1}'.encode("utf-16"),
        b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    ],
)
def test_what_is_not_exactly_one_json_object_is_refused(body: bytes):
    assert reason(body) == "not_json"


def test_more_members_than_the_bound_are_refused():
    assert reason(b"{" + b",".join([b'"a":1'] * (edits.MEMBERS_MAX + 1)) + b"}") == "too_many_members"
    inside = b"{" + b",".join([b'"a":1'] * edits.MEMBERS_MAX) + b"}"
    assert set_members(inside, {("a",): 2}) == inside.replace(b"1", b"2")


def test_more_hidden_arrays_than_the_bound_are_refused():
    hidden = b'"a":[1],' * edits.RESCANS_MAX
    assert set_members(b"{" + hidden + b'"a":0}', MODEL) == b'{"model":"qwen",' + hidden + b'"a":0}'
    assert reason(b"{" + hidden + b'"a":[1],"a":0}') == "too_many_members"


@pytest.mark.parametrize("members", [{(): 1}, {("a",): 1, ("a", "b"): 2}, {("a", "b"): 2, ("a",): 1}])
def test_paths_that_contain_each_other_are_a_mistake_of_the_caller(members: dict[tuple[str, ...], object]):
    with pytest.raises(ValueError, match=r"path|lies inside"):
        set_members(b"{}", members)
