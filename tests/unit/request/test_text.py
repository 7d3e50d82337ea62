"""The classified text and its surface features."""

from __future__ import annotations

import math
import time

import pytest

from semroute_extproc.request import conversation
from semroute_extproc.request.envelope import LeftOut
from semroute_extproc.request.marks import SHIPPED
from semroute_extproc.request.text import (
    CLASSIFIED_CHARACTERS_MAX,
    CONTEXT_CHARACTERS,
    ELISION,
    SURFACE_NAMES,
    clip,
    judged,
    surface_features,
)
from semroute_extproc.request.view import Turn
from semroute_extproc.settings.text import Envelopes

LONG = "Why is the sky blue? " * 20


def user(text: str) -> Turn:
    return Turn("user", text)


def feature(text: str, name: str) -> float:
    return surface_features(text)[SURFACE_NAMES.index(name)]


def test_short_text_is_not_clipped():
    assert clip("abc", 10) == "abc"
    assert clip("a" * 10, 10) == "a" * 10


def test_long_text_keeps_its_head_and_its_tail():
    clipped = clip("h" * 50 + "t" * 50, 21)
    assert clipped == "h" * 9 + ELISION + "t" * 9


@pytest.mark.parametrize("limit", [11, 12, 100, 101])
def test_a_clipped_text_is_never_longer_than_its_limit(limit: int):
    assert len(clip("x" * 1_000, limit)) in (limit, limit - 1)


def test_the_last_user_turn_is_classified():
    turns = [Turn("system", "Be brief."), user(LONG), Turn("assistant", "Because."), user(LONG.upper())]
    assert judged(turns).text == LONG.upper()


def test_a_short_last_turn_is_read_with_the_ones_before_it():
    turns = [user("Write a parser."), Turn("assistant", "Done."), user("Add tests."), user("commit it")]
    assert judged(turns).text == "Write a parser.\nAdd tests.\ncommit it"


def test_reading_back_ends_once_there_is_context_enough():
    assert judged([user("first"), user(LONG), user("commit it")]).text == f"{LONG}\ncommit it"


def test_an_earlier_turn_is_clipped_to_what_context_needs():
    text = judged([user("x" * 100_000), user("commit it")]).text
    assert len(text) <= 4 * CONTEXT_CHARACTERS + len("\ncommit it")


def test_system_prompts_tool_results_and_blank_turns_are_left_out():
    turns = [Turn("system", "s"), user("ls"), Turn("assistant", ""), Turn("tool", "etc"), user(" \n")]
    assert judged(turns).text == "ls"


def test_without_a_user_turn_all_text_is_read():
    assert judged([Turn("system", "s"), Turn("tool", " "), Turn("tool", "etc")]).text == "s\netc"
    assert judged([]).text == ""


def test_each_user_turn_is_judged_without_its_envelope():
    turns = [user("<task>Write a parser.</task>\n<notes>x</notes>"), user("<notes>y</notes>\ncommit it")]
    found = judged(turns)
    assert found.text == "Write a parser.\ncommit it"
    assert [left.kind for left in found.left_out] == ["block", "block"]


def test_a_turn_of_context_alone_is_skipped():
    context = user("<environment_context>bash</environment_context>")
    assert judged([user("hi"), context]).text == "hi"
    assert judged([context, user("hi")]).text == "hi"


def test_context_alone_is_judged_as_a_whole():
    assert judged([user("<notes>bash</notes>")]).text == "<notes>bash</notes>"


def test_only_the_last_user_turns_are_read():
    task, more = user("Write a parser in Rust."), [user("and why?")] * conversation.TURNS_MAX
    assert "Rust" not in judged([task, *more]).text
    assert judged([task, *more[1:]]).text.startswith("Write a parser in Rust.\n")


def test_names_of_the_configuration_are_envelopes_too():
    text = "<ticket>Reset my password.</ticket>\n<crm>gold</crm>\nBe kind."
    marks = SHIPPED.extended(Envelopes(ask=("ticket",), context=("CRM",)))
    assert judged([user(text)]).text == "<ticket>Reset my password.</ticket>\n<crm>gold</crm>\nBe kind."
    assert judged([user(text)], marks).text == "Reset my password."
    assert judged([user("Ticket: Reset my password.\nCRM: gold")], marks).text == "Reset my password."


