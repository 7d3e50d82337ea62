"""Which turns of a conversation are judged, and the state of the work."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from semroute_extproc.request.conversation import (
    READ_CHARACTERS,
    RESULTS_MAX,
    TURNS_MAX,
    approval,
    failing_tests,
    proposal,
    questions,
    reask,
    relevant,
    repeated_errors,
    tool_errors,
    tool_results,
)
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


def test_short_turns_between_do_not_hide_the_task() -> None:
    between = ["sounds fun", "in two sentences", "wait, what?", "put everything in a table", "go deeper"]
    assert relevant([TASK, *between, "undo that"])[0] == TASK


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
    assert (questions(turns), proposal(turns)) == (["a", "c"], "b")
    later = [*turns, Turn("assistant", "e"), Turn("tool", "f")]
    assert (questions(later), proposal(later)) == (["a", "c"], "b")
    both = [Turn("user", "a"), Turn("user", "b")]
    assert (questions(both), proposal(both)) == (["a", "b"], "")
    assert (questions([Turn("system", "s")]), proposal([Turn("system", "s")])) == ([], "")


def least_seconds(work: Callable[[], object]) -> float:
    """Of three runs, because a collection of the tests' garbage may fall into one."""
    found = []
    for _ in range(3):
        started = time.thread_time()
        work()
        found.append(time.thread_time() - started)
    return min(found)


@pytest.mark.parametrize("unit", ["it ", "ok, ", "这", "ต", "はいもう一度", "a", " ", "\n", "^ ", "that is "])
def test_no_conversation_makes_the_selection_slow(unit: str) -> None:
    asked = [(unit * READ_CHARACTERS)[:READ_CHARACTERS] for _ in range(TURNS_MAX)] + [unit * 100_000]
    last = unit * 100_000
    assert least_seconds(lambda: (relevant(asked, last), relevant(asked[:-1], last))) < 0.1


ASKED = (Turn("user", TASK), Turn("assistant", PLAN))


def loop(*results: str | Turn) -> list[Turn]:
    """A user's task and the results of the tools that the assistant called since."""
    turns = [
        Turn("user", "Fix the parser."),
        Turn("tool", "Error: of an earlier task"),
        Turn("user", "Go on."),
    ]
    for result in results:
        turns += [Turn("assistant", ""), result if isinstance(result, Turn) else Turn("tool", result)]
    return turns


@pytest.mark.parametrize("language", SHORT_TURNS)
def test_approvals_and_rejections_are_told_apart_in_every_language(language: str) -> None:
    for kind, text in SHORT_TURNS[language].items():
        turns = [*ASKED, Turn("user", text)]
        assert (approval(turns), reask(turns)) == (kind == "approval", kind == "rejection"), text


@pytest.mark.parametrize(
    "text",
    ["ok, what is the capital of France?", "yes, but it is wrong", "Sure, write a poem about rain and snow"],
)
def test_a_turn_that_asks_for_more_is_no_approval(text: str) -> None:
    assert not approval([*ASKED, Turn("user", text)])


def test_there_is_nothing_to_approve_or_reject_in_a_first_turn() -> None:
    assert not approval([Turn("user", "go ahead")])
    assert not reask([Turn("user", "Try again: it still doesn't work")])
    assert not approval([])
    assert not reask([])


LONG = "Summarize this report. " * 500


@pytest.mark.parametrize(
    ("text", "repeats"),
    [
        (LONG, True),
        (LONG + "Use verse.", False),
        ("Please, what is the capital of Peru?", True),
        ("What is the capital of Chile?", False),
        ("What is 17 times 24?", False),
        ("ok", False),
        (TASK, False),  # too long ago
    ],
)
def test_asking_the_same_again_counts_as_asking_again(text: str, repeats: bool) -> None:
    asked = (TASK, "What is the capital of Peru?", "What is 17 times 23?", "ok", LONG, text)
    assert reask([Turn("user", each) for each in asked]) is repeats


