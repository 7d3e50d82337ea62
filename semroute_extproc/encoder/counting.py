"""Counts the tokens of a prompt with the tokenizers of the pools, in a thread and for a limited time."""

import asyncio
import re
from collections.abc import Collection, Iterator, Mapping
from itertools import islice
from time import perf_counter

from tokenizers import Tokenizer

from semroute_extproc.request import tokens
from semroute_extproc.request.view import RequestView

COUNTS_MAX = 2  # at once; beyond that the estimate has to do
BATCH_BLOCKS = 8  # of `BLOCK_CHARACTERS`, between two checks of the time: about 10 ms
PASSES = 8  # over a text, each of every eighth block, so that what was read in time represents it
SAMPLE_ERROR = 0.05  # of a count that ran out of time

Bounds = dict[str, tuple[int, int]]  # pool to the fewest and the most tokens

_BORDER = re.compile(r"\n(?=\S)|(?<=\S)(?= \w)")


class TokenCounter:
    """The tokenizers of pools; belongs to one event loop."""

    def __init__(self, tokenizers: Mapping[str, Tokenizer]) -> None:
        """`tokenizers` maps a pool to its tokenizer; pools without one are left out."""
        self.tokenizers = tokenizers
        self._running = 0

    async def bounds(self, pools: Collection[str], view: RequestView, seconds: float) -> Bounds:
        """The fewest and most tokens of a request in pools; those without a tokenizer are left out.

        Both are exact, except for media, if `seconds` suffice. Empty if too many counts are running.
        """
        wanted = {id(each): each for pool, each in self.tokenizers.items() if pool in pools}
        if not wanted or self._running >= COUNTS_MAX:
            return {}
        self._running += 1
        try:
            until = perf_counter() + seconds / len(wanted)
            counted = {k: await asyncio.to_thread(_bounds, each, view, until) for k, each in wanted.items()}
        finally:
            self._running -= 1
        found = ((pool, counted.get(id(each))) for pool, each in self.tokenizers.items() if pool in pools)
        return {pool: bounds for pool, bounds in found if bounds}


def _bounds(tokenizer: Tokenizer, view: RequestView, until: float) -> tuple[int, int] | None:
    texts = [each.decode("utf-8", "replace") if isinstance(each, bytes) else each for each in view.texts]
    pieces = [piece for text in texts for piece in _pieces(text)]
    characters = max(sum(map(len, pieces)), 1)
    order = (piece for start in range(PASSES) for piece in pieces[start::PASSES])
    count = read = 0
    while read < characters and (batch := list(islice(order, BATCH_BLOCKS))) and perf_counter() < until:
        count += sum(map(len, tokenizer.encode_batch_fast(batch, add_special_tokens=False)))
        read += sum(map(len, batch))
    if read == 0:
        return None
    error = 0.0 if read == characters else SAMPLE_ERROR
    scale = count / read * min(view.characters, characters)
    found = tokens.with_template(view, scale * (1.0 - error), scale, scale * (1.0 + error))
    return found.low, found.high


def _pieces(text: str) -> Iterator[str]:
    """Cut a text at borders that no token crosses; without one, at twice `BLOCK_CHARACTERS`."""
    start, least = 0, tokens.BLOCK_CHARACTERS
    while len(text) - start > least:
        end = start + 2 * least
        cut = _BORDER.search(text, start + least, end)
        yield text[start : (end := cut.end() if cut else end)]
        start = end
    yield text[start:]
