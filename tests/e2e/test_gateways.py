"""What `semroute envoy` writes for gateways, on a real Envoy configured as their control planes do it.

tests/helpers/gateway_objects.py says what is assumed of the control planes, none of which runs here.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import pytest
from gateway import CONTROL, Gateway, Pools, chat, connect, read_response, wait_for
from gateway_objects import DESTINATION, PICKER, Json, bootstrap
from ruamel.yaml import YAML
from semroute_demo.envoy import Envoy
from semroute_demo.process import HTTP
from semroute_demo.sidecar import Sidecar

from semroute_extproc.cli import envoy_check, envoy_file
from semroute_extproc.config import source
from semroute_extproc.envoy._pb import external_processor_pb2 as pb
from semroute_extproc.envoy.server import SERVICE
from semroute_extproc.request.paths import PATHS

CONFIG = """\
server: {deadline_ms: 800, drain_seconds: 0, max_headers_count: 100, max_request_headers_kb: 60}
pools:
  small: {cluster: small-cluster, endpoints: ["http://vllm-small.models:8000"], model: small-model}
  large: {cluster: large-cluster, endpoints: ["http://vllm-large.models:8000"], model: large-model}
default_pool: large
models: {auto-weak: {policy: weak}, auto-strong: {policy: strong}}
policies: {weak: {otherwise: {pool: small}}, strong: {otherwise: {pool: large}}}
"""
GATEWAYS = [target for target in envoy_file.FILES if target != "envoy"]


class Picker:
    """An endpoint picker, as the inference extension's protocol describes it, with one replica to pick."""

    def __init__(self, port: int) -> None:
        self.endpoint, self.models = f"127.0.0.1:{port}", list[str]()
        method = grpc.stream_stream_rpc_method_handler(
            self._process, pb.ProcessingRequest.FromString, pb.ProcessingResponse.SerializeToString
        )
        self._server = grpc.server(ThreadPoolExecutor(8))
        self._server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(SERVICE, {"Process": method}),)
        )
        self.port = self._server.add_insecure_port("127.0.0.1:0")
        self._server.start()

    def _process(self, messages: Iterator[Any], _: grpc.ServicerContext) -> Iterator[Any]:
        """Full duplex: the reply to the headers, with the picked endpoint, waits for the end of the body."""
        body = b""
        for message in messages:
            if message.HasField("request_body"):
                body += message.request_body.body
            ended = message.request_headers.end_of_stream or message.request_body.end_of_stream
            if not ended:
                continue
            yield self._picked()
            if message.HasField("request_body"):
                self.models.append(json.loads(body)["model"])
                streamed = pb.StreamedBodyResponse(body=body, end_of_stream=True)
                common = pb.CommonResponse(body_mutation=pb.BodyMutation(streamed_response=streamed))
                yield pb.ProcessingResponse(request_body=pb.BodyResponse(response=common))

    def _picked(self) -> Any:
        header = pb.HeaderValue(key=DESTINATION, raw_value=self.endpoint.encode())
        mutation = pb.HeaderMutation(set_headers=[pb.HeaderValueOption(header=header)])
        common = pb.CommonResponse(header_mutation=mutation, clear_route_cache=True)
        return pb.ProcessingResponse(request_headers=pb.HeadersResponse(response=common))

    def stop(self) -> None:
        self._server.stop(None)


class Running:
    """An Envoy with the objects of one gateway, the sidecar and the pools, InferencePools with pickers."""

    def __init__(self, folder: Path, pools: Pools, target: str, exits: ExitStack, rename: str = "") -> None:
        pools.clear()
        (folder / "semroute.yaml").write_text(CONFIG)
        loaded = source.load(folder / "semroute.yaml", {})
        written = envoy_file.render(loaded, target, {})
        assert envoy_check.check(YAML().load_all(written), loaded.config) == []
        documents: Sequence[Json] = list(YAML(typ="safe", pure=True).load_all(written))
        self.sidecar = Sidecar(folder / "semroute.yaml", folder)
        self.sidecar.start()
        exits.callback(self.sidecar.stop)
        ports = {f"vllm-{pool.name}": pool.port for pool in pools}
        self.pickers: dict[str, Picker] = {}
        if target == "inference-extension":
            self.pickers = {name: Picker(port) for name, port in ports.items()}
            for picker in self.pickers.values():
                exits.callback(picker.stop)
        picking = {name: picker.port for name, picker in self.pickers.items()}
        document = bootstrap(documents, str(self.sidecar.socket), ports, picking)
        if rename:
            [chain] = document["static_resources"]["listeners"][0]["filter_chains"]
            chain["filters"][0]["typed_config"]["http_filters"][0]["name"] = rename
        self.envoy, self.pools = Envoy(document, folder), pools
        self.envoy.access_log_path.touch()
        self.envoy.start()
        exits.callback(self.envoy.stop)
        wait_for(lambda: self.envoy.healthy("semroute"), 20, "the sidecar to be healthy")

    def answered_by(self, model: str, **headers: str) -> tuple[int, str]:
        url, body = f"{self.envoy.url}/v1/chat/completions", chat(model=model)
        response = HTTP.post(url, json=body, headers=headers, timeout=20.0)
        return response.status_code, response.headers.get("x-sim-pool", "")

    def status(self, method: str, path: str) -> int:
        gateway = Gateway(self.envoy, [self.sidecar], self.pools)
        with connect(gateway) as client:
            client.sendall(
                f"{method} {path or '/'} HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n".encode()
            )
            return read_response(client).status


