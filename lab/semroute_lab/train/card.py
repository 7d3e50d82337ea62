"""CARD.md from the evaluation's JSON, by the template `cards/bundle.md.j2`."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from semroute_extproc.encoder.bundle import read_manifest
from semroute_extproc.encoder.manifest import Manifest
from semroute_lab.train.assess import CARDS, Report, assess
from semroute_lab.train.datasets import TARGETS, Corpus
from semroute_lab.train.publish import CARD, publish
from semroute_lab.train.spec import Say

SEED = 0  # Seed of the bootstrap
INT8_TOLERANCE = 0.005  # A larger loss of any figure by the int8 graph is marked on the card
CONFUSED_MAX = 6  # Most confusions that the card lists


def training_facts(corpus: Corpus, manifest: Manifest) -> Report:
    """The training data of a bundle, by source."""
    fit = Counter(row.source for row in corpus.fit)
    calibrate = Counter(row.source for row in corpus.calibrate)
    licences = {row.source: row.rights.licence for row in (*corpus.fit, *corpus.calibrate)}
    used: dict[str, set[str]] = {}
    for row in corpus.fit:
        used.setdefault(row.source, set()).update(t for t in TARGETS if getattr(row, t) is not None)
    return {
        "base": manifest.encoder.base,
        "base_sha256": manifest.encoder.base_sha256,
        "dropped": dict(corpus.dropped),
        "sources": [
            {
                "source": source,
                "licence": licences[source],
                "fit": fit[source],
                "calibrate": calibrate[source],
                "used_for": ", ".join(t for t in TARGETS if t in used.get(source, ())) or "calibration",
            }
            for source in sorted(licences)
        ],
    }


def write_card(
    out: Path, fp32: Path, data: Path | None, handwritten: Path | None, training: Report, work: Path, say: Say
) -> None:
    """Evaluate the bundle in `out` and its `fp32` graph, write `evaluation.json` and the card."""
    document = assess(out, data, handwritten, SEED, say) | {"training": training}
    say("evaluating the fp32 graph")
    manifest, copy = read_manifest(out), work / "fp32"
    files = [out / name for name in manifest.files if name not in manifest.graphs.values()]
    publish(manifest.model_copy(update={"graphs": {"cpu": fp32.name}}), [*files, fp32], copy)
    document["fp32"] = figures(assess(copy, data, handwritten, SEED, lambda _: None, brief=True))
    (work / "evaluation.json").write_text(json.dumps(document, indent=1) + "\n")
    (out / CARD).write_text(render(document))
    say(f"wrote {out / CARD}")


def render(document: Report) -> str:
    """The card of a document of `assess`, with `training` and `fp32` added to it."""
    environment = Environment(
        loader=FileSystemLoader(CARDS),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # noqa: S701
    )
    environment.filters |= {"interval": _interval, "verdict": _verdict, "confused": _confused}
    reference = document.get("fp32") or {}
    changes = [
        (name, reference[name], value) for name, value in figures(document).items() if name in reference
    ]
    template = environment.get_template("bundle.md.j2")
    empty: Report = {"training": None, "pool": {}, "trained_languages": []}
    return template.render(empty | document, changes=changes, tolerance=INT8_TOLERANCE)


def _interval(estimate: dict[str, Any] | None, digits: int = 3) -> str:
    if estimate is None or estimate["value"] is None:
        return ""
    shown = f"{estimate['value']:.{digits}f}"
    if estimate.get("low") is None:
        return shown
    return f"{shown} [{estimate['low']:.{digits}f}, {estimate['high']:.{digits}f}]"


def _verdict(report: Report) -> str:
    """The claim that a pair's report supports: a difference whose interval holds 0 is no win."""
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
        own = _named(report["models"], "neighbours")
        if own and own["ood"]:
            found[f"{name}: out-of-scope AUROC"] = own["ood"]["auroc"]["value"]
    return found


def _named(rows: list[Report], name: str) -> Report | None:
    return next((row for row in rows if row["name"] == name), None)
