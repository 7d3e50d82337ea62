"""Every question is graded by its own grader."""

from __future__ import annotations

import json

from semroute_lab.profile.asking import Reply
from semroute_lab.profile.graders import UNPARSED, Grade
from semroute_lab.profile.questions import Question, grade_all, rating_prompts
from semroute_lab.profile.sandbox import Limits


def reply(text: str) -> Reply:
    return Reply(text, "stop", 1, 2, 0.5)


async def test_every_kind_of_question_finds_its_grader() -> None:
    questions = [
        Question("1", "t", "choice", ("B",), ("x", "y")),
        Question("2", "t", "number", ("42",)),
        Question("3", "t", "exact", ("Paris",)),
        Question("4", "t", "regex", ("^ok$",)),
        Question("5", "t", "code", (), tests="assert f() == 1"),
        Question("6", "t", "code", (), tests="assert f() == 1"),
        Question("7", "t", "judge", ("reference",)),
        Question("8", "t", "judge", ()),
        Question("9", "t", "number", ("42",)),
    ]
    said = ["The answer is B.", "41", "Paris", "ok", "def f(): return 1", "I cannot.", "well", "well"]
    replies: list[Reply | None] = [*map(reply, said), None]
    ratings: list[Reply | None] = [None] * 6 + [reply("[[10]]"), None, None]
    grades = await grade_all(questions, replies, Limits(), 2, ratings)
    right, wrong = Grade(1.0), Grade(0.0)
    assert grades == [right, wrong, right, right, right, UNPARSED, right, None, None]


def test_only_answers_that_need_a_judge_are_put_to_one() -> None:
    questions = [Question("1", "t", "exact", ("x",)), Question("2", "Q?", "judge", ("R",))]
    prompts = rating_prompts([*questions, questions[1]], [reply("a"), reply("b"), None])
    assert [prompt is None for prompt in prompts] == [True, False, True]
    assert prompts[1] is not None
    assert json.dumps(prompts[1]).count("Q?") == 1
