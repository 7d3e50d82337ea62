"""The evaluation of a bundle for its card: every reported set, as one JSON document."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from semroute_extproc.encoder import bundle as bundles
from semroute_extproc.encoder.onnx import OnnxModel
from semroute_lab.common import metrics
from semroute_lab.common.metrics import Floats
from semroute_lab.common.tables import Table, prompt_texts, read_table
from semroute_lab.evaluate import intent, reports
from semroute_lab.evaluate.pair import evaluate_pair, read_pair
from semroute_lab.evaluate.pool import billions, evaluate_pool, read_pool
from semroute_lab.evaluate.scoring import Scores, Source, open_bundle

Say = Callable[[str], None]

REPLICATES = 1_000
"""Bootstrap replicates of every interval."""

LATENCY_TOKENS = (16, 64, 128)
"""Lengths in tokens at which a pass is timed."""

LATENCY_RUNS = 60
"""Timed passes at each length, after a few untimed ones."""

MMLU_PRO = "matrices/mmlu_pro_questions.csv.gz"
PAIRS = {"routellm_mmlu": "pairs/routellm_mmlu.csv.gz", "routellm_gsm8k": "pairs/routellm_gsm8k.csv.gz"}
CLINC = "intent/clinc150.csv.gz"
POOL = ("matrices/mmlu_pro_correct.csv.gz", "matrices/mmlu_pro_models.csv.gz")
"""Outcomes of MMLU-Pro, and the models to use with the family that is kept out."""

SIZES = {
    "DeepSeek-Coder-V2": 21.0,
    "Phi-3-mini-4k-instruct": 3.8,
    "c4ai-command-r-v01": 35.0,
    "jamba-1.5-large": 94.0,
}
"""Billions of parameters that a token passes through, by the publishers, where a name does not say."""

POOL_TRIALS = 20
"""Seeded trials over unseen models."""


@dataclass(frozen=True, slots=True)
class _Run:
    """What every set is evaluated with."""

    source: Source
    seed: int
    replicates: int
    baselines: bool


def assess(
    directory: Path, data: Path | None, handwritten: Path | None, seed: int, say: Say, alone: bool = False
) -> dict[str, Any]:
    """Score the dev rows of every set with the bundle's CPU graph, as the server would.

    The document has `domain`, `difficulty`, `pairs` and `unseen` (reports of `semroute eval`, by
    set), `languages` and `latency`. Files that are not there are left out. `alone` leaves out the
    baselines, proper intervals and latency: enough for `figures`.
    """
    source = open_bundle(directory, lambda signals, total: signals)
    run = _Run(source, seed, 2 if alone else REPLICATES, not alone)
    found: dict[str, Any] = {
        "schema": 1,
        "kind": "card",
        "bundle": source.describe(),
        "seed": seed,
        "bootstrap": run.replicates,
        "domain": {},
        "difficulty": {},
        "pairs": {},
        "unseen": {},
        "languages": {},
    }
    if data is not None:
        _public(data, run, found, say)
    if handwritten is not None:
        _by_hand(handwritten, run, found, say)
    if not alone:
        found["latency"] = latency(directory)
    plain: dict[str, Any] = reports.plain(found)
    return plain


def _public(data: Path, run: _Run, found: dict[str, Any], say: Say) -> None:
    source = run.source
    if (data / MMLU_PRO).exists():
        for name, options in (("mmlu_pro", None), ("mmlu_pro_options", "options")):
            say(f"evaluating {name}")
            found["domain"][name] = _mmlu_pro(read_table(data / MMLU_PRO), options, run)
    for name, file in PAIRS.items():
        if (data / file).exists():
            say(f"evaluating {name}")
            rows = read_pair(read_table(data / file).in_splits(["dev"]), "prompt")
            report = evaluate_pair(
                rows, source.score(rows.texts), source.describe(), seed=run.seed, replicates=run.replicates
            )
            found["pairs"][name] = {key: value for key, value in report.items() if key != "curves"}
    if (data / CLINC).exists():
        say("evaluating clinc150")
        found["unseen"]["clinc150"] = _clinc(read_table(data / CLINC), run)


def pool(directory: Path, data: Path | None, seed: int, say: Say) -> dict[str, Any] | None:
    """Routing over models the router has not seen, by `neighbour_embedding`; None without the data."""
    if data is None or not all((data / file).exists() for file in (MMLU_PRO, *POOL)):
        return None
    say("evaluating unseen models")
    questions = read_table(data / MMLU_PRO)
    texts = questions.texts("question")
    outcomes, models = (read_table(data / file) for file in POOL)
    rows = read_pool(questions, texts, outcomes, [_sizes(models)], models)
    source = open_bundle(directory, lambda signals, total: signals)
    report = evaluate_pool(
        rows, source.score(rows.texts), source.describe(), seed=seed, trials=POOL_TRIALS, pairs=False
    )
    plain: dict[str, Any] = reports.plain(report)
    return plain


def _sizes(models: Table) -> Table:
    """What a model costs here: its parameters, in billions."""
    names = models.texts("model")
    found = [SIZES.get(name) or billions(name) for name in names]
    if None in found:
        missing = found.index(None)
        raise models.error("model", f"the size of {names[missing]} is not known", missing)
    columns = {"model": names, "cost": [str(size) for size in found]}
    return Table(Path("parameters"), "", columns, list(models.numbers))


def _short(report: dict[str, Any]) -> dict[str, Any]:
    """An intent report without its curves."""
    return {
        key: value for key, value in report.items() if key not in ("abstention", "reliability", "confusion")
    }


def _mmlu_pro(table: Table, options: str | None, run: _Run) -> dict[str, Any]:
    """The domain head on the val rows, beside heads fitted on the train rows."""
    splits = sorted({split for split in table.strings("split") if split != "train"})
    dev, train = table.in_splits(splits), table.in_splits(["train"])
    texts, fit_texts = (prompt_texts(part, "question", options) for part in (dev, train))
    rows = intent.read_intent(dev, train, texts, fit_texts, "category", "oos")
    scores = run.source.score(texts)
    report = _intent_report(run, rows, scores)
    return _short(report) | {"unknown": float(scores_unknown(run.source, scores))}


def _intent_report(run: _Run, rows: intent.IntentRows, scores: Scores) -> dict[str, Any]:
    """The bundle's own prediction after the baselines."""
    own = intent.bundle_prediction(rows, scores)
    baselines = intent.baselines(rows, run.seed) if run.baselines else []
    predictions = [*baselines, *([] if own is None else [own])]
    return intent.evaluate_intent(
        rows, predictions, run.source.describe(), seed=run.seed, replicates=run.replicates
    )


