"""Tokens and dollars behind a real Envoy: read whatever an answer's form, and never at its cost."""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import signal
import socketserver
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import answers
import pytest
from gateway import CONFIG_PATH, Gateway, chat, read_message, start_sidecar, wait_for
from semroute_demo.envoy import Bootstrap, connection_manager
from semroute_demo.pool import Fault, Speed
from semroute_demo.sidecar import Sidecar

from semroute_extproc.request.view import Api

MakeGateway = Callable[..., Gateway]
MakeSidecar = Callable[..., Sidecar]

BODIES: dict[Api, tuple[str, dict[str, Any]]] = {
    Api.CHAT_COMPLETIONS: ("/v1/chat/completions", {"messages": chat()["messages"]}),
    Api.COMPLETIONS: ("/v1/completions", {"prompt": "Where is Lima?"}),
    Api.RESPONSES: ("/v1/responses", {"input": "Where is Lima?"}),
    Api.MESSAGES: ("/v1/messages", {"messages": chat()["messages"], "max_tokens": 100}),
}
USAGE = {"stream_options": {"include_usage": True}}


@dataclass(frozen=True)
class Script:
    """An answer in pieces that arrive one by one."""

    api: Api
    stream: bool
    pieces: Sequence[bytes]
    coding: str = ""
    length: bool = False  # declare the length instead of sending chunks


class Upstream:
    """A pool that answers each request with the script that its header `x-script` names."""

    PAUSE_SECONDS = 0.002

    def __init__(self) -> None:
        self.scripts: list[Script] = []
        outer = self

        class Handler(socketserver.StreamRequestHandler):
            disable_nagle_algorithm = True

            def handle(self) -> None:
                while self.rfile.peek(1):
                    message = read_message(self.rfile)
                    number = message.headers.get("x-script")
                    if number is None:  # a health check
                        self.wfile.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
                        continue
                    outer.play(self.wfile, outer.scripts[int(number)])

        socketserver.ThreadingTCPServer.allow_reuse_address = True
        self._server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.address: tuple[str, int] = ("127.0.0.1", self._server.server_address[1])
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def play(self, out: Any, script: Script) -> None:
        kind = "text/event-stream; charset=utf-8" if script.stream else "application/json"
        size = sum(map(len, script.pieces))
        head = ["HTTP/1.1 200 OK", f"content-type: {kind}"]
        head += [f"content-encoding: {script.coding}"] if script.coding else []
        head += [f"content-length: {size}" if script.length else "transfer-encoding: chunked"]
        out.write("\r\n".join([*head, "", ""]).encode())
        for piece in script.pieces:
            out.write(piece if script.length else b"%x\r\n%s\r\n" % (len(piece), piece))
            time.sleep(self.PAUSE_SECONDS)
        if not script.length:
            out.write(b"0\r\n\r\n")

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    running = Upstream()
    yield running
    running.close()


@pytest.fixture(scope="module")
def accounting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sidecar]:
    running = start_sidecar(tmp_path_factory.mktemp("accounting"), ACCOUNTING="true")
    yield running
    running.stop()


def answered(sidecar: Sidecar) -> dict[str, dict[str, Any]]:
    """The log's lines about answers so far, by request id."""
    text = sidecar.process.log_path.read_text()
    lines = (json.loads(line) for line in text.splitlines() if "route.answered" in line)
    return {line["request_id"]: line for line in lines}


def wait_for_answers(sidecar: Sidecar, ids: Sequence[str]) -> list[dict[str, Any]]:
    """The lines about these requests, in order; Envoy sends its log once a second."""
    wait_for(lambda: answered(sidecar).keys() >= set(ids), 15, "the answers to be accounted for")
    found = answered(sidecar)
    return [found[each] for each in ids]


def usage_of(line: dict[str, Any]) -> tuple[int, int]:
    return line["usage"]["input"], line["usage"]["output"]


