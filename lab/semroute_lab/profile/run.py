"""All questions to a model, so many at once, and what its answers are worth."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from semroute_extproc.errors import EndpointError
from semroute_lab.profile import graders, sandbox
from semroute_lab.profile.answers import Answers, key_of
from semroute_lab.profile.asking import Hopeless, Model, Reply, is_the_questions_fault
from semroute_lab.profile.graders import Grade
from semroute_lab.profile.questions import Question

FAILURES_IN_A_ROW_MAX = 10
"""After so many questions in a row without an answer, each tried several times, the endpoint is down."""


@dataclass
class Asked:
    """What became of a list of questions."""

    replies: list[Reply | None]
    """None where there is no answer; in the order of the questions."""
    failures: dict[int, str] = field(default_factory=dict)
    """Index of a question to why it has none."""
    fresh: int = 0
    """Answers that were not in the file before."""
    seconds: float = 0.0
    """How long the asking took, all together."""


async def ask_all(
    model: Model,
    prompts: Sequence[str | None],
    answers: Answers,
    concurrency: int,
    advance: Callable[[], None] = lambda: None,
    chance: random.Random | None = None,
) -> Asked:
    """Ask every prompt that `answers` does not know; None among the prompts is passed over.

    Never more than `concurrency` at once. `advance` is called for each prompt done, known ones
    included. Raises Hopeless if none will be answered, OSError if `answers` cannot be written.
    """
    chance = chance or random.Random()
    asked = Asked([None] * len(prompts))
    began = time.monotonic()
    in_a_row = 0
    todo: list[tuple[int, str, str]] = []
    for index, prompt in enumerate(prompts):
        key = key_of(model.name, prompt, model.parameters) if prompt is not None else ""
        if prompt is None or (known := answers.get(key)) is not None:
            asked.replies[index] = known if prompt is not None else None
            advance()
        else:
            todo.append((index, key, prompt))
    waiting: Iterator[tuple[int, str, str]] = iter(todo)

    async def work() -> None:
        nonlocal in_a_row
        for index, key, prompt in waiting:
            try:
                reply = await model.ask(prompt, chance)
            except EndpointError as error:
                asked.failures[index] = str(error)
                # Unless no question at all was answered yet.
                own = is_the_questions_fault(error) and any(asked.replies)
                in_a_row += not own
                if in_a_row >= FAILURES_IN_A_ROW_MAX:
                    raise Hopeless(f"{model.endpoint.url}: {error}") from None
            else:
                in_a_row = 0
                answers.add(key, reply)
                asked.replies[index] = reply
                asked.fresh += 1
            advance()

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(min(concurrency, len(todo))):
                group.create_task(work())
    except* (Hopeless, OSError) as errors:
        raise errors.exceptions[0] from None
    asked.seconds = time.monotonic() - began
    return asked


async def grade_all(
    questions: Sequence[Question],
    replies: Sequence[Reply | None],
    limits: sandbox.Limits,
    programs: int,
    ratings: Sequence[Reply | None],
) -> list[Grade | None]:
    """The grade of every reply, None where there is none; `programs` at once, off the loop.

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
            case "code":
                code = graders.code_in(reply.text)
                if code is None:
                    return graders.UNPARSED
                async with gate:
                    verdict = await asyncio.to_thread(sandbox.run, code, question.tests, limits)
                return Grade(float(verdict == "passed"))

    return list(await asyncio.gather(*map(grade, questions, replies, ratings)))


def rating_prompts(questions: Sequence[Question], replies: Sequence[Reply | None]) -> list[str | None]:
    """What the judge is asked, None where nothing is to be judged."""
    return [
        graders.rating_request(question.text, " · ".join(question.answers), reply.text)
        if question.grader == "judge" and reply is not None
        else None
        for question, reply in zip(questions, replies, strict=True)
    ]
