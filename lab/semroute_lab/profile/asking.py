"""An endpoint that is asked again when it fails, as long as that makes sense."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

import msgspec

from semroute_extproc.errors import EndpointError
from semroute_extproc.io.http import Endpoint, decode

BACKOFF_SECONDS = 0.5
"""Longest pause before the second try; it doubles with every further one."""

BACKOFF_SECONDS_MAX = 30.0
"""Longest pause of our own choice."""

RETRY_AFTER_SECONDS_MAX = 300.0
"""Longest pause that a server may ask for; beyond it the question counts as failed."""

_AGAIN = frozenset({408, 425, 429})
"""Statuses below 500 that may be different the next time."""

_HOPELESS = frozenset({401, 403, 404, 405})
"""Statuses that every question would get."""


def is_the_questions_fault(error: EndpointError) -> bool:
    """Whether another question may fare better at once: it was refused for what it is."""
    return 400 <= error.status < 500 and error.status not in _AGAIN


class Hopeless(Exception):
    """No question will be answered: wrong key, wrong path, no such model, or nobody there."""


@dataclass(frozen=True, slots=True)
class Reply:
    """A model's answer."""

    text: str
    finish: str
    """`stop`, or `length` if it was cut at the maximum of tokens."""
    input_tokens: int | None
    output_tokens: int | None
    seconds: float
    """Of the try that succeeded."""


class _Message(msgspec.Struct):
    content: str | None = None


class _Choice(msgspec.Struct):
    message: _Message
    finish_reason: str | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class _Completion(msgspec.Struct):
    choices: list[_Choice]
    usage: _Usage | None = None


@dataclass(frozen=True, slots=True)
class Model:
    """A model at an endpoint, and how it is asked."""

    endpoint: Endpoint
    name: str
    parameters: Mapping[str, object]
    """Members of the body beside model and messages."""
    seconds: float = 120.0
    """How long one try may take."""
    tries: int = 6

    async def ask(
        self,
        prompt: str,
        chance: random.Random,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> Reply:
        """The answer to one user turn.

        429, 5xx, timeouts, lost connections and answers that break off are tried again after a random
        pause up to twice as long each time ("full jitter"), or as long as Retry-After says. Raises
        EndpointError for a question that stays without an answer, Hopeless if all will.
        """
        body = {
            **self.parameters,
            "model": self.name,
            "messages": [{"role": "user", "content": prompt}],
            "stream": False,
        }
        for attempt in range(1, self.tries + 1):
            began = time.monotonic()
            try:
                answer = await self.endpoint.post("/chat/completions", body, self.seconds)
                return _reply(answer, time.monotonic() - began)
            except EndpointError as error:
                if error.status in _HOPELESS:
                    raise Hopeless(f"{self.endpoint.url}: {error}") from None
                pause = chance.uniform(0.0, min(BACKOFF_SECONDS * 2.0 ** (attempt - 1), BACKOFF_SECONDS_MAX))
                if error.retry_after is not None:
                    pause += error.retry_after
                again = error.reason != "http" or error.status >= 500 or error.status in _AGAIN
                if not again or attempt == self.tries or pause > RETRY_AFTER_SECONDS_MAX:
                    raise
            await sleep(pause)
        raise AssertionError("the last try neither returned nor raised. This is a bug.")


def _reply(answer: bytes, seconds: float) -> Reply:
    completion: _Completion = decode(answer, _Completion)
    if not completion.choices:
        raise EndpointError("unreadable", "an answer without choices")
    first, usage = completion.choices[0], completion.usage or _Usage()
    return Reply(
        first.message.content or "",
        first.finish_reason or "",
        usage.prompt_tokens,
        usage.completion_tokens,
        seconds,
    )
