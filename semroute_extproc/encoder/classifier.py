"""Text to signals: the bundle that reads its language, an encoder pass, that bundle's calibration.

What was read lately is remembered, so that a prompt that comes again costs no pass.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass

from semroute_extproc.encoder.bundle import Bundle
from semroute_extproc.encoder.cache import SignalCache, key_of
from semroute_extproc.encoder.protocol import Encoder
from semroute_extproc.encoder.signals import Signals, calibrate


@dataclass(frozen=True, slots=True)
class Reader:
    """A bundle and the encoder that runs it."""

    bundle: Bundle
    encoder: Encoder


NO_CACHE = SignalCache(0)
"""For a classifier that is to read everything anew."""


class Classifier:
    """The readers of a server: one for every language, and special ones for some."""

    def __init__(
        self, default: Reader, by_language: Mapping[str, Reader], cache: SignalCache = NO_CACHE
    ) -> None:
        """`by_language` maps an ISO 639-1 code to its own reader; all others have the default."""
        self.bundle = default.bundle
        self._default = default
        self._by_language = by_language
        self._cache = cache
        # A revision is the digest of a manifest: taken once, not once a text.
        self._revisions = {id(reader): reader.bundle.revision for reader in self._readers}

    async def signals(self, text: str, language: str, deadline: float) -> Signals:
        """Calibrated signals before `deadline` (the loop's clock); raises EncoderUnavailable.

        A text that is remembered waits for nobody, however busy the encoder is.
        """
        reader = self._by_language.get(language, self._default)
        if not self._cache:
            return calibrate(reader.bundle, await reader.encoder.encode(text, deadline), language)
        key = key_of(self._revisions[id(reader)], language, text)
        if (known := self._cache.get(key)) is not None:
            return known
        signals = calibrate(reader.bundle, await reader.encoder.encode(text, deadline), language)
        self._cache.put(key, signals)
        return signals

    @property
    def waiting(self) -> int:
        """Texts that wait for an encoder."""
        return sum(reader.encoder.waiting for reader in self._readers)

    def describe(self) -> list[dict[str, str]]:
        """Each encoder's bundle, provider, graph and threads, and the language it reads."""
        languages = {id(reader): language for language, reader in self._by_language.items()}
        return [
            {**reader.encoder.describe(), "language": languages.get(id(reader), "any")}
            for reader in self._readers
        ]

    async def close(self) -> None:
        """Stop every encoder."""
        await asyncio.gather(*(reader.encoder.close() for reader in self._readers))

    @property
    def _readers(self) -> list[Reader]:
        return [self._default, *self._by_language.values()]
