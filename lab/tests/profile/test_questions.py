"""The file of questions, and where it is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from semroute_lab.profile.questions import Question, read_questions

from semroute_extproc.errors import DataError


def read(tmp_path: Path, *rows: dict[str, Any], grader: str | None = None) -> list[Question]:
    file = tmp_path / "q.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in rows))
    return read_questions(file, grader)


def test_options_stand_below_the_prompt_and_the_answer_may_be_one_of_them(tmp_path: Path) -> None:
    row = {"prompt": "Which?", "grader": "choice", "options": ["red", "blue"]}
    by_letter, by_text = read(
        tmp_path, {**row, "answer": "b"}, {**row, "prompt": "Which one?", "answer": "blue"}
    )
    assert (by_letter.text, by_letter.answers) == ("Which?\nA. red\nB. blue", ("B",))
    assert by_text.answers == ("B",)


def test_what_is_asked_says_how_to_answer_and_what_is_embedded_does_not(tmp_path: Path) -> None:
    [question] = read(tmp_path, {"prompt": "6 * 7?", "answer": 42}, grader="number")
    assert question.text == "6 * 7?"
    assert question.asked.startswith("6 * 7?\n\n")
    assert "The answer is N." in question.asked


def test_a_csv_does_as_well(tmp_path: Path) -> None:
    file = tmp_path / "q.csv"
    file.write_text(
        'id,prompt,grader,answer,tests\nx,"Say, hello",exact,"[""hello"", ""hi""]",\n,Add,code,,assert f()\n'
    )
    exact, code = read_questions(file)
    assert (exact.id, exact.answers) == ("x", ("hello", "hi"))
    assert (code.id, code.tests) == ("3", "assert f()")


def test_a_reference_for_a_judge_may_be_blank(tmp_path: Path) -> None:
    with_one, without = read(tmp_path, {"prompt": "a", "answer": "r"}, {"prompt": "b"}, grader="judge")
    assert (with_one.answers, without.answers) == (("r",), ())


@pytest.mark.parametrize(
    ("row", "place"),
    [
        ({"prompt": ""}, "1:prompt: expected text"),
        ({"prompt": "a"}, "1:grader: expected one of choice, number"),
        ({"prompt": "a", "grader": "essay"}, "1:grader: expected one of"),
        ({"prompt": "a", "grader": "number", "answer": "many"}, "1:answer: expected a number, found 'many'"),
        ({"prompt": "a", "grader": "number"}, "1:answer: expected a number, found ''"),
        ({"prompt": "a", "grader": "choice", "answer": "K"}, "1:answer: expected a letter from A to J"),
        (
            {"prompt": "a", "grader": "choice", "answer": "C", "options": ["x", "y"]},
            "1:answer: expected a letter from A to B",
        ),
        (
            {"prompt": "a", "grader": "choice", "answer": "A", "options": ["x"]},
            "1:options: expected a JSON list of 2 to 10",
        ),
        (
            {"prompt": "a", "grader": "choice", "answer": "A", "options": "x, y"},
            "1:options: expected a JSON list",
        ),
        (
            {"prompt": "a", "grader": "choice", "answer": "x", "options": ["x", "x"]},
            "1:answer: expected a letter",
        ),
        ({"prompt": "a", "grader": "exact", "answer": " "}, "1:answer: expected a text"),
        ({"prompt": "a", "grader": "exact", "answer": []}, "1:answer: expected a text"),
        ({"prompt": "a", "grader": "regex", "answer": "("}, "1:answer: expected a regular expression"),
        ({"prompt": "a", "grader": "regex", "answer": ""}, "1:answer: expected a regular expression"),
        ({"prompt": "a", "grader": "code"}, "1:tests: expected Python statements, found a blank field"),
        ({"prompt": "a", "grader": "code", "tests": "assert ("}, "1:tests: expected Python statements"),
    ],
)
def test_what_is_wrong_is_said_with_its_row_and_column(
    tmp_path: Path, row: dict[str, Any], place: str
) -> None:
    with pytest.raises(DataError) as caught:
        read(tmp_path, row)
    assert f"q.jsonl:{place}" in str(caught.value)


def test_the_documented_questions_are_right(tmp_path: Path) -> None:
    page = (Path(__file__).resolve().parents[3] / "docs" / "onboarding.md").read_text()
    file = tmp_path / "q.jsonl"
    file.write_text(page.split("```json\n")[1].split("```")[0])
    assert [question.grader for question in read_questions(file)] == ["choice", "number", "code"]


def test_a_question_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    row = {"prompt": "a", "grader": "number", "answer": "1"}
    with pytest.raises(DataError, match="2:prompt: the same question as in row 1"):
        read(tmp_path, row, row)
