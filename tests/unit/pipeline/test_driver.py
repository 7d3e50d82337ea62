"""Large requests: a thread, a bound and an end."""

from __future__ import annotations

import asyncio
import gzip
import json
import threading
from collections import Counter
from typing import Any

import pytest
from builders import POOLS, config
from deciding import FREE, chat, edited, pipeline, request

from semroute_extproc.errors import BadBody
from semroute_extproc.outcome import Cause, Kind
from semroute_extproc.pipeline.driver import WAITING_MAX, LargeRequests
from semroute_extproc.request.view import LARGE


def large_chat(**members: Any) -> bytes:
    return json.dumps(chat("word " * 60_000, **members)).encode()


async def test_a_large_request_does_not_hold_the_event_loop() -> None:
    subject, _ = pipeline()
    ran: list[str] = []

    def small() -> None:
        ran.append("small")

    asyncio.get_running_loop().call_soon(small)
    for quick in (chat(model="m-l"), large_chat(model="m-l")):
        await subject.decide(request(quick))
    assert ran == [], "a request that names its pool is decided at once"
    await subject.decide(request(large_chat()))
    assert ran == ["small"]


@pytest.mark.parametrize(
    ("large", "messages"),
    [
        (False, [{"role": "user", "content": "word " * 20_000}]),
        (
            False,
            [
                {"role": role, "content": "Ten words, or so."}
                for _ in range(100)
                for role in ("user", "assistant")
            ],
        ),
        (
            False,
            [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "A" * 1_000_000}}]}],
        ),
        (True, [{"role": "user", "content": "word " * 60_000}]),
        (True, [{}] * 3_000),
        (True, [{"role": "user", "content": "\n" * 8_000}]),
    ],
    ids=["text", "turns", "picture", "long text", "many parts", "many lines"],
)
async def test_a_request_is_large_by_the_time_that_it_takes(large: bool, messages: list[Any]) -> None:
    pools = {**POOLS, "small": {**POOLS["small"], "context": 1_000_000, "images": True}}
    policies = {"main": {"rules": [FREE], "otherwise": {"strategy": "s"}}}
    subject, _ = pipeline(config(pools=pools, policies=policies))  # the rule decides without the encoder
    ran: list[str] = []
    asyncio.get_running_loop().call_soon(ran.append, "small")
    await subject.decide(request(json.dumps({"model": "auto", "messages": messages}).encode(), x_tier="free"))
    assert (ran == ["small"]) == large


@pytest.mark.parametrize("parts", [0, 5_000], ids=["long text", "many parts"])
async def test_large_requests_beyond_a_bound_are_decided_by_rules_that_need_no_body(parts: int) -> None:
    pools = {**POOLS, "small": {**POOLS["small"], "context": 100_000}}
    policies = {"main": {"rules": [FREE], "otherwise": {"strategy": "s"}}}
    subject, failures = pipeline(config(pools=pools, policies=policies))
    body = large_chat(stop=[{}] * parts)
    bodies = [request(body, x_tier="free") for _ in range(3 * WAITING_MAX)]
    outcomes = await asyncio.gather(*map(subject.decide, bodies))
    causes = Counter(outcome.cause for outcome in outcomes)
    assert causes["overloaded"] > 0
    assert causes["overloaded"] + causes["rule"] == len(bodies)
    assert {outcome.pool for outcome in outcomes} == {"small"}
    assert {edited(outcome)["model"] for outcome in outcomes} == {"m-s"}
    compressed = request(gzip.compress(large_chat()), content_encoding="gzip", x_tier="free")
    outcomes = await asyncio.gather(*(subject.decide(compressed) for _ in range(3 * WAITING_MAX)))
    refused = [outcome.answer.status for outcome in outcomes if outcome.answer]
    assert refused, "a pool could not decode it"
    assert set(refused) == {503}
    assert failures == []


async def test_a_cancelled_large_request_leaves_no_work_behind() -> None:
    subject, _ = pipeline()
    tasks = [asyncio.create_task(subject.decide(request(large_chat()))) for _ in range(WAITING_MAX)]
    await asyncio.sleep(0)
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    outcome = await subject.decide(request(large_chat()))
    assert outcome.kind is Kind.ROUTED, "those that were cancelled wait no longer"


async def test_the_smallest_of_the_large_requests_is_next() -> None:
    subject, done, started = LargeRequests(), list[str](), threading.Event()

    def slow() -> None:
        started.wait(5)

    first = asyncio.create_task(subject.run(LARGE + 1, None, slow))
    await asyncio.sleep(0)
    sizes = {"middle": 500_000, "largest": 900_000, "smallest": 60_000}
    others = [asyncio.create_task(subject.run(size, None, done.append, name)) for name, size in sizes.items()]
    await asyncio.sleep(0)
    started.set()
    await asyncio.gather(first, *others)
    assert done == ["smallest", "middle", "largest"]


async def test_a_large_request_does_not_wait_beyond_its_deadline() -> None:
    subject, ran, go_on = LargeRequests(), list[str](), threading.Event()
    first = asyncio.create_task(subject.run(LARGE + 1, None, go_on.wait, 5))
    await asyncio.sleep(0)
    now = asyncio.get_running_loop().time()
    with pytest.raises(BadBody) as raised:
        await subject.run(LARGE + 1, now + 0.01, ran.append, "late")
    assert raised.value.cause is Cause.OVERLOADED
    go_on.set()
    await first
    await subject.run(LARGE + 1, now, ran.append, "free")
    assert ran == ["free"], "past its deadline, it runs if the thread is free"


async def test_a_large_request_that_is_cancelled_lets_the_next_one_run() -> None:
    subject, ran, go_on = LargeRequests(), list[str](), threading.Event()
    tasks = [asyncio.create_task(subject.run(LARGE + 1, None, go_on.wait, 5))]
    tasks += [asyncio.create_task(subject.run(LARGE + 2 + n, None, ran.append, str(n))) for n in range(3)]
    await asyncio.sleep(0)
    tasks[0].cancel()
    tasks[1].cancel()
    go_on.set()
    await asyncio.gather(*tasks, return_exceptions=True)
    await subject.run(LARGE + 1, None, ran.append, "last")
    assert ran == ["1", "2", "last"]