def scores_unknown(source: Source, scores: Scores) -> float:
    """Share of the texts that lie below the bundle's threshold of the unknown."""
    return float((scores.similarity < source.scorer.bundle.unknown.threshold).mean())


def _by_hand(folder: Path, run: _Run, found: dict[str, Any], say: Say) -> None:
    source = run.source
    for file in sorted(folder.glob("*.eval.jsonl")):
        name = file.name.partition(".")[0]
        table = read_table(file)
        if name.startswith("chinese"):
            continue
        if table.has("language"):
            found["languages"] = _languages(table, source)
            continue
        say(f"evaluating {name}")
        scores = source.score(table.texts("text"))
        if table.has("domain"):
            rows = intent.read_intent(table, None, table.texts("text"), [], "domain", "oos")
            report = _intent_report(run, rows, scores)
            confusion = report["confusion"]
            found["domain"][name] = _short(report) | {
                "unknown": scores_unknown(source, scores),
                "confusion": confusion,
            }
        if table.has("hard"):
            found["difficulty"][name] = difficulty_report(table, scores, run.seed)


def _languages(table: Table, source: Source) -> dict[str, Any]:
    """For each language: rows, share called unknown, and how often the domain is right on the rest."""
    signals = list(source.scorer.score_all(table.texts("text")))
    languages, domains = table.strings("language"), table.strings("domain")
    found: dict[str, Any] = {}
    for language in dict.fromkeys(languages):
        own = [row for row, name in enumerate(languages) if name == language]
        known = [row for row in own if not signals[row].unknown]
        right = sum(signals[row].domain == domains[row] for row in known)
        found[language] = {
            "rows": len(own),
            "unknown": 1.0 - len(known) / len(own),
            "accuracy_of_known": right / len(known) if known else None,
        }
    return found


