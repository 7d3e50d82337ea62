"""The tokens that are accounted for are those that vLLM states, for every API, streamed and not."""

from __future__ import annotations

import json
import time
from typing import Any

import aiohttp
import pytest
from gateway import Gateway, chat
from semroute_demo.client import usage

TEXT = "What is the capital of Australia?"
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": chat(TEXT)["messages"], "max_tokens": 40},
    "/v1/completions": {"prompt": TEXT, "max_tokens": 40},
    "/v1/responses": {"input": TEXT, "max_output_tokens": 40},
    "/v1/messages": {"messages": chat(TEXT)["messages"], "max_tokens": 40},
}


def answered(gateway: Gateway, request_id: str) -> dict[str, Any]:
    """The log's line about an answer; Envoy sends its log once a second."""
    [sidecar] = gateway.sidecars
    for _ in range(100):
        for line in sidecar.process.log_path.read_text().splitlines():
            if "route.answered" in line and (found := json.loads(line))["request_id"] == request_id:
                return dict(found)
        time.sleep(0.1)
    pytest.fail(f"{request_id} is not accounted for")


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
async def test_tokens_are_those_that_vllm_states(accounting: Gateway, path: str, stream: bool) -> None:
    """Streams of OpenAI's completions too, because the sidecar asks for their usage."""
    # Envoy writes its reason for tracing into ids of 36 characters, the length of a UUID.
    name = f"accounting-of-the-answer{path.replace('/', '-')}-{stream}"
    body = {"model": "auto-weak", "temperature": 0, "stream": stream, **BODIES[path]}
    timeout = aiohttp.ClientTimeout(total=240)
    async with (
        aiohttp.ClientSession(accounting.url, timeout=timeout) as client,
        client.post(path, json=body, headers={"x-request-id": name}) as response,
    ):
        content = await response.read()
    assert response.status == 200, content
    line = answered(accounting, name)
    assert (line["usage"]["input"], line["usage"]["output"]) == usage(content, stream=stream)
    assert "problem" not in line
    assert line["finish"] in ("stop", "length", "end_turn", "max_tokens", "completed", "incomplete")
    assert ("first_token_seconds" in line) is stream
