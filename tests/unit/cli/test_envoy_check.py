"""What `semroute check --envoy` finds in Envoy's files."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from broken_envoy import ACCEPTED, GATEWAYS, REFUSED, ROOT, SHIPPED, broken, replaced
from ruamel.yaml import YAML

from semroute_extproc.cli import envoy_check
from semroute_extproc.cli.envoy_check import Finding, Node
from semroute_extproc.config import source
from semroute_extproc.config.source import Loaded

EXAMPLE = ROOT / "semroute_extproc" / "cli" / "example.yaml"
LIMITS = "max_headers_count: 100, max_request_headers_kb: 60"
PLAIN = """\
pools:
  small: {cluster: vllm-small, endpoints: [http://vllm-small:8000], model: org/small}
  large: {cluster: vllm-large, endpoints: [http://vllm-large:8000], model: org/large}
default_pool: large
"""


def findings(text: str, loaded: Loaded) -> list[Finding]:
    return envoy_check.check(YAML().load_all(text), loaded.config)


@pytest.fixture
def configured(tmp_path: Path) -> Callable[[str], Loaded]:
    def load(text: str) -> Loaded:
        path = tmp_path / "semroute.yaml"
        path.write_text(text)
        return source.load(path, {})

    return load


def test_nothing_is_wrong_with_the_shipped_files(configured: Callable[[str], Loaded]) -> None:
    assert findings(SHIPPED.read_text(), source.load(EXAMPLE, {})) == []
    for path in GATEWAYS.values():
        loaded = configured(f"server: {{{LIMITS}}}\n{PLAIN}")
        assert findings(path.read_text(), loaded) == []


@pytest.mark.parametrize("what", [*ACCEPTED, *REFUSED])
def test_each_way_to_break_the_shipped_file_is_found_at_its_line(what: str) -> None:
    text = broken(what)
    found = findings(text, source.load(EXAMPLE, {}))
    assert any({**ACCEPTED, **REFUSED}[what]["finds"] in each.happens for each in found), found
    assert all(1 <= each.line <= len(text.splitlines()) and each.write for each in found)


def test_the_documentation_says_how_many_ways_are_tested() -> None:
    assert f" {len(ACCEPTED)} ways to break" in (ROOT / "docs" / "operations.md").read_text()


def test_the_line_is_that_of_the_setting_or_of_what_lacks_it() -> None:
    loaded = source.load(EXAMPLE, {"SEMROUTE__SERVER__DEADLINE_MS": "500"})
    lines = SHIPPED.read_text().splitlines()
    [found] = findings(replaced(SHIPPED.read_text(), "message_timeout: 3s", "message_timeout: 50ms"), loaded)
    assert "message_timeout: 3s" in lines[found.line - 1]
    [found] = findings(replaced(SHIPPED.read_text(), "              message_timeout: 3s\n", ""), loaded)
    assert lines[found.line - 1].strip() == "typed_config:"
    assert "ExternalProcessor" in lines[found.line]


def test_a_choice_that_may_be_intended_is_a_note() -> None:
    loaded = source.load(EXAMPLE, {})
    [closed] = findings(broken("Envoy fails closed"), loaded)
    [timeout] = findings(broken("Envoy gives up before the deadline"), loaded)
    assert (closed.note, timeout.note) == (True, False)


def test_a_file_in_json_with_names_in_camel_case_is_read_as_envoy_reads_it() -> None:
    def camel(value: Any) -> Any:
        if isinstance(value, list):
            return [camel(each) for each in value]
        if not isinstance(value, dict):
            return value
        return {_camel(key): camel(each) for key, each in value.items()}

    def _camel(key: str) -> str:
        first, *rest = key.split("_")
        return key if key.startswith(("@", "envoy.")) else first + "".join(each.capitalize() for each in rest)

    document = camel(YAML(typ="safe", pure=True).load(SHIPPED.read_text()))
    document["admin"]["address"]["socketAddress"]["address"] = "0.0.0.0"
    found = findings(json.dumps(document, indent=1), source.load(EXAMPLE, {}))
    assert [each.happens for each in found] == ["anyone in the network can stop Envoy"]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ("server: {workers: 2}\n", "worker 1 listens on /run/semroute/w1.sock"),
        ("server: {deadline_ms: 3000}\n", "gives up before the sidecar's deadline of 3 s"),
        ("server: {body_bytes_max: 50000000}\n", "bodies that the sidecar would accept: up to 50000000"),
        ("server: {streams_max: 20000}\n", "before the sidecar can count them"),
        ("server: {allow_mode_override: false}\n", "no body is read"),
        ("server: {listen: 0.0.0.0:9004}\n", "worker 0 listens on 127.0.0.1:9004"),
        ("controllers: {failover: {cluster_suffix: -after}}\n", "there is no cluster 'vllm-small-after'"),
        ("controllers: {session: {headers: [authorization]}}\n", "authorization is hidden"),
        (
            "models: {auto: {policy: p}}\npolicies: {p: {rules: [{name: r, pool: small, "
            "when: '\"cookie\" in request.headers'}], otherwise: {pool: large}}}\n",
            "cookie is hidden from the sidecar: the rule r of p never holds",
        ),
    ],
)
def test_the_shipped_file_does_not_fit_every_configuration(
    configured: Callable[[str], Loaded], settings: str, expected: str
) -> None:
    found = findings(SHIPPED.read_text(), configured(PLAIN + settings))
    assert any(expected in each.happens for each in found), found


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("HttpGrpcAccessLogConfig", "TcpGrpcAccessLogConfig"),
        ('local space, head_max, tail_max, encoded_max, every = "semroute.answer"', 'local space = "a"'),
    ],
)
def test_accounting_needs_its_filter_and_its_log(
    configured: Callable[[str], Loaded], old: str, new: str
) -> None:
    text, accounting = replaced(SHIPPED.read_text(), old, new), "accounting: true\n"
    assert [each for each in findings(text, configured(PLAIN)) if not each.note] == []
    found = [each.happens for each in findings(text, configured(PLAIN + accounting))]
    assert "answers are not accounted for" in found
    shipped = findings(SHIPPED.read_text(), configured(PLAIN + accounting))
    assert [each for each in shipped if not each.note] == []


@pytest.mark.parametrize(
    ("file", "old", "new", "expected"),
    [
        ("istio", "              - {remove: x-semroute-cluster}\n", "", "a client can choose its cluster"),
        ("istio", "message_timeout: 3s", "message_timeout: 0.1s", "gives up before"),
        (
            "istio",
            "per_connection_buffer_limit_bytes: 33619968",
            "a: 1",
            "bodies that the sidecar would accept",
        ),
        (
            "istio",
            "{exact: vllm-small}}, uri: &chats",
            "{exact: a}}, uri: &chats",
            "requests for 'vllm-small' find",
        ),
        ("istio", "    - {uri: *chats}\n", "", "no route before they are decided"),
        ("istio", "    - {uri: *chats}\n", "    - {uri: {prefix: /}}\n", "clients reach /sleep of a pool"),
        ("istio", "allow_mode_override: true", "allow_mode_override: false", "no body is read"),
        ("envoy-gateway", "      - x-semroute-cluster\n", "", "a client can choose its cluster"),
        ("envoy-gateway", "messageTimeout: 3s", "messageTimeout: 100ms", "gives up before"),
        ("envoy-gateway", "bufferLimit: 33Mi", "bufferLimit: 32Ki", "bodies that the sidecar would accept"),
        ("envoy-gateway", "allowModeOverride: true", "allowModeOverride: false", "no body is read"),
        ("envoy-gateway", "failOpen: true", "failOpen: false", "every request fails"),
        (
            "envoy-gateway",
            "value: vllm-large}], path: *chats",
            "value: a}], path: *chats",
            "requests for 'vllm-large' find no route",
        ),
        ("envoy-gateway", "    - {path: *chats}\n", "", "no route before they are decided"),
        (
            "envoy-gateway",
            "    - {path: *chats}\n",
            "    - {path: {value: /}}\n",
            "clients reach /v1/load_lora_adapter of a pool",
        ),
        ("kgateway", "        - x-semroute-cluster\n", "", "a client can choose its cluster"),
        ("kgateway", "messageTimeout: 3s", "messageTimeout: 100ms", "gives up before"),
        (
            "kgateway",
            "perConnectionBufferLimitBytes: 33619968",
            "a: 1",
            "bodies that the sidecar would accept",
        ),
        ("kgateway", "allowProcessingModeOverride: true", "a: 1", "no body is read"),
        ("kgateway", "failOpen: true", "failOpen: false", "every request fails"),
        ("inference-extension", "    - {path: *chats}\n", "", "no route before they are decided"),
    ],
)
def test_the_objects_of_gateways_are_checked_too(
    configured: Callable[[str], Loaded], file: str, old: str, new: str, expected: str
) -> None:
    text = replaced(GATEWAYS[file].read_text(), old, new)
    found = findings(text, configured(PLAIN))
    assert any(expected in each.happens for each in found), found


def test_failover_is_refused_at_a_gateway(configured: Callable[[str], Loaded]) -> None:
    text = GATEWAYS["istio"].read_text()
    found = findings(text, configured(PLAIN + "controllers: {failover: {}}\n"))
    assert "gateways have no clusters for controllers.failover" in [each.happens for each in found]


@pytest.mark.parametrize(
    ("value", "number"),
    [
        *[("3s", 3.0), ("0.25s", 0.25), ("100ms", 0.1), ("5m", 300.0), ("33Mi", 33 * 2**20)],
        *[(7, 7.0), ("7", 7.0), (None, -1.0), ("x", -1.0)],
    ],
)
def test_numbers_have_the_units_of_envoy_and_kubernetes(value: Any, number: float) -> None:
    assert Node(value, 1).number(-1.0) == pytest.approx(number)


def test_any_value_in_any_place_gives_findings_and_never_an_error() -> None:
    config = source.load(EXAMPLE, {}).config
    document = YAML(typ="safe", pure=True).load(SHIPPED.read_text())
    document = json.loads(json.dumps(document))  # nothing is shared

    def places(node: Any) -> Iterator[tuple[Any, Any]]:
        for key in [*node] if isinstance(node, dict) else range(len(node)):
            yield node, key
            if isinstance(node[key], dict | list):
                yield from places(node[key])

    every = list(places(document))
    assert len(every) > 500
    for number, (parent, key) in enumerate(every):
        kept = parent[key]
        for value in (None, 7, "(", [None, 1], {"a": ["b"]})[number % 5 :: 2]:
            parent[key] = value
            assert all(isinstance(each, Finding) for each in envoy_check.check([document], config))
        parent[key] = kept
    assert envoy_check.check([document], config) == []
