"""What `semroute envoy` writes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from broken_envoy import GATEWAYS, ROOT, SHIPPED
from click.testing import CliRunner, Result
from ruamel.yaml import YAML

from semroute_extproc.cli import envoy_check, main
from semroute_extproc.cli.envoy_file import ENVOY_HEADERS, scalar
from semroute_extproc.config import source

EXAMPLE = ROOT / "semroute_extproc" / "cli" / "example.yaml"
POOLS = """\
pools:
  a: {endpoints: [http://10.0.0.1:8000, "http://[::1]:8001/"], model: org/a}
  b: {endpoints: [http://b:1], model: org/b}
  c: {endpoints: [http://c:2], cluster: vllm-c, model: org/c}
default_pool: b
"""
SERVICES = """\
server:
  deadline_ms: 4000
  listen: 0.0.0.0:9114
  body_bytes_max: 50000000
  max_headers_count: 90
  max_request_headers_kb: 60
pools:
  a: {endpoints: [http://a.models.svc.cluster.local:8000], model: org/a}
  b: {endpoints: [http://b:1], model: org/b}
  c: {endpoints: [http://c:2], model: org/c}
default_pool: a
"""


def run(config: Path, *arguments: str) -> Result:
    return CliRunner().invoke(main, ["envoy", "-c", str(config), *arguments])


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str], Path]:
    def make(text: str) -> Path:
        (tmp_path / "semroute.yaml").write_text(text)
        return tmp_path / "semroute.yaml"

    return make


def written(config: Path, *arguments: str) -> list[Any]:
    result = run(config, *arguments)
    assert result.exit_code == 0, result.output
    assert envoy_check.check(YAML().load_all(result.stdout), source.load(config, {}).config) == []
    return list(YAML(typ="safe", pure=True).load_all(result.stdout))


def bootstrap(config: Path, *arguments: str) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """The document, its clusters by name, and the connection manager of the first listener."""
    [document] = written(config, *arguments)
    clusters = {each["name"]: each for each in document["static_resources"]["clusters"]}
    listener = document["static_resources"]["listeners"][0]
    return document, clusters, listener["filter_chains"][0]["filters"][0]["typed_config"]


def addresses(cluster: dict[str, Any]) -> list[Any]:
    [group] = cluster["load_assignment"]["endpoints"]
    return [each["endpoint"]["address"] for each in group["lb_endpoints"]]


def tcp(host: str, port: int) -> dict[str, Any]:
    return {"socket_address": {"address": host, "port_value": port}}


class TestBootstrap:
    def test_the_example_configuration_gives_the_shipped_file_byte_for_byte(self) -> None:
        assert run(EXAMPLE).stdout == SHIPPED.read_text()

    def test_each_pool_has_a_cluster_named_after_it_with_all_its_servers(
        self, write: Callable[[str], Path]
    ) -> None:
        _, clusters, _ = bootstrap(write(POOLS))
        assert list(clusters) == ["semroute", "a", "b", "vllm-c"]
        assert addresses(clusters["a"]) == [tcp("10.0.0.1", 8000), tcp("::1", 8001)]
        assert addresses(clusters["vllm-c"]) == [tcp("c", 2)]
        for name in ("b", "vllm-c"):
            same = {**clusters["a"], "name": name, "load_assignment": clusters[name]["load_assignment"]}
            assert clusters[name] == same, "the pools differ in their addresses only"

    def test_the_catch_all_route_leads_to_the_default_pool_and_named_routes_to_the_others(
        self, write: Callable[[str], Path]
    ) -> None:
        _, _, manager = bootstrap(write(POOLS))
        routes = manager["route_config"]["virtual_hosts"][0]["routes"]
        led = {route["name"]: route["route"].get("cluster") for route in routes if "route" in route}
        assert led["default"] == "b"
        assert {name: to for name, to in led.items() if name.startswith("named")} == {
            "named-a": "a",
            "named-c": "vllm-c",
        }

    def test_without_failover_nothing_hands_over(self, write: Callable[[str], Path]) -> None:
        document, clusters, manager = bootstrap(write(POOLS))
        assert "bootstrap_extensions" not in document
        assert [each["name"] for each in document["static_resources"]["listeners"]] == ["ingress"]
        assert "picked-or-next" not in str(manager)
        assert "handover" not in clusters

    def test_with_failover_each_pool_has_a_second_cluster_with_the_suffix(
        self, write: Callable[[str], Path]
    ) -> None:
        failover = "controllers: {failover: {cluster_suffix: -after, envoy_admin: 'http://127.0.0.1:9999'}}\n"
        document, clusters, manager = bootstrap(write(POOLS + failover))
        assert list(clusters)[4:] == ["a-after", "b-after", "vllm-c-after", "handover"]
        for name in ("a", "b", "vllm-c"):
            members = clusters[f"{name}-after"]["cluster_type"]["typed_config"]["clusters"]
            assert [each["name"] for each in members] == [name, name, "handover"]
        routes = manager["route_config"]["virtual_hosts"][0]["routes"]
        [handing] = [route for route in routes if route.get("name") == "picked-or-next"]
        assert handing["match"]["headers"][0]["string_match"] == {"suffix": "-after"}
        assert document["admin"]["address"] == tcp("127.0.0.1", 9999)

    @pytest.mark.parametrize(
        ("listen", "expected"),
        [
            ("unix:/tmp/s/w{worker}.sock", [{"pipe": {"path": f"/tmp/s/w{n}.sock"}} for n in range(2)]),
            ("unix-abstract:s{worker}", [{"pipe": {"path": f"@s{n}"}} for n in range(2)]),
        ],
    )
    def test_each_worker_is_an_endpoint(
        self, write: Callable[[str], Path], listen: str, expected: list[Any]
    ) -> None:
        _, clusters, _ = bootstrap(write(f"server: {{workers: 2, listen: '{listen}'}}\n{POOLS}"))
        assert addresses(clusters["semroute"]) == expected

    def test_a_sidecar_may_listen_on_a_port(self, write: Callable[[str], Path]) -> None:
        _, clusters, _ = bootstrap(write(f"server: {{listen: '0.0.0.0:9004'}}\n{POOLS}"))
        assert addresses(clusters["semroute"]) == [tcp("127.0.0.1", 9004)]

    def test_limits_and_timeouts_are_above_the_sidecars(self, write: Callable[[str], Path]) -> None:
        server = "server: {deadline_ms: 5000, body_bytes_max: 100000000, streams_max: 50000, "
        server += "max_headers_count: 200}\n"
        _, clusters, manager = bootstrap(write(server + POOLS))
        ours = next(each["typed_config"] for each in manager["http_filters"] if "ext_proc" in each["name"])
        assert ours["message_timeout"] == "6s"
        assert ours["grpc_service"]["envoy_grpc"]["max_receive_message_length"] == 200_000_000
        assert manager["route_config"]["virtual_hosts"][0]["request_body_buffer_limit"] == 100_065_536
        [limits] = clusters["semroute"]["circuit_breakers"]["thresholds"]
        assert limits["max_requests"] == limits["max_pending_requests"] == 200_000
        assert manager["common_http_protocol_options"]["max_headers_count"] == 200
        assert manager["max_request_headers_kb"] == 96

    def test_bodies_are_buffered_by_the_filter_if_the_sidecar_may_not_ask(
        self, write: Callable[[str], Path]
    ) -> None:
        _, _, manager = bootstrap(write("server: {allow_mode_override: false}\n" + POOLS))
        ours = next(each["typed_config"] for each in manager["http_filters"] if "ext_proc" in each["name"])
        assert ours["processing_mode"]["request_body_mode"] == "BUFFERED"
        assert not ours["allow_mode_override"]
        assert "allowed_override_modes" not in ours

    def test_one_pool_is_enough(self, write: Callable[[str], Path]) -> None:
        text = "pools:\n  only: {endpoints: [http://h:1], model: m}\ndefault_pool: only\n"
        _, clusters, _ = bootstrap(write(text + "controllers: {failover: {}}\n"))
        assert list(clusters) == ["semroute", "only", "only-or-next", "handover"]

    def test_addresses_may_be_given_on_the_command_line(self, write: Callable[[str], Path]) -> None:
        config = write("pools:\n  p: {cluster: c, model: m}\ndefault_pool: p\n")
        options = ("--pool", "p=h1:1", "--pool", "p=[::2]:2", "--listen", "127.0.0.1:8080")
        document, clusters, _ = bootstrap(config, *options)
        assert addresses(clusters["c"]) == [tcp("h1", 1), tcp("::2", 2)]
        assert document["static_resources"]["listeners"][0]["address"] == tcp("127.0.0.1", 8080)


class TestGateways:
    def test_the_example_configuration_gives_the_shipped_objects(self, write: Callable[[str], Path]) -> None:
        lines = EXAMPLE.read_text().splitlines(keepends=True)
        text = "".join(line for line in lines if "  failover: {}" not in line)
        limits = "server:\n  max_headers_count: 100\n  max_request_headers_kb: 60\n"
        config = write(text.replace("server:\n", limits))
        assert run(config, "--for", "envoy-gateway").stdout == GATEWAYS["envoy-gateway"].read_text()
        services = [f"{name}=vllm-{name}.models.svc.cluster.local:8000" for name in ("small", "large")]
        given = [part for each in services for part in ("--pool", each)]
        for target in ("istio", "inference-extension"):
            found = run(config, "--for", target, *(given if target == "istio" else ()))
            assert found.stdout == GATEWAYS[target].read_text()
        assert run(config, "--for", "kgateway").stdout == GATEWAYS["kgateway"].read_text()

    def test_envoy_gateway_gets_a_rule_for_each_pool_and_one_without_its_header(
        self, write: Callable[[str], Path]
    ) -> None:
        documents = {
            each["kind"]: each["spec"] for each in written(write(SERVICES), "--for", "envoy-gateway")
        }
        rules = documents["HTTPRoute"]["rules"]
        values = [{match["headers"][0]["value"] for match in rule["matches"]} for rule in rules[:-1]]
        assert values == [{"a"}, {"b"}, {"c"}]
        assert not any("headers" in match for match in rules[-1]["matches"])
        assert rules[-1]["backendRefs"] == [{"name": "a", "port": 8000, "namespace": "models"}]
        [ours] = documents["EnvoyExtensionPolicy"]["extProc"]
        assert (ours["messageTimeout"], ours["backendRefs"][0]["port"]) == ("5s", 9114)
        assert documents["ClientTrafficPolicy"]["connection"]["bufferLimit"] == "48Mi"

    def test_istio_gets_a_route_and_a_destination_for_each_host(self, write: Callable[[str], Path]) -> None:
        documents = written(write(SERVICES), "--for", "istio")
        routes = next(each for each in documents if each["kind"] == "VirtualService")["spec"]["http"]
        hosts = [route["route"][0]["destination"]["host"] for route in routes]
        assert hosts == ["a.models.svc.cluster.local", "b", "c", "a.models.svc.cluster.local"]
        destinations = [each["spec"]["host"] for each in documents if each["kind"] == "DestinationRule"]
        assert {*hosts} <= {*destinations}
        assert "outbound|9114||semroute" in str(documents[0])

    def test_kgateway_gets_the_sidecars_limits_its_port_and_a_target_for_each_service(
        self, write: Callable[[str], Path]
    ) -> None:
        found = {each["kind"]: each["spec"] for each in written(write(SERVICES), "--for", "kgateway")}
        ours = found["GatewayExtension"]["extProc"]
        assert (ours["messageTimeout"], ours["grpcService"]["backendRef"]["port"]) == ("5s", 9114)
        assert found["ListenerPolicy"]["default"]["perConnectionBufferLimitBytes"] == 50_065_536
        assert [each["name"] for each in found["BackendConfigPolicy"]["targetRefs"]] == ["a", "b", "c"]

    def test_a_pool_of_the_inference_extension_is_an_inference_pool_and_has_its_own_port(
        self, write: Callable[[str], Path]
    ) -> None:
        documents = written(write(SERVICES), "--for", "inference-extension")
        rules = next(each for each in documents if each["kind"] == "HTTPRoute")["spec"]["rules"]
        kind = {"group": "inference.networking.k8s.io", "kind": "InferencePool"}
        assert rules[0]["backendRefs"] == [{**kind, "name": "a", "namespace": "models"}]
        assert rules[1]["backendRefs"] == [{**kind, "name": "b"}]

    @pytest.mark.parametrize("target", GATEWAYS)
    def test_each_rule_has_the_same_paths_behind_the_sidecars_prefixes(
        self, write: Callable[[str], Path], target: str
    ) -> None:
        text = SERVICES.replace("server:\n", "server:\n  path_prefixes: [/llm, /a.b]\n")
        documents = written(write(text), "--for", target)
        route = next(each for each in documents if each["kind"] in ("HTTPRoute", "VirtualService"))["spec"]
        rules = route.get("rules") or route["http"]
        paths = [
            [str(each.get("path") or each["uri"]) for each in rule[key]]
            for rule in rules
            for key in ("matches", "match")
            if key in rule
        ]
        assert len(paths) == 4
        assert all(each == paths[0] for each in paths)
        assert all(r"(/llm|/a\\.b)?" in path for path in paths[0])

    def test_more_pools_than_a_route_has_rules_are_refused(self, write: Callable[[str], Path]) -> None:
        pools = "".join(f"  p{n}: {{endpoints: [http://p{n}:1], model: m{n}}}\n" for n in range(16))
        result = run(write(f"pools:\n{pools}default_pool: p0\n"), "--for", "istio")
        assert result.exit_code == 78
        assert "a route of istio has room for 15 pools" in result.stderr

    @pytest.mark.parametrize("target", GATEWAYS)
    def test_what_a_gateway_cannot_do_is_refused_with_its_place(
        self, write: Callable[[str], Path], target: str
    ) -> None:
        result = run(write(POOLS + "controllers: {failover: {}}\n"), "--for", target)
        assert result.exit_code == 78
        backend = "InferencePool" if target == "inference-extension" else "Service"
        assert f"semroute.yaml:2:7: pools.a.endpoints: {target} needs one {backend}" in result.stderr
        assert f"controllers.failover: {target} has no clusters for it" in result.stderr
        limit = f"max_headers_count: {target} has Envoy's own limit: write 100"
        assert (limit in result.stderr) == (target in ENVOY_HEADERS)


@pytest.mark.parametrize(
    "text",
    [
        *("vllm-small", "org/a:b", "10.0.0.1", "/run/w0.sock", "-or-next", "@s0", "::1", "a:", "no", "1e3"),
        *("12:30", "0x1f", "a, b", "a: b", "/run/a]b", "a #b", '"', "é"),
    ],
)
def test_every_string_stays_a_string_also_within_brackets(text: str) -> None:
    for version in ((1, 1), (1, 2)):
        yaml = YAML(typ="safe", pure=True)
        yaml.version = version
        assert yaml.load(f"[{{key: {scalar(text)}}}]") == [{"key": text}]


def test_a_pool_without_servers_is_refused_with_what_to_write(write: Callable[[str], Path]) -> None:
    result = run(write("pools:\n  p: {cluster: c, model: m}\ndefault_pool: p\n"))
    assert result.exit_code == 78
    assert "pools.p: has no endpoints: add them, or give --pool p=HOST:PORT" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--pool", "x=h:1"), "--pool: there is no pool 'x'"),
        (("--pool", "a=h"), "not HOST:PORT: http://h"),
        (("--pool", "a"), "not HOST:PORT"),
        (("--listen", "h"), "not HOST:PORT: h"),
    ],
)
def test_a_wrong_address_is_refused(
    write: Callable[[str], Path], arguments: tuple[str, str], message: str
) -> None:
    result = run(write(POOLS), *arguments)
    assert result.exit_code == 78
    assert message in result.stderr
