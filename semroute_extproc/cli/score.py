"""Signals for a stream of JSON lines, for `semroute score`."""

import json
from collections.abc import Iterable, Iterator
from typing import IO, Any

from semroute_extproc.encoder.signals import Signals
from semroute_extproc.errors import BadBody
from semroute_extproc.request import apis
from semroute_extproc.request.text import judged
from semroute_extproc.request.view import Api
from semroute_extproc.serve.offline import Scorer

LINE_BYTES_MAX = 32 * 1024 * 1024  # of a line; a longer one gives an error object and is skipped


def score_lines(scorer: Scorer, lines: Iterable[bytes], embedding: bool) -> Iterator[dict[str, Any]]:
    """One object per line, in order; a bad line gives `{"error": …}` instead.

    A line is `{"text": …}`, which is classified as is, or `{"body": {…}}`, a request body, which is
    parsed as the server would parse it.
    """
    errors: dict[int, str] = {}

    def texts() -> Iterator[str]:
        for number, line in enumerate(lines):
            try:
                yield read_line(line)
            except ValueError as error:
                errors[number] = str(error)
                yield ""

    for number, signals in enumerate(scorer.score_all(texts())):
        error = errors.pop(number, None)
        yield {"error": error} if error is not None else _report(signals, embedding)


def read_lines(stream: IO[bytes], bytes_max: int = LINE_BYTES_MAX) -> Iterator[bytes]:
    """The lines of `stream`; at most `bytes_max` + 1 bytes are in memory at a time."""
    while line := stream.readline(bytes_max + 1):
        rest = line
        while len(rest) > bytes_max and not rest.endswith(b"\n"):
            rest = stream.readline(bytes_max + 1)
        yield line


def read_line(line: bytes, bytes_max: int = LINE_BYTES_MAX) -> str:
    """The text of one line; raises ValueError with the problem."""
    if len(line) > bytes_max:
        raise ValueError(f"longer than {bytes_max} bytes")
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        raise ValueError("not JSON") from None
    if not isinstance(value, dict) or ("text" in value) == ("body" in value):
        raise ValueError('expected an object with either "text" or "body"')
    if "body" in value:
        return text_of_body(value["body"])
    if not isinstance(value["text"], str):
        raise ValueError('"text" is not a string')
    if not value["text"].strip():
        raise ValueError('"text" is empty')
    return str(value["text"].encode("utf-8", "replace").decode())


def text_of_body(body: Any) -> str:
    """The text that the server classifies for a request body; raises ValueError with the problem."""
    if not isinstance(body, dict):
        raise ValueError('"body" is not an object')
    # The member with the text identifies the API.
    if "messages" in body:
        api = Api.MESSAGES if "system" in body else Api.CHAT_COMPLETIONS
    elif "prompt" in body:
        api = Api.COMPLETIONS
    elif "input" in body:
        value = body["input"]
        batch = isinstance(value, list) and all(isinstance(item, str) for item in value)
        api = Api.EMBEDDINGS if batch else Api.RESPONSES
    else:
        raise ValueError('"body" has none of "messages", "prompt" and "input"')
    try:
        view = apis.parse(api, json.dumps(body).encode())
    except BadBody as error:
        raise ValueError(f'"body" cannot be read as {api.value}: {error}') from None
    if not (text := judged(view.turns).text):
        raise ValueError('"body" has no text to classify')
    return text


def _report(signals: Signals, embedding: bool) -> dict[str, Any]:
    line: dict[str, Any] = {"domain": {"label": signals.domain, "probs": dict(signals.domain_probs)}}
    names = ("difficulty", "unknown", "tokens", "truncated", "language")
    line |= {name: getattr(signals, name) for name in names}
    if signals.task:
        line["task"] = {"label": signals.task, "probs": dict(signals.task_probs)}
    if embedding and signals.embedding is not None:
        line["embedding"] = signals.embedding.tolist()
    return line
