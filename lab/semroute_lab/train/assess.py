"""The evaluation of a bundle for its card: every reported set, as one JSON document.

The reports are those of `semroute eval … --json`, run as commands; `cards/evaluations.toml` lists them.
"""

from __future__ import annotations

import contextlib
import io
import json
import platform
import tempfile
import time
import tomllib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from semroute_extproc.encoder import bundle as bundles
from semroute_extproc.encoder.offline import Scorer
from semroute_extproc.encoder.onnx import OnnxModel
from semroute_extproc.encoder.signals import Signals
from semroute_lab.common import metrics
from semroute_lab.common.metrics import Floats
from semroute_lab.common.tables import TEXT_COLUMNS, Table, pick_column, prompt_texts, read_table
from semroute_lab.evaluate.cli import evaluate
from semroute_lab.train.bundling import languages_of
from semroute_lab.train.spec import Say

CARDS = Path(__file__).parent / "cards"  # Template, evaluations and data of the card
REPLICATES = 1_000  # Bootstrap replicates of every interval
LATENCY_TOKENS = (16, 64, 128)  # Lengths in tokens at which a pass is timed
LATENCY_RUNS = 60  # Timed passes at each length, after a few untimed ones
CURVES = ("abstention", "reliability", "confusion", "curves")  # Fields of reports that a card does not need
Report = dict[str, Any]


def assess(
    directory: Path, data: Path | None, handwritten: Path | None, seed: int, say: Say, brief: bool = False
) -> Report:
    """Score the dev rows of every set with the bundle's CPU graph, as the server would.
    The document has `domain`, `difficulty`, `pairs`, `unseen` and `pool` (reports by set), `languages` and
    `latency`. Missing files are left out. `brief` leaves out intervals, pool and latency: enough for
    `figures`.
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
        **{section: {} for section in ("domain", "difficulty", "pairs", "unseen", "pool", "languages")},
    }
    scorer = Scorer.of(directory)
    common = ["--bundle", directory, "--seed", seed]
    for one in tomllib.loads((CARDS / "evaluations.toml").read_text())["evaluation"] if data else []:
        file = Path(str(data)) / one["file"]
        pool = one["section"] == "pool"
        arguments = [argument.format(data=data, cards=CARDS) for argument in one["arguments"]]
        files = [file, *(Path(argument) for argument in arguments if argument.endswith(".csv.gz"))]
        if not all(each.exists() for each in files) or (pool and brief):
            continue
        say(f"evaluating {one['section']}: {one['name']}")
        bootstrap = [] if pool else ["--bootstrap", min(replicates, one.get("replicates", replicates))]
        report = _eval(one["command"], file, *arguments, *common, *bootstrap)
        if one["section"] == "domain":
            report["unknown"] = _unknown_share(scorer, scorer.score_all(_texts(file, arguments)))
        found[one["section"]][one["name"]] = _short(report)
    for file in sorted(handwritten.glob("*.eval.jsonl")) if handwritten else []:
        _by_hand(file, scorer, [*common, "--bootstrap", replicates], found, seed, say)
    if not brief:
        found["latency"] = latency(directory)
    return found


def _eval(command: str, *arguments: object) -> Report:
    """The JSON of one `semroute eval` command; its tables are not printed."""
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        out = Path(folder) / "report.json"
        evaluate.main([command, *map(str, arguments), "--json", str(out)], standalone_mode=False)
        report: Report = json.loads(out.read_text(encoding="utf-8"))
    return report


def _short(report: Report, *kept: str) -> Report:
    """A report without its curves, except those that are `kept`."""
    return {key: value for key, value in report.items() if key not in CURVES or key in kept}


def _texts(file: Path, arguments: Sequence[str]) -> list[str]:
    """The texts that an evaluation with these arguments scores."""
    given = dict(zip(arguments[::2], arguments[1::2], strict=True))
    table = read_table(file).in_splits([given["--split"]])
    return prompt_texts(table, pick_column(table, None, TEXT_COLUMNS, "text"), given.get("--options-column"))


def _by_hand(
    file: Path, scorer: Scorer, arguments: Sequence[object], found: Report, seed: int, say: Say
) -> None:
    """One hand-written file: other languages, or domain and difficulty in a language the bundle knows."""
    name, table = file.name.partition(".")[0], read_table(file)
    texts = table.texts("text")
    if not table.has("language") and not set(languages_of(texts, len(texts))) & set(
        scorer.bundle.manifest.languages
    ):
        return
    say(f"evaluating {name}")
    signals = list(scorer.score_all(texts))
    if table.has("language"):
        found["languages"] = _languages(table, signals)
        return
    if table.has("domain"):
        report = _eval("intent", file, "--label-column", "domain", *arguments)
        found["domain"][name] = _short(report, "confusion") | {"unknown": _unknown_share(scorer, signals)}
    if table.has("hard"):
        difficulty = np.array([one.difficulty for one in signals])
        found["difficulty"][name] = difficulty_report(table, difficulty, seed)


def _unknown_share(scorer: Scorer, signals: Iterable[Signals]) -> float:
    """Share of texts below the bundle's threshold of the unknown."""
    threshold = scorer.bundle.manifest.unknown.threshold
    return float(np.mean([one.similarity < threshold for one in signals]))


def _languages(table: Table, signals: Sequence[Signals]) -> Report:
    """For each language: rows, share called unknown, and accuracy of the domain on the rest."""
    found: dict[str, list[tuple[bool, bool]]] = {}
    rows = zip(table.strings("language"), table.strings("domain"), signals, strict=True)
    for language, domain, one in rows:
        found.setdefault(language, []).append((one.unknown, one.domain == domain))
    return {
        language: {
            "rows": len(own),
            "unknown": float(np.mean([unknown for unknown, _ in own])),
            "accuracy_of_known": None
            if all(unknown for unknown, _ in own)
            else float(np.mean([right for unknown, right in own if not unknown])),
        }
        for language, own in found.items()
    }


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
        lambda counts: metrics.weighted_auroc(values, positive, counts), len(values), REPLICATES, seed
    )
    found = metrics.estimate(metrics.auroc(values, positive), samples)
    return {"value": found.value, "low": found.low, "high": found.high}


def latency(directory: Path) -> Report:
    """Milliseconds of framing and one pass on one thread, by length in tokens."""
    model = OnnxModel(bundles.load(directory, ("cpu",)), "cpu")
    found = {}
    for tokens in LATENCY_TOKENS:
        text, times = "word " * (tokens - 2), []
        for _ in range(5 + LATENCY_RUNS):
            start = time.perf_counter()
            model.run([model.framer.frame(text)])
            times.append(1000.0 * (time.perf_counter() - start))
        p50, p95 = np.percentile(times[5:], (50, 95)).tolist()
        found[str(tokens)] = {"p50": p50, "p95": p95}
    return {"milliseconds": found, "machine": _machine()}


def _machine() -> str:
    """The processor's name."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
