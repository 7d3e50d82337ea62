"""The encoder on a server: the same outputs, and for every failure an answer in time that says why."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from builders import FakeEncoder, config, wrong
from inference_server import Act, InferenceServer, honest
from pydantic import ValidationError

from semroute_extproc.encoder import bundle
from semroute_extproc.encoder._pb.inference_pb2 import ModelInferResponse
from semroute_extproc.encoder.classifier import Classifier
from semroute_extproc.encoder.onnx import OnnxModel
from semroute_extproc.encoder.queue import EncodeQueue
from semroute_extproc.encoder.remote import RemoteEncoder
from semroute_extproc.encoder.signals import RawOutput
from semroute_extproc.errors import ConfigError, EncoderUnavailable
from semroute_extproc.events import Event, RemoteEncoded
from semroute_extproc.settings.process import RemoteEncoding

SHIPPED = bundle.load(bundle.default_bundle(), ("cpu",))
LOCAL = OnnxModel(SHIPPED, "cpu")
PATIENT = 5_000.0  # ms, for a server that is meant to answer
TEXT = "Prove that there are infinitely many primes."


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@asynccontextmanager
async def encoder(
    url: str, local: Any = None, texts_max: int = 8, clock: Clock | None = None, **settings: Any
) -> AsyncIterator[tuple[RemoteEncoder, list[str]]]:
    """An encoder, and the results that it emits."""
    results: list[str] = []

    def emit(event: Event) -> None:
        assert isinstance(event, RemoteEncoded)
        results.append(event.result)

    wanted = RemoteEncoding.model_validate({"url": url, "deadline_ms": PATIENT, **settings})
    subject = RemoteEncoder(SHIPPED, wanted, local, texts_max, emit, clock or Clock())
    try:
        yield subject, results
    finally:
        await subject.close()


async def encode(subject: RemoteEncoder, text: str = TEXT, seconds: float = 20.0) -> RawOutput:
    return await subject.encode(text, asyncio.get_running_loop().time() + seconds)


async def cause(subject: RemoteEncoder, text: str = TEXT) -> str:
    with pytest.raises(EncoderUnavailable) as error:
        await encode(subject, text)
    return error.value.cause.value


# What a server answers.


@pytest.mark.parametrize("text", [TEXT, "hi", "word " * 300, "x" * 8_192])
async def test_the_outputs_are_those_of_the_graph_on_this_machine(text: str) -> None:
    async with InferenceServer(SHIPPED) as server, encoder(server.url) as (subject, results):
        found, [expected] = await encode(subject, text), LOCAL.run([LOCAL.framer.frame(text)])
    for name in ("embedding", "neighbors", "domain_logits", "task_logits"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
    for name in ("difficulty_logit", "tokens", "truncated", "unk_share", "remote"):
        assert getattr(found, name) == getattr(expected, name)
    assert results == ["ok"]


async def test_the_request_names_the_model_and_the_revision_of_the_bundle() -> None:
    async with InferenceServer(SHIPPED) as server:
        for model, asked in (("{bundle}", "semroute-minilm"), ("shared", "shared")):
            async with encoder(server.url, model=model) as (subject, _):
                await encode(subject)
                assert subject.describe()["graph"] == server.requests[-1].model_name == asked
            assert server.requests[-1].model_version == str(int(SHIPPED.revision, 16))


def changed(change: Callable[[ModelInferResponse], object]) -> Act:
    async def act(response: ModelInferResponse, _: object) -> ModelInferResponse:
        change(response)
        return response

    return act


def content(response: ModelInferResponse, values: Any) -> None:
    response.raw_output_contents[0] = np.asarray(values, "<f4").tobytes()


def without(response: ModelInferResponse, name: str) -> None:
    at = [tensor.name for tensor in response.outputs].index(name)
    del response.outputs[at], response.raw_output_contents[at]


def aborted(code: grpc.StatusCode) -> Act:
    async def act(_: object, context: grpc.aio.ServicerContext) -> bytes:
        await context.abort(code, "it says why")
        raise AssertionError

    return act


async def never(*_: object) -> bytes:
    return await asyncio.get_running_loop().create_future()  # type: ignore[no-any-return]


async def garbage(*_: object) -> bytes:
    return b"\xff" * 64


async def empty(*_: object) -> bytes:
    return b""


async def huge(*_: object) -> bytes:
    return b"\0" * (2 * 1024 * 1024)


NOTHING: dict[str, Any] = {"outputs": [{}] * 9_000, "raw_output_contents": [b""] * 9_000}

WRONG: dict[str, tuple[Act, str, str]] = {
    "garbage": (garbage, "remote_invalid", "not a ModelInferResponse"),
    "an empty answer": (empty, "remote_revision", "version ''"),
    "too large": (huge, "remote_error", "larger than max"),
    "another revision": (
        changed(lambda answer: setattr(answer, "model_version", "7")),
        *("remote_revision", "version '7'"),
    ),
    "another shape": (
        changed(lambda answer: answer.outputs[0].shape.__setitem__(1, 383)),
        *("remote_invalid", "sentence_embedding is FP32 [1, 383] in 1536 bytes, instead of 384 of FP32"),
    ),
    "two texts": (
        changed(lambda answer: answer.outputs[0].shape.__setitem__(0, 2)),
        *("remote_invalid", "sentence_embedding is FP32 [2, 384]"),
    ),
    "no shape": (
        changed(lambda answer: answer.outputs[0].ClearField("shape")),
        *("remote_invalid", "sentence_embedding is FP32 []"),
    ),
    "another type": (
        changed(lambda answer: setattr(answer.outputs[0], "datatype", "FP64")),
        *("remote_invalid", "sentence_embedding is FP64 [1, 384]"),
    ),
    "too few bytes": (
        changed(lambda answer: content(answer, np.zeros(383))),
        *("remote_invalid", "sentence_embedding is FP32 [1, 384] in 1532 bytes"),
    ),
    "not a number": (
        changed(lambda answer: content(answer, np.full(384, np.nan))),
        *("remote_invalid", "sentence_embedding is not finite"),
    ),
    "infinity": (
        changed(lambda answer: content(answer, np.full(384, np.inf))),
        *("remote_invalid", "sentence_embedding is not finite"),
    ),
    "huge values": (
        changed(lambda answer: content(answer, np.full(384, 3e38))),
        *("remote_invalid", "sentence_embedding is not finite, or too large"),
    ),
    "very many dimensions": (
        changed(lambda answer: answer.outputs[0].shape.extend([2**62] * 100_000)),
        *("remote_invalid", "sentence_embedding is FP32 [1, 384, 4611686018427387904"),
    ),
    "very many outputs": (
        changed(lambda answer: answer.MergeFrom(ModelInferResponse(**NOTHING))),
        *("remote_invalid", "9005 outputs have 9005 contents"),
    ),
    "an output is missing": (
        changed(lambda answer: without(answer, "task_logits")),
        *("remote_invalid", "there is no output task_logits"),
    ),
    "a content is missing": (
        changed(lambda answer: answer.raw_output_contents.pop()),
        *("remote_invalid", "5 outputs have 4 contents"),
    ),
    "no such version": (aborted(grpc.StatusCode.NOT_FOUND), "remote_revision", "it says why"),
    "an internal error": (aborted(grpc.StatusCode.INTERNAL), "remote_error", "it says why"),
    "overloaded": (aborted(grpc.StatusCode.UNAVAILABLE), "remote_unavailable", "it says why"),
}


@pytest.mark.parametrize("kind", WRONG)
async def test_a_wrong_answer_is_refused_and_the_cause_says_how_it_is_wrong(kind: str) -> None:
    act, expected, detail = WRONG[kind]
    async with InferenceServer(SHIPPED, act) as server, encoder(server.url) as (subject, results):
        started = time.process_time()
        with pytest.raises(EncoderUnavailable) as error:
            await encode(subject)
        assert time.process_time() - started < 5.0, "the event loop reads it"
    assert (error.value.cause.value, results) == (expected, [expected])
    assert detail in error.value.detail


async def test_a_slow_server_is_given_up_at_the_deadline() -> None:
    loop = asyncio.get_running_loop()
    async with InferenceServer(SHIPPED, never) as server:
        async with encoder(server.url, deadline_ms=50) as (subject, results):
            started = loop.time()
            assert await cause(subject) == "remote_timeout"
            assert 0.04 < loop.time() - started < 2.0
        async with encoder(server.url) as (subject, results):
            with pytest.raises(EncoderUnavailable, match="remote_timeout"):
                await encode(subject, seconds=0.05)  # the request's own deadline comes first
    assert results == ["remote_timeout"]


async def test_a_server_that_is_gone_costs_no_waiting_and_one_that_is_back_is_used_again() -> None:
    async with InferenceServer(SHIPPED) as server:
        port = server.port
    async with encoder(server.url, breaker_failures=1_000) as (subject, results):
        assert await cause(subject) == "remote_unavailable"
        async with InferenceServer(SHIPPED, port=port):
            async with asyncio.timeout(10):
                while results[-1] != "ok":
                    try:
                        await encode(subject)
                    except EncoderUnavailable:
                        await asyncio.sleep(0.02)


async def test_more_texts_than_the_limit_are_refused_at_once() -> None:
    async with (
        InferenceServer(SHIPPED, never) as server,
        encoder(server.url, texts_max=2, deadline_ms=300) as (subject, results),
    ):
        await asyncio.gather(*(encode(subject) for _ in range(5)), return_exceptions=True)
        assert subject.waiting == 0
    assert sorted(results) == ["remote_busy"] * 3 + ["remote_timeout"] * 2


async def test_a_client_that_disconnects_ends_its_text_at_the_server() -> None:
    async with InferenceServer(SHIPPED, never) as server, encoder(server.url) as (subject, results):
        task = asyncio.create_task(encode(subject))
        while not server.requests:
            await asyncio.sleep(0.01)
        task.cancel()
        while not server.cancelled:
            await asyncio.sleep(0.01)
        assert (subject.waiting, results) == (0, [])


# Without an answer.


async def test_the_graph_on_this_machine_stands_in_and_its_output_says_why() -> None:
    async with InferenceServer(SHIPPED, garbage) as server:
        local = EncodeQueue(LOCAL, 1, 8)
        async with encoder(server.url, local) as (subject, results):
            found, [expected] = await encode(subject), LOCAL.run([LOCAL.framer.frame(TEXT)])
    np.testing.assert_array_equal(found.embedding, expected.embedding)
    assert (found.remote, results) == ("remote invalid", ["remote_invalid"])


async def test_the_local_pass_gets_the_rest_of_the_requests_time() -> None:
    local = FakeEncoder()
    async with (
        InferenceServer(SHIPPED, never) as server,
        encoder(server.url, local, deadline_ms=30) as (subject, _),
    ):
        assert (await encode(subject, seconds=10)).remote == "remote timeout"
    assert (local.texts, local.closed) == ([TEXT], 1)


async def test_a_cached_text_does_not_repeat_that_the_server_failed() -> None:
    async with (
        InferenceServer(SHIPPED, garbage) as server,
        encoder(server.url, EncodeQueue(LOCAL, 1, 8)) as (subject, _),
    ):
        classifier = Classifier(subject, {}, cache_entries=4)
        deadline = asyncio.get_running_loop().time() + 20
        found = [(await classifier.signals(TEXT, "en", deadline)).remote for _ in range(2)]
    assert found == ["remote invalid", ""]


# The breaker.


async def test_after_failures_in_a_row_the_server_is_left_alone_until_a_probe_succeeds() -> None:
    clock = Clock()
    async with (
        InferenceServer(SHIPPED, garbage) as server,
        encoder(server.url, clock=clock, breaker_failures=2, breaker_seconds=5) as (subject, results),
    ):
        for _ in range(4):
            await cause(subject)
        assert results == ["remote_invalid"] * 2 + ["remote_paused"] * 2
        assert len(server.requests) == 2
        clock.now = 5.0
        assert await cause(subject) == "remote_invalid"  # the probe
        assert await cause(subject) == "remote_paused"
        server.act, clock.now = honest, 10.0
        await encode(subject)
        await encode(subject)
    assert results[-2:] == ["ok", "ok"]


async def test_a_request_with_little_time_left_does_not_blame_the_server() -> None:
    async with (
        InferenceServer(SHIPPED, never) as server,
        encoder(server.url, breaker_failures=1) as (subject, results),
    ):
        for _ in range(2):
            with pytest.raises(EncoderUnavailable):
                await encode(subject, seconds=0.02)
    assert results == ["remote_timeout"] * 2


# The second server.


async def test_the_second_server_answers_what_the_first_is_slow_with() -> None:
    async with (
        InferenceServer(SHIPPED, never) as first,
        InferenceServer(SHIPPED) as second,
        encoder(first.url, hedge_url=second.url, hedge_ms=20) as (subject, results),
    ):
        await encode(subject)
        while not first.cancelled:  # its text is taken back
            await asyncio.sleep(0.01)
    assert results == ["hedged"]


async def test_the_second_server_is_not_asked_while_the_first_is_quick() -> None:
    async with (
        InferenceServer(SHIPPED) as first,
        InferenceServer(SHIPPED) as second,
        encoder(first.url, hedge_url=second.url, hedge_ms=5_000) as (subject, results),
    ):
        await encode(subject)
    assert (results, len(second.requests)) == (["ok"], 0)


@pytest.mark.parametrize("act", [garbage, aborted(grpc.StatusCode.UNAVAILABLE)])
async def test_the_second_server_is_asked_as_soon_as_the_first_fails(act: Act) -> None:
    async with (
        InferenceServer(SHIPPED, act) as first,
        InferenceServer(SHIPPED) as second,
        encoder(first.url, hedge_url=second.url, hedge_ms=5_000) as (subject, results),
    ):
        await encode(subject)
    assert results == ["hedged"]


async def test_a_server_that_always_loses_to_the_second_is_left_alone() -> None:
    async with InferenceServer(SHIPPED, never) as first, InferenceServer(SHIPPED) as second:
        settings = {"hedge_url": second.url, "hedge_ms": 20, "breaker_failures": 3}
        async with encoder(first.url, **settings) as (subject, results):
            for _ in range(5):
                await encode(subject)
    assert (results, len(first.requests)) == (["hedged"] * 5, 3)


async def test_if_both_fail_the_cause_is_not_that_one_of_them_is_paused() -> None:
    async with (
        InferenceServer(SHIPPED, garbage) as first,
        InferenceServer(SHIPPED, garbage) as second,
        encoder(first.url, hedge_url=second.url, breaker_failures=2) as (subject, results),
    ):
        for _ in range(3):
            await cause(subject)
    assert results == ["remote_invalid", "remote_invalid", "remote_paused"]


# At the start.


async def test_a_server_with_the_same_revision_is_accepted() -> None:
    async with InferenceServer(SHIPPED) as server, encoder(server.url) as (subject, _):
        await Classifier(subject, {}).verify()
    assert len(server.requests) == 1


@pytest.mark.parametrize("kind", ["another revision", "no such version", "another shape", "not a number"])
async def test_a_server_with_another_graph_is_refused_with_its_url_and_what_was_expected(kind: str) -> None:
    act, _, detail = WRONG[kind]
    async with (
        InferenceServer(SHIPPED) as first,
        InferenceServer(SHIPPED, act) as second,
        encoder(first.url, hedge_url=second.url) as (subject, _),
    ):
        with pytest.raises(ConfigError) as error:
            await subject.verify()
    [problem] = error.value.problems
    wanted = f"semroute-minilm in version {SHIPPED.model_version} (revision {SHIPPED.revision})"
    assert problem.startswith(f"encoder.remote: {second.url} does not serve {wanted}: ")
    assert detail in problem


async def test_a_server_that_is_not_there_yet_does_not_keep_the_sidecar_from_starting() -> None:
    async with InferenceServer(SHIPPED) as server:
        pass
    async with encoder(server.url) as (subject, _):
        await subject.verify()


# Secrets and certificates.


async def test_a_token_is_sent_over_tls_and_read_again_after_a_minute(certificate: Path) -> None:
    key, chain = ((certificate / name).read_bytes() for name in ("key.pem", "cert.pem"))
    token, clock = certificate / "token", Clock()
    token.write_text("first\n")
    secure = grpc.ssl_server_credentials([(key, chain)])
    async with InferenceServer(SHIPPED, credentials=secure) as server:
        settings = {"token_file": str(token), "ca_file": str(certificate / "cert.pem")}
        async with encoder(server.url, clock=clock, **settings) as (subject, _):
            seen = []
            for clock.now in (0.0, 59.0, 60.0):
                await encode(subject)
                seen.append(server.metadata["authorization"])
                token.write_text("second\n")
            assert seen == ["Bearer first", "Bearer first", "Bearer second"]
            token.unlink()
            clock.now = 120.0
            assert await cause(subject) == "remote_error"
        async with encoder(server.url, ca_file=None) as (subject, _):
            assert await cause(subject) == "remote_unavailable"  # an untrusted certificate


@pytest.mark.parametrize("text", [None, "two\nlines", "naïve"])
async def test_a_token_that_cannot_be_used_is_refused_at_the_start(tmp_path: Path, text: str | None) -> None:
    file = tmp_path / "token"
    if text is not None:
        file.write_text(text)
    with pytest.raises(ConfigError, match=r"encoder\.remote: .*token: "):
        async with encoder("https://127.0.0.1:1", token_file=str(file)):
            pass


def test_a_token_is_never_sent_in_the_clear() -> None:
    with pytest.raises(ValidationError, match="https URLs only"):
        RemoteEncoding.model_validate({"url": "http://a:1", "token_file": "t"})
    with pytest.raises(ValidationError, match="https URLs only"):
        RemoteEncoding.model_validate({"url": "https://a:1", "hedge_url": "http://b:1", "token_file": "t"})


# The settings.


def test_the_servers_deadline_must_leave_time_to_decide() -> None:
    section = {"url": "http://a:1", "deadline_ms": 100}
    assert wrong(encoder={"remote": section}) == ["must be below server.deadline_ms, 100"]
    assert wrong(encoder={"remote": {**section, "deadline_ms": 99}}) == []


@pytest.mark.parametrize("url", ["a:1", "grpc://a:1", "http://a", "http://u:p@a:1", "http://a:1/path"])
def test_a_url_is_a_scheme_a_host_and_a_port(url: str) -> None:
    with pytest.raises(ValidationError):
        RemoteEncoding.model_validate({"url": url})


def test_only_a_server_that_is_the_only_one_makes_the_graph_here_unnecessary() -> None:
    section = {"url": "http://a:1"}
    assert config().encoder.is_local
    assert config(encoder={"remote": section}).encoder.is_local
    assert not config(encoder={"remote": {**section, "fallback": "policy"}}).encoder.is_local
