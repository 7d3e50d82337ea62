"""Draws: by weight, the same for a repeated request, and not for its client to choose."""

from __future__ import annotations

from collections import Counter

import pytest

from semroute_extproc.policy.context import RoutingContext
from semroute_extproc.policy.draw import DRAWN_CHARACTERS_MAX, draw_id, drawn
from semroute_extproc.request.view import Api, RequestHead, RequestView, Turn

ARMS = {"main": 0.99, "canary": 0.01}
REQUESTS = 4_000


def context(request_id: str = "", text: str = "hi", key: bytes = b"a secret") -> RoutingContext:
    view = RequestView(Api.CHAT_COMPLETIONS, "auto", (Turn("user", text),), characters=len(text))
    headers = {"x-request-id": request_id} if request_id else {}
    return RoutingContext(RequestHead("POST", "/", headers), view, "en", 1, draw_key=key)


def arm(given: RoutingContext) -> str:
    return drawn(ARMS, "auto", draw_id(given))


def test_a_repeated_request_gets_the_same_draw_in_every_process_with_the_key() -> None:
    for number in range(200):
        assert arm(context(str(number))) == arm(context(str(number)))


def test_the_weights_are_met() -> None:
    seen = Counter(arm(context(str(number))) for number in range(REQUESTS))
    assert seen["canary"] / REQUESTS == pytest.approx(0.01, abs=0.005)


def test_an_id_that_once_led_to_an_arm_does_not_lead_there_with_another_text() -> None:
    """A client can find such an id by trying, and would then be in the arm with every request."""
    lucky = next(str(number) for number in range(REQUESTS) if arm(context(str(number))) == "canary")
    seen = Counter(arm(context(lucky, f"question {number}")) for number in range(REQUESTS))
    assert seen["canary"] / REQUESTS == pytest.approx(0.01, abs=0.005)


def test_without_the_key_a_draw_cannot_be_computed() -> None:
    ids = [str(number) for number in range(REQUESTS) if arm(context(str(number))) == "canary"]
    guessed = [arm(context(each, key=b"")) for each in ids]
    assert guessed.count("canary") < len(ids) / 2


def test_a_request_without_an_id_is_drawn_by_its_text() -> None:
    given = [context(text=f"question {number}") for number in range(400)]
    assert len({draw_id(each) for each in given}) == 400
    assert [draw_id(each) for each in given] == [draw_id(each) for each in given]


def test_a_long_text_counts_by_its_ends_and_its_length() -> None:
    long = "x" * DRAWN_CHARACTERS_MAX
    given = [context(text=text) for text in (long, long + "x", "a" + long, long + "a")]
    assert len({draw_id(each) for each in given}) == len(given)


def test_any_text_can_be_drawn_by() -> None:
    assert draw_id(context(text="\ud800")) != draw_id(context(text="\ud801"))
