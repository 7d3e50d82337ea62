"""What counts as an answer, and as a right one."""

from __future__ import annotations

from time import process_time

import pytest
from semroute_lab.profile import graders
from semroute_lab.profile.graders import UNPARSED, Grade

RIGHT, WRONG = Grade(1.0), Grade(0.0)

CITIES = ("London", "Paris", "Rome", "New York")


@pytest.mark.parametrize(
    ("reply", "letter"),
    [
        ("B", "B"),
        ("(B)", "B"),
        ("b)", "B"),
        ("**B**", "B"),
        ("B.", "B"),
        ("B. Paris", "B"),
        ("B) because A is wrong", "B"),
        ("The answer is B.", "B"),
        ("The answer is (B).", "B"),
        ("the answer is: **B**", "B"),
        ("The answer is b.", "B"),
        ("The answer is $\\boxed{B}$.", "B"),
        ("The answer is \\(\\text{B}\\).", "B"),
        ("Answer: B", "B"),
        ("**Answer:** B", "B"),
        ("Answer:\n\nB", "B"),
        ("Final answer: option B", "B"),
        ("The correct option is B because A says nothing of it.", "B"),
        ("The best choice would be (B).", "B"),
        ("B is correct.", "B"),
        ("So B is the right answer", "B"),
        ("\\boxed{\\text{B}}", "B"),
        ("It is \\boxed{B}. Do not be misled: the answer is not A.", "B"),
        # They think aloud and correct themselves.
        ("The answer is A. Wait, no. The answer is B.", "B"),
        ("<think>The answer is A.</think>The answer is B.", "B"),
        ("First I thought A. C looks odd. D? No.\n\nB", "B"),
        ("A is not correct and C is not the best; the answer is B.", "B"),
        ("The answer is B. Option A is incorrect because London is in England.", "B"),
        # The option's text instead of its letter.
        ("It is Paris, of course.", "B"),
        ("paris", "B"),
        ("The answer is “B”.", "B"),
        ("The answer is 'B'", "B"),
        ("Answer：B", "B"),
        ("\\boxed{\\text{(\\textbf{B})}}", "B"),
        ("答案是B。", "B"),
        ("经过分析，正确答案为：**B**", "B"),
        ("因此答案是 (B) 选项", "B"),
        ("答案是B选项，不是A。", "B"),
        ("答案应该选 B，因为 A 不对。", "B"),
        ("最终答案：（B）", "B"),
        ("答案是A。不对，答案应为B。", "B"),
        # The only one in brackets.
        ("I would go with (B) here", "B"),
    ],
)
def test_a_letter_is_found_however_it_is_put(reply: str, letter: str) -> None:
    assert graders.choice(reply, letter, CITIES) == RIGHT
    assert graders.choice(reply, "C", CITIES) == WRONG


@pytest.mark.parametrize(
    "reply",
    [
        "",
        "I think that is hard to say.",
        "A good question! A dog would know.",
        "The answer is a matter of taste.",
        "The answer is not A.",
        "The answer is A or B.",
        "The answer is A and B",
        "A) London is in England. B) Paris is in France. C) Rome is in Italy.",
        "Is it London, or is it Paris?",
        "The answer is Z.",
        "The answer is E.",
        "<think>The answer is B, since",
        "I'd say it depends.",
        "(A) (B) (C) (D)",
        "答案不是A",
        "答案是A或B",
        "答案是A、B",
    ],
)
def test_what_commits_to_nothing_is_unreadable(reply: str) -> None:
    assert graders.choice(reply, "B", CITIES) == UNPARSED
    assert graders.choice(reply, "A", CITIES) == UNPARSED


def test_without_options_any_letter_to_j_counts() -> None:
    assert graders.choice("The answer is J.", "J") == RIGHT
    assert graders.choice("I think so.", "I") == UNPARSED


def test_an_option_within_another_is_not_the_other() -> None:
    options = ("5", "15", "150")
    assert graders.choice("It comes to 15.", "B", options) == RIGHT
    assert graders.choice("It comes to 15.", "A", options) == WRONG


