"""A judge's scores of many texts, without a server: for `semroute calibrate`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from semroute_extproc.config import JudgeStrategy
from semroute_extproc.judge import Judge

SECONDS = 60.0
"""How long one text may take: what is measured is the score and not the speed."""


def score_all(
    settings: JudgeStrategy, texts: Sequence[str], advance: Callable[[], None] = lambda: None
) -> tuple[list[float | None], list[str]]:
    """The score of every text, None where there is none, and why not; raises EndpointError (`setup`).

    As many are asked at once as the settings allow.
    """
    patient = settings.model_copy(
        update={"timeout_ms": SECONDS * 1e3, "cache_entries": 0, "breaker_failures": len(texts) + 1}
    )

    async def run() -> tuple[list[float | None], list[str]]:
        judge = Judge("calibrate", patient)
        gate = asyncio.Semaphore(patient.concurrency)
        why: list[str] = []

        async def ask(text: str) -> float | None:
            async with gate:
                judgement = await judge.ask(text, asyncio.get_running_loop().time() + SECONDS)
            advance()
            if judgement.score is None:
                why.append(judgement.result)
            return judgement.score

        try:
            return list(await asyncio.gather(*map(ask, texts))), why
        finally:
            await judge.close()

    return asyncio.run(run())
