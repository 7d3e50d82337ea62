"""The card: what it says of a training, and what it claims."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("torch", reason="the extra `train` is not installed")

from semroute_lab.train.card import render, training_facts
from semroute_lab.train.datasets import Corpus, Example, Part, Rights

from semroute_extproc.encoder import bundle


def estimate(value: float, low: float, high: float) -> dict[str, float]:
    return {"value": value, "low": low, "high": high}


def pair(difference: dict[str, float]) -> dict[str, Any]:
    row = {f"cpt{q}": estimate(q, q - 1, q + 1) for q in (20, 50, 80)}
    row |= {f"drop{a}": estimate(1, 0, 2) for a in (10, 20, 40)}
    return {
        "routers": [
            {"name": "length", "apgr": estimate(0.575, 0.54, 0.61), **row},
            {"name": "ours", "apgr": estimate(0.6, 0.56, 0.64), "apgr_minus_length": difference, **row},
        ],
        "calibration": {"ece": 0.01, "ece_if_calibrated": 0.01, "rate": 0.2, "mean": 0.2},
        "models": {"strong": 0.8, "weak": 0.7},
        "within_subject": None,
    }


def document(**training: Any) -> dict[str, Any]:
    facts = {"seed": 1, "epochs": 3, "minutes": 80.4, "threads": 2}
    facts |= {"base": "b", "base_sha256": "0", "dropped": {}, "sources": [], "labels": {}}
    facts |= {"traffic": {"chat": 0.9, "rag": 0.1}}
    return {
        "bundle": {"name": "tiny", "version": "1"},
        "bootstrap": 100,
        "training": {**facts, **training},
        "domain": {},
        "difficulty": {},
        "kinds": {},
        "pairs": {},
        "unseen": {},
        "languages": {},
        "latency": {"machine": "m", "milliseconds": {}},
    }


def test_the_training_is_told_in_cpu_time() -> None:
    assert "3 epochs of fine-tuning, 80 minutes of CPU time on 2 threads." in render(document())


def test_the_reference_traffic_is_told_by_kind() -> None:
    assert "chat 0.90, rag 0.10." in render(document())


def test_a_time_that_nobody_measured_is_not_told() -> None:
    assert "3 epochs of fine-tuning." in render(document(minutes=None))


@pytest.mark.parametrize(
    ("difference", "verdict"),
    [
        (estimate(0.05, 0.01, 0.09), "It beats length beyond its interval."),
        (estimate(0.02, -0.01, 0.05), "no win is claimed"),
        (estimate(-0.05, -0.09, -0.01), "**It loses to length beyond its interval.**"),
    ],
)
def test_a_difference_within_its_interval_is_no_win(difference: dict[str, float], verdict: str) -> None:
    assert verdict in render({**document(), "pairs": {"p": pair(difference)}})


def test_every_source_is_told_with_its_licence_its_rows_and_what_it_taught() -> None:
    free = Rights("MIT", True)
    fit = [Example(f"how much is {n}", "a", f"a.csv:{n}", free, Part.FIT, domain=9) for n in range(5)]
    check = Example("prove it now", "b", "b.csv:2", Rights("CC0-1.0", True), Part.CALIBRATE, difficulty=1.0)
    corpus = Corpus(tuple(fit), (check,), (), {})
    manifest = bundle.read_manifest(bundle.default_bundle())
    facts = training_facts(corpus, manifest)
    assert facts["base_sha256"] == manifest.encoder.base_sha256
    assert facts["sources"] == [
        {"source": "a", "licence": "MIT", "fit": 5, "calibrate": 0, "used_for": "domain"},
        {"source": "b", "licence": "CC0-1.0", "fit": 0, "calibrate": 1, "used_for": "calibration"},
    ]


def test_the_labels_of_the_logs_are_named() -> None:
    labels = {"kind": "trans", "t": 0.25, "quality": "bartscore", "strong": "l", "weak": "s", "mean": 0.4}
    assert "Labels of the logs: trans with t* = 0.25, quality: bartscore, l over s" in render(
        document(labels=labels)
    )


def test_the_headline_figures_stand_first_with_their_intervals_and_the_baseline() -> None:
    router = {"apgr": estimate(0.6, 0.5, 0.7), "threshold": 0.2, "strong_share": estimate(0.3, 0.2, 0.4)}
    ours, length = router | {"pgr": estimate(0.45, 0.4, 0.5)}, router | {"pgr": estimate(0.3, 0.2, 0.4)}
    rules = {"fixed": ours, "following": ours}
    named = [{"name": "ours", "rule": rule, **one} for rule, one in rules.items()]
    named.append({"name": "length", "rule": "following", **length})
    group = dict.fromkeys(("characters", "score", "above", "unknown", "strong_share", "longest", "hard"))
    group |= {"name": "all", "rows": 9, "gain": None, "auroc": None, "ece": None, "ece_if_calibrated": None}
    mixed = {
        "kind": "mixed", "threshold": 0.2, "share": 0.3, "kinds": [], "total": group, "languages": [],
        "between": None, "pairs": [],
        "outcomes": {"rows": 9, "weak": 0.5, "strong": 0.8, "routers": named,
                     "spearman": estimate(0.4, 0.3, 0.5)},
    }  # fmt: skip
    shown = render(document() | {"kinds": {"exams": mixed}})
    assert "| exams, PGR at a share of 0.3 | 0.450 [0.400, 0.500] | 0.300 [0.200, 0.400] |" in shown
    assert "| exams, rank correlation with the models' mean error | 0.400 [0.300, 0.500] | |" in shown
    assert shown.index("## In short") < shown.index("## Data")


def test_perturbed_prompts_are_summed_up_by_group() -> None:
    def row(name: str, group: str, value: float) -> dict[str, Any]:
        names = (
            "changed",
            "same_domain",
            "same_decision",
            "hard_to_easy",
            "easy_to_hard",
            "length_same_decision",
        )
        figures = {
            key: estimate(value, value, value) for key in (*names, "auroc", "hard_strong", "easy_strong")
        }
        return {"name": name, "group": group, **figures}

    rows = [row("unchanged", "none", 1.0), row("typos", "noise", 0.9), row("respaced", "noise", 0.7),
            row("JSON", "envelope", 0.95), row("title", "housekeeping", 0.1)]  # fmt: skip
    data = {"file": "prompts.jsonl", "rows": 9, "splits": {}}
    report = {"kind": "robustness", "threshold": 0.2, "strong_share": 0.3, "perturbations": rows}
    shown = render(document() | {"robustness": {"everyday": report | {"data": data, "bundle": None}}})
    assert "| 1 envelopes and conversations, AUROC | 0.950 (least 0.950, most 0.950) | |" in shown
    assert "| 2 perturbations, same decision | 0.800 (least 0.700, most 0.900) | 0.800 (least" in shown
    assert "prompts.jsonl" in shown