@pytest.mark.parametrize(
    "result",
    [
        *(
            "Error: user not found",
            "<tool_use_error>File not read</tool_use_error>",
            "bash: foo: command not found",
        ),
        *(
            "ValueError: x",
            'Traceback (most recent call last):\n  File "a.py"',
            "cat: a: No such file or directory",
        ),
        *("Exit code 1\n", "Process exited with code 127", '{"output": "", "metadata": {"exit_code": 2}}'),
        "make: done\n" + "x\n" * 50_000 + "subprocess.CalledProcessError: it failed",
        Turn("tool", "nothing found", failed=True),
    ],
)
def test_a_failed_result_is_told_by_its_flag_its_status_or_its_words(result: str | Turn) -> None:
    assert len(tool_errors(loop("ok", result))) == 1


@pytest.mark.parametrize(
    "result",
    [
        *("File created.", "def check():\n    raise ValueError(x)", "There are no errors.", "exit 1"),
        '{"output": "Traceback (most recent call last)", "metadata": {"exit_code": 0}}',
        "x\n" * 50_000 + "ValueError: in the middle of a long file\n" + "x\n" * 50_000,
    ],
)
def test_other_results_have_not_failed(result: str) -> None:
    assert tool_errors(loop(result)) == []


def test_only_results_since_the_last_user_turn_count() -> None:
    assert len(tool_results(loop("a", "b"))) == 2
    assert tool_results([*loop("a"), Turn("user", "Stop.")]) == []
    assert tool_errors([*loop("Error: a"), Turn("user", "Stop.")]) == []


def test_errors_with_the_same_text_are_repeated() -> None:
    assert repeated_errors(loop("Error: a", "ok", "ok", "Error: b")) == 0
    assert repeated_errors(loop(*["Error: a"] * 5)) == 4


def test_a_bounded_number_of_results_is_looked_at() -> None:
    assert len(tool_errors(loop(*["Error: a"] * 99))) == RESULTS_MAX
    assert not failing_tests(loop("1 failed", *["a"] * RESULTS_MAX))


@pytest.mark.parametrize(
    "report",
    [
        *(
            "=== 3 failed, 10 passed in 0.42s ===",
            "FAILED tests/test_a.py::test_b",
            "--- FAIL: TestA (0.00s)",
        ),
        *(
            "FAIL\texample.org/a\t0.01s",
            "Tests:       1 failed, 4 total",
            "Tests run: 5, Failures: 1, Errors: 0",
        ),
        *(
            "Ran 3 tests\n\nFAILED (failures=1)",
            "test result: FAILED. 2 passed; 1 failed",
            "3 examples, 1 failure",
        ),
        *(
            "error[E0308]: mismatched types",
            "a.c:3:1: error: expected ';'",
            "a.ts(3,5): error TS2304: no name",
        ),
        *("make[1]: *** [all] Error 2", "BUILD FAILURE", "npm ERR! code 1", "Found 3 errors in 2 files"),
    ],
)
def test_a_report_of_failing_tests_or_a_failing_build_holds_until_the_next_report(report: str) -> None:
    assert failing_tests(loop(report))
    assert failing_tests(loop(report, "File created."))
    assert not failing_tests(loop(report, "=== 13 passed in 0.42s ==="))


@pytest.mark.parametrize(
    "report", ["10 passed, 0 failed", "ok  \texample.org/a", "Ran 3 tests\n\nOK", "a = 3"]
)
def test_a_report_without_failures_is_none(report: str) -> None:
    assert not failing_tests(loop(report))


@pytest.mark.parametrize(
    "unit", ["error", "Error.", "Exit code: ", "1 failed", "FAILED", "\n", "x.", "1", "= "]
)
def test_no_result_makes_the_facts_slow(unit: str) -> None:
    turns = loop(*[unit * 100_000] * 99)
    assert least_seconds(lambda: (tool_errors(turns), failing_tests(turns))) < 0.1
