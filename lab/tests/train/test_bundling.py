"""What a manifest says of the rows that a bundle was trained on."""

import pytest

pytest.importorskip("torch", reason="the extra `train` is not installed")

from semroute_lab.train import bundling

ENGLISH, SPANISH = "What is the capital of France?", "¿Cuál es la capital de Francia?"


def test_a_bundle_knows_the_languages_of_enough_of_its_rows():
    assert bundling.languages_of([ENGLISH] * 50 + [SPANISH] * 19, 20) == ("en",)
    assert bundling.languages_of([ENGLISH] * 50 + [SPANISH] * 20, 20) == ("en", "es")


def test_of_few_rows_the_most_frequent_language_is_known():
    assert bundling.languages_of([SPANISH] * 3 + [ENGLISH] * 2, 20) == ("es",)
