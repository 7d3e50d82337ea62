"""The file of questions for a profile: CSV or JSON Lines, optionally gzip-compressed.

    prompt    the user's prompt; required
    grader    choice, number, exact, regex, code or judge; optional if one is given for all
    answer    choice: the letter, or the text of an option · number: the number · exact: the text, or a
              JSON list of texts of which any counts · regex: a pattern to be found · judge: a
              reference answer, may be blank · code: not used
    options   choice: a JSON list of texts, put below the prompt as lettered lines. Blank if the
              prompt has them already (letters A to J)
    tests     code: Python statements, run after the model's code, that fail if it is wrong
    id        optional name for reports; default: the row

Further columns are ignored. Errors read `file:row:column: what was expected`.
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from semroute_lab.common.tables import Table, json_list, read_table, with_options
from semroute_lab.profile.graders import LETTERS, number_in

Grader = Literal["choice", "number", "exact", "regex", "code", "judge"]

GRADERS: tuple[str, ...] = get_args(Grader)

_INSTRUCTIONS: dict[str, str] = {
    "choice": 'End with "The answer is X.", X being the letter of your choice.',
    "number": 'End with "The answer is N.", N being a number.',
    "exact": 'End with a line "Answer: …" that holds the answer and nothing else.',
    "code": "Reply with one block of Python code.",
}


@dataclass(frozen=True, slots=True)
class Question:
    """One question and how its answer is graded."""

    id: str
    text: str  # Prompt and options: the text that is embedded, since users send it so
    grader: str
    answers: tuple[str, ...]  # Texts of which any counts; for `choice` one letter
    options: tuple[str, ...] = ()
    tests: str = ""

    @property
    def asked(self) -> str:
        """The text for the model, with an instruction to end so that the answer can be found."""
        instruction = _INSTRUCTIONS.get(self.grader)
        return f"{self.text}\n\n{instruction}" if instruction else self.text


def read_questions(path: Path, grader: str | None = None) -> list[Question]:
    """The questions of a file; `grader` is that of rows that name none. Raises DataError."""
    table = read_table(path)
    found: list[Question] = []
    seen: dict[str, int] = {}
    for row, prompt in enumerate(table.texts("prompt")):
        kind = table.field("grader", row) or grader or ""
        if kind not in GRADERS:
            raise table.error("grader", f"expected one of {', '.join(GRADERS)}, found {kind!r}", row)
        question = _question(table, row, prompt, kind)
        if (before := seen.setdefault(question.text, row)) != row:
            raise table.error("prompt", f"the same question as in row {table.numbers[before]}", row)
        found.append(question)
    return found


def _question(table: Table, row: int, prompt: str, kind: str) -> Question:
    answer, tests = table.field("answer", row), table.field("tests", row)
    name = table.field("id", row) or str(table.numbers[row])
    answers: tuple[str, ...] = (answer,)
    options: tuple[str, ...] = ()
    match kind:
        case "choice":
            options = _options(table, row)
            answers = (_letter(table, row, answer, options),)
            prompt = with_options(prompt, options)
        case "number":
            if number_in(answer) is None:
                raise table.error("answer", f"expected a number, found {answer[:40]!r}", row)
        case "exact":
            answers = _texts(table, row, answer)
        case "regex":
            try:
                re.compile(answer)
            except re.error as error:
                raise table.error("answer", f"expected a regular expression: {error}", row) from None
            if not answer:
                raise table.error("answer", "expected a regular expression, found a blank field", row)
        case "code":
            answers = ()
            if not tests:
                raise table.error("tests", "expected Python statements, found a blank field", row)
            try:
                ast.parse(tests)
            except (SyntaxError, ValueError, RecursionError) as error:
                raise table.error("tests", f"expected Python statements: {error}", row) from None
        case _:
            answers = (answer,) if answer else ()
    return Question(name, prompt, kind, answers, options, tests)


def _options(table: Table, row: int) -> tuple[str, ...]:
    field = table.field("options", row)
    if not field:
        return ()
    options = json_list(field) or []
    texts = tuple(one for one in options if isinstance(one, str) and one.strip())
    if len(texts) < len(options) or not 2 <= len(texts) <= len(LETTERS):
        expected = f"expected a JSON list of 2 to {len(LETTERS)} texts"
        raise table.error("options", f"{expected}, found {field[:40]!r}", row)
    return texts


def _letter(table: Table, row: int, answer: str, options: tuple[str, ...]) -> str:
    letters = LETTERS[: len(options)] if options else LETTERS
    if len(answer) == 1 and answer.upper() in letters:
        return answer.upper()
    if options.count(answer) == 1:
        return LETTERS[options.index(answer)]
    expected = f"a letter from A to {letters[-1]}" + (" or the text of an option" if options else "")
    raise table.error("answer", f"expected {expected}, found {answer[:40]!r}", row)


def _texts(table: Table, row: int, answer: str) -> tuple[str, ...]:
    listed = json_list(answer)
    found = [answer] if listed is None else listed
    texts = tuple(one for one in found if isinstance(one, str) and one.strip())
    if not texts or len(texts) < len(found):
        raise table.error("answer", f"expected a text or a JSON list of texts, found {answer[:40]!r}", row)
    return texts
