"""What `semroute up` learns from servers, and what it guesses."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from semroute_demo.servers import PRICES, Model, ask, strongest

from semroute_extproc.cli import live
from semroute_extproc.errors import EndpointError
from semroute_extproc.state import pool_metrics

GAUGES = b"vllm:num_requests_running 0.0\nvllm:num_requests_waiting 0.0\n"


def model(name: str) -> Model:
    return Model(name.lower(), name, ("http://h:8000",), (), None, False)


class Answers(ThreadingHTTPServer):
    """A server whose pages a test sets: path to status and body."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.pages: dict[str, tuple[int, bytes]] = {}
        self.keys: list[str | None] = []
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    def serves(self, *cards: dict[str, Any], metrics: bytes = GAUGES) -> str:
        """Answer as vLLM does; returns the address."""
        self.pages = {"/v1/models": (200, json.dumps({"data": cards}).encode()), "/metrics": (200, metrics)}
        return self.url


class Handler(BaseHTTPRequestHandler):
    server: Answers

    def do_GET(self) -> None:
        self.server.keys.append(self.headers.get("authorization"))
        status, body = self.server.pages.get(self.path, (404, b""))
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def servers_() -> Iterator[list[Answers]]:
    running = [Answers() for _ in range(3)]
    for each in running:
        threading.Thread(target=each.serve_forever, daemon=True).start()
    yield running
    for each in running:
        each.shutdown()
        each.server_close()


