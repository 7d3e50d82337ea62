"""Grades of all replies to a file of questions, by each question's grader."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from semroute_lab.profile import graders, sandbox
from semroute_lab.profile.asking import Reply
from semroute_lab.profile.graders import Grade
from semroute_lab.profile.questions import Question


async def grade_all(
    questions: Sequence[Question],
    replies: Sequence[Reply | None],
    limits: sandbox.Limits,
    programs: int,
    ratings: Sequence[Reply | None],
) -> list[Grade | None]:
    """The grade of every reply, None where there is none; `programs` at once, off the event loop.
    `ratings` are a judge's replies, in the order of the questions.
    """
    gate = asyncio.Semaphore(programs)

    async def grade(question: Question, reply: Reply | None, rating: Reply | None) -> Grade | None:
        if reply is None:
            return None
        match question.grader:
            case "choice":
                return graders.choice(reply.text, question.answers[0], question.options)
            case "number":
                return graders.number(reply.text, question.answers[0])
            case "exact":
                return graders.exact(reply.text, question.answers)
            case "regex":
                return graders.regex(reply.text, question.answers[0])
            case "judge":
                return graders.rating(rating.text) if rating is not None else None
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
