"""`semroute calibrate`: from scores on the operator's own prompts to a threshold, with intervals."""

import asyncio
import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from semroute_extproc.config.source import load as load_config
from semroute_extproc.errors import ConfigError, DataError, EndpointError
from semroute_extproc.request.reasoning import FAMILIES, families
from semroute_extproc.serve.offline import Scorer
from semroute_extproc.settings.pools import ReasoningFamily
from semroute_extproc.state.live import threshold_for_share
from semroute_extproc.strategies.calibration import Calibration
from semroute_extproc.strategies.judge import JudgeSettings
from semroute_extproc.strategies.judge_client import JudgeClient
from semroute_lab.common.decisions import is_log
from semroute_lab.common.embedding import signals_of
from semroute_lab.common.metrics import Estimate, Floats, bootstrap, estimate
from semroute_lab.common.options import progress
from semroute_lab.common.routing import exact_curve
from semroute_lab.common.tables import read_table, require_rows, texts_in
from semroute_lab.common.writing import write_json
from semroute_lab.fit.logged import of_log, score_of
from semroute_lab.fit.outcomes import quantiles
from semroute_lab.profile.tally import interval

SECONDS = 60.0  # Time limit of one text: generous, since only the score matters here
FAILURES_MAX = 100  # After this many consecutive texts without a score, give up


def wilson(hits: int, rows: int) -> Estimate:
    """A share with its 95 % interval (Wilson 1927), which also holds for few rows and near 0 and 1."""
    return Estimate(hits / rows, *interval(hits, rows))


def quality_by_share(scores: Floats, strong: Floats, weak: Floats) -> tuple[float, ...]:
    """Mean outcome with 0, 1, … 100 % at the strong model, the highest scores first."""
    curve = exact_curve(scores, strong, weak)
    return tuple(np.interp(np.arange(101) / 100.0, curve.share, curve.quality).tolist())


@dataclass(frozen=True, slots=True)
class Setting:
    """A chosen threshold and its result on the prompts that it was chosen on."""

    threshold: float
    wanted_share: float
    realized: Estimate  # Strong share of these prompts
    quality: Estimate | None  # Mean outcome of the mix; None without outcomes
    drop: Estimate | None  # Part of always-strong's quality that is lost


def settle(
    calibration: Calibration,
    scores: Floats,
    outcomes: tuple[Floats, Floats] | None,
    *,
    strong_share: float | None,
    max_quality_drop: float | None,
    replicates: int,
    seed: int,
) -> Setting:
    """The threshold for a strong share or a quality drop (one is None); intervals hold it fixed."""
    share = strong_share
    if share is None:
        assert max_quality_drop is not None
        share = calibration.share_for_drop(max_quality_drop)
    threshold = threshold_for_share(calibration.quantiles, share)
    chosen = scores >= threshold
    realized = wilson(int(chosen.sum()), scores.size)
    if outcomes is None:
        return Setting(threshold, share, realized, None, None)
    strong, weak = outcomes
    mixed = np.where(chosen, strong, weak)

    def means(counts: Floats) -> Floats:
        """Quality and drop of each replicate; (replicates, 2)."""
        quality, whole = counts @ mixed / scores.size, counts @ strong / scores.size
        lost = np.divide(whole - quality, np.abs(whole), out=np.zeros_like(whole), where=whole != 0)
        return np.stack([quality, lost], axis=1)

    samples = bootstrap(means, scores.size, replicates, seed).reshape(-1, 2)
    quality, drop = map(estimate, means(np.ones((1, scores.size)))[0].tolist(), samples.T)
    return Setting(threshold, share, realized, quality, drop)


