"""The rules that keep the wrong rows out of a fit."""

import pytest
from semroute_lab.train import datasets
from semroute_lab.train.datasets import Example, Part, Rights

from semroute_extproc.errors import DataError

OPEN = Rights("Apache-2.0", may_train=True)
CLOSED = Rights("CC-BY-NC", may_train=False)


def assemble(rows):
    return datasets.assemble(rows, rows_min=1)


def row(text, part=Part.FIT, source="s", rights=OPEN, **targets):
    return Example(text, source, f"s.csv:{text}", rights, part, **(targets or {"domain": 1}))


def test_assembling_leaves_out_rows_that_may_not_train_and_counts_them():
    corpus = assemble([row("a"), row("b", rights=CLOSED)])
    assert [one.text for one in corpus.fit] == ["a"]
    assert corpus.dropped == {"may only be evaluated on": 1}


def test_rows_are_fitted_calibrated_or_reported_by_their_part():
    corpus = assemble([row("a"), row("b", part=Part.CALIBRATE), row("c", part=Part.DEV)])
    assert [[one.text for one in part] for part in (corpus.fit, corpus.calibrate, corpus.dev)] == [
        ["a"],
        ["b"],
        ["c"],
    ]


def test_assembling_keeps_rows_that_may_not_train_among_those_reported_on():
    corpus = assemble([row("a"), row("b", part=Part.DEV, rights=CLOSED)])
    assert [one.text for one in corpus.dev] == ["b"]


def test_a_dev_question_leaves_the_fit_whatever_its_case_spacing_and_options():
    dev = row("What is  2+2?\nA. 3\nB. 4\nAnswer:", part=Part.DEV, domain=9)
    corpus = assemble([row("a"), row("what is 2+2?", domain=9), dev])
    assert [one.text for one in corpus.fit] == ["a"]
    assert corpus.dropped == {"also a dev row": 1}


def test_a_question_keeps_the_targets_that_are_not_reported_elsewhere():
    dev = row("q", part=Part.DEV, difficulty=1.0)
    corpus = assemble([row("a"), row("q", domain=3, difficulty=0.0), dev])
    (kept,) = (one for one in corpus.fit if one.text == "q")
    assert (kept.domain, kept.difficulty) == (3, None)


def test_the_same_text_twice_in_one_source_is_kept_once():
    corpus = assemble([row("a"), row(" A "), row("a", source="t")])
    assert [(one.text, one.source) for one in corpus.fit] == [("a", "s"), ("a", "t")]


def test_too_few_rows_are_refused_before_any_fitting():
    with pytest.raises(DataError, match="at least 3 rows to train on, found 2"):
        datasets.assemble([row("a"), row("b")], rows_min=3)


def test_a_question_lands_in_the_same_part_with_and_without_its_options():
    for n in range(100):
        assert datasets.part_of_fit(f"q {n}") is datasets.part_of_fit(f"Q {n}\nA. yes\nB. no")


def test_about_a_tenth_of_the_fit_rows_is_kept_for_calibration():
    parts = [datasets.part_of_fit(f"question number {n}") for n in range(5000)]
    assert 0.08 < parts.count(Part.CALIBRATE) / len(parts) < 0.12
