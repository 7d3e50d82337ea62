"""Which conversation a request belongs to, which pool that one is in, and where responses are stored."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest

from semroute_extproc.policy.context import Lock
from semroute_extproc.request.apis import parse
from semroute_extproc.request.view import Api, RequestHead, RequestView, Turn
from semroute_extproc.settings.controllers import SESSION_HEADERS, SessionController
from semroute_extproc.state.sessions import (
    HASHED_CHARACTERS_MAX,
    Keys,
    Sessions,
    len_before,
    lock_of,
    response_id,
    session_keys,
    stored_in,
    tag,
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


def found(given: RequestHead, request: RequestView, secret: bytes = SECRET, **settings: Any) -> Keys:
    return session_keys(given, request, secret, SessionController(**settings))


def keys(turns: tuple[Turn, ...] = FIRST, **headers: str) -> Keys:
    return found(head(**headers), view(turns))


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
            said("s:Be brief.", "u:What is a monoid?"),
            said("s:Be brief.", "u:What is", "u: a monad?"),
            said("u:Be brief.", "s:What is a monad?"),
        ],
    )
    def test_another_beginning_is_another_conversation(self, other: tuple[Turn, ...]) -> None:
        assert keys(other).keep != keys(FIRST).keep

    @pytest.mark.parametrize("system", [("s:Be long.",), (), ("s:Be brief.", "s:cch=2")])
    def test_what_the_system_says_may_change_in_every_request(self, system: tuple[str, ...]) -> None:
        assert keys((*said(*system), *FIRST[1:])) == keys(FIRST)
        assert keys((*said(*system), *LATER[1:])).find == keys(FIRST).keep

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

    def test_a_request_that_shows_only_its_end_needs_a_name(self) -> None:
        stateful = view(said("u:And a comonad?"), stateful=True)
        assert found(head(), stateful) == Keys()
        assert found(head(x_semroute_session="7"), stateful).find != ""

    @pytest.mark.parametrize("name", SESSION_HEADERS)
    def test_clients_have_headers_of_their_own(self, name: str) -> None:
        given = RequestHead("POST", "/v1/chat/completions", {name: "7"})
        assert found(given, view(FIRST)) == found(given, view(LATER)) == keys(x_semroute_session="7")

    def test_the_operator_may_list_others(self) -> None:
        request = view(FIRST, ids={"metadata.chat": "7"})
        named = keys(x_semroute_session="7")
        assert found(head(x_chat="7"), view(FIRST), headers=("x-chat",)) == named
        assert found(head(), request, members=("metadata.chat",)) == named
        assert found(head(), request) == keys()


class TestByBody:
    @pytest.mark.parametrize(
        "body",
        [
            {"prompt_cache_key": "7"},
            {"conversation": "7"},
            {"conversation": {"id": "7"}},
            {"metadata": {"session_id": "7"}},
            {"metadata": {"conversation_id": "7", "tier": "free"}},
        ],
    )
    def test_members_of_the_body_name_a_conversation(self, body: dict[str, Any]) -> None:
        request = parse(Api.RESPONSES, json.dumps({"model": "auto", "input": "hi", **body}).encode())
        assert found(head(), request) == keys(x_semroute_session="7")

    @pytest.mark.parametrize(
        "user",
        ["user_0af_account__session_8d7e0af1-11", '{"device_id": "d", "session_id": "8d7e-1110"}'],
    )
    def test_claude_code_names_its_session_in_the_users_id(self, user: str) -> None:
        given = [found(head(), view(turns, ids={"metadata.user_id": user})) for turns in (FIRST, LATER)]
        assert given[0] == given[1]
        assert given[0] != found(head(), view(FIRST, ids={"metadata.user_id": user.replace("-11", "-12")}))

    def test_a_user_is_no_conversation(self) -> None:
        assert found(head(), view(FIRST, ids={"metadata.user_id": "alice"})) == keys()

    @pytest.mark.parametrize("body", [{"metadata": 7}, {"metadata": {"session_id": 7}}, {"conversation": []}])
    def test_members_of_another_type_name_none(self, body: dict[str, Any]) -> None:
        request = parse(Api.RESPONSES, json.dumps({"model": "auto", "input": "hi", **body}).encode())
        assert found(head(), request) == keys(said("u:hi"))


class TestAffinity:
    def test_every_request_of_a_conversation_has_the_same(self) -> None:
        more = (*LATER, *said("a:So.", "t:42"))
        assert len({keys(turns).affinity for turns in (FIRST, LATER, more)}) == 1
        assert len(keys().affinity) == 16

    def test_other_conversations_and_clients_have_others(self) -> None:
        given = [keys(), keys(said("u:?")), keys(authorization="alice"), keys(x_semroute_session="7")]
        assert len({each.affinity for each in given}) == len(given)

    def test_every_process_has_the_same_unless_a_shared_key_changes_it(self) -> None:
        named, request = head(x_semroute_session="0123456789abcdef"), view()
        one, other = (found(named, request, secret) for secret in (SECRET, b"another key"))
        assert one.affinity == other.affinity != "0123456789abcdef"
        shared = session_keys(named, request, SECRET, SessionController(), b"a shared key")
        assert shared.affinity != one.affinity

    def test_a_request_without_a_conversation_has_none(self) -> None:
        assert keys(said("s:Be brief.")).affinity == ""


class TestStoredResponses:
    NONCE = "0123456789abcdef"

    @pytest.mark.parametrize("affinity", ["00ff00ff00ff00ff", ""])
    def test_an_issued_id_says_where_the_response_is_stored(self, affinity: str) -> None:
        issued = response_id("large", affinity, self.NONCE)
        assert stored_in(issued) == (tag("large"), affinity)
        assert issued.startswith("resp_")
        assert tag("large") != tag("small")

    @pytest.mark.parametrize("other", ["", "resp_1", f"resp_{NONCE}{NONCE}", f"resp_{NONCE * 3}", "x" * 45])
    def test_any_other_id_says_nothing(self, other: str) -> None:
        assert stored_in(other) == ("", "")


class TestWhose:
    @pytest.mark.parametrize("name", SessionController().identity)
    def test_nobody_joins_the_conversation_of_another_client(self, name: str) -> None:
        session = {"x_semroute_session": "7"}
        for given in (session, {}):
            alice, bob = keys(**given, **{name: "alice"}), keys(**given, **{name: "bob"})
            assert len({alice.keep, bob.keep, keys(**given).keep}) == 3
            assert alice.affinity != bob.affinity

    def test_a_client_that_the_gateway_knows_keeps_its_conversation_at_another_address(self) -> None:
        """The first header that is present counts: the tenant, before the address."""
        given = [
            keys(x_semroute_session="7", x_semroute_tenant="acme", x_envoy_external_address=address)
            for address in ("192.0.2.1", "192.0.2.2")
        ]
        assert given[0] == given[1]

    def test_a_value_in_one_header_is_not_the_same_in_another(self) -> None:
        """A client can send any `authorization`, but not the address that Envoy saw."""
        session = {"x_semroute_session": "7"}
        given = [keys(**session, **{name: "192.0.2.1"}) for name in SessionController().identity]
        assert len({each.keep for each in given}) == len(given)

    def test_the_operator_may_name_the_header_with_the_identity(self) -> None:
        given = [
            found(head(x_tenant=tenant, session_id="7"), view(), identity=("x-tenant",))
            for tenant in ("alice", "bob")
        ]
        assert given[0] != given[1]

    def test_another_model_is_another_trade_off(self) -> None:
        assert found(head(), view(model="auto-fast")) != keys()

    def test_another_process_hashes_otherwise(self) -> None:
        assert found(head(), view(), b"another key").keep != keys().keep


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
