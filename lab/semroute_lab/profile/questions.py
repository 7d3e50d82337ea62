"""The file of questions a model is profiled with: CSV or JSON Lines, also gzip-compressed.

    prompt    what the user would send; required
    grader    choice, number, exact, regex, code or judge; may be left out if one is given for all
    answer    choice: the letter, or the text of an option · number: the number · exact: the text, or a
              JSON list of texts of which any counts · regex: a pattern that must be found · judge: a
              reference answer, may be blank · code: not used
    options   choice: a JSON list of texts; they are put below the prompt as lettered lines. Blank if the
              prompt has them already (letters A to J)
    tests     code: Python statements, run after the model's code, that fail if it is wrong
    id        optional name for reports; default: the row

Further columns are ignored. What is wrong is said as `file:row:column: what was expected`.
"""

from __future__ import annotations

import ast
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from semroute_lab.evaluate.data import Table, read_table
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
    text: str
    """Prompt and options: what is embedded, since users send it so."""
    grader: Grader
    answers: tuple[str, ...]
    """Texts of which any counts; for `choice` one letter."""
    options: tuple[str, ...] = ()
    tests: str = ""

    @property
    def asked(self) -> str:
        """What the model is sent: the text, and how to end so that the answer can be found."""
        instruction = _INSTRUCTIONS.get(self.grader)
        return f"{self.text}\n\n{instruction}" if instruction else self.text


def read_questions(path: Path, grader: str | None = None) -> list[Question]:
    """The questions of a file; `grader` is that of rows that name none. Raises DataError."""
    table = read_table(path)
    prompts = table.texts("prompt")
    graders = table.columns.get("grader", [""] * len(table))
    found: list[Question] = []
    seen: dict[str, int] = {}
    for row, (prompt, named) in enumerate(zip(prompts, graders, strict=True)):
        kind = named.strip() or grader or ""
        if kind not in GRADERS:
            raise table.error("grader", f"expected one of {', '.join(GRADERS)}, found {kind!r}", row)
        question = _question(table, row, prompt, kind)
        if (before := seen.setdefault(question.text, row)) != row:
            raise table.error("prompt", f"the same question as in row {table.numbers[before]}", row)
        found.append(question)
    return found


def _question(table: Table, row: int, prompt: str, kind: str) -> Question:
    field = _Fields(table, row)
    name = field("id") or str(table.numbers[row])
    answer = field("answer")
    match kind:
        case "choice":
            options = _options(table, row, field("options"))
            letter = _letter(table, row, answer, options)
            lines = [f"{LETTERS[i]}. {option}" for i, option in enumerate(options)]
            return Question(name, "\n".join([prompt, *lines]), "choice", (letter,), options)
        case "number":
            if number_in(answer) is None:
                raise table.error("answer", f"expected a number, found {answer[:40]!r}", row)
            return Question(name, prompt, "number", (answer,))
        case "exact":
            return Question(name, prompt, "exact", _texts(table, row, answer))
        case "regex":
            try:
                re.compile(answer)
            except re.error as error:
                raise table.error("answer", f"expected a regular expression: {error}", row) from None
            if not answer:
                raise table.error("answer", "expected a regular expression, found a blank field", row)
            return Question(name, prompt, "regex", (answer,))
        case "code":
            tests = field("tests")
            if not tests:
                raise table.error("tests", "expected Python statements, found a blank field", row)
            try:
                ast.parse(tests)
            except (SyntaxError, ValueError, RecursionError) as error:
                raise table.error("tests", f"expected Python statements: {error}", row) from None
            return Question(name, prompt, "code", (), tests=tests)
        case _:
            return Question(name, prompt, "judge", (answer,) if answer else ())


class _Fields:
    """The fields of one row, blank where the file has no such column."""

    def __init__(self, table: Table, row: int) -> None:
        self._table, self._row = table, row

    def __call__(self, column: str) -> str:
        return self._table.columns[column][self._row].strip() if self._table.has(column) else ""


def _options(table: Table, row: int, field: str) -> tuple[str, ...]:
    if not field:
        return ()
    try:
        options = json.loads(field)
    except ValueError:
        options = None
    fine = isinstance(options, list) and all(isinstance(one, str) and one.strip() for one in options)
    if not fine or not 2 <= len(options) <= len(LETTERS):
        expected = f"expected a JSON list of 2 to {len(LETTERS)} texts"
        raise table.error("options", f"{expected}, found {field[:40]!r}", row)
    return tuple(options)


def _letter(table: Table, row: int, answer: str, options: tuple[str, ...]) -> str:
    letters = LETTERS[: len(options)] if options else LETTERS
    if len(answer) == 1 and answer.upper() in letters:
        return answer.upper()
    if options.count(answer) == 1:
        return LETTERS[options.index(answer)]
    what = f"a letter from A to {letters[-1]}" + (" or the text of an option" if options else "")
    raise table.error("answer", f"expected {what}, found {answer[:40]!r}", row)


def _texts(table: Table, row: int, answer: str) -> tuple[str, ...]:
    texts: object = answer
    if answer.startswith("["):
        try:
            texts = json.loads(answer)
        except ValueError:
            texts = answer
    found = tuple(texts) if isinstance(texts, list) else (texts,)
    if not found or not all(isinstance(one, str) and one.strip() for one in found):
        raise table.error("answer", f"expected a text or a JSON list of texts, found {answer[:40]!r}", row)
    return found
