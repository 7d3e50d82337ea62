"""A judge's scores of many texts, without a server: for `semroute calibrate` and `semroute eval`."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from semroute_extproc.config.source import load as load_config
from semroute_extproc.errors import ConfigError, EndpointError
from semroute_extproc.strategies.judge import JudgeSettings
from semroute_extproc.strategies.judge_client import JudgeClient
from semroute_lab.common.options import progress

SECONDS = 60.0  # How long one text may take: the score is measured, not the speed
FAILURES_MAX = 100  # After this many texts in a row without a score the rest is not asked


@dataclass(frozen=True, slots=True)
class Judged:
    """A judge's scores of distinct prompts."""

    strategy: str
    settings: JudgeSettings
    scores: dict[str, float | None]  # Prompt to P(the strong model wins), None without a score
    failed: dict[str, int]  # Reason for no score, as in `semroute_judge_total`, to number of prompts

    def describe(self) -> dict[str, object]:
        """The `judge` section of a report."""
        model, labels = self.settings.model, self.settings.labels
        found: dict[str, object] = {"strategy": self.strategy, "model": model, "labels": labels}
        return found | {"asked": len(self.scores), "failed": self.failed}


def judge(path: Path, strategy: str | None, texts: Sequence[str]) -> Judged:
    """Ask the judge of the configuration `path` about each distinct text.
    At most `concurrency` of its settings are asked at once. Raises ConfigError if `strategy` is not a
    judge, or None and there is not exactly one; EndpointError if no text has a score.
    """
    config = load_config(path).config
    judges = {name: each for name, each in config.strategies.items() if isinstance(each, JudgeSettings)}
    names = [strategy] if strategy is not None else list(judges)
    if len(names) != 1 or names[0] not in judges:
        known = ", ".join(judges) or "none"
        raise ConfigError([f"{path}: strategies: name one judge with --strategy; there are {known}"])
    settings = judges[names[0]]
    distinct = list(dict.fromkeys(texts))
    with progress("judged", len(distinct)) as advance:
        scores, why = score_all(settings, distinct, advance)
    if why and len(why) == len(distinct):
        raise EndpointError(why[0], f"{settings.url}: no scores, the judge's answers were: {why[0]}")
    failed = dict(Counter(why).most_common())
    return Judged(names[0], settings, dict(zip(distinct, scores, strict=True)), failed)


def score_all(
    settings: JudgeSettings, texts: Sequence[str], advance: Callable[[], None] = lambda: None
) -> tuple[list[float | None], list[str]]:
    """The score of every text, None where there is none, and why not.
    As many are asked at once as the settings allow. Raises EndpointError: `setup`, or what the last of
    `FAILURES_MAX` texts in a row failed with.
    """
    bounds = {"timeout_ms": SECONDS * 1e3, "cache_entries": 0, "breaker_failures": len(texts) + 1}
    patient = settings.model_copy(update=bounds)
    why: list[str] = []

    async def run() -> list[float | None]:
        judge = JudgeClient("calibrate", patient)
        gate = asyncio.Semaphore(patient.concurrency)
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
                said = f"{FAILURES_MAX} prompts in a row, the last answer was: {judgement.result}"
                raise EndpointError(judgement.result, f"{settings.url}: no score for {said}")
            return judgement.score

        try:
            async with asyncio.TaskGroup() as group:
                asked = [group.create_task(ask(text)) for text in texts]
            return [task.result() for task in asked]
        except* EndpointError as errors:
            raise errors.exceptions[0] from None
        finally:
            await judge.close()

    return asyncio.run(run()), why
