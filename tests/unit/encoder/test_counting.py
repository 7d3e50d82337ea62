"""Exact counts with a pool's tokenizer: whole texts, in time, and what an interrupted count knows."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from semroute_extproc.encoder.counting import COUNTS_MAX, TokenCounter
from semroute_extproc.request.tokens import TURN_TOKENS
from semroute_extproc.request.view import Api, RequestView, Turn

FILE = Path(__file__).parents[3] / "models" / "semroute-minilm" / "tokenizer.json"
TEXTS = ("A line of words, and another.\n" * 3_000, "12,34;" * 3_000)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    found = Tokenizer.from_file(str(FILE))
    found.no_truncation()
    found.no_padding()
    return found


def view(*texts: str) -> RequestView:
    turns = tuple(Turn("user", text) for text in texts)
    return RequestView(Api.CHAT_COMPLETIONS, "auto", turns, characters=sum(map(len, texts)))


@pytest.mark.parametrize("text", TEXTS)
async def test_the_count_is_exact(tokenizer: Tokenizer, text: str) -> None:
    tokens = len(tokenizer.encode(text, add_special_tokens=False)) + 2 * TURN_TOKENS
    found = await TokenCounter({"small": tokenizer}).bounds(["small"], view(text), 30.0)
    low, high = found["small"]
    assert (
        low == high == pytest.approx(tokens, abs=3)
    )  # 6 characters may cross a border of a line without words


async def test_an_interrupted_count_is_a_narrow_estimate(tokenizer: Tokenizer) -> None:
    text = TEXTS[0] * 20
    found = await TokenCounter({"small": tokenizer}).bounds(["small"], view(text), 0.05)
    low, high = found["small"]
    assert low < len(tokenizer.encode(TEXTS[0], add_special_tokens=False)) * 20 < high < 1.11 * low


async def test_pools_with_one_tokenizer_share_a_count_and_others_have_none(tokenizer: Tokenizer) -> None:
    counter = TokenCounter({"small": tokenizer, "large": tokenizer})
    found = await counter.bounds(["small", "large", "other"], view("hello"), 30.0)
    assert set(found) == {"small", "large"}
    assert found["small"] == found["large"]


async def test_without_time_or_a_free_thread_nothing_is_counted(tokenizer: Tokenizer) -> None:
    counter = TokenCounter({"small": tokenizer})
    assert await counter.bounds(["small"], view("hello"), 0.0) == {}
    asked = [counter.bounds(["small"], view(TEXTS[0]), 30.0) for _ in range(COUNTS_MAX + 1)]
    assert [bool(found) for found in await asyncio.gather(*asked)] == [True] * COUNTS_MAX + [False]


async def test_the_event_loop_goes_on(tokenizer: Tokenizer) -> None:
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            await asyncio.sleep(0.002)
            ticks += 1

    ticking = asyncio.create_task(tick())
    await TokenCounter({"small": tokenizer}).bounds(["small"], view(TEXTS[0] * 20), 0.5)
    ticking.cancel()
    assert ticks >= 10
