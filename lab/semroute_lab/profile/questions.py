"""The file of questions for a profile, and the grades of the replies to them.

CSV or JSON Lines, optionally gzip-compressed. Further columns are ignored.

    prompt    the user's prompt; required
    grader    choice, number, exact, regex, code or judge; optional if one is given for all
    answer    choice: the letter, or the text of an option · number: the number · exact: the text, or a
              JSON list of accepted texts · regex: a pattern to be found · judge: a
              reference answer, may be blank · code: not used
    options   choice: a JSON list of texts, put below the prompt as lettered lines. Blank if the
              prompt has them already (letters A to J)
    tests     code: Python statements, run after the model's code, that fail if it is wrong
    id        optional name for reports; default: the row
"""

import ast
import asyncio
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from semroute_lab.common.tables import Table, json_list, read_table, with_options
from semroute_lab.profile import graders, sandbox
from semroute_lab.profile.asking import Reply
from semroute_lab.profile.graders import LETTERS, Grade, number_in

GRADERS = {
    "choice": 'End with "The answer is X.", X being the letter of your choice.',
    "number": 'End with "The answer is N.", N being a number.',
    "exact": 'End with a line "Answer: …" that holds the answer and nothing else.',
    "regex": "",
    "code": "Reply with one block of Python code.",
    "judge": "",
}
"""Grader to the instruction that makes an answer easy to find."""


@dataclass(frozen=True, slots=True)
class Question:
    """One question and how its answer is graded."""

    id: str
    text: str  # Prompt and options: the text that is embedded, since users send it so
    grader: str
    answers: tuple[str, ...]  # Accepted texts; for `choice` one letter
    options: tuple[str, ...] = ()
    tests: str = ""

    @property
    def asked(self) -> str:
        """The text for the model, with an instruction to end so that the answer can be found."""
        instruction = GRADERS[self.grader]
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
        answer, options = table.field("answer", row), _options(table, row) if kind == "choice" else ()
        answers = _READ[kind](table, row, answer, options)
        text, tests = with_options(prompt, options), table.field("tests", row)
        if (before := seen.setdefault(text, row)) != row:
            raise table.error("prompt", f"the same question as in row {table.numbers[before]}", row)
        name = table.field("id", row) or str(table.numbers[row])
        found.append(Question(name, text, kind, answers, options, tests))
    return found


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


Answers = tuple[str, ...]


def _letter(table: Table, row: int, answer: str, options: Answers) -> Answers:
    letters = LETTERS[: len(options)] if options else LETTERS
    if len(answer) == 1 and answer.upper() in letters:
        return (answer.upper(),)
    if options.count(answer) == 1:
        return (LETTERS[options.index(answer)],)
    expected = f"a letter from A to {letters[-1]}" + (" or the text of an option" if options else "")
    raise table.error("answer", f"expected {expected}, found {answer[:40]!r}", row)


def _number(table: Table, row: int, answer: str, options: Answers) -> Answers:
    if number_in(answer) is None:
        raise table.error("answer", f"expected a number, found {answer[:40]!r}", row)
    return (answer,)


def _texts(table: Table, row: int, answer: str, options: Answers) -> Answers:
    listed = json_list(answer)
    found = [answer] if listed is None else listed
    texts = tuple(one for one in found if isinstance(one, str) and one.strip())
    if not texts or len(texts) < len(found):
        raise table.error("answer", f"expected a text or a JSON list of texts, found {answer[:40]!r}", row)
    return texts


def _pattern(table: Table, row: int, answer: str, options: Answers) -> Answers:
    try:
        re.compile(answer)
    except re.error as error:
        raise table.error("answer", f"expected a regular expression: {error}", row) from None
    if not answer:
        raise table.error("answer", "expected a regular expression, found a blank field", row)
    return (answer,)


def _checked_tests(table: Table, row: int, answer: str, options: Answers) -> Answers:
    tests = table.field("tests", row)
    if not tests:
        raise table.error("tests", "expected Python statements, found a blank field", row)
    try:
        ast.parse(tests)
    except (SyntaxError, ValueError, RecursionError) as error:
        raise table.error("tests", f"expected Python statements: {error}", row) from None
    return ()


_READ: dict[str, Callable[[Table, int, str, Answers], Answers]] = {
    "choice": _letter,
    "number": _number,
    "exact": _texts,
    "regex": _pattern,
    "code": _checked_tests,
    "judge": lambda table, row, answer, options: (answer,) if answer else (),
}
"""Grader to the right answers by a row of the file; raises DataError."""

_GRADE: dict[str, Callable[[str, Question], Grade]] = {
    "choice": lambda reply, question: graders.choice(reply, question.answers[0], question.options),
    "number": lambda reply, question: graders.number(reply, question.answers[0]),
    "exact": lambda reply, question: graders.exact(reply, question.answers),
    "regex": lambda reply, question: graders.regex(reply, question.answers[0]),
}


async def grade_all(
    questions: Sequence[Question],
    replies: Sequence[Reply | None],
    limits: sandbox.Limits,
    programs: int,
    ratings: Sequence[Reply | None],
) -> list[Grade | None]:
    """The grade of every reply, None without one; `programs` run at once; `ratings` are a judge's replies."""
    gate = asyncio.Semaphore(programs)

    async def grade(question: Question, reply: Reply | None, rating: Reply | None) -> Grade | None:
        if reply is None or (question.grader == "judge" and rating is None):
            return None
        if question.grader in _GRADE:
            return _GRADE[question.grader](reply.text, question)
        if rating is not None:
            return graders.rating(rating.text)
        code = graders.code_in(reply.text)
        if code is None:
            return graders.UNPARSED
        async with gate:
            verdict = await asyncio.to_thread(sandbox.run, code, question.tests, limits)
        return Grade(float(verdict == "passed"))

    return list(await asyncio.gather(*map(grade, questions, replies, ratings)))


def rating_prompts(questions: Sequence[Question], replies: Sequence[Reply | None]) -> list[str | None]:
    """The judge's prompts, None where there is nothing to judge."""
    return [
        graders.rating_request(question.text, " · ".join(question.answers), reply.text)
        if question.grader == "judge" and reply is not None
        else None
        for question, reply in zip(questions, replies, strict=True)
    ]