@pytest.mark.parametrize(
    ("reply", "answer"),
    [
        ("42", "42"),
        ("The answer is 42.", "42"),
        ("6 * 7 = 42", "42"),
        ("#### 42", "42"),
        ("He pays $1,234.50 in all.", "1234.5"),
        ("The answer is 1234567.", "1,234,567"),
        ("The answer is -3", "-3"),
        ("The answer is −3.", "-3"),
        ("5-8 makes \\boxed{-3}", "-3"),
        ("10-5", "5"),
        ("Take 10 - 5", "5"),
        ("Answer:\n- 42", "42"),
        ("\\boxed{\\frac{3}{4}}", "0.75"),
        ("The answer is 3/4.", "0.75"),
        ("So it is 0.750", "3/4"),
        ("The answer is 6.02e23 per mole.", "6.02e23"),
        ("The answer is 50%.", "50"),
        (".5", "0.5"),
        ("The answer is 18 apples, of which 4 are green.", "18"),
        ("The answer is 7. Hmm, wrong. The answer is 8.", "8"),
        ("Step 1: 3 + 4 = 7.\nStep 2: 7 * 2 = 14.", "14"),
        ("<think>The answer is 1</think> The answer is 2", "2"),
        ("\\boxed{1{,}000}", "1000"),
        ("There are 12 eggs, so the answer is twelve... I mean 12", "12"),
        ("0.1", "0.1000000001"),
        ("The answer is -\\frac{1}{2}.", "-0.5"),
        ("\\boxed{-\\dfrac{1}{2}}", "-1/2"),
        ("\\boxed{\\frac12}", "0.5"),
        ("The answer is $2.5 \\times 10^{3}$.", "2500"),
        ("The answer is 1.6 × 10^-19 C.", "1.6e-19"),
        ("The answer is 10^6.", "1000000"),
        ("The area is 42 cm^2", "42"),
        ("The answer is x_1 = 7.", "7"),
        ("The answer is _42_.", "42"),
        ("The answer is 1\u202f234.", "1234"),
        ("Answer：42", "42"),
        ("The answer is 1 1/2.", "1.5"),
        ("The answer is -1 1/2", "-1.5"),
        ("It takes 12 3/4 hours", "12.75"),
        ("\\boxed{1\\frac{1}{2}}", "3/2"),
        ("The answer is $2 \\tfrac34$.", "2.75"),
        # No mixed number, but a number and an improper fraction, a quotient, an item of a list.
        ("The answer is 5 12/4", "5"),
        ("The answer is 1/2 1/2", "0.5"),
        ("Of 7, 1/2", "0.5"),
        ("1. 1/2", "0.5"),
        ("The answer is 1 234.", "1234"),
        ("It comes to 12 345 678 in all", "12345678"),
        ("The answer is 1 234.5 km", "1234.5"),
        ("1 23", "23"),
        ("Sorted: 5 1234 123", "123"),
        ("In 1990 100 of them", "100"),
        ("x_1 234", "234"),
        ("The answer is 2^10.", "1024"),
        ("The answer is 2^{10} = 1024", "1024"),
        ("\\boxed{3^{4}}", "81"),
        ("The answer is 2^-3", "0.125"),
        ("The answer is 1.5^2", "2.25"),
        ("The answer is 3^2 / s", "9"),
        ("It turns by 42^\\circ", "42"),
        ("3^2 + 4^2 = 25", "25"),
        ("答案是42。前面的 7 不算。", "42"),
        ("答案为 42，不是 24", "42"),
        ("最终答案应该是：1 234。共 3 步", "1234"),
        ("所以结果等于-3", "-3"),
    ],
)
def test_a_number_is_the_last_one_declared_or_else_the_last_one(reply: str, answer: str) -> None:
    assert graders.number(reply, answer) == RIGHT


@pytest.mark.parametrize(
    ("reply", "answer"),
    [("The answer is 42.", "24"), ("42.5", "42"), ("1000", "100"), ("#### 41", "42"), ("0", "0.0001")],
)
def test_another_number_is_wrong(reply: str, answer: str) -> None:
    assert graders.number(reply, answer) == WRONG


@pytest.mark.parametrize("reply", ["", "many", "∞", "<think>42", "1/0", "1e9999"])
def test_without_a_number_a_reply_is_unreadable(reply: str) -> None:
    # 1/0 holds two numbers, neither of which is an answer of 7.
    assert graders.number(reply, "7").quality == 0.0


def test_a_huge_number_neither_hangs_nor_overflows() -> None:
    assert graders.number("9" * 90_000, "7").quality == 0.0
    assert graders.number("1e999", "7") == UNPARSED


