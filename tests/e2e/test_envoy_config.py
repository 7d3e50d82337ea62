"""The shipped bootstrap is valid, and the variants that run here differ from it only where they say."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from broken_envoy import ACCEPTED, GATEWAYS, REFUSED, SHIPPED, broken
from ruamel.yaml import YAML
from semroute_demo import envoy
from semroute_demo.sidecar import CONFIG_PATH

from semroute_extproc.cli.check import NOT_FORWARDED
from semroute_extproc.config.models import Config
from semroute_extproc.envoy.exchange import HEADERS_SPARE
from semroute_extproc.policy.rules import TENANT_HEADER
from semroute_extproc.settings.controllers import Failover


def _refusal(path: Path) -> str:
    """Why Envoy refuses a file; empty if it accepts it."""
    command = [str(envoy.find_envoy()), "--mode", "validate", "-c", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    return done.stderr if done.returncode else ""


def _validate(path: Path) -> None:
    assert _refusal(path) == ""


@pytest.mark.parametrize("what", ACCEPTED)
def test_envoy_accepts_what_check_finds_to_be_broken(tmp_path: Path, what: str) -> None:
    (tmp_path / "envoy.yaml").write_text(broken(what))
    _validate(tmp_path / "envoy.yaml")


@pytest.mark.parametrize("what", REFUSED)
def test_some_of_what_check_finds_envoy_refuses_too(tmp_path: Path, what: str) -> None:
    (tmp_path / "envoy.yaml").write_text(broken(what))
    assert _refusal(tmp_path / "envoy.yaml") != ""


def test_envoy_accepts_the_shipped_bootstrap() -> None:
    _validate(SHIPPED)


@pytest.mark.parametrize(
    "mode",
    [
        {},
        {"request_body_mode": "BUFFERED"},
        {"request_body_mode": "FULL_DUPLEX_STREAMED", "request_trailer_mode": "SEND"},
    ],
    ids=str,
)
def test_envoy_accepts_the_variants(tmp_path: Path, mode: dict[str, str]) -> None:
    pools = {"vllm-small": ("127.0.0.1", 1), "vllm-large": ("127.0.0.1", 2), "vllm-third": ("127.0.0.1", 3)}
    changes = envoy.Variant(["/tmp/a.sock", "/tmp/b.sock"], pools, processing_mode=mode)
    path = tmp_path / "envoy.json"
    path.write_text(json.dumps(envoy.variant(envoy.shipped(), changes)))
    _validate(path)


def test_envoy_accepts_what_istio_is_asked_to_put_into_it(tmp_path: Path) -> None:
    """The patches' values, merged by hand: Istio itself does not run here."""
    documents = YAML(typ="safe", pure=True).load_all(GATEWAYS["istio"].read_text())
    patches = {
        patch["applyTo"]: patch["patch"]["value"] for patch in next(iter(documents))["spec"]["configPatches"]
    }
    bootstrap = envoy.shipped()
    bootstrap["static_resources"]["listeners"][0].update(patches["LISTENER"])
    envoy.connection_manager(bootstrap).update(patches["NETWORK_FILTER"]["typed_config"])
    filter_config = envoy.ext_proc(bootstrap)
    filter_config.clear()
    filter_config.update(patches["HTTP_FILTER"]["typed_config"])
    filter_config["grpc_service"]["envoy_grpc"]["cluster_name"] = "semroute"
    path = tmp_path / "envoy.json"
    path.write_text(json.dumps(bootstrap))
    _validate(path)


def test_a_variant_without_changes_differs_in_addresses_only() -> None:
    shipped = envoy.shipped()
    pools = {"vllm-small": ("127.0.0.1", 1), "vllm-large": ("127.0.0.1", 2)}
    changed = envoy.variant(shipped, envoy.Variant(["/s"], pools, port=3))
    for cluster in envoy.clusters(changed).values():
        if "load_assignment" in cluster:
            cluster["load_assignment"] = envoy.clusters(shipped)[cluster["name"]]["load_assignment"]
    changed["admin"] = shipped["admin"]
    changed["static_resources"]["listeners"][0]["address"] = shipped["static_resources"]["listeners"][0][
        "address"
    ]
    assert changed == shipped


