"""Edits against a model of JSON text that knows how every value is spelled."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from msgspec import Raw

from semroute_extproc.errors import BadBody
from semroute_extproc.request.body import set_members

KEYS = ["model", "mode", "a", "", "é", 'q"\\', "chat_template_kwargs", "enable_thinking"]
NUMBERS = ["0", "-0", "-0.0", "1E400", "1e-400", "12345678901234567890123", "1.10", "1", "12", "1.5e+3"]


@dataclass
class Member:
    """A member as text: its key as spelled and meant, its value, and the white space in between."""

    name: str
    key: str
    value: Object | str
    before: str
    between: str
    after: str


@dataclass
class Object:
    """An object as text."""

    members: list[Member]
    blank: str

    def __str__(self) -> str:
        if not self.members:
            return "{" + self.blank + "}"
        parts = [f"{m.before}{m.key}{m.between}{m.value}{m.after}" for m in self.members]
        return "{" + ",".join(parts) + "}"


@st.composite
def spelled(draw: st.DrawFn, text: str) -> str:
    """`text` as a JSON string, each character as it is or escaped."""

    def spell(character: str) -> str:
        if draw(st.booleans()):
            return "".join(f"\\u{unit:04x}" for unit in [ord(character)])
        return json.dumps(character, ensure_ascii=False)[1:-1]

    return '"' + "".join(map(spell, text)) + '"'


white = st.text(" \t\n\r", max_size=2)
characters = st.characters(max_codepoint=0xD7FF, exclude_categories=["Cs"])
scalars = st.one_of(
    st.sampled_from([*NUMBERS, "true", "false", "null"]),
    st.one_of(st.sampled_from(["model", '"}],{', "\\"]), st.text(characters, max_size=6)).flatmap(spelled),
)


@st.composite
def objects(draw: st.DrawFn, values: st.SearchStrategy[Any]) -> Object:
    def member() -> Member:
        name = draw(st.sampled_from(KEYS))
        between = draw(white) + ":" + draw(white)
        return Member(name, draw(spelled(name)), draw(values), draw(white), between, draw(white))

    return Object([member() for _ in range(draw(st.integers(0, 4)))], draw(white))


@st.composite
def arrays(draw: st.DrawFn, values: st.SearchStrategy[Any]) -> str:
    items = draw(st.lists(values, max_size=3))
    return (
        "["
        + ",".join(f"{draw(white)}{item}{draw(white)}" for item in items)
        + (draw(white) if not items else "")
        + "]"
    )


values = st.recursive(scalars, lambda inner: objects(inner) | arrays(inner), max_leaves=8)
bodies = objects(values)
paths = st.lists(st.sampled_from(KEYS), min_size=1, max_size=3).map(tuple)


def last_values(target: Object) -> dict[str, str]:
    """Every key to its last value, as text, in the order of first occurrence."""
    return {m.name: str(m.value) for m in target.members}


def members_of(text: bytes) -> dict[str, str]:
    """Every key of an object to its value as spelled, read by a decoder that the project does not use."""
    text_ = text.decode()
    found: dict[str, str] = {}
    position, decoder = 1, json.JSONDecoder()
    while text_[position] != "}":
        position += text_[position] == ","
        name, position = decoder.raw_decode(text_, position)
        assert text_[position] == ":", "no white space between members"
        _, end = decoder.raw_decode(text_, position + 1)
        assert name not in found, "no duplicate keys"
        found[name] = text_[position + 1 : end]
        position = end
    assert position == len(text_) - 1
    return found


@given(body=bodies, path=paths, new=values, lead=white, tail=white)
def test_every_other_member_keeps_its_bytes_and_its_place(
    body: Object, path: tuple[str, ...], new: Object | str, lead: str, tail: str
):
    edited = members_of(set_members(f"{lead}{body}{tail}".encode(), {path: Raw(str(new).encode())}))
    before = last_values(body)
    assert list(edited) == list({**before, path[0]: ""})
    edited.pop(path[0])
    before.pop(path[0], None)
    assert edited == before


@given(body=bodies, name=st.sampled_from(KEYS), new=values)
def test_the_new_value_is_written_as_it_is(body: Object, name: str, new: Object | str):
    edited = set_members(str(body).encode(), {(name,): Raw(str(new).encode())})
    assert members_of(edited)[name] == str(new)


@given(body=bodies, path=paths, new=values)
def test_inside_an_object_too_every_other_member_keeps_its_bytes(
    body: Object, path: tuple[str, ...], new: Object | str
):
    edited = set_members(str(body).encode(), {path: Raw(str(new).encode())})
    target: Object | str = body
    for name in path[:-1]:
        edited = members_of(edited)[name].encode()
        inside = {m.name: m.value for m in target.members} if isinstance(target, Object) else {}
        target = inside.get(name, "")
    before = last_values(target) if isinstance(target, Object) else {}
    assert members_of(edited) == {**before, path[-1]: str(new)}


@given(body=bodies, path=paths, new=st.none() | st.booleans() | st.text(characters) | st.integers(0, 9))
def test_a_json_parser_sees_the_new_value_at_the_path(body: Object, path: tuple[str, ...], new: Any):
    seen = json.loads(set_members(str(body).encode(), {path: new}))
    for name in path:
        seen = seen[name]
    assert seen == new


@given(body=bodies)
def test_of_a_duplicate_key_the_last_value_stays(body: Object):
    """vLLM takes the last one, and the router reads it."""
    edited = set_members(str(body).encode(), {("model",): 1})
    assert repr(json.loads(edited)) == repr({**json.loads(str(body)), "model": 1})


@given(body=bodies, path=paths, new=values)
def test_an_edit_done_twice_is_the_edit_done_once(body: Object, path: tuple[str, ...], new: Object | str):
    members = {path: Raw(str(new).encode())}
    once = set_members(str(body).encode(), members)
    assert set_members(once, members) == once


@given(st.binary(max_size=60) | st.text('{}[]":,\\u0aeE1-+. \n', max_size=60).map(str.encode))
@example(b'{"model":"\\')
@example(b'{"":0,"":')
def test_arbitrary_bytes_raise_nothing_but_bad_body(body: bytes):
    try:
        edited = set_members(body, {("model",): "x", ("reasoning", "effort"): "low"})
    except BadBody:
        return
    seen = json.loads(edited.decode("utf-8", "replace"))
    assert (seen["model"], seen["reasoning"]["effort"]) == ("x", "low")


@given(body=bodies, position=st.integers(0, 10_000), put=st.binary(max_size=2), cut=st.integers(0, 2))
def test_a_damaged_body_is_refused_or_edited_but_nothing_else(
    body: Object, position: int, put: bytes, cut: int
):
    """Invalid UTF-8 in a string that is not edited is left to the upstream."""
    text = str(body).encode()
    position %= len(text)
    damaged = text[:position] + put + text[position + cut :]
    try:
        json.loads(damaged.decode("utf-8", "replace"))
    except ValueError:
        with pytest.raises(BadBody):
            set_members(damaged, {("model",): "x"})
        return
    try:
        edited = set_members(damaged, {("model",): "x"})
    except BadBody:
        return
    assert json.loads(edited.decode("utf-8", "replace"))["model"] == "x"
