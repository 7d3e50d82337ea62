"""Which bundle reads a text."""

from __future__ import annotations

import asyncio

import pytest
from builders import BUNDLE, FakeEncoder, raw

from semroute_extproc.encoder.cache import SignalCache
from semroute_extproc.encoder.classifier import Classifier, Reader
from semroute_extproc.errors import EncoderUnavailable
from semroute_extproc.outcome import Cause


@pytest.mark.parametrize(("language", "domain"), [("en", "math"), ("de", "math"), ("zh", "law")])
async def test_a_language_with_a_bundle_of_its_own_is_read_by_that(language: str, domain: str) -> None:
    default, chinese = FakeEncoder(lambda _: raw(domain=0)), FakeEncoder(lambda _: raw(domain=1))
    subject = Classifier(Reader(BUNDLE, default), {"zh": Reader(BUNDLE, chinese)})
    signals = await subject.signals("text", language, asyncio.get_running_loop().time() + 1)
    assert (signals.domain, signals.language) == (domain, language)


async def test_every_encoder_is_described_with_its_language() -> None:
    subject = Classifier(Reader(BUNDLE, FakeEncoder()), {"zh": Reader(BUNDLE, FakeEncoder())})
    assert [description["language"] for description in subject.describe()] == ["any", "zh"]
    await subject.close()


async def test_a_text_that_comes_again_costs_no_pass_and_waits_for_nobody() -> None:
    encoder = FakeEncoder(delay=0.01)
    subject = Classifier(Reader(BUNDLE, encoder), {}, SignalCache(10))
    now = asyncio.get_running_loop().time
    first = await subject.signals("text", "en", now() + 1)
    encoder.answer = EncoderUnavailable(Cause.OVERLOADED)
    assert await subject.signals("text", "en", now() - 1) is first
    assert encoder.texts == ["text"]


async def test_a_failed_pass_is_not_remembered() -> None:
    encoder = FakeEncoder(EncoderUnavailable(Cause.OVERLOADED))
    subject = Classifier(Reader(BUNDLE, encoder), {}, SignalCache(10))
    deadline = asyncio.get_running_loop().time() + 1
    with pytest.raises(EncoderUnavailable):
        await subject.signals("text", "en", deadline)
    encoder.answer = lambda _: raw(domain=1)
    assert (await subject.signals("text", "en", deadline)).domain == "law"


async def test_without_a_cache_every_text_is_read() -> None:
    encoder = FakeEncoder()
    subject = Classifier(Reader(BUNDLE, encoder), {}, SignalCache(0))
    for _ in range(2):
        await subject.signals("text", "en", asyncio.get_running_loop().time() + 1)
    assert encoder.texts == ["text", "text"]
