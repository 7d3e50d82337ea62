"""Which conversation a request belongs to, and which pool that one is in."""

from __future__ import annotations

import itertools

import pytest

from semroute_extproc.policy.context import Lock
from semroute_extproc.request.view import Api, RequestHead, RequestView, Turn
from semroute_extproc.state.sessions import (
    HASHED_CHARACTERS_MAX,
    Keys,
    Sessions,
    len_before,
    lock_of,
    session_keys,
)

SECRET = b"a key of this process"


def said(*words: str) -> tuple[Turn, ...]:
    """Turns as `u:What is a monad?`."""
    roles = {"s": "system", "u": "user", "a": "assistant", "t": "tool"}
    return tuple(Turn(roles[word[0]], word[2:]) for word in words)


FIRST = said("s:Be brief.", "u:What is a monad?")
LATER = (*FIRST, *said("a:A monoid.", "u:And a comonad?"))


def view(turns: tuple[Turn, ...] = FIRST, model: str = "auto", **more: object) -> RequestView:
    return RequestView(Api.CHAT_COMPLETIONS, model, turns, **more)  # type: ignore[arg-type]


def head(**headers: str) -> RequestHead:
    return RequestHead(
        "POST", "/v1/chat/completions", {key.replace("_", "-"): v for key, v in headers.items()}
    )


def keys(turns: tuple[Turn, ...] = FIRST, **headers: str) -> Keys:
    return session_keys(head(**headers), view(turns), SECRET)


class TestByTurns:
    @pytest.mark.parametrize(
        "requests",
        [
            [("s:Be", "u:1"), ("s:Be", "u:1", "a:x", "u:2"), ("s:Be", "u:1", "a:x", "u:2", "a:y", "u:3")],
            # A tool loop, with results of two calls at once, and back to the user.
            [("u:1",), ("u:1", "a:", "t:42", "t:43"), ("u:1", "a:", "t:42", "t:43", "a:x", "u:2")],
            # Two loops of calls in a row.
            [("u:1",), ("u:1", "a:", "t:42"), ("u:1", "a:", "t:42", "a:", "t:43")],
            # The responses API shows no turn for a call.
            [("u:1",), ("u:1", "t:42")],
            # Anthropic's API sends results and words in one message; two answers in a row.
            [("u:1",), ("u:1", "a:x", "a:y", "t:42", "u:go on")],
            # The system has something to say in between.
            [("u:1",), ("u:1", "a:x", "s:Be long", "u:2")],
        ],
    )
    def test_each_request_is_found_by_what_the_last_one_left(self, requests: list[tuple[str, ...]]) -> None:
        given = [keys(said(*words)) for words in requests]
        assert given[0].find == ""
        for earlier, later in itertools.pairwise(given):
            assert later.find == earlier.keep != ""
            assert later.keep != earlier.keep

    def test_a_question_begins_a_conversation(self) -> None:
        assert keys(FIRST).find == ""
        assert len(keys(FIRST).keep) == 32

    def test_the_same_examples_before_every_question_make_no_conversation(self) -> None:
        examples = said("s:Translate.", "u:cat", "a:chat", "u:dog", "a:chien")
        asked = [keys((*examples, Turn("user", word))) for word in ("cow", "pig", "hen")]
        assert {each.find for each in asked} & {each.keep for each in asked} == set()

    def test_conversations_that_only_begin_alike_part_with_the_first_answer(self) -> None:
        one, other = (keys((*FIRST, *said(answer, "u:Go on.", "a:So.", "u:?"))) for answer in ("a:x", "a:y"))
        assert one.find != other.find

    @pytest.mark.parametrize(
        "other",
        [
            said("s:Be long.", "u:What is a monad?"),
            said("s:Be brief.", "u:What is a monoid?"),
            said("u:What is a monad?"),
            said("s:Be brief.What is", "u: a monad?"),
            said("u:Be brief.", "s:What is a monad?"),
        ],
    )
    def test_another_beginning_is_another_conversation(self, other: tuple[Turn, ...]) -> None:
        assert keys(other).keep != keys(FIRST).keep

    @pytest.mark.parametrize("turns", [(), said("s:Be brief."), said("a:x")])
    def test_where_the_user_said_nothing_there_is_none(self, turns: tuple[Turn, ...]) -> None:
        assert keys(turns) == Keys()

    def test_a_long_turn_counts_by_its_ends_and_its_length(self) -> None:
        long = "x" * HASHED_CHARACTERS_MAX
        assert keys((Turn("user", "a" + long),)) != keys((Turn("user", "b" + long),))
        assert keys((Turn("user", long + long),)) != keys((Turn("user", long + long + "x"),))

    def test_any_text_can_be_hashed(self) -> None:
        assert keys((Turn("user", "\ud800"),)).keep != ""


