"""The estimate of a prompt's tokens: against counts of real tokenizers, recorded in `tokens.json`."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from semroute_extproc.request.apis import parse
from semroute_extproc.request.tokens import (
    BLOCK_CHARACTERS,
    READ_CHARACTERS_MAX,
    TURN_TOKENS,
    Tokens,
    estimate,
)
from semroute_extproc.request.view import Api, RequestView, Turn

COUNTED = json.loads(Path(__file__).with_name("tokens.json").read_text())
"""Texts of many kinds with their tokens in six tokenizers; Qwen's is the one that `likely` is for."""

TEMPLATE = 2 * TURN_TOKENS
"""What one turn and the answer's beginning add."""

ERROR_MAX = 0.2


def of(*texts: str, **more: Any) -> Tokens:
    turns = tuple(Turn("user", text) for text in texts)
    characters = more.pop("characters", sum(map(len, texts)))
    return estimate(RequestView(Api.CHAT_COMPLETIONS, "auto", turns, characters=characters, **more))


@pytest.mark.parametrize("row", COUNTED, ids=[row["kind"] for row in COUNTED])
def test_it_is_within_a_fifth_and_the_bounds_hold_for_every_tokenizer(row: Any) -> None:
    found = of(row["text"])
    assert found.likely - TEMPLATE == pytest.approx(row["tokens"]["qwen3"], rel=ERROR_MAX)
    assert all(found.low <= tokens + TEMPLATE <= found.high for tokens in row["tokens"].values())


def numbers() -> str:
    rows = (
        ",".join(f"{(i * 7919 + j * 104729) % 1000000 / 1000:.3f}" for j in range(12)) for i in range(1200)
    )
    return "\n".join(rows)


def items() -> str:
    rows: list[Any] = []
    for i in range(1500):
        values = {"price": i * 37 % 1000 / 10, "stock": i % 17, "tags": ["new", "sale"][: i % 3]}
        rows.append({"id": i, "name": f"item {i}", "values": values})
    return json.dumps(rows, indent=4)


LONG = [(numbers(), 113_617, 57_599), (items(), 88_752, 81_002)]
"""Text, and its tokens in Qwen3's and in Llama 3's tokenizer."""


@pytest.mark.parametrize(("text", "qwen3", "llama3"), LONG, ids=["csv", "json"])
def test_a_long_table_and_long_json(text: str, qwen3: int, llama3: int) -> None:
    found = of(text)
    assert found.likely == pytest.approx(qwen3, rel=ERROR_MAX)
    assert found.low <= llama3 <= qwen3 <= found.high


@pytest.mark.parametrize(
    ("letter", "qwen3", "most"), [("x", 0.125, 0.25), ("a", 0.125, 0.5), ("z", 0.5, 0.5)]
)
def test_the_bounds_hold_for_a_repeated_letter(letter: str, qwen3: float, most: float) -> None:
    low, _, high = of(letter * 100_000)
    assert low <= qwen3 * 100_000 <= most * 100_000 <= high


@pytest.mark.parametrize("text", ["\nt" * 5_000, "x\ntruncation\ntruncation\nthinking"])
def test_the_bounds_are_in_order_for_text_of_lines_with_a_letter(text: str) -> None:
    found = of(text)
    assert found.low <= found.likely <= found.high


def test_the_language_of_the_last_turn_does_not_decide_for_the_others() -> None:
    document = next(row for row in COUNTED if row["kind"].startswith("Chinese"))
    alone = of(document["text"] * 20)
    asked = of(document["text"] * 20, "Summarize this.")
    assert alone.likely <= asked.likely <= alone.likely + 20


def test_a_prompt_of_many_turns_is_the_sum_of_its_turns() -> None:
    one, many = of("Hello there."), of(*["Hello there."] * 100)
    assert many.likely == pytest.approx(100 * (one.likely - TURN_TOKENS), rel=ERROR_MAX)


def test_a_long_prompt_is_read_in_blocks_of_all_its_parts() -> None:
    words, digits = "the quick brown fox " * 100, "3141592653 " * 100
    parts = [words] * 300 + [digits] * 300
    assert sum(map(len, parts)) > READ_CHARACTERS_MAX > BLOCK_CHARACTERS
    whole = 300 * (of(words).likely + of(digits).likely - 2 * TEMPLATE) + TURN_TOKENS * 601
    assert of(*parts).likely == pytest.approx(whole, rel=0.1)


@pytest.mark.parametrize("text", ["word " * 6_000_000, "漢字" * 5_000_000])
def test_no_body_holds_the_event_loop(text: str) -> None:
    best = 1.0
    for _ in range(5):
        started = time.process_time()
        of(text)
        best = min(best, time.process_time() - started)
    assert best < 0.02


def test_of_a_batch_the_longest_prompt_counts() -> None:
    view = parse(Api.COMPLETIONS, json.dumps({"prompt": ["one two three " * 50, "four"]}).encode())
    assert estimate(view).likely == pytest.approx(of("one two three " * 50).likely, rel=0.05)


def test_declared_tools_count() -> None:
    tool = {"type": "function", "function": {"name": "look_up", "description": "Looks up a word. " * 50}}
    body = {"messages": [{"role": "user", "content": "hi"}], "tools": [tool]}
    found = estimate(parse(Api.CHAT_COMPLETIONS, json.dumps(body).encode()))
    assert found.likely - of("hi").likely == pytest.approx(of(json.dumps([tool])).likely, rel=0.1)


@pytest.mark.parametrize(("kind", "least"), [("image_url", 1_000), ("input_audio", 750), ("file", 3_000)])
def test_media_count(kind: str, least: int) -> None:
    body = {"messages": [{"role": "user", "content": [{"type": kind}, {"type": "text", "text": "hi"}]}]}
    found, alone = estimate(parse(Api.CHAT_COMPLETIONS, json.dumps(body).encode())), of("hi")
    assert found.likely - alone.likely == least
    assert (found.low - alone.low, found.high - alone.high) == (least // 4, least * 2)


@pytest.mark.parametrize(
    ("api", "more", "bounds"),
    [
        (Api.CHAT_COMPLETIONS, {"truncate_prompt_tokens": 100}, (100, 100)),
        (Api.CHAT_COMPLETIONS, {"truncate_prompt_tokens": -1}, (0, 0)),
        (Api.RESPONSES, {"truncation": "auto"}, (0, 0)),
    ],
)
def test_a_prompt_that_the_server_cuts_fits(api: Api, more: Any, bounds: tuple[int, int]) -> None:
    text = "word " * 1_000
    body = {"input": text, "messages": [{"role": "user", "content": text}], **more}
    found = estimate(parse(api, json.dumps(body).encode()))
    assert (found.low, found.high) == bounds
    assert found.likely > 0


@pytest.mark.parametrize("more", [{"truncate_prompt_tokens": None}, {"truncation": "disabled"}])
def test_a_prompt_that_it_does_not_cut_is_counted(more: Any) -> None:
    body = {"input": "word " * 1_000, **more}
    assert estimate(parse(Api.RESPONSES, json.dumps(body).encode())).low > 500


@pytest.mark.parametrize("text", ["", "\ud800", "\x00\xff", "\U0010ffff"])
def test_any_text_has_an_estimate(text: str) -> None:
    low, likely, high = of(text)
    assert 0 < low <= likely <= high
