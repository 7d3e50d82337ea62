"""The probabilities of one token, which a judge reads, as a real vLLM writes them."""

from __future__ import annotations

import math
import re
from typing import Any

import aiohttp
import pytest
from gateway import chat
from servers import Pools
from settings import HAS_JUDGE
from tiny_model import LABELS

from semroute_extproc.demo.sidecar import Sidecar

ASKED = {"max_tokens": 1, "temperature": 0, "logprobs": True, "top_logprobs": 5}
BODY = {**chat("Which model should answer? Say 1 or 2.", "small-model"), **ASKED}


def test_the_first_token_comes_with_the_likeliest_ones_in_order(pools: Pools) -> None:
    tokens = _tokens(pools.small.ask("/v1/chat/completions", BODY))
    assert len(tokens) == 1
    first, alternatives = tokens[0], tokens[0]["top_logprobs"]
    assert len(alternatives) == 5
    assert [first["token"], first["logprob"]] == [alternatives[0]["token"], alternatives[0]["logprob"]]
    for each in alternatives:
        assert set(each) == {"token", "logprob", "bytes"}
        assert bytes(each["bytes"]).decode("utf-8", "replace") == each["token"]
    shares = [math.exp(each["logprob"]) for each in alternatives]
    assert shares == sorted(shares, reverse=True)
    assert 0 < sum(shares) <= 1.001


def test_the_tiny_model_gives_the_labels_most_of_the_probability(pools: Pools) -> None:
    tokens = _tokens(pools.small.ask("/v1/chat/completions", {**BODY, "top_logprobs": 20}))
    mass = sum(math.exp(each["logprob"]) for each in tokens[0]["top_logprobs"] if each["token"] in LABELS)
    assert 0.5 < mass <= 1.001


@pytest.mark.skipif(not HAS_JUDGE, reason="no judge strategy yet")
async def test_a_judge_is_asked_and_its_score_decides(
    client: aiohttp.ClientSession, sidecar: Sidecar
) -> None:
    body = {**chat("How many primes are below 1000?", "auto-judge"), "max_tokens": 2}
    async with client.post("/v1/chat/completions", json=body) as response:
        await response.read()
    assert response.status == 200
    assert "judge's score" in response.headers["x-semroute-reason"]
    page = sidecar.read_admin("/metrics")[1]
    found = re.search(r'^semroute_judge_total\{result="ok",strategy="judge"\} (\S+)$', page, re.M)
    assert found is not None
    assert float(found[1]) >= 1


def test_held_to_a_choice_the_labels_have_all_the_probability(pools: Pools) -> None:
    """The narrowing comes before the log-probabilities: how much else the model would have said is lost."""
    asked = {**BODY, "structured_outputs": {"choice": ["1", "2"]}}
    token = _tokens(pools.small.ask("/v1/chat/completions", asked))[0]
    shares = {each["token"]: math.exp(each["logprob"]) for each in token["top_logprobs"]}
    assert token["token"] in ("1", "2")
    assert shares["1"] + shares["2"] == pytest.approx(1, abs=1e-3)


async def test_they_come_through_the_gateway_unchanged(client: aiohttp.ClientSession, pools: Pools) -> None:
    async with client.post("/v1/chat/completions", json=BODY) as response:
        through = _tokens(await response.json())
    direct = _tokens(pools.small.ask("/v1/chat/completions", BODY))
    assert [each["token"] for each in through] == [each["token"] for each in direct]
    assert through[0]["logprob"] == pytest.approx(direct[0]["logprob"], abs=1e-3)


def _tokens(answer: dict[str, Any]) -> list[dict[str, Any]]:
    return list(answer["choices"][0]["logprobs"]["content"])
