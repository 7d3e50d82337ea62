"""The probabilities of one token, which a judge reads, as a real vLLM writes them; questions to a model."""

from __future__ import annotations

import asyncio
import json
import math
import re
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from gateway import chat
from semroute_demo.sidecar import Sidecar
from semroute_lab.profile.asking import Answers, Model, ask_all
from servers import Pools
from settings import HAS_JUDGE
from tiny_model import LABELS

from semroute_extproc.io.http import Endpoint
from semroute_extproc.request.reasoning import FAMILIES, switch
from semroute_extproc.request.view import Api
from semroute_extproc.strategies.judge import JudgeSettings, Question, probability
from semroute_extproc.strategies.judge_client import JudgeClient

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
    client: aiohttp.ClientSession, sidecar: Sidecar, pools: Pools
) -> None:
    # The first request of a server takes longer than a judge may.
    pools.large.ask("/v1/chat/completions", {**BODY, "model": "large-model"})
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


def test_the_judges_own_question_is_taken_and_its_answer_can_be_read(pools: Pools) -> None:
    switches = switch(FAMILIES["qwen3"], Api.CHAT_COMPLETIONS, "none")
    question = Question("small-model", "score", tuple(switches.items()))
    answer = pools.small.ask("/v1/chat/completions", question.body("Prove that 2 is prime."))
    assert 0.0 < probability(json.dumps(answer).encode(), "score") < 1.0


async def test_a_judge_scores_a_text_and_then_remembers(pools: Pools) -> None:
    pools.large.ask("/v1/chat/completions", {**BODY, "model": "large-model"})
    settings = {"kind": "judge", "weak": "a", "strong": "b", "threshold": 0.5, "timeout_ms": 10_000}
    where = {"url": f"http://127.0.0.1:{pools.large.port}/v1", "model": "large-model"}
    judge = JudgeClient("s", JudgeSettings.model_validate({**settings, **where}))
    first = await judge.ask("How many primes are below 1000?", _in(20.0))
    again = await judge.ask("How many primes are below 1000?", _in(20.0))
    await judge.close()
    assert (first.result, again.result, again.score) == ("ok", "cache", first.score)


async def test_questions_beyond_the_servers_queue_are_asked_again(pools: Pools, tmp_path: Path) -> None:
    """Fifty at once are more than it holds: it answers 503, and every question has its answer in the end."""
    async with Endpoint(f"http://127.0.0.1:{pools.small.port}/v1", connections_max=50) as endpoint:
        model = Model(endpoint, "small-model", {"max_tokens": 16, "temperature": 0}, 120.0, 12)
        with Answers(tmp_path / "a.jsonl") as answers:
            asked = await ask_all(model, [f"Say {n}." for n in range(50)], answers, 50)
    assert asked.failures == {}
    assert all(reply is not None and reply.output_tokens == 16 for reply in asked.replies)
    assert {reply.finish for reply in asked.replies if reply is not None} == {"length"}


def _in(seconds: float) -> float:
    return asyncio.get_running_loop().time() + seconds


def _tokens(answer: dict[str, Any]) -> list[dict[str, Any]]:
    return list(answer["choices"][0]["logprobs"]["content"])
