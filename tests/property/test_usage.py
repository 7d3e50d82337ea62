"""Whatever an answer says, its usage is read exactly, and whatever it is, it is read."""

from __future__ import annotations

import answers
from hypothesis import given
from hypothesis import strategies as st

from semroute_extproc.request.usage import Parts, parts_of, usage_of
from semroute_extproc.request.view import Api

SPICE = st.sampled_from(
    ['"usage"', '"usage": {', '{"usage": {"prompt_tokens": 1}}', "\ndata:", "}}", "\\", '"']
)
TEXT = st.lists(st.text(max_size=20) | SPICE, max_size=8).map("".join)


@given(st.sampled_from(answers.APIS), TEXT)
def test_no_text_changes_the_usage_of_an_answer(api: Api, text: str) -> None:
    assert usage_of(parts_of(answers.whole(api, text), stream=False), api) == answers.usage(api)


@given(st.sampled_from(answers.APIS), st.lists(TEXT, min_size=1, max_size=30))
def test_no_text_changes_the_usage_of_a_stream(api: Api, pieces: list[str]) -> None:
    events = answers.stream(api, tuple(pieces))
    parts = parts_of(b"".join(events), stream=True)
    assert usage_of(parts, api) == answers.usage(api)
    assert parts.events == len(events)


@given(st.sampled_from(answers.APIS), st.data())
def test_an_answer_that_is_cut_anywhere_states_its_usage_or_none(api: Api, data: st.DataObject) -> None:
    body = b"".join(answers.stream(api))
    cut = data.draw(st.integers(0, len(body)))
    found = usage_of(parts_of(body[:cut], stream=True), api, ended=False)
    assert found is None or found.estimated or found == answers.usage(api)
    assert found is None or found.output <= 7


@given(st.binary(max_size=200), st.binary(max_size=200), st.integers(0, 1_000), st.booleans())
def test_anything_is_read(opening: bytes, closing: bytes, events: int, ended: bool) -> None:
    for api in (*Api, None):
        usage_of(Parts(opening, closing, "", events), api, ended)
    parts_of(opening + b'"usage": {' + closing, stream=ended)
