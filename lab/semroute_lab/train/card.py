"""The evaluation of a bundle as one JSON document, and CARD.md from it by `cards/bundle.md.j2`.

The reports are those of `semroute eval … --json`, run as commands; `cards/evaluations.toml` lists them.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import platform
import re
import tempfile
import time
import tomllib
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from semroute_extproc.encoder import bundle as bundles
from semroute_extproc.encoder.manifest import Manifest
from semroute_extproc.encoder.onnx import OnnxModel
from semroute_extproc.encoder.signals import Signals
from semroute_extproc.request.language import language_of
from semroute_extproc.serve.offline import Scorer
from semroute_lab.common import metrics
from semroute_lab.common.metrics import Floats
from semroute_lab.common.tables import Table, read_table, texts_in
from semroute_lab.evaluate.cli import evaluate
from semroute_lab.evaluate.reports import markdown, plain
from semroute_lab.train.datasets import TARGETS, Corpus
from semroute_lab.train.graphs import CARD, publish
from semroute_lab.train.spec import Say

Report = dict[str, Any]

SEED = 0  # Seed of the bootstrap
INT8_TOLERANCE = 0.005  # A larger loss of any figure by the int8 graph is marked on the card
CONFUSED_MAX = 6  # Most confusions that the card lists
CARDS = Path(__file__).parent / "cards"  # Template, evaluations and data of the card
NOWHERE = Path(os.devnull)  # In place of a folder that is not given
REPLICATES = 1_000  # Bootstrap replicates of every interval
LATENCY_TOKENS = (16, 64, 128)  # Lengths in tokens at which a pass is timed
LATENCY_RUNS = 60  # Timed passes at each length, after a few untimed ones
SECTIONS = ("domain", "difficulty", "kinds", "pairs", "unseen", "pool", "robustness", "languages")
CURVES = ("abstention", "reliability", "confusion", "curves")  # Fields of reports that a card does not need


def assess(
    directory: Path, data: Path | None, handwritten: Path | None, seed: int, say: Say, brief: bool = False
) -> Report:
    """Score the dev rows of every set with the bundle's CPU graph, as the server would.
    Missing files are left out. `brief` leaves out intervals, latency and what `figures` does not need.
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
        **{section: {} for section in SECTIONS},
    }
    scorer = Scorer.of(directory)
    common = ["--bundle", directory, "--seed", seed]
    folders = {"data": data or NOWHERE, "handwritten": handwritten or NOWHERE, "cards": CARDS}
    names = {**folders, "languages": ",".join(manifest.languages)}
    for one in tomllib.loads((CARDS / "evaluations.toml").read_text())["evaluation"]:
        pool, file = one["section"] == "pool", Path(one["file"].format(**names))
        arguments = [argument.format(**names) for argument in one["arguments"]]
        files = [file, *(Path(argument) for argument in arguments if argument.endswith(".csv.gz"))]
        unread = one.get("other_languages", False) and manifest.languages == ("en",)
        skipped = brief and one["section"] in ("kinds", "robustness", "pool")
        if unread or skipped or not all(each.exists() for each in files):
            continue
        say(f"evaluating {one['section']}: {one['name']}")
        bootstrap = [] if pool else ["--bootstrap", min(replicates, one.get("replicates", replicates))]
        report = _eval(one["command"], file, *arguments, *common, *bootstrap)
        if one["section"] == "domain":
            given = dict(zip(arguments[::2], arguments[1::2], strict=True))
            table = read_table(file).in_splits([given["--split"]])
            texts = texts_in(table, None, given.get("--options-column"))
            report["unknown"] = _unknown_share(scorer, scorer.score_all(texts))
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


def _by_hand(
    file: Path, scorer: Scorer, arguments: Sequence[object], found: Report, seed: int, say: Say
) -> None:
    """One hand-written file: other languages, or domain and difficulty in a language the bundle knows."""
    name, table = file.name.partition(".")[0], read_table(file)
    texts = table.texts("text")
    known = {language_of(text) for text in texts} & set(scorer.bundle.manifest.languages)
    by_language = table.has("language")
    if (by_language and table.has("hard")) or not (by_language or known):
        return  # difficulty by language is among the declared evaluations
    say(f"evaluating {name}")
    signals = list(scorer.score_all(texts))
    if by_language:
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
    report = {}
    for language, own in found.items():
        known = [right for unknown, right in own if not unknown]
        share, accuracy = 1.0 - len(known) / len(own), float(np.mean(known)) if known else None
        report[language] = {"rows": len(own), "unknown": share, "accuracy_of_known": accuracy}
    return report


