"""Which conversation a request belongs to, and which pool that one is in."""

from __future__ import annotations

import pytest

from semroute_extproc.controllers.session import (
    HASHED_CHARACTERS_MAX,
    SESSION_HEADER,
    Sessions,
    begins,
    lock_of,
    session_key,
)
from semroute_extproc.policy.decision import Lock
from semroute_extproc.request import Api, RequestHead, RequestView, Turn

SECRET = b"a key of this process"
FIRST = (Turn("system", "Be brief."), Turn("user", "What is a monad?"))
LATER = (*FIRST, Turn("assistant", "A monoid."), Turn("user", "And a comonad?"))


def view(turns: tuple[Turn, ...] = FIRST, model: str = "auto", **more: object) -> RequestView:
    return RequestView(Api.CHAT_COMPLETIONS, model, turns, **more)  # type: ignore[arg-type]


def head(**headers: str) -> RequestHead:
    return RequestHead(
        "POST", "/v1/chat/completions", {key.replace("_", "-"): v for key, v in headers.items()}
    )


def key(turns: tuple[Turn, ...] = FIRST, **headers: str) -> str:
    return session_key(head(**headers), view(turns), SECRET)


class TestKey:
    def test_every_request_of_a_conversation_has_the_same_key(self) -> None:
        assert key(FIRST) == key(LATER)
        assert len(key(FIRST)) == 32

    @pytest.mark.parametrize(
        "other",
        [
            (Turn("system", "Be long."), FIRST[1]),
            (FIRST[0], Turn("user", "What is a monoid?")),
            (FIRST[1],),
            (Turn("system", "Be brief.What is"), Turn("user", " a monad?")),
        ],
    )
    def test_another_beginning_is_another_conversation(self, other: tuple[Turn, ...]) -> None:
        assert key(other) != key(FIRST)

    def test_the_clients_name_for_it_counts_more_than_its_words(self) -> None:
        assert key(FIRST, x_semroute_session="7") == key((Turn("user", "!"),), x_semroute_session="7")
        assert key(FIRST, x_semroute_session="7") != key(FIRST, x_semroute_session="8")
        assert key(FIRST, x_semroute_session="7") != key(FIRST)

    @pytest.mark.parametrize("name", ["authorization", "x_api_key"])
    def test_nobody_joins_the_conversation_of_another_client(self, name: str) -> None:
        session = {"x_semroute_session": "7"}
        assert key(**session, **{name: "alice"}) != key(**session, **{name: "bob"})
        assert key(**{name: "alice"}) != key(**{name: "bob"})

    def test_another_model_is_another_trade_off(self) -> None:
        assert session_key(head(), view(model="auto-fast"), SECRET) != key()

    def test_another_process_hashes_otherwise(self) -> None:
        assert session_key(head(), view(), b"another key") != key()

    def test_a_request_that_shows_only_its_end_has_no_key_without_the_header(self) -> None:
        stateful = view((Turn("user", "And a comonad?"),), stateful=True)
        assert session_key(head(), stateful, SECRET) == ""
        assert session_key(head(x_semroute_session="7"), stateful, SECRET) != ""

    @pytest.mark.parametrize("turns", [(), (Turn("system", "Be brief."),)])
    def test_nothing_said_is_no_conversation(self, turns: tuple[Turn, ...]) -> None:
        assert key(turns) == ""

    def test_a_long_first_turn_counts_by_its_ends_and_its_length(self) -> None:
        long = "x" * HASHED_CHARACTERS_MAX
        assert key((Turn("user", "a" + long),)) != key((Turn("user", "b" + long),))
        assert key((Turn("user", long + long),)) != key((Turn("user", long + long + "x"),))

    def test_any_text_can_be_hashed(self) -> None:
        assert key((Turn("user", "\ud800"),)) != ""


def test_a_conversation_begins_with_its_first_turn_unless_it_was_named() -> None:
    assert begins(head(), view(FIRST))
    assert not begins(head(), view(LATER))
    assert not begins(RequestHead("POST", "/", {SESSION_HEADER: "7"}), view(FIRST))


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
        assert subject.find("a", 60.0) == "small"
        assert subject.find("a", 60.1) is None
        assert len(subject) == 0

    def test_the_longest_silent_makes_room(self) -> None:
        subject = Sessions(2, 60.0)
        subject.keep("a", "small", 0.0)
        subject.keep("b", "small", 1.0)
        subject.keep("a", "small", 2.0)
        subject.keep("c", "small", 3.0)
        assert [subject.find(key, 3.0) for key in "abc"] == ["small", None, "small"]
