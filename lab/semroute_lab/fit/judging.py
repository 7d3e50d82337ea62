"""A configuration's judge asked about many prompts: for `semroute calibrate` and `semroute eval`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from semroute_extproc.config.source import load as load_config
from semroute_extproc.errors import ConfigError, EndpointError
from semroute_extproc.strategies.judge import JudgeSettings
from semroute_lab.fit import judge_scores
from semroute_lab.fit.cli import counter


@dataclass(frozen=True, slots=True)
class Judged:
    """What a judge said of distinct prompts."""

    strategy: str
    settings: JudgeSettings
    scores: dict[str, float | None]
    """Prompt to P(the strong model wins), None where the judge gave no score."""
    failed: dict[str, int]
    """Why there is none, a result as `semroute_judge_total` names it, to how many prompts."""

    def describe(self) -> dict[str, object]:
        """What a report says of the judge."""
        return {
            "strategy": self.strategy,
            "model": self.settings.model,
            "labels": self.settings.labels,
            "asked": len(self.scores),
            "failed": self.failed,
        }


def judge(path: Path, strategy: str | None, texts: Sequence[str]) -> Judged:
    """Ask the judge of the configuration `path` about each distinct text.

    At most `concurrency` of the strategy's own settings are asked at once. Raises ConfigError if
    `strategy` is no judge, or None and there is not exactly one; EndpointError if no text has a score.
    """
    config = load_config(path).config
    judges = {name: each for name, each in config.strategies.items() if isinstance(each, JudgeSettings)}
    names = [strategy] if strategy is not None else list(judges)
    if len(names) != 1 or names[0] not in judges:
        known = ", ".join(judges) or "none"
        raise ConfigError([f"{path}: strategies: name one judge with --strategy; there are {known}"])
    settings = judges[names[0]]
    distinct = list(dict.fromkeys(texts))
    with counter("judged", len(distinct)) as advance:
        scores, why = judge_scores.score_all(settings, distinct, advance)
    if why and len(why) == len(distinct):
        raise EndpointError(why[0], f"{settings.url}: no scores, the judge's answers were: {why[0]}")
    failed = dict(Counter(why).most_common())
    return Judged(names[0], settings, dict(zip(distinct, scores, strict=True)), failed)