def difficulty_report(table: Table, scores: Scores, seed: int) -> dict[str, Any]:
    """AUROC of the difficulty for the judgement `hard`, beside length; calibration; all with intervals."""
    hard = table.numbers_in("hard", 0, 1) > 0.5
    lengths = np.log1p([float(len(text)) for text in table.texts("text")])
    event = hard.astype(np.float64)
    found: dict[str, Any] = {"rows": len(table), "hard": int(hard.sum()), "file": table.path.name}
    for name, values in (("length", lengths), ("ours", scores.difficulty)):
        found[name] = {"auroc": _auroc(values, hard, seed)}
    found["ours"]["ece"] = metrics.binary_ece(scores.difficulty, event)
    found["ours"]["ece_if_calibrated"] = metrics.ece_if_calibrated(scores.difficulty, seed)
    found["ours"]["mean_hard"] = float(scores.difficulty[hard].mean())
    found["ours"]["mean_easy"] = float(scores.difficulty[~hard].mean())
    return found


def _auroc(values: Floats, positive: Any, seed: int) -> metrics.Estimate:
    samples = metrics.bootstrap(
        lambda counts: metrics.weighted_auroc(values, positive, counts), len(values), REPLICATES, seed
    )
    return metrics.estimate(metrics.auroc(values, positive), samples)


def _clinc(table: Table, run: _Run) -> dict[str, Any]:
    """Intents the bundle has no head for: nearest class centroid, and detection of the out-of-scope rows."""
    dev, train = table.in_splits(["test", "oos_test"]), table.in_splits(["train"])
    texts, fit_texts = dev.texts("text"), train.texts("text")
    rows = intent.read_intent(dev, train, texts, fit_texts, "intent", "oos")
    scores = run.source.score([*rows.texts, *rows.fit_texts])
    count = len(rows.texts)
    fitted = scores.take(range(count, count + len(rows.fit_texts)))
    predictions = [
        *(intent.baselines(rows, run.seed) if run.baselines else []),
        *intent.fitted_predictions(rows, fitted, scores.take(range(count))),
    ]
    report = intent.evaluate_intent(
        rows, predictions, run.source.describe(), seed=run.seed, replicates=min(100, run.replicates)
    )
    return _short(report)


def latency(directory: Path) -> dict[str, Any]:
    """Milliseconds of framing and one pass on one thread, by length in tokens."""
    model = OnnxModel(bundles.load(directory, ("cpu",)), "cpu", threads=1)
    found = {}
    for tokens in LATENCY_TOKENS:
        text = "word " * (tokens - 2)
        for _ in range(5):
            model.run([model.framer.frame(text)])
        times = [_timed(model, text) for _ in range(LATENCY_RUNS)]
        found[str(tokens)] = {"p50": float(np.median(times)), "p95": float(np.percentile(times, 95))}
    return {"milliseconds": found, "machine": machine()}


def _timed(model: OnnxModel, text: str) -> float:
    start = time.perf_counter()
    model.run([model.framer.frame(text)])
    return 1000.0 * (time.perf_counter() - start)


def machine() -> str:
    """The processor, as the system names it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def figures(document: dict[str, Any]) -> dict[str, float]:
    """The headline figures of a document, by name: what int8 and fp32 are compared on."""
    found: dict[str, float] = {}
    for name, report in document["domain"].items():
        own = _named(report["models"], "bundle")
        if own is not None:
            found[f"{name}: domain accuracy"] = own["accuracy"]["value"]
    for name, report in document["difficulty"].items():
        found[f"{name}: difficulty AUROC"] = report["ours"]["auroc"]["value"]
    for name, report in document["pairs"].items():
        own = _named(report["routers"], "ours")
        if own is not None:
            found[f"{name}: APGR"] = own["apgr"]["value"]
    for name, report in document["unseen"].items():
        own = _named(report["models"], "neighbours")
        if own is not None and own["ood"] is not None:
            found[f"{name}: out-of-scope AUROC"] = own["ood"]["auroc"]["value"]
    return found


def _named(rows: Sequence[dict[str, Any]], name: str) -> dict[str, Any] | None:
    return next((row for row in rows if row["name"] == name), None)
