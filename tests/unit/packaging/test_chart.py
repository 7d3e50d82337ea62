"""The chart and the gateways' files: every name, port, path and flag they give agrees with the code.

Helm renders the chart, through its SDK and without a cluster.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import pytest
from helm_python import Chart
from helm_python.chart import lint
from ruamel.yaml import YAML
from semroute_demo import envoy

from semroute_extproc import __version__
from semroute_extproc.cli import main
from semroute_extproc.config import source as config_source
from semroute_extproc.config.models import Config
from semroute_extproc.envoy import replies as mutations
from semroute_extproc.envoy import server
from semroute_extproc.errors import ConfigError
from semroute_extproc.serve import app

ROOT = Path(__file__).resolve().parents[3]
CHART = ROOT / "charts" / "semroute"
RELEASE, NAMESPACE = "semroute", "semroute"


def plain(text: str) -> Any:
    return YAML(typ="safe", pure=True).load(text)


def documents(path: Path) -> list[Any]:
    return list(YAML(typ="safe", pure=True).load_all(path.read_text()))


VALUES = plain((CHART / "values.yaml").read_text())
GATEWAY = {each["kind"]: each for each in documents(ROOT / "envoy" / "envoy-gateway.yaml")}
ISTIO = {each["kind"]: each for each in documents(ROOT / "envoy" / "istio.yaml")}
PATCHES = {patch["applyTo"]: patch for patch in ISTIO["EnvoyFilter"]["spec"]["configPatches"]}
ISTIO_FILTER = PATCHES["HTTP_FILTER"]["patch"]["value"]["typed_config"]


def render(template: str, values: dict[str, Any]) -> Any:
    """The object that Helm makes of a template; None if the template renders to nothing."""
    with Chart.load(CHART) as chart:
        made = chart.render(values, name=RELEASE, namespace=NAMESPACE)
    return plain(made.get(f"semroute/templates/{template}", ""))


def container() -> dict[str, Any]:
    [found] = render("deployment.yaml", VALUES)["spec"]["template"]["spec"]["containers"]
    return dict(found)


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """The configuration as the pods get it."""
    written = render("configmap.yaml", VALUES)["data"]["semroute.yaml"]
    path = tmp_path / "semroute.yaml"
    path.write_text(written)
    return config_source.load(path, {}).config


def test_the_charts_version_is_the_packages() -> None:
    chart = plain((CHART / "Chart.yaml").read_text())
    assert chart["version"] == chart["appVersion"] == __version__


def test_helm_finds_nothing_to_complain_about() -> None:
    report = lint(CHART, strict=True)
    assert report["errors"] == []
    assert [each for each in report["messages"] if each["severity"] > 1] == []


@pytest.mark.parametrize("template", sorted(path.name for path in (CHART / "templates").glob("*.yaml")))
def test_every_template_makes_an_object_named_after_the_release(template: str) -> None:
    values = {**VALUES, "podMonitor": {"enabled": True, "interval": "15s"}, "podLabels": {"team": "a"}}
    values |= {"prometheusRule": {"enabled": True, "labels": {}}}
    values |= {"config": {**VALUES["config"], "admin": {"listen": "0.0.0.0:9090"}}}
    values |= {"podAnnotations": {"b": "c"}, "nodeSelector": {"d": "e"}, "tolerations": [{"key": "f"}]}
    made = render(template, values)
    assert made["metadata"]["name"] == RELEASE
    assert made["metadata"]["labels"]["app.kubernetes.io/instance"] == RELEASE
    if made["kind"] == "Deployment":
        pod = made["spec"]["template"]
        assert pod["metadata"]["labels"]["team"] == "a"
        assert pod["metadata"]["annotations"] == {"b": "c"}
        assert pod["spec"]["tolerations"] == [{"key": "f"}]
        assert pod["spec"]["nodeSelector"] == {"d": "e"}
    assert render("podmonitor.yaml", VALUES) is None, "it needs the operator's own kinds"


def test_selectors_find_the_pods_of_the_deployment() -> None:
    deployment = render("deployment.yaml", VALUES)["spec"]
    labels = deployment["template"]["metadata"]["labels"].items()
    assert deployment["selector"]["matchLabels"].items() <= labels
    assert render("service.yaml", VALUES)["spec"]["selector"].items() <= labels
    assert render("poddisruptionbudget.yaml", VALUES)["spec"]["selector"]["matchLabels"].items() <= labels


def test_the_configuration_is_right_and_listens_where_the_service_leads(config: Config) -> None:
    ports = {port["name"]: port["containerPort"] for port in container()["ports"]}
    assert config.server.listen == f"0.0.0.0:{ports['grpc']}"
    assert config.admin.listen == f"127.0.0.1:{ports['metrics']}", "other pods must not reach it"
    [port] = render("service.yaml", VALUES)["spec"]["ports"]
    assert (port["port"], port["targetPort"]) == (ports["grpc"], "grpc")


def test_there_are_as_many_lanes_as_the_pod_requests_cores(config: Config) -> None:
    assert config.encoder.threads == int(VALUES["resources"]["requests"]["cpu"])


def test_the_images_tag_is_the_charts_application_unless_it_is_set() -> None:
    assert container()["image"].endswith(f":{__version__}")
    values = {**VALUES, "image": {**VALUES["image"], "tag": "other"}}
    [found] = render("deployment.yaml", values)["spec"]["template"]["spec"]["containers"]
    assert found["image"].endswith(":other")


def test_the_container_calls_a_command_that_exists_with_the_mounted_file() -> None:
    command = container()["args"]
    found = main.get_command(click.Context(main), command[0])
    assert found is not None
    found.make_context(command[0], list(command[1:]))
    mount, _ = container()["volumeMounts"]
    assert command[-1] == f"{mount['mountPath']}/semroute.yaml"
    assert "subPath" not in mount, "a reload would never come"


def test_the_probes_ask_the_service_that_reports_its_health() -> None:
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container()[probe]["grpc"] == {"port": VALUES["service"]["port"], "service": server.SERVICE}


def test_metrics_are_scraped_only_where_they_are_offered_and_with_the_token() -> None:
    monitored = {**VALUES, "podMonitor": {"enabled": True, "interval": "1s"}}
    with pytest.raises(Exception, match=r"needs config\.admin\.listen"):
        render("podmonitor.yaml", monitored)
    monitored |= {"config": {**VALUES["config"], "admin": {"listen": "0.0.0.0:9090"}}}
    [endpoint] = render("podmonitor.yaml", monitored)["spec"]["podMetricsEndpoints"]
    assert f'"{endpoint["path"]}"' in Path(app.__file__).read_text()
    assert "authorization" not in endpoint
    secured = {**monitored, "adminToken": {"secret": "s", "key": "k"}}
    [endpoint] = render("podmonitor.yaml", secured)["spec"]["podMetricsEndpoints"]
    assert endpoint["authorization"] == {"credentials": {"name": "s", "key": "k"}}
    [pod] = render("deployment.yaml", secured)["spec"]["template"]["spec"]["containers"]
    [variable] = pod["env"]
    assert variable["valueFrom"] == {"secretKeyRef": {"name": "s", "key": "k"}}
    with pytest.raises(ConfigError, match=r"admin\.token"):
        config_source.load(ROOT / "semroute_extproc/cli/example.yaml", {variable["name"]: "short"})


def test_other_pods_reach_the_gateways_port_and_no_other_unless_they_are_named() -> None:
    policy = render("networkpolicy.yaml", VALUES)["spec"]
    assert policy["podSelector"]["matchLabels"] == render("service.yaml", VALUES)["spec"]["selector"]
    assert policy["policyTypes"] == ["Ingress"]
    assert policy["ingress"] == [{"ports": [{"port": "grpc"}]}]
    gateways, metrics = [{"namespaceSelector": {}}], [{"podSelector": {"matchLabels": {"a": "b"}}}]
    named = {**VALUES, "networkPolicy": {"enabled": True, "gateways": gateways, "metrics": metrics}}
    assert render("networkpolicy.yaml", named)["spec"]["ingress"] == [
        {"ports": [{"port": "grpc"}], "from": gateways},
        {"ports": [{"port": "metrics"}], "from": metrics},
    ]
    assert {"grpc", "metrics"} == {port["name"] for port in container()["ports"]}
    assert render("networkpolicy.yaml", {**VALUES, "networkPolicy": {"enabled": False}}) is None


def test_a_pod_has_time_to_drain(config: Config) -> None:
    spec = render("deployment.yaml", VALUES)["spec"]["template"]["spec"]
    needed = config.server.drain_seconds + server.STOP_GRACE_SECONDS
    assert spec["terminationGracePeriodSeconds"] > needed
    assert spec["securityContext"]["runAsUser"] == 65532
    assert "--uid 65532" in (ROOT / "Dockerfile").read_text()


# --- Privileges ---


def test_the_pod_runs_without_root_and_under_the_runtimes_seccomp_profile() -> None:
    pod = render("deployment.yaml", VALUES)["spec"]["template"]["spec"]
    context = pod["securityContext"]
    assert context["runAsNonRoot"] is True
    assert min(context["runAsUser"], context["runAsGroup"]) > 10_000, "no user of the node"
    assert context["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not pod.keys() & {"hostNetwork", "hostPID", "hostIPC"}


def test_the_pod_gets_neither_a_token_nor_the_addresses_of_other_services() -> None:
    pod = render("deployment.yaml", VALUES)["spec"]["template"]["spec"]
    assert pod["automountServiceAccountToken"] is False
    assert pod["enableServiceLinks"] is False
    assert "serviceAccountName" not in pod


def test_no_container_may_gain_privileges_or_write_to_its_image() -> None:
    pod = render("deployment.yaml", VALUES)["spec"]["template"]["spec"]
    for each in (*pod["containers"], *pod.get("initContainers", ())):
        assert each["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }


def test_only_the_folder_for_temporary_files_can_be_written_and_it_is_small() -> None:
    pod = render("deployment.yaml", VALUES)["spec"]["template"]["spec"]
    volumes = {volume.pop("name"): volume for volume in pod["volumes"]}
    assert {kind for volume in volumes.values() for kind in volume} == {"configMap", "emptyDir"}
    writable = [mount for mount in container()["volumeMounts"] if not mount.get("readOnly")]
    assert [mount["mountPath"] for mount in writable] == ["/tmp"]
    assert volumes[writable[0]["name"]]["emptyDir"]["sizeLimit"] == "1Mi"


def test_the_pod_has_a_limit_on_its_memory() -> None:
    assert container()["resources"]["limits"]["memory"]


# --- Envoy Gateway ---


def test_envoy_gateway_asks_the_charts_service(config: Config) -> None:
    [extension] = GATEWAY["EnvoyExtensionPolicy"]["spec"]["extProc"]
    assert extension["backendRefs"] == [{"name": RELEASE, "port": VALUES["service"]["port"]}]
    assert extension["metadata"] == {"writableNamespaces": [mutations.METADATA_NAMESPACE]}
    assert seconds(extension["messageTimeout"]) > config.server.deadline_ms / 1_000
    mode = extension["processingMode"]
    assert mode["allowModeOverride"] is config.server.allow_mode_override is True
    assert "body" not in mode["request"]
    assert "response" not in mode


def test_no_gateway_refuses_streams_before_the_sidecar_does(config: Config) -> None:
    """Envoy's circuit breaker would count them where the sidecar's metrics cannot."""
    [extension] = GATEWAY["EnvoyExtensionPolicy"]["spec"]["extProc"]
    breaker = extension["backendSettings"]["circuitBreaker"]
    rules = documents(ROOT / "envoy" / "istio.yaml")
    [own] = [
        rule for rule in rules if rule["metadata"]["name"] == RELEASE and rule["kind"] == "DestinationRule"
    ]
    pool = own["spec"]["trafficPolicy"]["connectionPool"]["http"]
    assert min(*breaker.values(), *pool.values()) > config.server.streams_max
    assert own["spec"]["host"] == f"{RELEASE}.{NAMESPACE}.svc.cluster.local"


def test_the_chart_knows_the_gateways_limits_on_headers(config: Config) -> None:
    merged = PATCHES["NETWORK_FILTER"]["patch"]["value"]["typed_config"]
    assert (
        config.server.max_headers_count == merged["common_http_protocol_options"]["max_headers_count"] == 100
    )
    assert config.server.max_request_headers_kb == merged["max_request_headers_kb"] == 60


def test_envoy_gateway_removes_what_the_shipped_envoy_removes() -> None:
    removed = GATEWAY["ClientTrafficPolicy"]["spec"]["headers"]["earlyRequestHeaders"]["remove"]
    assert [{"remove": name} for name in removed] == early_mutations(
        envoy.connection_manager(envoy.shipped())
    )


def test_envoy_gateway_takes_bodies_that_the_sidecar_refuses_itself(config: Config) -> None:
    limit = GATEWAY["ClientTrafficPolicy"]["spec"]["connection"]["bufferLimit"]
    assert int(limit.removesuffix("Mi")) * 1024**2 > config.server.body_bytes_max


def test_envoy_gateways_policies_are_for_its_gateway() -> None:
    name = GATEWAY["Gateway"]["metadata"]["name"]
    for kind in ("ClientTrafficPolicy", "EnvoyExtensionPolicy"):
        [target] = GATEWAY[kind]["spec"]["targetRefs"]
        assert target == {"group": "gateway.networking.k8s.io", "kind": "Gateway", "name": name}
    assert GATEWAY["HTTPRoute"]["spec"]["parentRefs"] == [{"name": name}]


def test_envoy_gateway_has_a_route_for_every_cluster_and_one_for_the_default_pool(config: Config) -> None:
    *rules, last = GATEWAY["HTTPRoute"]["spec"]["rules"]
    led = {}
    for rule in rules:
        [[header]] = [match["headers"] for match in rule["matches"]]
        assert header["name"] == mutations.CLUSTER_HEADER
        [strip] = rule["filters"]
        assert strip["requestHeaderModifier"] == {"remove": [mutations.CLUSTER_HEADER]}
        led[header["value"]] = rule["backendRefs"][0]["name"]
    assert led == {pool.cluster: pool.cluster for pool in config.pools.values()}
    assert "matches" not in last
    assert last["backendRefs"][0]["name"] == config.pools[config.default_pool].cluster


# --- Istio ---


def test_istio_asks_the_charts_service(config: Config) -> None:
    cluster = ISTIO_FILTER["grpc_service"]["envoy_grpc"]["cluster_name"]
    assert cluster == f"outbound|{VALUES['service']['port']}||{RELEASE}.{NAMESPACE}.svc.cluster.local"
    assert seconds(ISTIO_FILTER["message_timeout"]) > config.server.deadline_ms / 1_000


def test_istios_filter_is_the_shipped_one_but_for_the_cluster_and_what_depends_on_it() -> None:
    shipped = envoy.ext_proc(envoy.shipped())
    here = {key: value for key, value in ISTIO_FILTER.items() if key != "grpc_service"}
    assert here.pop("allowed_override_modes")[0] == shipped["allowed_override_modes"][0]
    assert here == {key: shipped[key] for key in here}
    missing = shipped.keys() - ISTIO_FILTER.keys()
    assert missing == {"status_on_error"}, "which counts only where it does not fail open"


def test_istio_removes_what_the_shipped_envoy_removes_and_has_its_buffer(config: Config) -> None:
    merged = PATCHES["NETWORK_FILTER"]["patch"]["value"]["typed_config"]
    assert early_mutations(merged) == early_mutations(envoy.connection_manager(envoy.shipped()))
    buffer = PATCHES["LISTENER"]["patch"]["value"]["per_connection_buffer_limit_bytes"]
    assert buffer > config.server.body_bytes_max


def test_istio_has_a_route_for_every_cluster_and_one_for_the_default_pool(config: Config) -> None:
    *routes, last = ISTIO["VirtualService"]["spec"]["http"]
    led = {}
    for route in routes:
        [match] = route["match"]
        assert route["headers"] == {"request": {"remove": [mutations.CLUSTER_HEADER]}}
        led[match["headers"][mutations.CLUSTER_HEADER]["exact"]] = host(route)
    assert led == {pool.cluster: pool.cluster for pool in config.pools.values()}
    assert "match" not in last
    assert host(last) == config.pools[config.default_pool].cluster


def host(route: dict[str, Any]) -> str:
    [target] = route["route"]
    return str(target["destination"]["host"].split(".")[0])


def early_mutations(manager: dict[str, Any]) -> list[dict[str, str]]:
    [extension] = manager["early_header_mutation_extensions"]
    return list(extension["typed_config"]["mutations"])


def seconds(duration: str) -> float:
    return float(duration.removesuffix("s"))
