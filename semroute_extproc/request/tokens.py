"""Estimates the tokens of a prompt from its bytes, with bounds. Pure.

Byte-pair tokenizers split a text where one kind of byte follows another, so each pair of neighboring bytes
adds a weight, by the classes of the two. `tokens.json` has the classes, and for each pair the weights of the
measured tokenizers: fewest, likely (one token per digit, as Qwen has) and most. `tools/fit_tokens.py` fits
them; docs/configuration.md has the errors.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from semroute_extproc.request.view import RequestView

DATA = Path(__file__).with_name("tokens.json")
CLASSES_MAX = 64  # of bytes
RUN = CLASSES_MAX**2 - 1  # a pair that UTF-8 does not have
ERROR = 0.2  # the bounds are this much below the fewest and above the most
READ_CHARACTERS_MAX = 524_288  # of a longer prompt, blocks at equal distances are read: 2 ms
BLOCK_CHARACTERS = 4_096
PAIRS_MIN = 2_000  # counting fewer takes longer than adding their weights
TURN_TOKENS = 5  # what a chat template adds to each turn, and for the answer
MEDIA_LOW, MEDIA_HIGH = 0.25, 2.0  # bounds of `view.media_tokens`, as factors


class Tokens(NamedTuple):
    """Tokens of a prompt, with what its template and its media add."""

    low: int
    likely: int
    high: int


def class_pairs(data: bytes, table: bytes) -> NDArray[np.uint16]:
    """The pairs of classes in `data`, each as `first * CLASSES_MAX + second`.

    A letter after two equal ones counts at `RUN`, because tokenizers take several of them at once.
    """
    read, classes = (np.frombuffer(each, np.uint8) for each in (data, data.translate(table)))
    pairs = classes[:-1].astype(np.uint16) * CLASSES_MAX + classes[1:]
    same = read[1:] == read[:-1]
    pairs[1:][same[1:] & same[:-1] & (classes[2:] <= table[ord("A")])] = RUN
    return pairs


def _weights(data: Any) -> tuple[bytes, NDArray[np.float64]]:
    """The class of each byte, and for each pair of classes the fewest, likely and most tokens."""
    table = bytearray(256)
    for number, group in enumerate(data["classes"]):
        for byte in group:
            table[byte] = number
    weights = np.tile(np.array(data["unseen"], float)[:, None], CLASSES_MAX**2)
    for first, second, *each in data["weights"]:
        weights[:, first * CLASSES_MAX + second] = each
    return bytes(table), np.ascontiguousarray(weights.T) / data["unit"]  # rows, which `take` copies whole


_TABLE, _WEIGHTS = _weights(msgspec.json.decode(DATA.read_bytes()))


def estimate(view: RequestView) -> Tokens:
    """The tokens of a request, in time linear in what is read of it."""
    texts = view.texts
    characters = max(sum(map(len, texts)), 1)
    step = -(-characters // READ_CHARACTERS_MAX)
    read = texts if step == 1 else list(blocks(texts, step))
    # Of a batch only the longest prompt counts.
    scale = min(view.characters, characters) / max(sum(map(len, read)), 1)
    encoded = (each if isinstance(each, bytes) else each.encode("utf-8", "surrogatepass") for each in read)
    pairs = class_pairs(b"\n".join(encoded), _TABLE)
    few = len(pairs) < PAIRS_MIN
    added = _WEIGHTS.take(pairs, 0).sum(0) if few else np.bincount(pairs, minlength=CLASSES_MAX**2) @ _WEIGHTS
    low, likely, high = sorted((added * scale).tolist())  # a few pairs have more in `fewest` than in `most`
    return with_template(view, low * (1.0 - ERROR), likely, high * (1.0 + ERROR))


def with_template(view: RequestView, low: float, likely: float, high: float) -> Tokens:
    """Add the template and the media to the tokens of the text, and apply `view.prompt_limit`."""
    added, media = TURN_TOKENS * (len(view.turns) + 1), view.media_tokens
    low, high = int(low + added + MEDIA_LOW * media), int(high + added + MEDIA_HIGH * media)
    likely, limit = int(likely + added + media), view.prompt_limit
    if limit is None:
        return Tokens(low, likely, high)
    return Tokens(min(low, limit), min(likely, limit or likely), min(high, limit))


def blocks(texts: Sequence[str | bytes], step: int) -> Iterator[str | bytes]:
    """Every `step`-th block of the texts' characters; with a step of 1 the texts themselves."""
    at, stride = 0, step * BLOCK_CHARACTERS
    for text in texts:  # A block may go on in the next text.
        for start in range(-at, len(text), stride):
            yield text[max(start, 0) : max(start + BLOCK_CHARACTERS, 0)]
        at = (at + len(text)) % stride
