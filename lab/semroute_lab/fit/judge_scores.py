"""A judge's scores of many texts, without a server: for `semroute calibrate` and `semroute eval`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from semroute_extproc.errors import EndpointError
from semroute_extproc.strategies.judge import JudgeSettings
from semroute_extproc.strategies.judge_client import JudgeClient

SECONDS = 60.0
"""How long one text may take: the score is measured, not the speed."""


FAILURES_MAX = 100
"""After this many texts in a row without a score the rest is not asked."""


def score_all(
    settings: JudgeSettings, texts: Sequence[str], advance: Callable[[], None] = lambda: None
) -> tuple[list[float | None], list[str]]:
    """The score of every text, None where there is none, and why not.

    As many are asked at once as the settings allow. Raises EndpointError: `setup`, or what the last of
    `FAILURES_MAX` texts in a row failed with.
    """
    patient = settings.model_copy(
        update={"timeout_ms": SECONDS * 1e3, "cache_entries": 0, "breaker_failures": len(texts) + 1}
    )

    async def run() -> tuple[list[float | None], list[str]]:
        judge = JudgeClient("calibrate", patient)
        gate = asyncio.Semaphore(patient.concurrency)
        why: list[str] = []
        in_a_row = 0

        async def ask(text: str) -> float | None:
            nonlocal in_a_row
            async with gate:
                judgement = await judge.ask(text, asyncio.get_running_loop().time() + SECONDS)
            advance()
            in_a_row = 0 if judgement.score is not None else in_a_row + 1
            if judgement.score is None:
                why.append(judgement.result)
            if in_a_row == FAILURES_MAX:
                said = (
                    f"no score for {FAILURES_MAX} prompts in a row, the last answer was: {judgement.result}"
                )
                raise EndpointError(judgement.result, f"{settings.url}: {said}")
            return judgement.score

        try:
            async with asyncio.TaskGroup() as group:
                asked = [group.create_task(ask(text)) for text in texts]
            return [task.result() for task in asked], why
        except* EndpointError as errors:
            raise errors.exceptions[0] from None
        finally:
            await judge.close()

    return asyncio.run(run())