def test_every_machine_dependent_value_is_marked() -> None:
    lines = [line for line in SHIPPED.read_text().splitlines() if "MACHINE:" in line]
    places = [
        "port_value: 9901",
        "port_value: 10000",
        "w0.sock",
        "address: vllm-small",
        "address: vllm-large",
    ]
    assert all(any(place in line for line in lines) for place in places)
    assert any("cluster: vllm-large" in line for line in lines)


def test_the_shipped_bootstrap_fits_the_demos_configuration() -> None:
    """The catch-all route leads to the default pool, every pool has its cluster, and the caps agree."""
    config = Config.model_validate(YAML(typ="safe").load(CONFIG_PATH.read_text()))
    shipped = envoy.shipped()
    host = envoy.connection_manager(shipped)["route_config"]["virtual_hosts"][0]
    assert host["routes"][-1]["route"]["cluster"] == config.pools[config.default_pool].cluster
    failover = config.controllers.failover
    assert failover is not None
    ends = ("", failover.cluster_suffix)
    assert {pool.cluster + end for pool in config.pools.values() for end in ends} <= set(
        envoy.clusters(shipped)
    )
    [handing] = [route for route in host["routes"] if route["name"] == "picked-or-next"]
    assert handing["match"]["headers"][0]["string_match"] == {"suffix": failover.cluster_suffix}
    redirects = handing["route"]["internal_redirect_policy"]["max_internal_redirects"]
    assert [field.le for field in Failover.model_fields["pools_max"].metadata if hasattr(field, "le")] == [
        redirects + 1
    ]
    named = [route for route in host["routes"] if route["name"].startswith("named-")]
    led = {
        route["match"]["dynamic_metadata"][0]["value"]["string_match"]["exact"]: route["route"]["cluster"]
        for route in named
    }
    others = {name: pool for name, pool in config.pools.items() if name != config.default_pool}
    assert led == {pool.model: pool.cluster for pool in others.values()}
    filter_config = envoy.ext_proc(shipped)
    received_max = filter_config["grpc_service"]["envoy_grpc"]["max_receive_message_length"]
    assert config.server.body_bytes_max < host["request_body_buffer_limit"] < received_max
    assert config.server.deadline_ms / 1000 < float(filter_config["message_timeout"].removesuffix("s"))
    (check,) = envoy.clusters(shipped)["semroute"]["health_checks"]
    noticed = check["unhealthy_threshold"] * float(check["interval"].removesuffix("s"))
    assert noticed < config.server.drain_seconds


def test_the_limits_of_envoy_leave_room_for_the_sidecars_own() -> None:
    server, shipped = Config.model_fields["server"].annotation(), envoy.shipped()  # type: ignore[misc]
    manager = envoy.connection_manager(shipped)
    assert manager["common_http_protocol_options"]["max_headers_count"] == server.max_headers_count
    assert manager["max_request_headers_kb"] == server.max_request_headers_kb
    listener = shipped["static_resources"]["listeners"][1]
    handover = listener["filter_chains"][0]["filters"][0]["typed_config"]
    more = handover["common_http_protocol_options"]["max_headers_count"] - server.max_headers_count
    assert more >= HEADERS_SPARE, "a request that is handed over has the sidecar's headers and Envoy's"
    assert handover["max_request_headers_kb"] > server.max_request_headers_kb
    [limits] = envoy.clusters(shipped)["semroute"]["circuit_breakers"]["thresholds"]
    assert min(limits["max_requests"], limits["max_pending_requests"]) > server.streams_max


def test_the_headers_that_rules_cannot_read_are_removed_or_not_forwarded() -> None:
    manager = envoy.connection_manager(envoy.shipped())
    early = manager["early_header_mutation_extensions"][0]["typed_config"]["mutations"]
    patterns = envoy.ext_proc(envoy.shipped())["forward_rules"]["disallowed_headers"]["patterns"]
    assert {*NOT_FORWARDED} == {"x-semroute-cluster", *(each["exact"] for each in patterns)}
    assert {"x-semroute-cluster", TENANT_HEADER} <= {each["remove"] for each in early}