def split(body: bytes, seed: int) -> list[bytes]:
    """A body in up to twelve pieces, cut anywhere."""
    dice = random.Random(seed)
    cuts = sorted(dice.sample(range(1, len(body)), 11))
    return [body[start:end] for start, end in zip([0, *cuts], [*cuts, len(body)], strict=True)]


def every_form() -> list[Script]:
    scripts = []
    for api in answers.APIS:
        forms = [(False, [answers.whole(api)]), (True, answers.stream(api))]
        long = answers.whole(api, "words and more words " * 50_000)
        forms += [(False, [long]), (True, answers.stream(api, ("word ",) * 2_000))]
        for stream, pieces in forms:
            body = b"".join(pieces)
            scripts += [Script(api, stream, [body]), Script(api, stream, [body], length=True)]
            scripts += [Script(api, stream, split(body, seed)) for seed in range(6)]
            for coding, pack in answers.ENCODINGS.items():
                scripts.append(Script(api, stream, split(pack(body), 7), coding))
        scripts.append(Script(api, True, [bytes([byte]) for byte in b"".join(answers.stream(api))]))
    return scripts


async def test_every_form_of_answer_is_read_and_passes_untouched(
    make_gateway: MakeGateway, accounting: Sidecar, upstream: Upstream
) -> None:
    """All APIs, whole and streamed, short and long, cut anywhere, and compressed."""
    gateway = make_gateway([accounting], addresses={"vllm-small": upstream.address})
    upstream.scripts = every_form()
    gate = asyncio.Semaphore(32)

    async def ask(client: aiohttp.ClientSession, number: int, script: Script) -> None:
        path, body = BODIES[script.api]
        headers = {"x-script": str(number), "x-request-id": f"form-{number}"}
        async with gate, client.post(path, json={"model": "auto-weak", **body}, headers=headers) as response:
            assert response.status == 200
            assert await response.read() == b"".join(script.pieces), script

    timeout = aiohttp.ClientTimeout(total=120)
    async with aiohttp.ClientSession(gateway.url, auto_decompress=False, timeout=timeout) as client:
        await asyncio.gather(*(ask(client, *each) for each in enumerate(upstream.scripts)))
    ids = [f"form-{number}" for number in range(len(upstream.scripts))]
    for script, line in zip(upstream.scripts, wait_for_answers(accounting, ids), strict=True):
        expected = answers.usage(script.api)
        assert usage_of(line) == (expected.input, expected.output), (script, line)
        assert line["usage"]["cached"] == expected.cached
        assert "problem" not in line
        assert line["finish"] in ("stop", "end_turn", "completed")
    assert gateway.envoy.stats("http.ingress.lua.errors")["http.ingress.lua.errors"] == 0


ODD = json.dumps([{"1": {"decoded_token": '}]"\\', "rank": 1}}] * 1_000)
"""45 KB whose strings have brackets, quotes and backslashes."""


def followed(api: Api) -> bytes:
    """An answer with much after its usage, as vLLM writes the log probabilities of a prompt."""
    return answers.whole(api)[:-1] + f', "prompt_logprobs": {ODD}}}'.encode()


