"""Asks an endpoint many questions, with retries and bounded concurrency; resumes after an interruption."""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import json
import random
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from semroute_extproc.errors import DataError, EndpointError
from semroute_extproc.io.http import DETAIL_CHARACTERS_MAX, Endpoint

BACKOFF_SECONDS = 0.5  # Longest pause before the second try; it doubles with every further one
BACKOFF_SECONDS_MAX = 30.0  # Longest pause without Retry-After
RETRY_AFTER_SECONDS_MAX = 300.0  # A question that would have to wait longer counts as failed
FAILURES_IN_A_ROW_MAX = 10  # After this many consecutive failures the endpoint counts as down
LINE_BYTES_MAX = 16 * 1024 * 1024  # Longest line of a file of answers
_TRANSIENT = frozenset({408, 425, 429})  # Statuses below 500 that are worth a retry
_FATAL = frozenset({401, 403, 404, 405})  # Statuses that every question would get


class FatalError(EndpointError):
    """No question will be answered: wrong key, wrong path, no such model, or no server."""


class Reply(msgspec.Struct, frozen=True):
    """A model's answer."""

    text: str
    finish: str  # `stop`, or `length` if it was cut at the maximum of tokens
    input_tokens: int | None
    output_tokens: int | None
    seconds: float  # Of the try that succeeded


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
    parameters: Mapping[str, object]  # Members of the body besides model and messages
    seconds: float = 120.0  # Bound on one try
    tries: int = 6

    async def ask(
        self, prompt: str, chance: random.Random, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    ) -> Reply:
        """The answer to one user turn.
        429, 5xx, timeouts, lost connections and incomplete answers are retried with exponential backoff and
        full jitter, added to Retry-After. Raises EndpointError if this question gets no answer, FatalError
        if none will.
        """
        message = {"role": "user", "content": prompt}
        body = {**self.parameters, "model": self.name, "messages": [message], "stream": False}
        attempt = 0
        while True:
            attempt += 1
            began = time.monotonic()
            try:
                answer = await self.endpoint.post("/chat/completions", body, self.seconds)
                return _reply(answer, time.monotonic() - began)
            except EndpointError as error:
                if error.status in _FATAL:
                    raise FatalError(error.reason, f"{self.endpoint.url}: {error}") from None
                pause = chance.uniform(0.0, min(BACKOFF_SECONDS * 2.0 ** (attempt - 1), BACKOFF_SECONDS_MAX))
                pause += error.retry_after or 0.0
                again = error.reason != "http" or error.status >= 500 or error.status in _TRANSIENT
                if not again or attempt >= self.tries or pause > RETRY_AFTER_SECONDS_MAX:
                    raise
            await sleep(pause)


def _reply(answer: bytes, seconds: float) -> Reply:
    try:
        completion = msgspec.json.decode(answer, type=_Completion)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise EndpointError("unreadable", str(error)[:DETAIL_CHARACTERS_MAX]) from None
    if not completion.choices:
        raise EndpointError("unreadable", "an answer without choices")
    first, usage = completion.choices[0], completion.usage or _Usage()
    text, finish = first.message.content or "", first.finish_reason or ""
    return Reply(text, finish, usage.prompt_tokens, usage.completion_tokens, seconds)


def key_of(model: str, prompt: str, parameters: Mapping[str, object]) -> str:
    """The key of a question to a model: another temperature gives another key."""
    identity = json.dumps([model, prompt, parameters], sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(identity.encode()).hexdigest()[:32]


class Answers:
    """A locked file, one JSON line per answer, only appended: a run continues where it stopped."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._known: dict[str, Reply] = {}

    def __enter__(self) -> Answers:
        """Open and read it; raises DataError if it cannot be opened."""
        try:
            self._file = self.path.open("a+b")
        except OSError as error:
            raise DataError(f"{self.path}:1:: cannot be opened: {error.strerror or error}") from None
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            raise DataError(f"{self.path}:1:: another run is writing it") from None
        self._file.seek(0)
        line = b"\n"
        while more := self._file.readline(LINE_BYTES_MAX):
            line = more
            try:
                found = msgspec.json.decode(line)
                self._known[found.pop("key")] = msgspec.convert(found, Reply)
            except (msgspec.MsgspecError, ValueError, AttributeError, KeyError, TypeError):
                continue
        if not line.endswith(b"\n"):
            self._file.write(b"\n")
        return self

    def get(self, key: str) -> Reply | None:
        """The answer to a question, if there is one."""
        return self._known.get(key)

    def add(self, key: str, reply: Reply) -> None:
        """Keep an answer; it is in the file on return. Raises OSError if it cannot be written."""
        self._file.write(msgspec.json.encode({"key": key, **msgspec.structs.asdict(reply)}) + b"\n")
        self._file.flush()
        self._known[key] = reply

    def __exit__(self, *exception: object) -> None:
        self._file.close()


@dataclass
class Asked:
    """The result of asking a list of questions."""

    replies: list[Reply | None]  # None where there is no answer; in the order of the questions
    failures: dict[int, str] = field(default_factory=dict)  # Index of a question to the reason
    fresh: int = 0  # Answers that were not in the file before


async def ask_all(
    model: Model,
    prompts: Sequence[str | None],
    answers: Answers,
    concurrency: int,
    advance: Callable[[], None] = lambda: None,
) -> Asked:
    """Ask every prompt that is not in `answers`; None among the prompts is skipped.
    Never more than `concurrency` at once. `advance` is called for each prompt done, known ones included.
    Raises EndpointError if none will be answered, OSError if `answers` cannot be written.
    """
    chance = random.Random()
    asked = Asked([None] * len(prompts))
    in_a_row = 0
    todo: list[tuple[int, str, str]] = []
    for index, prompt in enumerate(prompts):
        if prompt is not None:
            key = key_of(model.name, prompt, model.parameters)
            asked.replies[index] = answers.get(key)
            if asked.replies[index] is None:
                todo.append((index, key, prompt))
                continue
        advance()
    waiting = iter(todo)

    async def work() -> None:
        nonlocal in_a_row
        for index, key, prompt in waiting:
            try:
                reply = await model.ask(prompt, chance)
            except FatalError:
                raise
            except EndpointError as error:
                asked.failures[index] = str(error)
                # Once any question was answered, a 4xx is about this question and not the endpoint.
                refused = 400 <= error.status < 500 and error.status not in _TRANSIENT
                in_a_row += not (refused and any(asked.replies))
                if in_a_row >= FAILURES_IN_A_ROW_MAX:
                    raise FatalError(error.reason, f"{model.endpoint.url}: {error}") from None
            else:
                in_a_row = 0
                answers.add(key, reply)
                asked.replies[index] = reply
                asked.fresh += 1
            advance()

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(min(concurrency, len(todo))):
                group.create_task(work())
    except* FatalError as errors:
        first = errors.exceptions[0]
        raise EndpointError(getattr(first, "reason", ""), str(first)) from None
    except* OSError as errors:
        raise errors.exceptions[0] from None
    return asked
