"""Each family's switch reaches the chat template of a real vLLM, on every API that has one.

The tiny model's template writes what it was rendered with into the prompt, as a number of tokens.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import aiohttp
import pytest
from gateway import chat
from semroute_demo.client import usage
from servers import Pools
from settings import EFFORT_HEADER
from tiny_model import EFFORTS, TEMPLATE, UNITS, switches

from semroute_extproc.request.reasoning import FAMILIES

TEXT = "Is it going to rain?"
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": chat(TEXT)["messages"], "max_tokens": 2},
    "/v1/responses": {"input": TEXT, "max_output_tokens": 2},
    "/v1/messages": {"messages": chat(TEXT)["messages"], "max_tokens": 2},
}
Seen = Mapping[str, object]


def _argument(name: str, on: object = True, off: object = False) -> dict[str, Seen]:
    return {effort: {name: off if effort == "none" else on} for effort in EFFORTS}


def _efforts(**written: str) -> dict[str, Seen]:
    """vLLM hands an effort on and derives `enable_thinking` from it."""
    sent = {effort: written.get(effort, effort) for effort in EFFORTS}
    return {
        effort: {"reasoning_effort": each, "enable_thinking": each != "none"} for effort, each in sent.items()
    }


SEEN: dict[str, dict[str, Seen]] = {
    "qwen3": _argument("enable_thinking"),
    "granite-4": _argument("enable_thinking"),
    "glm-4.5": _argument("enable_thinking"),
    "gemma-4": _argument("enable_thinking"),
    "deepseek-v3": _argument("thinking"),
    "granite-3": _argument("thinking"),
    "holo2": _argument("thinking"),
    "minimax-m3": _argument("thinking_mode", "enabled", "disabled"),
    "deepseek-v4": {**_efforts(), "none": {"thinking": False}},
    "kimi-k3": {
        **_efforts(minimal="low", medium="high", xhigh="high"),
        "none": {"thinking": False},
    },
    "gpt-oss": _efforts(none="low", minimal="low", xhigh="high", max="high"),
    "effort": _efforts(),
    "always": {effort: {} for effort in EFFORTS},
    "none": {effort: {} for effort in EFFORTS},
}
"""What the template is rendered with, by family and wanted effort."""


def test_every_family_is_here() -> None:
    assert set(SEEN) == set(FAMILIES)


def test_marks_are_read_as_the_template_writes_them() -> None:
    assert all(name in TEMPLATE for name in UNITS)
    assert switches(0) == {}
    assert switches(2) == {"enable_thinking": False}
    assert switches(9 + 3 + 1) == {"enable_thinking": True, "thinking": True, "thinking_mode": "enabled"}
    assert switches(27 * 7 + 6) == {"thinking": False, "reasoning_effort": "max"}
    with pytest.raises(ValueError, match="nothing"):
        switches(27 * 8)


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize("family", SEEN)
async def test_the_switch_of_a_family_reaches_the_template(
    client: aiohttp.ClientSession, pools: Pools, family: str, path: str
) -> None:
    without = pools.small.ask("/tokenize", {"messages": chat(TEXT)["messages"]})["count"]

    async def seen(effort: str) -> Seen:
        return switches(await _prompt_tokens(client, path, f"family-{family}", effort) - without)

    found = dict(zip(EFFORTS, await asyncio.gather(*map(seen, EFFORTS)), strict=True))
    expected = dict(SEEN[family])
    if path == "/v1/messages":
        # Anthropic's efforts begin at low.
        expected["minimal"] = {**expected["minimal"]}
        if expected["minimal"].get("reasoning_effort") == "minimal":
            expected["minimal"] = {**expected["minimal"], "reasoning_effort": "low"}
    assert found == expected


@pytest.mark.parametrize("path", BODIES)
async def test_without_a_wish_nothing_is_switched(
    client: aiohttp.ClientSession, pools: Pools, path: str
) -> None:
    without = pools.small.ask("/tokenize", {"messages": chat(TEXT)["messages"]})["count"]
    assert await _prompt_tokens(client, path, "family-qwen3", None) == without


async def test_what_the_client_has_switched_stays(client: aiohttp.ClientSession, pools: Pools) -> None:
    without = pools.small.ask("/tokenize", {"messages": chat(TEXT)["messages"]})["count"]
    own = {"chat_template_kwargs": {"enable_thinking": True}}
    marks = await _prompt_tokens(client, "/v1/chat/completions", "family-qwen3", "none", own) - without
    assert switches(marks) == {"enable_thinking": True}


async def _prompt_tokens(
    client: aiohttp.ClientSession,
    path: str,
    model: str,
    effort: str | None,
    more: Mapping[str, object] | None = None,
) -> int:
    headers = {} if effort is None else {EFFORT_HEADER: effort}
    body = {"model": model, **BODIES[path], **(more or {})}
    async with client.post(path, json=body, headers=headers) as response:
        content = await response.read()
    assert response.status == 200, content
    return usage(content, stream=False)[0]