class TestAsk:
    def test_a_model_has_its_context_its_other_names_and_whether_its_load_can_be_read(
        self, servers_: list[Answers]
    ) -> None:
        one, two, _ = servers_
        first = one.serves({"id": "Qwen/Qwen3-8B", "max_model_len": 40960}, {"id": "chat"})
        second = two.serves({"id": "org/large"}, metrics=b"something 1\n")
        assert ask([f"{first}/v1/", second.removeprefix("http://")], "") == [
            Model("qwen3-8b", "Qwen/Qwen3-8B", (first,), ("chat",), 40960, True),
            Model("large", "org/large", (second,), (), None, False),
        ]

    def test_servers_with_one_model_are_its_replicas(self, servers_: list[Answers]) -> None:
        urls = [each.serves({"id": "org/m"}) for each in servers_]
        [found] = ask([*urls, urls[0]], "")
        assert found.endpoints == tuple(urls)

    def test_the_smallest_context_of_its_replicas_is_the_models(self, servers_: list[Answers]) -> None:
        limits = (40_960, 8_192, None)
        urls = [s.serves({"id": "m", "max_model_len": n}) for s, n in zip(servers_, limits, strict=True)]
        assert ask(urls, "")[0].context == 8_192

    def test_a_name_that_yaml_reads_as_another_value_is_no_name_of_a_pool(
        self, servers_: list[Answers]
    ) -> None:
        urls = [s.serves({"id": name}) for s, name in zip(servers_, ("org/true", "null", "7b"), strict=True)]
        assert [each.name for each in ask(urls, "")] == ["m-true", "m-null", "m-7b"]

    def test_two_models_with_one_last_name_get_two_pools(self, servers_: list[Answers]) -> None:
        urls = [each.serves({"id": name}) for each, name in zip(servers_, ("a/m", "b/m"), strict=False)]
        assert [each.name for each in ask(urls, "")] == ["m", "m-2"]

    def test_a_name_that_has_two_meanings_is_no_alias(self, servers_: list[Answers]) -> None:
        names = [("a", "auto", "chat", "Auto"), ("b", "chat", "a", "only", "A")]
        cards = [[{"id": name} for name in each] for each in names]
        urls = [server.serves(*each) for server, each in zip(servers_, cards, strict=False)]
        assert [each.aliases for each in ask(urls, "")] == [(), ("only",)]

    @pytest.mark.parametrize("name", ["*", "gpt-*", "my model", 'a"]\nadmin: {}', "", "a" * 500, "😀"])
    def test_a_server_chooses_no_pattern_and_nothing_that_the_configuration_refuses(
        self, servers_: list[Answers], name: str
    ) -> None:
        url = servers_[0].serves({"id": "m", "max_model_len": True}, {"id": name}, {"id": "other"})
        [found] = ask([url], "")
        assert (found.aliases, found.context) == (("other",), None)

    def test_no_more_aliases_are_taken_than_a_pool_may_have(self, servers_: list[Answers]) -> None:
        url = servers_[0].serves({"id": "m"}, *({"id": f"a{number}"} for number in range(200)))
        assert len(ask([url], "")[0].aliases) == 64

    def test_a_list_without_an_end_is_given_up(
        self, servers_: list[Answers], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(pool_metrics, "PAGE_BYTES_MAX", 1_000)
        url = servers_[0].serves({"id": "m" * 200_000})
        with pytest.raises(EndpointError, match="not a list of models"):
            ask([url], "")

    def test_the_key_is_sent_to_the_list_of_models_only(self, servers_: list[Answers]) -> None:
        ask([servers_[0].serves({"id": "m"})], "secret")
        assert servers_[0].keys == ["Bearer secret", None]

    @pytest.mark.parametrize(
        ("page", "key", "problem"),
        [
            ((401, b""), "", "answers 401: it needs a key: export one and name it with --api-key-env"),
            ((403, b""), "wrong", "answers 403: the key is refused"),
            ((404, b""), "", "answers 404, not a list of models"),
            ((200, b"<html>"), "", "answers 200, not a list of models"),
            ((200, b'{"data": [{"id": 7}]}'), "", "serves no model"),
            ((200, b'{"data": []}'), "", "serves no model"),
            ((200, b'{"data": 1}'), "", "not a list of models"),
            ((200, b'{"data": [{"id": "/data/model"}]}'), "", "start it with --served-model-name NAME"),
        ],
    )
    def test_a_server_without_a_model_is_refused_with_what_to_do(
        self, servers_: list[Answers], page: tuple[int, bytes], key: str, problem: str
    ) -> None:
        servers_[0].pages = {"/v1/models": page}
        with pytest.raises(EndpointError) as refused:
            ask([servers_[0].url], key)
        assert problem in str(refused.value)
        assert servers_[0].url in str(refused.value)

    @pytest.mark.parametrize("url", ["https://h:1", "http://user:secret@h:1", "http://", "ftp://h"])
    def test_an_address_that_envoy_cannot_use_is_refused(self, url: str) -> None:
        with pytest.raises(EndpointError, match="give an address such as"):
            ask([url], "")


class TestGuesses:
    @pytest.mark.parametrize(
        ("name", "billions"),
        [
            ("Qwen/Qwen3-8B", 8.0),
            ("meta-llama/Llama-3.3-70B-Instruct", 70.0),
            ("mistralai/Mixtral-8x7B-Instruct-v0.1", 56.0),
            ("Qwen/Qwen3-235B-A22B", 235.0),
            ("Qwen/Qwen2.5-0.5B-Instruct-AWQ", 0.5),
            ("deepseek-ai/DeepSeek-V3.2", 671.0),
            ("org/b", None),
            ("org/model-4bit", None),
        ],
    )
    def test_the_size_comes_from_the_name(self, name: str, billions: float | None) -> None:
        assert model(name).billions == billions

    def test_a_larger_model_is_never_cheaper(self) -> None:
        prices = [model(f"m-{size}B").blended for size in (1, 8, 14, 32, 70, 200, 700)]
        assert prices == sorted(prices)
        assert len({*prices}) == len(prices)
        assert model("unknown").price is None

    def test_the_table_says_when_it_was_made(self) -> None:
        assert PRICES["date"] > "2026"
        limits = [each["up_to"] for each in PRICES["classes"][:-1]]
        assert limits == sorted(limits)
        assert "up_to" not in PRICES["classes"][-1]

    def test_the_stronger_model_is_the_larger_one_or_the_one_that_is_named(self) -> None:
        models = [model("a-70B"), model("b-8B")]
        assert strongest(models, "") == (models[0], "70 billion parameters, by its name")
        assert strongest(models, "b-8B") == (models[1], "you said so")

    def test_without_a_size_nothing_is_guessed(self) -> None:
        assert strongest([model("a-70B"), model("b")], "") is None
        assert strongest([model("a-8B"), model("b-8B")], "") is None

    def test_a_model_that_nobody_serves_is_refused_with_those_that_are(self) -> None:
        with pytest.raises(EndpointError, match="they have a, b"):
            strongest([model("a"), model("b")], "c")


def test_servers_are_given_up_on_after_a_while() -> None:
    assert 0 < live.ANSWER_SECONDS_MAX <= 10