def difficulty_report(table: Table, difficulty: Floats, seed: int) -> Report:
    """AUROC of the difficulty [rows] and of length for the judgment `hard`; calibration; with intervals."""
    hard = table.numbers_in("hard", 0, 1) > 0.5
    lengths = np.log1p([float(len(text)) for text in table.texts("text")])
    return {
        "rows": len(table),
        "hard": int(hard.sum()),
        "file": table.path.name,
        "length": {"auroc": plain(metrics.auroc_estimate(lengths, hard, REPLICATES, seed))},
        "ours": {
            "auroc": plain(metrics.auroc_estimate(difficulty, hard, REPLICATES, seed)),
            "ece": metrics.binary_ece(difficulty, hard.astype(np.float64)),
            "ece_if_calibrated": metrics.ece_if_calibrated(difficulty, seed),
            "mean_hard": float(difficulty[hard].mean()),
            "mean_easy": float(difficulty[~hard].mean()),
        },
    }


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
    machine = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        names = re.findall(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        machine = names[0] if names else machine
    return {"milliseconds": found, "machine": machine}


def training_facts(corpus: Corpus, manifest: Manifest) -> Report:
    """The training data of a bundle, by source."""
    fit = Counter(row.source for row in corpus.fit)
    calibrate = Counter(row.source for row in corpus.calibrate)
    licences = {row.source: row.rights.licence for row in (*corpus.fit, *corpus.calibrate)}
    used: dict[str, set[str]] = {}
    for row in corpus.fit:
        used.setdefault(row.source, set()).update(t for t in TARGETS if getattr(row, t) is not None)
    sources = []
    for name in sorted(licences):
        rows = {"fit": fit[name], "calibrate": calibrate[name]}
        use = ", ".join(t for t in TARGETS if t in used.get(name, ())) or "calibration"
        sources.append({"source": name, "licence": licences[name], **rows, "used_for": use})
    base = {"base": manifest.encoder.base, "base_sha256": manifest.encoder.base_sha256}
    return {**base, "dropped": dict(corpus.dropped), "sources": sources}


def write_card(
    out: Path, fp32: Path, data: Path | None, handwritten: Path | None, training: Report, work: Path, say: Say
) -> None:
    """Evaluate the bundle in `out` and its `fp32` graph, write `evaluation.json` and the card."""
    document = assess(out, data, handwritten, SEED, say) | {"training": training}
    say("evaluating the fp32 graph")
    manifest, copy = bundles.read_manifest(out), work / "fp32"
    files = [out / name for name in manifest.files if name not in manifest.graphs.values()]
    publish(manifest.model_copy(update={"graphs": {"cpu": fp32.name}}), [*files, fp32], copy)
    document["fp32"] = figures(assess(copy, data, handwritten, SEED, lambda _: None, brief=True))
    (work / "evaluation.json").write_text(json.dumps(document, indent=1) + "\n")
    (out / CARD).write_text(render(document))
    say(f"wrote {out / CARD}")


def render(document: Report) -> str:
    """The card of a document of `assess`, with `training` and `fp32` added to it."""
    layout: Any = {"trim_blocks": True, "lstrip_blocks": True, "keep_trailing_newline": True}
    loader = FileSystemLoader(CARDS)
    environment = Environment(loader=loader, undefined=StrictUndefined, **layout)  # noqa: S701
    environment.filters |= {"interval": _interval, "verdict": _verdict, "confused": _confused}
    environment.filters["tables"] = markdown
    reference = document.get("fp32") or {}
    found = figures(document)
    changes = [(name, reference[name], value) for name, value in found.items() if name in reference]
    template = environment.get_template("bundle.md.j2")
    empty: Report = {"training": None, "pool": {}, "robustness": {}, "trained_languages": []}
    return template.render(empty | document, changes=changes, tolerance=INT8_TOLERANCE)


def _interval(estimate: dict[str, Any] | None, digits: int = 3) -> str:
    if estimate is None or estimate["value"] is None:
        return ""
    shown = f"{estimate['value']:.{digits}f}"
    if estimate.get("low") is None:
        return shown
    return f"{shown} [{estimate['low']:.{digits}f}, {estimate['high']:.{digits}f}]"


def _verdict(report: Report) -> str:
    """The claim that a pair report supports: no win if the interval of the difference contains 0."""
    ours = _named(report["routers"], "ours")
    difference: Report = ours["apgr_minus_length"] if ours else {"low": None}
    if difference["low"] is None:
        return ""
    if difference["low"] > 0:
        return "It beats length beyond its interval."
    if difference["high"] < 0:
        return "**It loses to length beyond its interval.**"
    return "**The difference to length is within its interval: no win is claimed.**"


def _confused(confusion: Report) -> str:
    """The most frequent confusions."""
    labels = confusion["labels"]
    wrong = [
        (-count, labels[i], labels[j])
        for i, row in enumerate(confusion["counts"])
        for j, count in enumerate(row)
        if i != j and count
    ]
    return ", ".join(f"{truth} as {found} ({-count})" for count, truth, found in sorted(wrong)[:CONFUSED_MAX])


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
        own = _named(report["models"], "neighbors")
        if own and own["ood"]:
            found[f"{name}: out-of-scope AUROC"] = own["ood"]["auroc"]["value"]
    return found


def _named(rows: list[Report], name: str) -> Report | None:
    return next((row for row in rows if row["name"] == name), None)
