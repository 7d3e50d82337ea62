"""`/v1/completions`."""

from __future__ import annotations

import json
from typing import Any

import pytest

from semroute_extproc.errors import BadBody
from semroute_extproc.request import apis
from semroute_extproc.request.view import Api, RequestView


def parse(prompt: Any, **fields: Any) -> RequestView:
    return apis.parse(Api.COMPLETIONS, json.dumps({"model": "auto", "prompt": prompt, **fields}).encode())


def test_a_string_is_one_user_turn():
    view = parse("Once upon a time", max_tokens=64, stream=True)
    assert [(turn.role, turn.text) for turn in view.turns] == [("user", "Once upon a time")]
    assert (view.max_output_tokens, view.stream, view.characters) == (64, True, 16)


def test_a_batch_is_one_turn_and_as_long_as_its_longest_prompt():
    view = parse(["one", "three", "two"])
    assert [turn.text for turn in view.turns] == ["one\nthree\ntwo"]
    assert view.characters == len("three")


@pytest.mark.parametrize("prompt", [[1, 2, 3], [[1, 2], [3]], []])
def test_token_ids_have_no_text(prompt: Any):
    assert not any(turn.text for turn in parse(prompt, suffix="end").turns)


@pytest.mark.parametrize("prompt", [["a", 1], [["a"]], {"a": 1}, [None]])
def test_anything_else_is_of_the_wrong_type(prompt: Any):
    with pytest.raises(BadBody) as caught:
        parse(prompt)
    assert caught.value.cause == "wrong_type"


def test_json_mode_is_seen():
    assert parse("x", response_format={"type": "json_object"}).json_mode
