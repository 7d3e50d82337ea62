"""Which bundle reads a text, and which texts are cached."""

from __future__ import annotations

import asyncio

import pytest
from builders import BUNDLE, MANIFEST, FakeEncoder, raw

from semroute_extproc.encoder.bundle import Bundle
from semroute_extproc.encoder.classifier import Classifier, cache_key
from semroute_extproc.encoder.signals import Signals
from semroute_extproc.errors import EncoderUnavailable
from semroute_extproc.events import CacheLookup, Event
from semroute_extproc.outcome import Cause


async def signals(subject: Classifier, text: str = "text", language: str = "en") -> Signals:
    return await subject.signals(text, language, asyncio.get_running_loop().time() + 1)


@pytest.mark.parametrize(("language", "domain"), [("en", "math"), ("de", "math"), ("zh", "law")])
async def test_a_language_with_a_bundle_of_its_own_is_read_by_that(language: str, domain: str) -> None:
    default, chinese = FakeEncoder(lambda _: raw(domain=0)), FakeEncoder(lambda _: raw(domain=1))
    found = await signals(Classifier(default, {"zh": chinese}), language=language)
    assert (found.domain, found.language) == (domain, language)


async def test_every_encoder_is_described_with_its_languages() -> None:
    subject = Classifier(FakeEncoder(), {"zh": FakeEncoder()})
    assert [description["language"] for description in subject.describe()] == ["any", "zh"]
    await subject.close()


async def test_an_encoder_of_several_languages_is_one() -> None:
    other = FakeEncoder()
    other.waiting = 3
    subject = Classifier(FakeEncoder(), {"de": other, "fr": other})
    assert [description["language"] for description in subject.describe()] == ["any", "de fr"]
    assert subject.waiting == 3
    await subject.close()
    assert other.closed == 1


async def test_a_text_that_comes_again_costs_no_pass_and_waits_for_nobody() -> None:
    encoder = FakeEncoder(delay=0.01)
    subject = Classifier(encoder, {}, cache_entries=10)
    first = await signals(subject)
    encoder.answer = EncoderUnavailable(Cause.OVERLOADED)
    assert await subject.signals("text", "en", asyncio.get_running_loop().time() - 1) is first
    assert encoder.texts == ["text"]


async def test_a_failed_pass_is_not_remembered() -> None:
    encoder = FakeEncoder(EncoderUnavailable(Cause.OVERLOADED))
    subject = Classifier(encoder, {}, cache_entries=10)
    with pytest.raises(EncoderUnavailable):
        await signals(subject)
    encoder.answer = lambda _: raw(domain=1)
    assert (await signals(subject)).domain == "law"


async def test_without_a_cache_every_text_is_read() -> None:
    encoder = FakeEncoder()
    subject = Classifier(encoder, {})
    for _ in range(2):
        await signals(subject)
    assert encoder.texts == ["text", "text"]


async def test_what_was_put_in_is_found_under_the_same_bundle_language_and_text_only() -> None:
    encoder, other = FakeEncoder(), FakeEncoder()
    other.bundle = Bundle(BUNDLE.path, MANIFEST.model_copy(update={"version": "2"}), BUNDLE.centroids)
    subject = Classifier(encoder, {"zh": other}, cache_entries=10)
    for _ in range(2):
        for text, language in (("text", "en"), ("text", "fr"), ("text ", "en"), ("text", "zh")):
            assert (await signals(subject, text, language)).language == language
    assert (encoder.texts, other.texts) == (["text", "text", "text "], ["text"])
    assert cache_key("r1", "en", "text") != cache_key("r2", "en", "text")


async def test_the_longest_unused_makes_room() -> None:
    encoder = FakeEncoder()
    subject = Classifier(encoder, {}, cache_entries=2)
    for text in ("a", "b", "a", "c", "a", "b"):
        await signals(subject, text)
    assert encoder.texts == ["a", "b", "c", "b"]


async def test_hits_and_misses_are_told() -> None:
    emitted: list[Event] = []
    subject = Classifier(FakeEncoder(), {}, 2, emitted.append)
    for _ in range(2):
        await signals(subject)
    assert emitted == [CacheLookup(hit=False), CacheLookup(hit=True)]


def test_a_text_with_a_lone_surrogate_has_a_key() -> None:
    assert cache_key("r", "en", "\ud800") != cache_key("r", "en", "\ud801")


def test_the_key_holds_no_text() -> None:
    assert "secret" not in repr(cache_key("r", "en", "the secret text"))
