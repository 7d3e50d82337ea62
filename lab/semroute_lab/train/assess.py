"""The evaluation of a bundle for its card: every reported set, as one JSON document.

The reports are those of `semroute eval … --json`, run as commands.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import platform
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from semroute_extproc.encoder import bundle as bundles
from semroute_extproc.encoder.offline import Scorer
from semroute_extproc.encoder.onnx import OnnxModel
from semroute_extproc.encoder.signals import Signals
from semroute_lab.evaluate import metrics
from semroute_lab.evaluate.cli import evaluate
from semroute_lab.evaluate.data import Table, prompt_texts, read_table
from semroute_lab.evaluate.metrics.arrays import Floats
from semroute_lab.evaluate.metrics.classification import weighted_auroc
from semroute_lab.evaluate.pool_data import billions
from semroute_lab.train.bundling import languages_of
from semroute_lab.train.spec import Say

REPLICATES = 1_000
"""Bootstrap replicates of every interval."""

CLINC_REPLICATES = 100
"""The same for the 150 intents of CLINC150, whose bootstrap is slow."""

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
"""Billions of parameters that a token passes through, by the publishers, where a name has no size."""

POOL_TRIALS = 20
"""Seeded trials over unseen models."""

Report = dict[str, Any]


def assess(
    directory: Path, data: Path | None, handwritten: Path | None, seed: int, say: Say, brief: bool = False
) -> Report:
    """Score the dev rows of every set with the bundle's CPU graph, as the server would.

    The document has `domain`, `difficulty`, `pairs` and `unseen` (reports by set), `languages`, `pool`
    and `latency`. Missing files are left out. `brief` leaves out intervals, pool and latency: enough
    for `figures`.
    """
    manifest = bundles.read_manifest(directory)
    replicates = 0 if brief else REPLICATES
    found: Report = {
        "schema": 1,
        "kind": "card",
        "bundle": {"name": manifest.name, "version": manifest.version, "revision": manifest.revision},
        "trained_languages": list(manifest.languages),
        "seed": seed,
        "bootstrap": replicates,
        **{section: {} for section in ("domain", "difficulty", "pairs", "unseen", "languages")},
    }
    common = ["--bundle", str(directory), "--seed", str(seed)]
    bootstrap = [*common, "--bootstrap", str(replicates)]
    scorer = Scorer.of(directory)
    if data is not None:
        _public(data, scorer, bootstrap, found, say)
    if handwritten is not None:
        for file in sorted(handwritten.glob("*.eval.jsonl")):
            _by_hand(file, scorer, bootstrap, found, seed, say)
    if not brief:
        found["pool"] = _pool(data, common, say)
        found["latency"] = latency(directory)
    return found


def _public(data: Path, scorer: Scorer, bootstrap: Sequence[str], found: Report, say: Say) -> None:
    """The public sets that are there."""
    if (data / MMLU_PRO).exists():
        table = read_table(data / MMLU_PRO)
        dev = table.where(split != "train" for split in table.strings("split"))
        splits = [part for split in sorted(set(dev.strings("split"))) for part in ("--split", split)]
        for name, options in (("mmlu_pro", None), ("mmlu_pro_options", "options")):
            say(f"evaluating {name}")
            more = [] if options is None else ["--options-column", options]
            report = _eval(
                "intent", data / MMLU_PRO, *splits, "--label-column", "category", *more, *bootstrap
            )
            signals = scorer.score_all(prompt_texts(dev, "question", options))
            found["domain"][name] = _short(report) | {"unknown": _unknown_share(scorer, signals)}
    for name, file in PAIRS.items():
        if (data / file).exists():
            say(f"evaluating {name}")
            found["pairs"][name] = _short(_eval("pair", data / file, "--split", "dev", *bootstrap))
    if (data / CLINC).exists():
        say("evaluating clinc150")
        arguments = [
            "--split",
            "test",
            "--split",
            "oos_test",
            "--label-column",
            "intent",
            "--fit",
            *bootstrap,
        ]
        arguments[-1] = str(min(CLINC_REPLICATES, int(arguments[-1])))
        found["unseen"]["clinc150"] = _short(_eval("intent", data / CLINC, *arguments))


def _by_hand(
    file: Path, scorer: Scorer, bootstrap: Sequence[str], found: Report, seed: int, say: Say
) -> None:
    """One hand-written file: other languages, or domain and difficulty in a language the bundle knows."""
    name, table = file.name.partition(".")[0], read_table(file)
    texts = table.texts("text")
    if table.has("language"):
        found["languages"] = _languages(table, list(scorer.score_all(texts)))
    elif set(languages_of(texts)) & set(scorer.bundle.manifest.languages):
        say(f"evaluating {name}")
        signals = list(scorer.score_all(texts))
        if table.has("domain"):
            report = _eval("intent", file, "--label-column", "domain", *bootstrap)
            kept = {"unknown": _unknown_share(scorer, signals), "confusion": report["confusion"]}
            found["domain"][name] = _short(report) | kept
        if table.has("hard"):
            difficulty = np.array([one.difficulty for one in signals])
            found["difficulty"][name] = difficulty_report(table, difficulty, seed)


def _eval(command: str, *arguments: object) -> Report:
    """The JSON of one `semroute eval` command; its tables are not printed."""
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        out = Path(folder) / "report.json"
        evaluate.main([command, *map(str, arguments), "--json", str(out)], standalone_mode=False)
        report: Report = json.loads(out.read_text(encoding="utf-8"))
    return report


def _short(report: Report) -> Report:
    """A report without its curves."""
    curves = ("abstention", "reliability", "confusion", "curves")
    return {key: value for key, value in report.items() if key not in curves}


def _unknown_share(scorer: Scorer, signals: Iterable[Signals]) -> float:
    """Share of texts below the bundle's threshold of the unknown."""
    threshold = scorer.bundle.unknown.threshold
    return float(np.mean([one.similarity < threshold for one in signals]))


