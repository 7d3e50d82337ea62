"""Scoring without a server: the bundle of a text's language, opened once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from builders import BUNDLE, MANIFEST, raw

from semroute_extproc.encoder import cuda
from semroute_extproc.encoder.bundle import Bundle
from semroute_extproc.encoder.preprocess import Framed
from semroute_extproc.encoder.signals import RawOutput
from semroute_extproc.serve import offline
from semroute_extproc.serve.offline import CHUNK, Scorer

GERMAN, FRENCH = "Was ist der Unterschied zwischen Tee und Kaffee?", "Quelle est la capitale de la France ?"
ENGLISH = "What is the capital of France?"


class Model:
    """Says `math` for the default bundle, and `law` for another."""

    framer: Any = None

    def __init__(self, own: Bundle) -> None:
        self.bundle, self.framer = own, self

    def frame(self, text: str) -> Framed:
        return Framed([1, 2], [], len(text), False, 0.0)

    def run(self, batch: list[Framed]) -> list[RawOutput]:
        domain = int(self.bundle.path.name == "other")
        return [raw(domain=domain, tokens=framed.tokens) for framed in batch]


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Shipped bundles: a default one, and another of two languages; those that were opened, and where."""
    found: list[tuple[str, str]] = []

    def open_model(own: Bundle, device: str) -> Model:
        found.append((own.path.name, device))
        return Model(own)

    def load_each(paths: dict[str, Path], devices: tuple[str, ...]) -> dict[str, Bundle]:
        return {language: Bundle(path, MANIFEST, BUNDLE.centroids) for language, path in paths.items()}

    monkeypatch.setattr(cuda, "open_model", open_model)
    monkeypatch.setattr(offline, "load_each", load_each)
    monkeypatch.setattr(offline, "default_bundle", lambda: Path("default"))
    monkeypatch.setattr(offline, "language_bundles", lambda: {"de": Path("other"), "fr": Path("other")})
    return found


def test_the_bundle_of_a_language_is_opened_once_on_the_cpu(opened: list[tuple[str, str]]) -> None:
    Scorer.of(device="cuda")
    assert opened == [("default", "cuda"), ("other", "cpu")]


def test_each_text_is_scored_by_the_bundle_of_its_language(opened: list[tuple[str, str]]) -> None:
    found = [Scorer.of().score(text) for text in (ENGLISH, GERMAN, FRENCH)]
    assert [(one.domain, one.language) for one in found] == [("math", "en"), ("law", "de"), ("law", "fr")]


def test_a_given_bundle_scores_every_language(opened: list[tuple[str, str]]) -> None:
    scorer = Scorer.of(Path("given"))
    assert opened == [("given", "cpu")]
    assert scorer.score(GERMAN).domain == "math"


def test_texts_are_scored_in_order_and_lazily(opened: list[tuple[str, str]]) -> None:
    read: list[int] = []

    def texts() -> Any:
        for number in range(1, 2 * CHUNK + 1):
            read.append(number)
            yield "x" * number

    found = Scorer.of().score_all(texts())
    assert next(found).tokens == 1
    assert len(read) == CHUNK
    assert [one.tokens for one in found] == list(range(2, 2 * CHUNK + 1))