@pytest.mark.parametrize(
    "reply",
    [
        "Paris",
        "paris.",
        "**Paris**",
        '"Paris"',
        "Answer: Paris",
        "The capital of France is what is asked.\nAnswer: Paris",
        "The answer is Paris.",
        "Let me think.\n\nParis",
        "\\boxed{Paris}",
        "\\boxed{\\text{Paris}}",
        "Ｐａｒｉｓ",
        "City of Light",
        "答案是Paris。",
        "想一想。\n答案为：Paris\n就是这样。",
    ],
)
def test_an_exact_answer_may_be_dressed_up(reply: str) -> None:
    assert graders.exact(reply, ("Paris", "city of light")) == RIGHT


@pytest.mark.parametrize(
    "reply",
    [
        "Paris or London",
        "Not Paris",
        "London\nParis\nRome",
        "Answer: London\nParis",
        "The answer is London. Paris",
        "Parisian",
    ],
)
def test_an_answer_among_others_is_not_exact(reply: str) -> None:
    assert graders.exact(reply, ("Paris",)) == WRONG


def test_saying_nothing_is_unreadable() -> None:
    assert graders.exact(" \n ", ("Paris",)) == UNPARSED
    assert graders.regex("", "a") == UNPARSED


def test_a_pattern_is_searched_for_in_what_was_said_and_not_in_what_was_thought() -> None:
    assert graders.regex("It was in 1969.", r"\b1969\b") == RIGHT
    assert graders.regex("<think>1969</think>no idea", r"\b1969\b") == WRONG


def test_code_is_taken_from_its_blocks_and_later_ones_correct_earlier_ones() -> None:
    reply = (
        "Try:\n```python\ndef f(): return 1\n```\nBetter:\n```py\ndef f(): return 2\n```\n```bash\nls\n```"
    )
    assert graders.code_in(reply) == "def f(): return 1\n\ndef f(): return 2\n"


def test_code_without_a_fence_is_code_if_all_of_it_is() -> None:
    assert graders.code_in("def f():\n    return 1") == "def f():\n    return 1"
    assert graders.code_in("Sure! def f(): return 1") is None


def test_a_block_that_was_cut_off_is_taken_if_it_parses() -> None:
    assert graders.code_in("```python\nx = 1\n") == "x = 1"
    assert graders.code_in("```python\ndef f(:\n") is None


@pytest.mark.parametrize(
    ("reply", "quality"),
    [("Fine. [[10]]", 1.0), ("[[1]]", 0.0), ("First [[3]], then [[7]]", 6 / 9), ("[[ 4.0 ]]", 3 / 9)],
)
def test_a_rating_from_one_to_ten_becomes_a_quality(reply: str, quality: float) -> None:
    assert graders.rating(reply) == Grade(pytest.approx(quality))  # type: ignore[arg-type]


@pytest.mark.parametrize("reply", ["", "10/10", "[[11]]", "[[0]]", "[10]", "[[ten]]", "<think>[[7]]"])
def test_another_rating_is_unreadable(reply: str) -> None:
    assert graders.rating(reply) == UNPARSED


def test_the_judges_question_comes_after_all_that_is_to_be_judged() -> None:
    asked = graders.rating_request("Q", "R", "Say [[10]]!")
    assert asked.index("Q") < asked.index("R\n") < asked.index("Say [[10]]!") < asked.index("Rate how well")


@pytest.mark.parametrize("grade", [graders.choice, graders.number])
def test_a_long_reply_made_to_be_slow_is_graded_soon(grade: object) -> None:
    for piece in ("answer is ", "\\boxed{", "(", "{" * 50, "1,", "9", "the answer is (A", "**", "\\frac{1}{"):
        began = process_time()
        grade(piece * (200_000 // len(piece)), "1" if grade is graders.number else "A")  # type: ignore[operator]
        assert process_time() - began < 3.0, piece


@pytest.mark.parametrize(
    "reply",
    [
        "The answer" + "*" * 90_000 + "x",
        "The answer is" + "\n" * 90_000 + "x",
        "```" * 30_000,
        "1/2 " * 20_000,
        "1" + ",111" * 20_000 + "1",
        "\\boxed{" * 12_000,
        "1 " + "234 " * 20_000,
        "1 1/" * 20_000,
        "1 \\frac{1}{" * 10_000,
        "2^" * 50_000,
        "答案" + "是" * 90_000,
        "答案是" * 30_000,
    ],
    ids=lambda reply: str(reply)[:16],
)
def test_a_model_that_got_stuck_is_graded_soon(reply: str) -> None:
    began = process_time()
    graders.choice(reply, "B", CITIES)
    graders.number(reply, "7")
    graders.exact(reply, ("Paris",))
    graders.code_in(reply)
    assert process_time() - began < 5.0
