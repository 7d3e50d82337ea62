"""The requests that are sent, and the arithmetic of what comes back."""

from __future__ import annotations

import json
import os
import time
from collections import Counter

import pytest
from semroute_bench import load, measuring, traffic
from semroute_bench.client import Answer
from semroute_bench.measuring import Samples

from semroute_extproc.encoder import bundle
from semroute_extproc.encoder.preprocess import Framer
from semroute_extproc.envoy._pb import external_processor_pb2 as pb


def test_a_request_is_what_envoy_sends() -> None:
    sent = load.exchange(b'{"model": "auto"}')
    headers = pb.ProcessingRequest.FromString(sent.headers).request_headers.headers.headers
    assert (":method", b"POST") in [(header.key, header.raw_value) for header in headers]
    body = pb.ProcessingRequest.FromString(sent.body).request_body
    assert (body.body, body.end_of_stream) == (b'{"model": "auto"}', True)


@pytest.mark.parametrize("tokens", [16, 64, 512])
def test_a_prompt_has_the_tokens_it_is_to_have(tokens: int) -> None:
    path = bundle.default_bundle()
    framer = Framer(path / "tokenizer.json", bundle.read_manifest(path).encoder)
    assert framer.frame(load.prompt_of(framer, tokens)).tokens + 2 == pytest.approx(tokens, abs=1)


def test_the_bodies_are_as_large_as_they_say() -> None:
    sizes = {name: len(body) for name, body in load.bodies("auto").items()}
    assert list(sizes.values()) == pytest.approx([2_000, 42_000, 1_400_000, 10_000_000], rel=0.15)


def test_cpu_time_of_a_process_is_its_own_and_fine_grained() -> None:
    before, mine = measuring.cpu_seconds(os.getpid()), time.process_time()
    while time.process_time() - mine < 0.02:
        pass
    assert measuring.cpu_seconds(os.getpid()) - before == pytest.approx(0.02, abs=0.01)


def test_a_ratio_is_taken_round_by_round() -> None:
    """A slow moment in one round falls on both, and moves the ratio of medians but not this."""
    samples = Samples()
    for ours, base in ((1.1, 1.0), (5.5, 5.0), (1.1, 1.0)):
        samples["ours"].append(ours)
        samples["base"].append(base)
    assert samples.ratios("ours", "base") == pytest.approx([1.1, 1.1, 1.1])


def test_arrivals_are_answered_decided_or_fallen_back() -> None:
    answers = [answer(10.0, "routed"), answer(1.0, "fallback"), Answer(0.0, b""), answer(20.0, "routed")]
    row = traffic.row(3.0, 100.0, answers)
    assert (row["sent"], row["answered"], row["decided"], row["fallen back"]) == (4, 0.75, 0.5, 0.25)


def answer(ms: float, outcome: str) -> Answer:
    reply = pb.ProcessingResponse()
    reply.dynamic_metadata.update({"semroute": {"outcome": outcome}})
    return Answer(ms, reply.SerializeToString())


def test_the_memory_tests_requests_are_mostly_named_and_no_new_text_comes_twice() -> None:
    kinds = Counter(json.loads(body(each))["model"] for each in traffic.mixed(0, 2_000))
    assert kinds == {"Qwen/Qwen3-8B": 1_800, "auto": 200}
    texts = Counter(each.body for each in traffic.mixed(0, 20_000))
    assert sum(count == 1 for count in texts.values()) == 20_000 // traffic.PERIOD


def body(exchange: load.Exchange) -> bytes:
    return pb.ProcessingRequest.FromString(exchange.body).request_body.body
