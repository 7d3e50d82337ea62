"""Which turns of a conversation are judged."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from semroute_extproc.request.conversation import READ_CHARACTERS, TURNS_MAX, relevant, spoken
from semroute_extproc.request.view import Turn

TASK = (
    "Let p be an odd prime. Prove that the number of quadratic residues modulo p equals (p - 1) / 2, "
    "and deduce how many solutions x^2 + y^2 = 1 has over the field with p elements."
)
PLAN = "I would first count the squares with the map x to x^2, and then use a character sum. Shall I go on?"

CONTINUING = (
    *("and why?", "now in Python", "But what about p = 2?", "make it shorter", "in French, please", "next"),
    *("Why is the number of residues finite?", "explain the second step again", "translate to German", "👍"),
)
SHORT_TURNS = json.loads(Path(__file__).with_name("short_turns.json").read_text())
"""Language to a turn of each kind."""


@pytest.mark.parametrize("last", CONTINUING)
def test_a_turn_that_continues_a_task_is_judged_with_it(last: str) -> None:
    assert relevant([TASK, last]) == [TASK, last]


@pytest.mark.parametrize("last", ["yes, go on", "commit it", "do it", "ok", "sounds good, please proceed"])
def test_an_approval_is_judged_by_the_task_and_what_it_approves(last: str) -> None:
    assert relevant([TASK, last], PLAN) == [TASK, PLAN, last]
    assert relevant([TASK, last]) == [TASK, last]


@pytest.mark.parametrize("last", ["No, that is wrong. Try again.", "it still doesn't work", "Are you sure?"])
def test_a_rejection_is_judged_by_the_task_it_repeats(last: str) -> None:
    assert relevant([TASK, last], "The answer is 7.") == [TASK, last]


def test_a_long_rejection_is_judged_by_the_task_too() -> None:
    last = "That is wrong. " + "The map is two to one on the units, so count its image. " * 9
    assert relevant([TASK, last]) == [TASK, last]


@pytest.mark.parametrize(
    "last",
    [
        *("what's the capital of France?", "Who wrote Hamlet?", "tell me a joke about cats", "thanks!", "hi"),
        *("How do I boil an egg?", "Write a function that checks whether a string is a palindrome."),
    ],
)
def test_a_self_contained_turn_is_judged_alone(last: str) -> None:
    assert relevant([TASK, last], PLAN) == [last]


@pytest.mark.parametrize("language", SHORT_TURNS)
def test_the_rules_hold_in_every_language_of_the_lists(language: str) -> None:
    approval, rejection, continuing, alone = SHORT_TURNS[language].values()
    assert relevant([TASK, approval], PLAN) == [TASK, PLAN, approval]
    assert relevant([TASK, rejection], PLAN) == [TASK, rejection]
    assert relevant([TASK, continuing], PLAN) == [TASK, continuing]
    assert relevant([TASK, alone], PLAN) == [alone]


def test_after_many_short_turns_the_task_is_still_judged() -> None:
    asked = [TASK, "ok", "thanks", "and now in blue", "great", "ok", "cool", "why?", "go on"]
    assert relevant(asked) == [TASK, "and now in blue", "go on"]


def test_a_turn_continues_the_nearest_task() -> None:
    asked = [TASK, "what's the capital of France?", "and of Germany?"]
    assert relevant(asked) == asked[1:]


def test_words_of_earlier_turns_do_not_make_a_turn_self_contained() -> None:
    asked = ["My house has weak wireless signal.", "How many access points?"]
    assert relevant(asked) == asked[1:]
    assert relevant(asked, "Place two access points on each floor.") == asked


def test_without_a_task_all_short_turns_with_words_are_judged_up_to_a_limit() -> None:
    assert relevant(["ok", "in blue", "ok", "in red"]) == ["in blue", "in red"]
    asked = [f"shorter {index}" + " again" * 20 for index in range(9)]
    taken = relevant(asked)
    assert sum(map(len, taken[1:])) <= READ_CHARACTERS
    assert taken == asked[-len(taken) :]


def test_a_bounded_number_of_turns_is_looked_at() -> None:
    assert relevant([TASK, *["ok"] * TURNS_MAX]) == ["ok"]
    assert relevant([TASK, *["ok"] * (TURNS_MAX - 1)]) == [TASK, "ok"]


def test_the_proposal_is_the_assistants_text_right_before_the_last_user_turn() -> None:
    turns = [
        Turn("user", "a"),
        Turn("assistant", "b"),
        Turn("user", "c"),
        Turn("assistant", " "),
        Turn("tool", "d"),
    ]
    assert spoken(turns) == (["a", "c"], "b")
    assert spoken([*turns, Turn("assistant", "e"), Turn("tool", "f")]) == (["a", "c"], "b")
    assert spoken([Turn("user", "a"), Turn("user", "b")]) == (["a", "b"], "")
    assert spoken([Turn("system", "s")]) == ([], "")


@pytest.mark.parametrize("unit", ["it ", "ok, ", "这", "ต", "a", " ", "\n", "^ ", "that is "])
def test_no_conversation_makes_the_selection_slow(unit: str) -> None:
    asked = [(unit * READ_CHARACTERS)[:READ_CHARACTERS] for _ in range(TURNS_MAX)] + [unit * 100_000]
    started = time.process_time()
    relevant(asked, unit * 100_000)
    relevant(asked[:-1], unit * 100_000)
    assert time.process_time() - started < 0.1
