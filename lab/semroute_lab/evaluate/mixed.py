"""`eval mixed`: how the difficulty orders requests of different kinds, as mixed traffic has them.

A file has the column `kind`, and per row either a text or `messages` (a JSON list, as in a chat completion).
Optional columns: `lang`; `hard` (0 or 1: a strong model is needed); `weak` and `strong` (quality of each
model's answer, 0..1). A blank `hard` is read from the outcomes: 1 if the strong answer is better. A request
goes to the strong model if its difficulty reaches the threshold or its text is unknown, as in the server.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np

from semroute_extproc.errors import DataError
from semroute_extproc.state.live import threshold_for_share
from semroute_lab.common import metrics, routing
from semroute_lab.common.metrics import Booleans, Floats, Integers
from semroute_lab.common.tables import ROWS_MIN, TEXT_COLUMNS, Table, json_list, pick_column, require_rows
from semroute_lab.evaluate.scoring import PERCENTILES, SHARE, Report, Source, judged
from semroute_lab.fit.outcomes import join

SIDE_ROWS_MIN = 10  # A kind with fewer hard (easy) rows is not compared with the easy (hard) kinds


@dataclass(frozen=True, slots=True)
class MixedRows:
    """n requests and a bundle's output; the arrays have shape (n,), with NaN where a row says nothing."""

    kinds: Sequence[str]
    languages: Sequence[str]  # Blank where a row names none
    characters: Floats  # Of the text that is classified: the baseline of every figure
    difficulty: Floats
    unknown: Booleans
    hard: Floats  # 1 if a strong model is needed, 0 if a weak one is enough
    weak: Floats  # Quality of the weak model's answer, 0..1
    strong: Floats  # The same of the strong model
    error: Floats  # Mean error of all models of an outcomes file


def read_mixed(
    table: Table,
    source: Source,
    text_column: str | None = None,
    columns: Mapping[str, str] = MappingProxyType({}),
    matrix: Table | None = None,
) -> MixedRows:
    """The rows of a file, scored; DataError names a bad field. `columns` renames kind, lang, weak and strong.

    With `matrix`, a file of outcomes as of `eval pool`, weak and strong are two of its models.
    """
    kind, lang, *outcomes = (columns.get(name, name) for name in ("kind", "lang", "weak", "strong"))
    pair, error = None, None
    if matrix is not None:
        joined, _ = join(table, [""] * len(table), matrix)
        if missing := [name for name in outcomes if name not in joined.models]:
            raise matrix.error(missing[0], f"expected one of the models {', '.join(joined.models)}")
        table, pair, error = joined.table, joined.pair(*outcomes), 1.0 - joined.outcome.mean(axis=1)
    require_rows(table)
    kinds, messages = table.texts(kind), table.columns.get("messages", [""] * len(table))
    texts, column = messages, "messages"
    if not all(messages):
        column = pick_column(table, text_column, TEXT_COLUMNS, "text")
        texts = table.strings(column)
    turns = (
        ("messages", json_list(given)) if given else (column, [{"role": "user", "content": text}])
        for given, text in zip(messages, texts, strict=True)
    )
    classified = judged(table, ((name, {"messages": each}) for name, each in turns))
    none = np.full(len(table), np.nan)
    hard, weak, strong = (
        table.numbers_in(name, 0, 1, blank=True) if table.has(name) else none for name in ("hard", *outcomes)
    )
    weak, strong = pair or (weak, strong)
    better = np.where(np.isnan(strong - weak), np.nan, strong > weak)
    hard = np.where(np.isnan(hard), better, hard > 0.5)
    scores, languages = source.score(classified), table.columns.get(lang)
    characters = np.asarray([float(len(text)) for text in classified])
    found = (characters, scores.difficulty, scores.unknown, hard, weak, strong)
    return MixedRows(kinds, languages or [""] * len(table), *found, none if error is None else error)


def evaluate_mixed(
    rows: MixedRows,
    *,
    threshold: float,
    share: float = SHARE,
    hard: Sequence[str] = (),
    easy: Sequence[str] = (),
    seed: int = 0,
    replicates: int = 0,
) -> Report:
    """The report of `eval mixed`; its shape is documented in `reports.md`, where `head` adds file and bundle.

    `threshold` is the server's, such as `threshold_for_share(source.quantiles, share)`. `share` also sets the
    thresholds that follow the rows' own scores. `hard` and `easy` name the kinds to compare. If only one is
    given, the other side is all other kinds; if none is, the rows with `hard` 1 and those with `hard` 0 are
    compared, by kind. `reports.markdown(reports.plain(report))` renders the tables for a card. DataError for
    a kind that no row has or that is on both sides.
    """
    sent = rows.unknown | (rows.difficulty >= threshold)
    figures: dict[str, Any] = {
        "characters": rows.characters,
        "score": rows.difficulty,
        "above": rows.difficulty >= threshold,
        "unknown": rows.unknown,
        "strong_share": sent,
        # The length rule sends as many of the rows as the difficulty does, the longest.
        "longest": rows.characters >= _following(rows.characters, float(sent.mean())),
        "hard": rows.hard,
        "gain": rows.strong - rows.weak,
    }
    by = functools.partial(_groups, figures=figures, replicates=replicates, seed=seed)
    return {
        "kind": "mixed",
        "bootstrap": replicates,
        "threshold": threshold,
        "share": share,
        "total": by(["all"] * len(rows.kinds))[0],
        "kinds": by(rows.kinds),
        "languages": by(rows.languages) if any(rows.languages) else [],
        **_compared(rows, _sides(rows, hard, easy), replicates, seed),
        "outcomes": _outcomes(rows, threshold, share, replicates, seed),
    }