async def test_a_usage_that_much_text_follows_is_read_and_only_at_its_own_depth(
    make_gateway: MakeGateway, accounting: Sidecar, upstream: Upstream
) -> None:
    gateway = make_gateway([accounting], addresses={"vllm-small": upstream.address})
    before, user, after = b"".join(answers.stream(Api.RESPONSES)).rpartition(b'"user": null')
    assert user
    scripts, streamed = [], before + f'"user": {json.dumps(ODD)}'.encode() + after
    for seed in range(8):
        scripts += [Script(api, False, split(followed(api), seed)) for api in answers.APIS]
        scripts.append(Script(Api.RESPONSES, True, split(streamed, seed)))
    scripts += [
        Script(Api.COMPLETIONS, False, split(pack(followed(Api.COMPLETIONS)), 1), coding)
        for coding, pack in answers.ENCODINGS.items()
    ]
    forged = (
        b'{"tools": [{"usage": {"input_tokens": 1, "output_tokens": 1}}], "usage": null, "z": '
        + ODD.encode()
        + b"}"
    )
    false = [Script(Api.RESPONSES, False, split(forged, seed)) for seed in range(4)]
    upstream.scripts = scripts + false
    async with aiohttp.ClientSession(gateway.url, auto_decompress=False) as client:
        for number, script in enumerate(upstream.scripts):
            path, body = BODIES[script.api]
            headers = {"x-script": str(number), "x-request-id": f"after-{number}"}
            async with client.post(path, json={"model": "auto-weak", **body}, headers=headers) as response:
                assert await response.read() == b"".join(script.pieces)
    lines = wait_for_answers(accounting, [f"after-{number}" for number in range(len(upstream.scripts))])
    for script, line in zip(upstream.scripts, lines, strict=True):
        expected = answers.usage(script.api)
        if script in false:
            assert line["problem"] == "no_usage"
        else:
            assert usage_of(line) == (expected.input, expected.output), (script.api, line)
    assert gateway.envoy.stats("http.ingress.lua.errors")["http.ingress.lua.errors"] == 0


async def test_a_compressed_answer_beyond_the_limit_is_counted_as_unread(
    make_gateway: MakeGateway, accounting: Sidecar, upstream: Upstream
) -> None:
    gateway = make_gateway([accounting], addresses={"vllm-small": upstream.address})
    noise = os.urandom(300_000)
    upstream.scripts = [Script(Api.CHAT_COMPLETIONS, False, [noise[:1_000], noise[1_000:]], "gzip")]
    path, body = BODIES[Api.CHAT_COMPLETIONS]
    headers = {"x-script": "0", "x-request-id": "large"}
    async with (
        aiohttp.ClientSession(gateway.url, auto_decompress=False) as client,
        client.post(path, json={"model": "auto-weak", **body}, headers=headers) as response,
    ):
        assert await response.read() == noise
    [line] = wait_for_answers(accounting, ["large"])
    assert line["problem"] == "too_long"


async def test_clients_see_the_same_bytes_with_and_without_accounting(
    make_gateway: MakeGateway, accounting: Sidecar, sidecar: Sidecar
) -> None:
    """And without it, Envoy sends nothing."""
    gateways = make_gateway([accounting]), make_gateway([sidecar])
    seen: list[list[Any]] = [[], []]
    for gateway, found in zip(gateways, seen, strict=True):
        async with aiohttp.ClientSession(gateway.url, auto_decompress=False) as client:
            for api, (path, body) in BODIES.items():
                for stream in (False, True):
                    sent = {"model": "auto-weak", "stream": stream, **body, **(USAGE if stream else {})}
                    headers = {"x-request-id": f"{api}-{stream}"}
                    async with client.post(path, json=sent, headers=headers) as response:
                        content = re.sub(rb'"created(_at)?": \d+', b"", await response.read())
                        shown = {key.lower(): value for key, value in response.headers.items()}
                        del shown["date"], shown["x-envoy-upstream-service-time"]
                        found.append((response.status, shown, content))
    assert seen[0] == seen[1]
    wait_for_answers(accounting, ["chat_completions-True"])
    written = "access_logs.grpc_access_log.logs_written"
    assert [gateway.envoy.stats(written).get(written, 0) for gateway in gateways] == [8, 0]