@pytest.fixture(scope="module", params=GATEWAYS)
def running(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, pools: Pools
) -> Iterator[Running]:
    with ExitStack() as exits:
        yield Running(tmp_path_factory.mktemp(request.param), pools, request.param, exits)


def test_requests_go_where_the_sidecar_decides(running: Running) -> None:
    assert running.answered_by("auto-weak") == (200, "small")
    assert running.answered_by("auto-strong") == (200, "large")
    assert running.answered_by("small-model") == (200, "small")
    stats = running.envoy.stats("ext_proc.*(failure_mode_allowed|spurious_msgs_received|rejected_header.*)$")
    assert set(stats.values()) <= {0}, stats


def test_a_client_chooses_neither_its_cluster_nor_its_replica(running: Running) -> None:
    small = next(pool for pool in running.pools if pool.name == "small")
    spoofed = {"x-semroute-cluster": "small-cluster", DESTINATION: f"127.0.0.1:{small.port}"}
    assert running.answered_by("auto-strong", **spoofed) == (200, "large")
    received = running.pools.large.received[-1].headers
    assert "x-semroute-cluster" not in received
    assert received.get(DESTINATION, "") in ("", f"127.0.0.1:{running.pools.large.port}")


def test_paths_that_control_a_server_are_not_found(running: Running) -> None:
    running.pools.clear()
    for path in CONTROL:
        for method in ("GET", "POST"):
            assert running.status(method, path) == 404, path
    assert not running.pools.small.received
    assert not running.pools.large.received


def test_every_path_that_the_sidecar_knows_has_a_route(running: Running) -> None:
    others = ("/v1/models", "/v1/models/org%2Fname", "/v1/realtime", "/health", "/chat/completions?a=1")
    azure = "/openai/deployments/a/chat/completions"
    paths = (*PATHS, *(f"/openai{path}" for path in PATHS), *others, azure)
    before = running.envoy.stats("http.ingress.no_route$")
    for path in paths:
        running.status("GET", path)
    assert running.envoy.stats("http.ingress.no_route$") == before


@pytest.mark.parametrize("running", ["inference-extension"], indirect=True)
def test_an_endpoint_picker_reads_the_body_that_the_sidecar_has_edited(running: Running) -> None:
    picker = running.pickers["vllm-small"]
    picker.models.clear()
    assert running.answered_by("auto-weak") == (200, "small")
    assert picker.models == ["small-model"]


def test_istio_would_replace_our_server_if_our_filter_had_the_name_of_its_own(
    tmp_path: Path, pools: Pools
) -> None:
    """Why the filter of the inference extension's file is called `semroute`."""
    with ExitStack() as exits:
        running = Running(tmp_path, pools, "inference-extension", exits, rename=PICKER)
        assert running.answered_by("auto-weak") == (200, "large")


@pytest.mark.failure
@pytest.mark.parametrize("target", GATEWAYS)
def test_without_the_sidecar_the_default_pool_answers(tmp_path: Path, pools: Pools, target: str) -> None:
    with ExitStack() as exits:
        running = Running(tmp_path, pools, target, exits)
        running.sidecar.process.send(9)
        running.sidecar.process.wait(5)
        wait_for(lambda: not running.envoy.healthy("semroute"), 10, "the sidecar to be found dead")
        spoofed = {"x-semroute-cluster": "small-cluster"}
        assert running.answered_by("large-model", **spoofed) == (200, "large")
        assert running.status("POST", "/sleep") == 404