def _languages(table: Table, signals: Sequence[Signals]) -> Report:
    """For each language: rows, share called unknown, and accuracy of the domain on the rest."""
    languages, domains = table.strings("language"), table.strings("domain")
    found: Report = {}
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


def difficulty_report(table: Table, difficulty: Floats, seed: int) -> Report:
    """AUROC of the difficulty [rows] and of length for the judgement `hard`; calibration; with intervals."""
    hard = table.numbers_in("hard", 0, 1) > 0.5
    lengths = np.log1p([float(len(text)) for text in table.texts("text")])
    return {
        "rows": len(table),
        "hard": int(hard.sum()),
        "file": table.path.name,
        "length": {"auroc": _auroc(lengths, hard, seed)},
        "ours": {
            "auroc": _auroc(difficulty, hard, seed),
            "ece": metrics.binary_ece(difficulty, hard.astype(np.float64)),
            "ece_if_calibrated": metrics.ece_if_calibrated(difficulty, seed),
            "mean_hard": float(difficulty[hard].mean()),
            "mean_easy": float(difficulty[~hard].mean()),
        },
    }


def _auroc(values: Floats, positive: Any, seed: int) -> dict[str, float | None]:
    samples = metrics.bootstrap(
        lambda counts: weighted_auroc(values, positive, counts), len(values), REPLICATES, seed
    )
    found = metrics.estimate(metrics.auroc(values, positive), samples)
    return {"value": found.value, "low": found.low, "high": found.high}


def _pool(data: Path | None, common: Sequence[str], say: Say) -> Report | None:
    """Routing over models the router has not seen, by `neighbour_embedding`; None without the data."""
    if data is None or not all((data / file).exists() for file in (MMLU_PRO, *POOL)):
        return None
    say("evaluating unseen models")
    outcomes, models = (data / file for file in POOL)
    with tempfile.TemporaryDirectory() as folder:
        costs = Path(folder) / "parameters.csv"
        with costs.open("w", newline="") as stream:
            rows = [(name, SIZES.get(name) or billions(name)) for name in read_table(models).texts("model")]
            csv.writer(stream).writerows([("model", "cost"), *rows])
        more = ["--models", models, "--costs", costs, "--trials", POOL_TRIALS]
        report = _eval("pool", data / MMLU_PRO, outcomes, *more, *common)
    for setting in report["settings"].values():
        setting.pop("curves", None)
    return report


def latency(directory: Path) -> Report:
    """Milliseconds of framing and one pass on one thread, by length in tokens."""
    model = OnnxModel(bundles.load(directory, ("cpu",)), "cpu", threads=1)
    found = {}
    for tokens in LATENCY_TOKENS:
        text = "word " * (tokens - 2)
        times = [_timed(model, text) for _ in range(5 + LATENCY_RUNS)][5:]
        found[str(tokens)] = {"p50": float(np.median(times)), "p95": float(np.percentile(times, 95))}
    return {"milliseconds": found, "machine": _machine()}


def _timed(model: OnnxModel, text: str) -> float:
    start = time.perf_counter()
    model.run([model.framer.frame(text)])
    return 1000.0 * (time.perf_counter() - start)


def _machine() -> str:
    """The processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def figures(document: Report) -> dict[str, float]:
    """The headline figures of a document, by name: those that int8 and fp32 are compared on."""
    found: dict[str, float] = {}
    for name, report in document["domain"].items():
        if own := _named(report["models"], "bundle"):
            found[f"{name}: domain accuracy"] = own["accuracy"]["value"]
    for name, report in document["difficulty"].items():
        found[f"{name}: difficulty AUROC"] = report["ours"]["auroc"]["value"]
    for name, report in document["pairs"].items():
        if own := _named(report["routers"], "ours"):
            found[f"{name}: APGR"] = own["apgr"]["value"]
    for name, report in document["unseen"].items():
        own = _named(report["models"], "neighbours")
        if own and own["ood"]:
            found[f"{name}: out-of-scope AUROC"] = own["ood"]["auroc"]["value"]
    return found


def _named(rows: Iterable[Report], name: str) -> Report | None:
    return next((row for row in rows if row["name"] == name), None)