async def test_tokens_pass_while_the_answer_is_still_being_made(
    make_gateway: MakeGateway, accounting: Sidecar, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway = make_gateway([accounting])
    monkeypatch.setattr(gateway.small, "speed", Speed(first_token_seconds=0.05, token_seconds=0.02))
    arrivals: list[float] = []
    headers = {"x-request-id": "slow"}
    async with (
        aiohttp.ClientSession(gateway.url) as client,
        client.post(
            "/v1/chat/completions", json=chat(stream=True, max_tokens=40), headers=headers
        ) as response,
    ):
        async for _ in response.content.iter_any():
            arrivals.append(time.monotonic())
    assert len(arrivals) >= 20
    assert arrivals[-1] - arrivals[0] > 0.5
    [line] = wait_for_answers(accounting, ["slow"])
    assert line["first_token_seconds"] >= 0.04
    assert 5 < line["tokens_per_second"] < 60


async def test_what_is_known_of_an_answer_that_is_cut_off_is_counted(
    make_gateway: MakeGateway, accounting: Sidecar
) -> None:
    """By the pool, and by the client; a client's own limit is no cut."""
    gateway = make_gateway([accounting])
    gateway.small.faults.append(Fault(drop_after=38))
    path = "/v1/chat/completions"
    async with aiohttp.ClientSession(gateway.url) as client:
        with pytest.raises(aiohttp.ClientPayloadError):
            async with client.post(
                path, json=chat(stream=True), headers={"x-request-id": "pool"}
            ) as response:
                await response.read()
        async with client.post(path, json=chat(stream=True), headers={"x-request-id": "client"}) as response:
            await response.content.readany()
            response.close()
        async with client.post(path, json=chat(max_tokens=3), headers={"x-request-id": "short"}) as response:
            await response.read()
    pool, by_client, short = wait_for_answers(accounting, ["pool", "client", "short"])
    assert (pool["problem"], by_client["problem"], short.get("problem")) == ("cut", "cut", None)
    assert 16 < pool["usage"]["output"] < 40
    assert pool["usage"]["estimated"]
    assert (short["finish"], short["usage"]["output"]) == ("length", 3)


@pytest.mark.failure
async def test_a_killed_sidecar_costs_no_answer_and_accounting_goes_on_with_the_next(
    make_gateway: MakeGateway, make_sidecar: MakeSidecar, monkeypatch: pytest.MonkeyPatch
) -> None:
    accounting = make_sidecar(ACCOUNTING="true")
    gateway = make_gateway([accounting], health_interval="0.3s")
    monkeypatch.setattr(gateway.small, "speed", Speed(first_token_seconds=0.05, token_seconds=0.01))
    async with aiohttp.ClientSession(gateway.url) as client:
        async with client.post("/v1/chat/completions", json=chat(stream=True, max_tokens=100)) as response:
            await response.content.readany()
            accounting.process.send(signal.SIGKILL)
            accounting.process.wait(5)
            assert (await response.read()).endswith(b"data: [DONE]\n\n")
        for _ in range(20):
            async with client.post("/v1/chat/completions", json=chat(model="large-model")) as response:
                assert response.status == 200
        accounting.start()
        wait_for(lambda: gateway.envoy.healthy("semroute"), 10, "the sidecar to be back")

        async def accounted_again(number: int) -> bool:
            headers = {"x-request-id": f"again-{number}"}
            async with client.post("/v1/chat/completions", json=chat(), headers=headers) as response:
                assert response.status == 200
            await asyncio.sleep(0.5)
            return any(each.startswith("again-") for each in answered(accounting))

        for number in range(30):
            if await accounted_again(number):
                return
    pytest.fail("nothing is accounted for after a restart")


async def test_accounting_is_switched_by_a_reload(make_gateway: MakeGateway, tmp_path: Path) -> None:
    path = tmp_path / "semroute.yaml"
    text = CONFIG_PATH.read_text()
    path.write_text(text)
    sidecar = start_sidecar(tmp_path, config=path)
    try:
        gateway = make_gateway([sidecar])
        async with aiohttp.ClientSession(gateway.url) as client:

            async def ask(name: str) -> None:
                headers = {"x-request-id": name}
                async with client.post("/v1/chat/completions", json=chat(), headers=headers) as response:
                    assert response.status == 200

            await ask("off")
            path.write_text(f"{text}\naccounting: true\n")
            reloaded = 'semroute_config_info{generation="2"'
            wait_for(lambda: reloaded in sidecar.read_admin("/metrics")[1], 10, "the reload")
            await ask("on")
        wait_for_answers(sidecar, ["on"])
        assert answered(sidecar).keys() == {"on"}
    finally:
        sidecar.stop()


async def test_tokens_and_dollars_are_counted_by_pool_model_and_tenant_over_all_workers(
    make_gateway: MakeGateway, make_sidecar: MakeSidecar
) -> None:
    sidecar = make_sidecar(ACCOUNTING="true", SERVER__WORKERS="2")
    gateway = make_gateway([sidecar], edit=_tenant_acme)
    expected: Counter[str] = Counter()
    async with aiohttp.ClientSession(gateway.url) as client:
        for number in range(40):
            model, pool = ("auto-weak", "small") if number % 2 else ("auto-strong", "large")
            async with client.post("/v1/chat/completions", json=chat(model=model)) as response:
                usage = (await response.json())["usage"]
                expected[pool] += usage["completion_tokens"]

    def counted(metric: str, **labels: str) -> float:
        page = sidecar.read_admin("/metrics")[1]
        lines = (line for line in page.splitlines() if line.startswith(f"semroute_{metric}_total{{"))
        wanted = [f'{key}="{value}"' for key, value in {"tenant": "acme", **labels}.items()]
        return sum(float(line.split()[-1]) for line in lines if all(each in line for each in wanted))

    for pool, tokens in expected.items():
        labels = {"pool": pool, "type": "output", "model": f"auto-{'weak' if pool == 'small' else 'strong'}"}
        wait_for(
            lambda labels=labels, tokens=tokens: counted("tokens", **labels) == tokens, 15, f"{pool}'s tokens"
        )
    assert counted("baseline_dollars", pool="large") == pytest.approx(counted("dollars", pool="large"))
    assert counted("baseline_dollars", pool="small") > 5 * counted("dollars", pool="small") > 0


def _tenant_acme(bootstrap: Bootstrap) -> None:
    kind = "type.googleapis.com/envoy.extensions.filters.http.header_mutation.v3.HeaderMutation"
    append = {"append": {"header": {"key": "x-semroute-tenant", "value": "acme"}}}
    config = {"@type": kind, "mutations": {"request_mutations": [append]}}
    filters = connection_manager(bootstrap)["http_filters"]
    filters.insert(0, {"name": "authentication", "typed_config": config})


async def test_an_answer_after_a_failover_is_the_second_pools(
    make_gateway: MakeGateway, make_sidecar: MakeSidecar
) -> None:
    sidecar = make_sidecar(ACCOUNTING="true", CONTROLLERS="{failover: {}}")
    gateway = make_gateway([sidecar])
    gateway.small.faults.append(Fault(status=500))
    headers = {"x-request-id": "moved"}
    async with (
        aiohttp.ClientSession(gateway.url) as client,
        client.post("/v1/chat/completions", json=chat(), headers=headers) as response,
    ):
        assert response.headers["x-sim-pool"] == "large"
        used = (await response.json())["usage"]
    [line] = wait_for_answers(sidecar, ["moved"])
    assert (line["pool"], usage_of(line)) == ("large", (used["prompt_tokens"], used["completion_tokens"]))
    assert answered(sidecar).keys() == {"moved"}


async def test_usage_that_a_client_leaves_open_is_asked_for_if_the_operator_wants_it(
    make_gateway: MakeGateway, make_sidecar: MakeSidecar
) -> None:
    sidecar = make_sidecar(ACCOUNTING="{include_usage: true}")
    gateway = make_gateway([sidecar])
    headers = {"x-request-id": "asked"}
    async with (
        aiohttp.ClientSession(gateway.url) as client,
        client.post("/v1/chat/completions", json=chat(stream=True), headers=headers) as response,
    ):
        content = await response.read()
    assert b'"choices": [], "usage": {' in content
    [line] = wait_for_answers(sidecar, ["asked"])
    assert "problem" not in line
    assert f'"completion_tokens": {line["usage"]["output"]},'.encode() in content
