"""`/v1/embeddings`."""

from __future__ import annotations

import json
from typing import Any

import pytest

from semroute_extproc.request import apis
from semroute_extproc.request.view import Api, RequestView


def parse(**fields: Any) -> RequestView:
    return apis.parse(Api.EMBEDDINGS, json.dumps({"model": "auto", **fields}).encode())


def test_a_string_is_one_user_turn():
    assert [(turn.role, turn.text) for turn in parse(input="hello").turns] == [("user", "hello")]


def test_a_batch_is_as_long_as_its_longest_input():
    view = parse(input=["a" * 10, "b" * 30, "c"])
    assert (len(view.turns), view.characters) == (1, 30)


@pytest.mark.parametrize("given", [[1, 2], [[1], [2]]])
def test_token_ids_have_no_text(given: Any):
    assert parse(input=given).turns == ()


def test_a_conversation_is_read_like_a_chat():
    view = parse(
        messages=[
            {"role": "system", "content": "Represent the query."},
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]},
        ]
    )
    assert [turn.role for turn in view.turns] == ["system", "user"]
    assert view.images == 1


def test_the_texts_of_coheres_api_are_read():
    view = parse(texts=["hello", "what is it"], input_type="search_query")
    assert ([turn.text for turn in view.turns], view.characters) == (["hello\nwhat is it"], 10)
