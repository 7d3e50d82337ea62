"""Which bundle reads a text."""

from __future__ import annotations

import asyncio

import pytest
from builders import BUNDLE, FakeEncoder, raw

from semroute_extproc.encoder.classifier import Classifier, Reader


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
