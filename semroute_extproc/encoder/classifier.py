"""Text to signals: the bundle that reads its language, an encoder pass, that bundle's calibration."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass

from semroute_extproc.bundle import Bundle
from semroute_extproc.encoder import Encoder
from semroute_extproc.signals import Signals, calibrate


@dataclass(frozen=True, slots=True)
class Reader:
    """A bundle and the encoder that runs it."""

    bundle: Bundle
    encoder: Encoder


class Classifier:
    """The readers of a server: one for every language, and special ones for some."""

    def __init__(self, default: Reader, by_language: Mapping[str, Reader]) -> None:
        """`by_language` maps an ISO 639-1 code to its own reader; all others have the default."""
        self.bundle = default.bundle
        self._default = default
        self._by_language = by_language

    async def signals(self, text: str, language: str, deadline: float) -> Signals:
        """Calibrated signals before `deadline` (the loop's clock); raises EncoderUnavailable."""
        reader = self._by_language.get(language, self._default)
        return calibrate(reader.bundle, await reader.encoder.encode(text, deadline), language)

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
