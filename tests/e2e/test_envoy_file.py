"""What `semroute envoy` writes runs in Envoy and routes; `semroute check` finds nothing in it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from gateway import Pools, chat, wait_for
from ruamel.yaml import YAML
from semroute_demo.envoy import Envoy, parsed
from semroute_demo.pool import Fault
from semroute_demo.process import HTTP, free_port
from semroute_demo.sidecar import Sidecar

from semroute_extproc.cli import envoy_check, envoy_file
from semroute_extproc.config import source

HEAD = """\
server: {deadline_ms: 800, drain_seconds: 0}
default_pool: large
models: {auto-weak: {policy: weak}, auto-strong: {policy: strong}}
policies: {weak: {otherwise: {pool: small}}, strong: {otherwise: {pool: large}}}
"""
TWO = """\
pools:
  small: {endpoints: ["http://127.0.0.1:SMALL"], model: small-model}
  large: {cluster: vllm-large, endpoints: ["http://127.0.0.1:LARGE"], model: large-model}
"""
REPLICAS = """\
pools:
  small: {endpoints: ["http://127.0.0.1:SMALL", "http://localhost:SMALL"], model: small-model}
  large: {endpoints: ["http://127.0.0.1:LARGE"], model: large-model}
  spare: {endpoints: ["http://127.0.0.1:LARGE"], model: auto}
"""

Running = tuple[Envoy, Pools]


@pytest.fixture
def run(tmp_path: Path, pools: Pools) -> Iterator[Callable[..., Running]]:
    """Start the sidecar and an Envoy with the file that is written for a configuration."""
    pools.clear()
    with ExitStack() as exits:

        def start(text: str, **settings: str) -> Running:
            for pool in pools:
                text = text.replace(pool.name.upper(), str(pool.port))
            config = tmp_path / "semroute.yaml"
            config.write_text(HEAD + text)
            environment = {
                "SEMROUTE__SERVER__LISTEN": f"unix:{tmp_path}/w{{worker}}.sock",
                **{f"SEMROUTE__{key}": value for key, value in settings.items()},
            }
            loaded = source.load(config, environment)
            written = envoy_file.render(loaded, "envoy", {}, f"127.0.0.1:{free_port()}")
            assert envoy_check.check(YAML().load_all(written), loaded.config) == []
            sidecar = Sidecar(config, tmp_path, environment)
            sidecar.start()
            exits.callback(sidecar.stop)
            bootstrap = parsed(written)
            bootstrap["admin"]["address"]["socket_address"]["port_value"] = 0
            envoy = Envoy(bootstrap, tmp_path)
            envoy.start()
            exits.callback(envoy.stop)
            for pool in loaded.config.pools.values():
                wait_for(lambda name=pool.cluster: envoy.healthy(name), 20, f"{pool.cluster} to be healthy")
            envoy.wait_for_sidecar()
            return envoy, pools

        yield start


def answered_by(envoy: Envoy, model: str, **more: Any) -> tuple[int, str]:
    response = HTTP.post(f"{envoy.url}/v1/chat/completions", json=chat(model=model, **more), timeout=20.0)
    return response.status_code, response.headers.get("x-sim-pool", "")


@pytest.mark.parametrize(
    ("text", "settings"),
    [
        (TWO, {}),
        (TWO + "controllers: {session: {}, failover: {}}\n", {"SERVER__WORKERS": "2"}),
        (REPLICAS, {"SERVER__LISTEN": "tcp"}),
        (TWO, {"SERVER__ALLOW_MODE_OVERRIDE": "false"}),
    ],
    ids=["two pools", "failover, sessions and two workers", "replicas and a port", "the filter buffers"],
)
def test_requests_go_where_the_configuration_says(
    run: Callable[..., Running], text: str, settings: dict[str, str]
) -> None:
    if settings.get("SERVER__LISTEN"):
        settings = {"SERVER__LISTEN": f"127.0.0.1:{free_port()}"}
    envoy, _ = run(text, **settings)
    assert answered_by(envoy, "auto-weak") == (200, "small")
    assert answered_by(envoy, "auto-strong") == (200, "large")
    assert answered_by(envoy, "small-model") == (200, "small")
    assert answered_by(envoy, "auto-weak", padding="x" * 3_000_000) == (200, "small")
    assert set(envoy.stats("failure_mode_allowed$|spurious_msgs_received$|rejected_header").values()) == {0}


def test_a_failed_request_goes_to_the_next_pool(run: Callable[..., Running]) -> None:
    envoy, pools = run(TWO + "controllers: {failover: {cluster_suffix: -then}}\n")
    pools.small.faults.append(Fault(500))
    assert answered_by(envoy, "auto-weak") == (200, "large")


def test_a_client_cannot_choose_its_cluster(run: Callable[..., Running]) -> None:
    envoy, _ = run(TWO)
    headers = {"x-semroute-cluster": "small"}
    response = HTTP.post(f"{envoy.url}/v1/chat/completions", json=chat(model="auto-strong"), headers=headers)
    assert response.headers["x-sim-pool"] == "large"