def calibrate(file: Path, options: Mapping[str, Any]) -> dict[str, Any]:
    """Run `semroute calibrate` with its `options`: write the calibration to `out`, and return the report."""
    scorer = Scorer.of(options["bundle"])
    artifact = (options["artifact"], options["strong_model"], options["weak_model"])
    if is_log(file) and options["judge"] is None:
        kind, digest, _ = score_of(scorer, *artifact)
        drawn = options["max_quality_drop"] is not None
        values, outcomes, sha256 = of_log(file, options["bundle"], artifact[0], artifact[1:], drawn)
    else:
        table = read_table(file).in_splits(options["splits"])
        texts, sha256 = texts_in(table, options["text_column"]), table.sha256
        require_rows(table)
        columns = [options["strong_column"], options["weak_column"]]
        known = any(table.has(column) for column in columns)
        if options["max_quality_drop"] is not None and not known:
            raise table.error(columns[0], "expected this column: a quality drop needs outcomes")
        outcomes = [table.numbers_in(column, 0.0, 1.0) for column in columns] if known else []
        found: list[float | None]
        if options["judge"] is not None:
            judged = judge(options["judge"], options["strategy"], texts)
            kind, digest = "judge", judged.settings.digest
            found = [judged.scores[text] for text in texts]
        else:
            kind, digest, score = score_of(scorer, *artifact)
            found = [score(signals) for signals in signals_of(scorer, texts, "reading")]
        values = np.asarray(found, dtype=np.float64)
    kept = np.isfinite(values)
    if not kept.any():
        raise DataError(f"{file}:1:: no prompt has a score: all are in languages of other bundles")
    scores = values[kept]
    pair = (outcomes[0][kept], outcomes[1][kept]) if outcomes else None
    calibration = Calibration(
        score=kind,
        bundle=scorer.bundle.manifest.name,
        revision=scorer.bundle.revision,
        artifact=digest,
        rows=len(scores),
        data=file.name,
        data_sha256=sha256,
        quantiles=quantiles(scores),
        quality=None if pair is None else quality_by_share(scores, *pair),
    )
    names = ("strong_share", "max_quality_drop", "replicates", "seed")
    setting = settle(calibration, scores, pair, **{name: options[name] for name in names})
    if options["out"] is not None:
        write_json(options["out"], calibration)
    figures, bundle = dataclasses.asdict(setting), scorer.bundle
    return {
        "rows": len(scores),
        "left_out": int((~kept).sum()),
        "score": kind,
        "bundle": bundle.manifest.name,
        "revision": bundle.revision,
        "artifact": digest or None,
        "threshold": min(setting.threshold, 1.0),
        "wanted_share": setting.wanted_share,
        "realized_share": figures["realized"],
        "quality": figures["quality"],
        "drop": figures["drop"],
        "out": None if options["out"] is None else str(options["out"]),
    }


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
        scores, why = score_all(settings, distinct, advance, families(config.reasoning_families))
    if why and len(why) == len(distinct):
        raise EndpointError(why[0], f"{settings.url}: no scores, the judge's answers were: {why[0]}")
    failed = dict(Counter(why).most_common())
    return Judged(names[0], settings, dict(zip(distinct, scores, strict=True)), failed)


def score_all(
    settings: JudgeSettings,
    texts: Sequence[str],
    advance: Callable[[], None] = lambda: None,
    known: Mapping[str, ReasoningFamily] = FAMILIES,
) -> tuple[list[float | None], list[str]]:
    """The score of every text, None where there is none, and why not.
    Runs as many requests at once as the settings allow. Raises EndpointError if the judge cannot be set up,
    or with the last failure after `FAILURES_MAX` consecutive ones.
    """
    bounds = {"timeout_ms": SECONDS * 1e3, "cache_entries": 0, "breaker_failures": len(texts) + 1}
    patient = settings.model_copy(update=bounds)
    why: list[str] = []

    async def run() -> list[float | None]:
        judge = JudgeClient("calibrate", patient, families=known)
        gate = asyncio.Semaphore(patient.concurrency)
        in_a_row = 0

        async def ask(text: str) -> float | None:
            nonlocal in_a_row
            async with gate:
                judgment = await judge.ask(text, asyncio.get_running_loop().time() + SECONDS)
            advance()
            in_a_row = 0 if judgment.score is not None else in_a_row + 1
            if judgment.score is None:
                why.append(judgment.result)
            if in_a_row == FAILURES_MAX:
                said = f"{FAILURES_MAX} prompts in a row, the last answer was: {judgment.result}"
                raise EndpointError(judgment.result, f"{settings.url}: no score for {said}")
            return judgment.score

        try:
            async with asyncio.TaskGroup() as group:
                asked = [group.create_task(ask(text)) for text in texts]
            return [task.result() for task in asked]
        except* EndpointError as errors:
            raise errors.exceptions[0] from None
        finally:
            await judge.close()

    return asyncio.run(run()), why