def _following(scores: Floats, share: float) -> float:
    """The threshold that the top `share` of these scores reaches."""
    return threshold_for_share(np.quantile(scores, PERCENTILES).tolist(), share)


def _groups(names: Sequence[str], figures: Mapping[str, Any], replicates: int, seed: int) -> list[Report]:
    """For each distinct name the means of the figures (n,), and the calibration error of the score."""
    found, every = [], np.asarray(names)
    for name in sorted(set(names)):
        own = {key: values[every == name] for key, values in figures.items()}
        known = np.isfinite(own["hard"])
        p, event = own["score"][known], own["hard"][known]
        row: Report = {"name": name, "rows": known.size, **metrics.means(own, replicates, seed)}
        sides = (event == 1.0).sum(), (event == 0.0).sum()
        areas = min(sides) >= SIDE_ROWS_MIN
        row["auroc"] = metrics.auroc_estimate(p, event == 1.0, replicates, seed) if areas else None
        row["ece"] = metrics.binary_ece(p, event) if p.size else None
        row["ece_if_calibrated"] = metrics.ece_if_calibrated(p, seed) if p.size else None
        found.append(row)
    return found


Sides = list[dict[str, Integers]]  # The hard and the easy kinds, with the indices of their rows


def _sides(rows: MixedRows, hard: Sequence[str], easy: Sequence[str]) -> Sides:
    """The kinds to compare, without those of too few rows."""
    kinds, there = np.asarray(rows.kinds), sorted(set(rows.kinds))
    if wrong := sorted(({*hard, *easy} - set(there)) | (set(hard) & set(easy))):
        expected = f"expected kinds of the file, each on one side; they are {', '.join(there)}"
        raise DataError(f"{', '.join(wrong)}: {expected}")
    first, second = rows.hard == 1.0, rows.hard == 0.0
    if hard or easy:
        first = np.isin(kinds, hard) if hard else ~np.isin(kinds, easy)
        second = np.isin(kinds, easy) if easy else ~first
    sides = ({kind: np.flatnonzero(side & (kinds == kind)) for kind in there} for side in (first, second))
    return [{kind: own for kind, own in side.items() if own.size >= SIDE_ROWS_MIN} for side in sides]


def _compared(rows: MixedRows, sides: Sides, replicates: int, seed: int) -> Report:
    """AUROC of every hard kind against every easy kind, by difficulty and by length, and their summary."""
    table: list[Report] = []
    pairs: list[tuple[Integers, Booleans]] = []  # Rows of both kinds, and which of them are hard
    for (a, hard), (b, easy) in itertools.product(*(side.items() for side in sides)):
        table.append({"hard": a, "easy": b, "rows": [hard.size, easy.size]})
        pairs.append((np.concatenate((hard, easy)), np.arange(hard.size + easy.size) < hard.size))
    between: Report = {"pairs": len(pairs)}
    for router, scores in (("ours", rows.difficulty), ("length", rows.characters)) if pairs else ():

        def areas(counts: Floats, scores: Floats = scores) -> Floats:
            found = [metrics.weighted_auroc(scores[own], first, counts[:, own]) for own, first in pairs]
            return np.stack(found, axis=1)

        values = areas(np.ones((1, scores.size)))[0]
        samples = metrics.bootstrap(areas, scores.size, replicates, seed).reshape(-1, len(pairs))
        for row, value, drawn in zip(table, values.tolist(), samples.T, strict=True):
            row[router] = metrics.estimate(value, drawn)
        # A pair is left out of a resample that lacks all rows of one side.
        means = np.ma.masked_invalid(samples).mean(axis=1).filled(np.nan)
        below = {"least": float(values.min()), "below_half": int((values < 0.5).sum())}
        between[router] = {"mean": metrics.estimate(float(values.mean()), means), **below}
    return {"pairs": table, "between": between if pairs else None}


def _outcomes(rows: MixedRows, threshold: float, share: float, replicates: int, seed: int) -> Report | None:
    """APGR, and share and PGR at each threshold, of the rows with outcomes; None without a gap in quality."""
    known = np.isfinite(rows.strong - rows.weak)
    weak, strong, unknown = rows.weak[known], rows.strong[known], rows.unknown[known]
    if weak.size < ROWS_MIN or strong.mean() <= weak.mean():
        return None
    scores = {"ours": rows.difficulty[known], "length": rows.characters[known]}
    samples = routing.bootstrap_pair(scores, strong, weak, replicates, seed)
    values = {name: routing.point_metrics(own, strong, weak, seed)["apgr"] for name, own in scores.items()}
    table: list[Report] = []
    for name, rule in (("ours", "fixed"), ("ours", "following"), ("length", "following")):
        cut = threshold if rule == "fixed" else _following(scores[name], share)
        sent, gain = (scores[name] >= cut) | (unknown & (name == "ours")), strong - weak
        figures = metrics.means({"strong_share": sent}, replicates, seed)
        pgr = metrics.ratios((sent * gain)[:, None], gain[:, None], replicates, seed)[0]
        apgr = metrics.estimate(values[name], samples[name].get("apgr"))
        table.append({"name": name, "rule": rule, "apgr": apgr, "threshold": cut, **figures, "pgr": pgr})
    found = {"rows": weak.size, "weak": weak.mean(), "strong": strong.mean(), "routers": table}
    error = rows.error[known]
    ranked = np.isfinite(error).all()
    spearman = metrics.spearman_estimate(scores["ours"], error, replicates, seed) if ranked else None
    return found | {"spearman": spearman}
