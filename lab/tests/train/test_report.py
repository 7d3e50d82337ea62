"""What a card says of the training."""

from __future__ import annotations

import pytest
from semroute_lab.train.datasets import Corpus, Example, FitSet, Part, Rights

from semroute_extproc.encoder import bundle

pytest.importorskip("torch", reason="the extra `train` is not installed")
from semroute_lab.train.report import training_facts


def test_every_source_is_told_with_its_licence_its_rows_and_what_it_taught() -> None:
    free = Rights("MIT", True)
    fit = [Example(f"how much is {n}", "a", f"a.csv:{n}", free, Part.FIT, domain=9) for n in range(5)]
    check = Example("prove it now", "b", "b.csv:2", Rights("CC0-1.0", True), Part.CALIBRATE, difficulty=1.0)
    corpus = Corpus(FitSet(fit), FitSet([check], Part.CALIBRATE), (), {})
    manifest = bundle.read_manifest(bundle.default_bundle())
    facts = training_facts(corpus, manifest, "gold", 1, 3, 20.0, 2)
    assert facts["base_sha256"] == manifest.encoder.base_sha256
    assert facts["sources"] == [
        {"source": "a", "licence": "MIT", "fit": 5, "calibrate": 0, "used_for": "domain"},
        {"source": "b", "licence": "CC0-1.0", "fit": 0, "calibrate": 1, "used_for": "calibration"},
    ]