class TestByHeader:
    def test_the_clients_name_for_it_counts_more_than_its_words(self) -> None:
        named = keys(FIRST, x_semroute_session="7")
        assert named == keys(said("u:!"), x_semroute_session="7")
        assert named.find == named.keep
        assert named != keys(FIRST, x_semroute_session="8")
        assert named.keep != keys(FIRST).keep

    def test_a_request_that_shows_only_its_end_needs_the_header(self) -> None:
        stateful = view(said("u:And a comonad?"), stateful=True)
        assert session_keys(head(), stateful, SECRET) == Keys()
        assert session_keys(head(x_semroute_session="7"), stateful, SECRET).find != ""


class TestWhose:
    @pytest.mark.parametrize("name", ["authorization", "x_api_key"])
    def test_nobody_joins_the_conversation_of_another_client(self, name: str) -> None:
        session = {"x_semroute_session": "7"}
        assert keys(**session, **{name: "alice"}) != keys(**session, **{name: "bob"})
        assert keys(**{name: "alice"}) != keys(**{name: "bob"})

    def test_another_model_is_another_trade_off(self) -> None:
        assert session_keys(head(), view(model="auto-fast"), SECRET) != keys()

    def test_another_process_hashes_otherwise(self) -> None:
        assert session_keys(head(), view(), b"another key") != keys()


@pytest.mark.parametrize(
    ("turns", "before"),
    [(FIRST, 0), (LATER, 2), (said("u:1", "a:prefill"), 1), ((), 0), (said("u:1", "u:2"), 0)],
)
def test_what_the_last_request_had(turns: tuple[Turn, ...], before: int) -> None:
    assert len_before(turns) == before


def test_state_on_the_server_locks_more_than_a_tool_loop() -> None:
    assert lock_of(view()) is Lock.NONE
    assert lock_of(view(tool_loop=True)) is Lock.TOOL_LOOP
    assert lock_of(view(tool_loop=True, stateful=True)) is Lock.STATEFUL


class TestSessions:
    def test_a_conversation_is_where_it_was_last(self) -> None:
        subject = Sessions(10, 60.0)
        subject.keep("a", "small", 0.0)
        subject.keep("a", "large", 1.0)
        assert subject.find("a", 2.0) == "large"
        assert subject.find("b", 2.0) is None

    def test_one_that_is_silent_too_long_is_forgotten(self) -> None:
        subject = Sessions(10, 60.0)
        subject.keep("a", "small", 0.0)
        assert subject.find("a", 60.1) is None
        assert len(subject) == 0

    def test_one_that_goes_on_is_not_silent(self) -> None:
        """A long tool loop of the responses API is found by its beginning, again and again."""
        subject = Sessions(10, 60.0)
        subject.keep("a", "small", 0.0)
        assert [subject.find("a", minute * 60.0) for minute in range(1, 4)] == ["small"] * 3

    def test_the_longest_silent_makes_room(self) -> None:
        subject = Sessions(2, 60.0)
        subject.keep("a", "small", 0.0)
        subject.keep("b", "small", 1.0)
        subject.keep("a", "small", 2.0)
        subject.keep("c", "small", 3.0)
        assert [subject.find(key, 3.0) for key in "abc"] == ["small", None, "small"]
