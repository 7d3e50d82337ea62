"""Text to tokens to signals, with the shipped bundle."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from semroute_extproc.encoder import bundle
from semroute_extproc.encoder.cuda import CudaModel
from semroute_extproc.encoder.manifest import LabelHead
from semroute_extproc.encoder.onnx import OnnxModel
from semroute_extproc.encoder.preprocess import Framer
from semroute_extproc.errors import BundleError, ConfigError
from semroute_extproc.serve.offline import Scorer

SHIPPED = bundle.load(bundle.default_bundle())


@pytest.fixture(scope="module")
def framer() -> Framer:
    return Framer(SHIPPED.path / "tokenizer.json", SHIPPED.manifest.encoder)


@pytest.fixture(scope="module")
def scorer() -> Scorer:
    return Scorer.of(SHIPPED.path)


def test_a_short_text_is_framed_whole(framer: Framer) -> None:
    framed = framer.frame("Prove it.")
    spec = SHIPPED.manifest.encoder
    assert framed.ids[0] == spec.cls_id
    assert framed.ids[-1] == spec.sep_id
    assert framed.tokens == len(framed.ids) - 2 == 3
    assert not framed.truncated


def test_a_long_text_keeps_its_head_and_its_tail(framer: Framer) -> None:
    head, tail = framer.frame("alpha beta").ids[1:-1], framer.frame("yankee zulu").ids[1:-1]
    framed = framer.frame("alpha beta " + "word " * 500 + "yankee zulu")
    assert len(framed.ids) == SHIPPED.manifest.encoder.window
    assert framed.truncated
    assert framed.ids[1 : 1 + len(head)] == head
    assert framed.ids[-1 - len(tail) : -1] == tail
    assert framed.tokens == 500 + len(head) + len(tail)


def test_the_tokens_of_a_very_long_text_are_estimated(framer: Framer) -> None:
    framed = framer.frame("word " * 10_000)
    assert framed.tokens == pytest.approx(10_000, rel=0.02)


def test_a_script_outside_the_vocabulary_shows_in_the_share_of_unknown_tokens(framer: Framer) -> None:
    assert framer.frame("What is photosynthesis?").unk_share == 0.0
    assert framer.frame("😀🤖🚀").unk_share > 0.3


@pytest.mark.parametrize(
    "text", ["", " ", "\x00", "a" * 100_000, "\ud800".encode("utf-8", "replace").decode()]
)
def test_odd_text_is_framed_all_the_same(framer: Framer, text: str) -> None:
    framed = framer.frame(text)
    assert 2 <= len(framed.ids) <= SHIPPED.manifest.encoder.window
    assert np.isfinite(framed.surface).all()


def test_a_tokenizer_that_cannot_be_read_is_a_bundle_error(tmp_path: pytest.TempPathFactory) -> None:
    file = tmp_path / "tokenizer.json"  # type: ignore[operator]
    file.write_text("{}")
    with pytest.raises(BundleError, match=r"tokenizer\.json"):
        Framer(file, SHIPPED.manifest.encoder)


@pytest.mark.parametrize(
    ("text", "domain"),
    [
        ("What is the derivative of x squared times e to the x?", "math"),
        ("Which enzyme unwinds the double helix before DNA replication?", "biology"),
        ("What are the elements of negligence in tort law?", "law"),
        ("How do I reverse a linked list in C++?", "computer science"),
        ("Which reagent reduces an ester to an alcohol?", "chemistry"),
    ],
)
def test_clear_questions_are_put_into_their_domain(scorer: Scorer, text: str, domain: str) -> None:
    signals = scorer.score(text)
    assert signals.domain == domain
    assert sum(signals.domain_probs.values()) == pytest.approx(1.0)


def test_a_hard_question_is_harder_than_an_easy_one_of_its_field(scorer: Scorer) -> None:
    pairs = [
        ("What is 7 times 8?", "Prove that there are infinitely many primes congruent to 3 modulo 4."),
        (
            "print hello world in python",
            "My lock-free queue loses elements on ARM and never on x86: which fence is missing?",
        ),
    ]
    for easy, hard in pairs:
        assert scorer.score(hard).difficulty > scorer.score(easy).difficulty + 0.2


def test_a_language_the_bundle_does_not_know_is_unknown(scorer: Scorer) -> None:
    for text in (
        "¿Cómo funciona una bomba de calor y por qué ahorra energía?",
        "Warum ist der Himmel blau und der Sonnenuntergang rot?",
        "请解释量子力学中的不确定性原理",
        "Объясните принцип неопределённости",
        "اشرح مبدأ عدم اليقين",
    ):
        assert scorer.score(text).unknown, text


def test_many_texts_are_scored_in_order_and_as_one_by_one(scorer: Scorer) -> None:
    texts = [f"What is {n} plus {n}?" for n in range(30)]
    together = list(scorer.score_all(texts))
    for text, signals in zip(texts[:3], together, strict=False):
        alone = scorer.score(text)
        assert signals.difficulty == pytest.approx(alone.difficulty, abs=1e-6)
        assert signals.domain == alone.domain
    assert len(together) == len(texts)


def test_embeddings_have_length_one(scorer: Scorer) -> None:
    embedding = scorer.score("hello").embedding
    assert embedding is not None
    assert np.linalg.norm(embedding) == pytest.approx(1.0, abs=1e-3)


def _cuda() -> bool:
    try:
        return CudaModel(SHIPPED).provider == "CUDAExecutionProvider"
    except (ConfigError, BundleError):
        return False


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"domain": LabelHead(labels=("a", "b"), temperature=1.0)}, "domain_logits has 14 values, .* 2"),
        ({"task": LabelHead(labels=("a", "b"), temperature=1.0)}, "task_logits has 10 values, .* 2"),
    ],
)
def test_a_graph_that_is_not_what_its_manifest_describes_is_refused_before_it_serves(
    change: dict[str, LabelHead], message: str
) -> None:
    altered = dataclasses.replace(SHIPPED, manifest=SHIPPED.manifest.model_copy(update=change))
    with pytest.raises(BundleError, match=message):
        OnnxModel(altered, "cpu").warm_up()


def test_asking_for_a_gpu_that_is_not_there_is_refused() -> None:
    if _cuda():
        pytest.skip("there is a GPU here")
    with pytest.raises(ConfigError, match=r"encoder\.device: cuda was asked for"):
        CudaModel(SHIPPED)


def test_onnx_runtime_does_not_move_a_session_to_another_device() -> None:
    assert not OnnxModel(SHIPPED, "cpu")._session._enable_fallback