def test_housekeeping_phrases_of_the_configuration_are_found_in_the_system_prompt():
    marks = SHIPPED.extended(Envelopes(housekeeping={"sort_mail": ("sort the mail into",)}))
    turns = [Turn("system", "Sort the mail into folders."), user("hello")]
    assert (judged(turns).housekeeping, judged(turns, marks).housekeeping) == ("", "sort_mail")


def test_what_does_not_fit_the_judged_text_is_counted():
    left = judged([user("x" * (CLASSIFIED_CHARACTERS_MAX + 5))]).left_out
    assert left == (LeftOut("unread", 5),)


def test_the_classified_text_is_bounded():
    assert len(judged([user("x" * 1_000_000)]).text) <= CLASSIFIED_CHARACTERS_MAX


def test_there_is_one_feature_for_each_name():
    assert len(surface_features("hello")) == len(SURFACE_NAMES) == 12


@pytest.mark.parametrize(
    "text", ["", " ", "a", "\ud800", "é", "٣", "\x00\x7f\u2028", "法国的首都？", "x" * 100_000]
)
def test_features_are_finite_whatever_the_text(text: str):
    assert all(math.isfinite(value) for value in surface_features(text))


@pytest.mark.parametrize(
    ("text", "name", "expected"),
    [
        ("one two  three\n", "log_words", math.log1p(3)),
        ("abcd", "log_characters", math.log1p(4)),
        ("a\nb\n", "log_lines", math.log1p(2)),
        ("ab cd", "mean_word_length", 2.5),
        ("x" * 100, "mean_word_length", 20.0),
        ("a1b٣", "digit_share", 0.5),
        ("AbCÉ", "uppercase_share", 0.5),
        ("a_b!？—", "punctuation_share", 0.5),
        ("\x1c\x7f", "punctuation_share", 0.5),
        ("```\ndef f(): return x == y => {}", "code_marks", math.log1p(6)),
        ("===>", "code_marks", math.log1p(2)),
        ("==>", "code_marks", math.log1p(1)),
        (r"\frac{1}{2} and $x^2$", "latex_marks", math.log1p(2)),
        ("∑ √ π", "latex_marks", math.log1p(3)),
        ("$∑ = π$ √", "latex_marks", math.log1p(2)),
        ("costs $5", "latex_marks", 0.0),
        ("a? b？", "question_marks", 2.0),
        ("?" * 9, "question_marks", 5.0),
        ("aé法b", "non_ascii_share", 0.5),
    ],
)
def test_a_feature_counts_what_its_name_says(text: str, name: str, expected: float):
    assert feature(text, name) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A) one\nB) two\nC. three\n(D) four", 4),
        ("  1. one\n\n\t2: two", 2),
        ("see A) here", 0),
        ("K) none", 0),
        ("A)none", 0),
        ("A)\n\nB)\n", 2),
        ("A)\nB) ", 1),
        ("\n\n\nA) one", 1),
        ("A) x\n" * 30, 10),
    ],
)
def test_lines_that_begin_like_answer_options_are_counted(text: str, expected: int):
    assert feature(text, "options") == expected


def test_features_look_at_no_more_than_the_classified_text():
    assert surface_features("x " * 100_000) == surface_features(clip("x " * 100_000))


@pytest.mark.parametrize("unit", ["\n", " \n", "\n\t(A", "$", "\\", "=", "```", "x$", "(A.", "？"])
def test_no_text_makes_the_features_slow(unit: str):
    """Twice the text takes about twice the time: a quadratic scan of line breaks took seconds."""
    text = (unit * CLASSIFIED_CHARACTERS_MAX)[:CLASSIFIED_CHARACTERS_MAX]
    best = math.inf
    for _ in range(5):
        started = time.process_time()
        surface_features(text)
        best = min(best, time.process_time() - started)
    assert best < 0.1
