"""A configuration's judge asked about many prompts: for `semroute calibrate` and `semroute eval`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from semroute_extproc.strategies.judging import offline

from semroute_extproc.config.models import JudgeStrategy
from semroute_extproc.config.source import load as load_config
from semroute_extproc.errors import ConfigError, EndpointError
from semroute_lab.common.progress import progress


@dataclass(frozen=True, slots=True)
class Judged:
    """A judge's scores of distinct prompts."""

    strategy: str
    settings: JudgeStrategy
    scores: dict[str, float | None]
    """Prompt to P(the strong model wins), None where the judge gave no score."""
    failed: dict[str, int]
    """Reason for no score, as in `semroute_judge_total`, to number of prompts."""

    def describe(self) -> dict[str, object]:
        """The `judge` section of a report."""
        model, labels = self.settings.model, self.settings.labels
        found: dict[str, object] = {"strategy": self.strategy, "model": model, "labels": labels}
        return found | {"asked": len(self.scores), "failed": self.failed}


def judge(path: Path, strategy: str | None, texts: Sequence[str]) -> Judged:
    """Ask the judge of the configuration `path` about each distinct text.

    At most `concurrency` of the strategy's own settings are asked at once. Raises ConfigError if
    `strategy` is not a judge, or None and there is not exactly one; EndpointError if no text has a score.
    """
    config = load_config(path).config
    judges = {name: each for name, each in config.strategies.items() if isinstance(each, JudgeStrategy)}
    names = [strategy] if strategy is not None else list(judges)
    if len(names) != 1 or names[0] not in judges:
        known = ", ".join(judges) or "none"
        raise ConfigError([f"{path}: strategies: name one judge with --strategy; there are {known}"])
    settings = judges[names[0]]
    distinct = list(dict.fromkeys(texts))
    with progress("judged", len(distinct)) as advance:
        scores, why = offline.score_all(settings, distinct, advance)
    if why and len(why) == len(distinct):
        raise EndpointError(why[0], f"{settings.url}: no scores, the judge's answers were: {why[0]}")
    return Judged(
        names[0], settings, dict(zip(distinct, scores, strict=True)), dict(Counter(why).most_common())
    )
