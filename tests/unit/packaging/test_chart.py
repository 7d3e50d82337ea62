"""The chart and the gateways' files: every name, port, path and flag they give agrees with the code.

Helm renders the chart, through its SDK and without a cluster.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import click
import pytest
from helm_python.chart import lint
from kubernetes_objects import (
    CHART,
    NAMESPACE,
    RELEASE,
    ROOT,
    chart_objects,
    documents,
    plain,
    rendered,
    values,
)
from kubernetes_objects import VALUES as VALUES_FILES
from semroute_demo import envoy

from semroute_extproc import __version__
from semroute_extproc.cli import envoy_file, main
from semroute_extproc.config import source as config_source
from semroute_extproc.config.models import Config
from semroute_extproc.envoy import replies as mutations
from semroute_extproc.envoy import server
from semroute_extproc.errors import ConfigError
from semroute_extproc.serve import app
from semroute_extproc.telemetry.prom import METRICS


def shipped(name: str) -> list[Any]:
    return documents((ROOT / "envoy" / f"{name}.yaml").read_text())


DEFAULTS = plain((CHART / "values.yaml").read_text())
VALUES = values("standalone")
GATEWAY = {each["kind"]: each for each in shipped("envoy-gateway")}
ISTIO = {each["kind"]: each for each in shipped("istio")}
PATCHES = {patch["applyTo"]: patch for patch in ISTIO["EnvoyFilter"]["spec"]["configPatches"]}
ISTIO_FILTER = PATCHES["HTTP_FILTER"]["patch"]["value"]["typed_config"]


def render(template: str, given: dict[str, Any]) -> Any:
    """The first object that Helm makes of a template; None if the template renders to nothing."""
    return next(iter(documents(rendered(given).get(template, ""))), None)


def container(given: dict[str, Any] = VALUES) -> dict[str, Any]:
    [found] = render("deployment.yaml", given)["spec"]["template"]["spec"]["containers"]
    return dict(found)


def patch(given: dict[str, Any]) -> dict[str, Any]:
    """The pod in the patch of a gateway's Deployment."""
    [_, written] = documents(rendered(given)["configmap.yaml"])
    return dict(plain(written["data"]["patch.yaml"])["spec"]["template"]["spec"])


def loaded(given: dict[str, Any], folder: Path, own: dict[str, Any]) -> Config:
    """The configuration as a container gets it: the file, and the variables with a value."""
    path = folder / "semroute.yaml"
    path.write_text(render("configmap.yaml", given)["data"]["semroute.yaml"])
    return config_source.load(
        path, {each["name"]: each["value"] for each in own["env"] if "value" in each}
    ).config


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """The configuration as the pods get it."""
    return loaded(VALUES, tmp_path, container())


def test_the_charts_version_is_the_packages() -> None:
    chart = plain((CHART / "Chart.yaml").read_text())
    assert chart["version"] == chart["appVersion"] == __version__


@pytest.mark.parametrize("name", VALUES_FILES)
def test_helm_finds_nothing_to_complain_about(name: str) -> None:
    report = lint(CHART, values(name), strict=True)
    assert report["errors"] == []
    assert [each for each in report["messages"] if each["severity"] > 1] == []


@pytest.mark.parametrize("name", VALUES_FILES)
def test_every_object_is_named_after_the_release_and_has_its_labels(name: str) -> None:
    made = chart_objects(values(name))
    assert len({(each["kind"], each["metadata"]["name"]) for each in made}) == len(made)
    for each in made:
        own = values(name).get("serviceAccount", {}).get("name", RELEASE)
        assert each["metadata"]["name"].startswith(own if each["kind"] == "ServiceAccount" else RELEASE)
        assert each["metadata"]["labels"]["app.kubernetes.io/instance"] == RELEASE


def test_what_needs_an_operators_kinds_or_an_adapter_is_off_unless_it_is_asked_for() -> None:
    kinds = {each["kind"] for each in chart_objects(VALUES)}
    assert kinds == {
        *("ConfigMap", "Deployment", "NetworkPolicy"),
        *("PodDisruptionBudget", "Service", "ServiceAccount"),
    }
    more = {each["kind"] for each in chart_objects(values("everything"))}
    assert more - kinds == {"HorizontalPodAutoscaler", "PodMonitor", "PrometheusRule"}


def test_a_pod_gets_everything_that_the_values_give_it() -> None:
    given = values("everything")
    pod = render("deployment.yaml", given)["spec"]["template"]
    assert {**given["commonLabels"], **given["podLabels"]}.items() <= pod["metadata"]["labels"].items()
    assert given["podAnnotations"].items() <= pod["metadata"]["annotations"].items()
    for key in ("imagePullSecrets", "priorityClassName", "nodeSelector", "tolerations", "affinity"):
        assert pod["spec"][key] == given[key], key
    own = container(given)
    assert own["image"] == f"{given['image']['repository']}@{given['image']['digest']}"
    assert own["envFrom"] == given["envFrom"]
    assert given["env"][0] in own["env"]
    assert given["extraVolumeMounts"][0] in own["volumeMounts"]
    assert given["extraVolumes"][0] in pod["spec"]["volumes"]
    assert pod["spec"]["serviceAccountName"] == given["serviceAccount"]["name"]
    assert render("serviceaccount.yaml", given)["automountServiceAccountToken"] is False


# --- The configuration ---


def test_the_chart_has_no_configuration_of_its_own_and_says_that_it_needs_one() -> None:
    assert DEFAULTS["config"] is None
    for given in ({}, {"config": None}, {"config": ""}):
        with pytest.raises(Exception, match="config"):
            rendered(given)


def test_the_configuration_is_the_operators_and_nothing_is_merged_into_it(tmp_path: Path) -> None:
    given = values("everything")
    made = loaded(given, tmp_path, container(given))
    assert list(made.pools) == ["only"]
    assert list(made.models) == ["routed"]
    assert not made.strategies
    written = plain(render("configmap.yaml", given)["data"]["semroute.yaml"])
    own = given["config"]["policies"]["all"]["otherwise"]
    assert written == {**given["config"], "policies": {"all": {"otherwise": own}}}


def test_a_configuration_given_as_text_is_passed_on_as_it_is() -> None:
    text = (ROOT / "semroute_extproc/cli/example.yaml").read_text()
    assert render("configmap.yaml", {"config": text})["data"]["semroute.yaml"] == text


def test_the_words_that_yaml_1_1_reads_as_booleans_keep_their_meaning(tmp_path: Path) -> None:
    given = values("everything")
    given["config"]["policies"]["all"]["otherwise"]["reasoning"] = False  # what Helm reads for `off`
    assert (
        loaded(given, tmp_path, container(given)).policies
        == loaded(values("everything"), tmp_path, container(given)).policies
    )


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"config": {"pools": {}}}, "default_pool"),
        ({"config": {**VALUES["config"], "serverr": {}}}, "serverr"),
        ({"config": {**VALUES["config"], "server": {"deadline_ms": "soon"}}}, "deadline_ms"),
        ({"replica": 1}, "replica"),
        ({"mode": "daemon"}, "mode"),
        ({"image": {"digest": "latest"}}, "digest"),
        ({"podDisruptionBudget": {"maxUnavailable": 0}}, "maxUnavailable"),
        ({"env": {"A": "b"}}, "env"),
    ],
)
def test_values_that_cannot_be_right_are_refused_by_the_schema(change: dict[str, Any], said: str) -> None:
    with pytest.raises(Exception, match=said):
        rendered({**VALUES, **change})


def test_the_schema_knows_every_value_and_no_other() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    assert schema["properties"].keys() - {"global"} == DEFAULTS.keys()
    for name, part in schema["properties"].items():
        if "properties" in part:
            assert part["properties"].keys() == DEFAULTS[name].keys(), name


def test_pods_restart_for_a_changed_configuration_only_if_that_is_asked_for() -> None:
    def annotations(given: dict[str, Any]) -> dict[str, str]:
        return dict(render("deployment.yaml", given)["spec"]["template"]["metadata"].get("annotations", {}))

    assert not annotations(VALUES), "the sidecar reloads by itself"
    asked = {**VALUES, "restartOnConfigChange": True}
    other = {**asked, "config": {**VALUES["config"], "default_pool": "small"}}
    assert annotations(asked)["checksum/config"] != annotations(other)["checksum/config"]


# --- The pods ---


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


def test_there_are_as_many_threads_as_the_pod_requests_cores(config: Config) -> None:
    assert config.encoder.threads == int(DEFAULTS["resources"]["requests"]["cpu"])
    assert "WARNING" not in rendered(VALUES)["NOTES.txt"]
    without = {**VALUES, "config": {**VALUES["config"], "encoder": {}}}
    assert "WARNING: config.encoder.threads is not set" in rendered(without)["NOTES.txt"]


def test_the_images_tag_is_the_charts_application_unless_it_is_set() -> None:
    assert container()["image"].endswith(f":{__version__}")
    assert container({**VALUES, "image": {"tag": "other"}})["image"].endswith(":other")


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
        assert container()[probe]["grpc"] == {"port": DEFAULTS["service"]["port"], "service": server.SERVICE}


def test_metrics_are_scraped_only_where_they_are_offered_and_with_the_token(tmp_path: Path) -> None:
    with pytest.raises(Exception, match=r"needs networkPolicy\.metrics"):
        rendered({**VALUES, "podMonitor": {"enabled": True}})
    given = values("everything")
    monitor = render("podmonitor.yaml", given)
    assert monitor["metadata"]["labels"]["release"] == "monitoring"
    [endpoint] = monitor["spec"]["podMetricsEndpoints"]
    assert f'"{endpoint["path"]}"' in Path(app.__file__).read_text()
    assert endpoint["authorization"] == {"credentials": {"name": "semroute-admin", "key": "token"}}
    [variable] = [each for each in container(given)["env"] if each["name"].endswith("TOKEN")]
    assert variable["valueFrom"] == {"secretKeyRef": {"name": "semroute-admin", "key": "token"}}
    assert loaded(given, tmp_path, container(given)).admin.listen == f"0.0.0.0:{given['metricsPort']}"
    with pytest.raises(ConfigError, match=r"admin\.token"):
        config_source.load(ROOT / "semroute_extproc/cli/example.yaml", {variable["name"]: "short"})
    [endpoint] = render("podmonitor.yaml", {**given, "adminToken": {}})["spec"]["podMetricsEndpoints"]
    assert "authorization" not in endpoint


def test_the_autoscaler_looks_at_a_metric_that_exists_and_owns_the_number_of_replicas() -> None:
    given = values("everything")
    spec = render("horizontalpodautoscaler.yaml", given)["spec"]
    [metric] = spec["metrics"]
    name = metric["pods"]["metric"]["name"]
    assert METRICS[name.removeprefix("semroute_")][0] == "gauge"
    deployment = render("deployment.yaml", given)
    assert spec["scaleTargetRef"]["name"] == deployment["metadata"]["name"]
    assert "replicas" not in deployment["spec"]
    page = (CHART / "README.md").read_text()
    assert page.count(name) >= 2, "the adapter's rule and KEDA's query"


def test_a_drain_of_a_node_is_never_blocked() -> None:
    budget = render("poddisruptionbudget.yaml", VALUES)["spec"]
    assert budget["maxUnavailable"] == 1
    assert "minAvailable" not in budget
    assert budget["unhealthyPodEvictionPolicy"] == "AlwaysAllow"
    assert render("deployment.yaml", VALUES)["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"] == 0


def test_replicas_are_spread_over_nodes_and_zones() -> None:
    spec = render("deployment.yaml", VALUES)["spec"]
    constraints = spec["template"]["spec"]["topologySpreadConstraints"]
    assert [each["topologyKey"] for each in constraints] == [
        "kubernetes.io/hostname",
        "topology.kubernetes.io/zone",
    ]
    assert all(each["labelSelector"] == spec["selector"] for each in constraints)


def test_the_dashboard_is_the_shipped_one_with_the_label_that_grafanas_sidecar_looks_for() -> None:
    given = values("everything")
    made = render("dashboard.yaml", given)
    assert made["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert json.loads(made["data"]["semroute.json"]) == json.loads((CHART / "dashboard.json").read_text())


# --- In the gateway's pod ---


def test_the_sidecar_mode_runs_nothing_by_itself() -> None:
    kinds = {each["kind"] for each in chart_objects(values("sidecar"))}
    assert kinds == {"ConfigMap", "EnvoyProxy", "Backend"}
    plain_gateway = {**values("sidecar"), "sidecar": {}}
    assert {each["kind"] for each in chart_objects(plain_gateway)} == {"ConfigMap"}


def test_the_sidecar_and_the_gateways_container_share_the_socket(tmp_path: Path) -> None:
    given = values("sidecar")
    pod = patch(given)
    [ours], [envoy_container] = pod["initContainers"], pod["containers"]
    assert ours["restartPolicy"] == "Always", "a native sidecar: it starts first and stops last"
    made = loaded(given, tmp_path, ours)
    [mount] = [each for each in ours["volumeMounts"] if each["name"] == "semroute-socket"]
    assert envoy_container["volumeMounts"] == [mount]
    assert made.server.listen == f"unix:{mount['mountPath']}/w{{worker}}.sock"
    [backend] = [each for each in chart_objects(given) if each["kind"] == "Backend"]
    assert [each["unix"]["path"] for each in backend["spec"]["endpoints"]] == [
        made.server.address(0).removeprefix("unix:")
    ]
    assert pod["securityContext"]["supplementalGroups"] == [ours["securityContext"]["runAsGroup"]]


def test_each_worker_of_the_sidecar_mode_is_an_endpoint() -> None:
    given = {**values("sidecar"), "config": {**VALUES["config"], "server": {"workers": 3}}}
    [backend] = [each for each in chart_objects(given) if each["kind"] == "Backend"]
    assert len(backend["spec"]["endpoints"]) == 3


def test_a_sidecar_that_is_not_ready_does_not_take_the_gateway_out_of_service() -> None:
    [ours] = patch(values("sidecar"))["initContainers"]
    assert "readinessProbe" not in ours
    for probe in ("startupProbe", "livenessProbe"):
        assert f'"{ours[probe]["httpGet"]["path"]}"' in Path(app.__file__).read_text()
    with pytest.raises(Exception, match=r"needs adminToken\.secret"):
        rendered({**values("sidecar"), "adminToken": {}})


def test_the_text_of_the_notes_fits_the_mode() -> None:
    assert "kubectl apply" in rendered(VALUES)["NOTES.txt"]
    assert "parametersRef" in rendered(values("sidecar"))["NOTES.txt"]
    notes = rendered({**values("sidecar"), "sidecar": {}})["NOTES.txt"]
    assert f"configmap {RELEASE}-patch" in notes
    for target in re.findall(r"--for ([\w-]+)", rendered(VALUES)["NOTES.txt"]):
        assert target in envoy_file.FILES


def test_other_pods_reach_the_gateways_port_and_no_other_unless_they_are_named() -> None:
    policy = render("networkpolicy.yaml", VALUES)["spec"]
    assert policy["podSelector"]["matchLabels"] == render("service.yaml", VALUES)["spec"]["selector"]
    assert policy["policyTypes"] == ["Ingress"]
    assert policy["ingress"] == [{"ports": [{"port": "grpc"}]}]
    gateways, metrics = [{"namespaceSelector": {}}], [{"podSelector": {"matchLabels": {"a": "b"}}}]
    named = {**VALUES, "networkPolicy": {"gateways": gateways, "metrics": metrics}}
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
    account = render("serviceaccount.yaml", VALUES)
    assert account["automountServiceAccountToken"] is False
    assert account["metadata"]["name"] == pod["serviceAccountName"]


def test_no_container_may_gain_privileges_or_write_to_its_image() -> None:
    pod = render("deployment.yaml", VALUES)["spec"]["template"]["spec"]
    for each in (*pod["containers"], *patch(values("sidecar"))["initContainers"]):
        assert each["securityContext"] == {
            "runAsNonRoot": True,
            "runAsUser": 65532,
            "runAsGroup": 65532,
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
            "seccompProfile": {"type": "RuntimeDefault"},
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
    assert extension["backendRefs"] == [{"name": RELEASE, "port": DEFAULTS["service"]["port"]}]
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
    [own] = [
        rule
        for rule in shipped("istio")
        if rule["metadata"]["name"] == RELEASE and rule["kind"] == "DestinationRule"
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
        [header] = {
            tuple(each.items()): each for match in rule["matches"] for each in match["headers"]
        }.values()
        assert header["name"] == mutations.CLUSTER_HEADER
        [strip] = rule["filters"]
        assert strip["requestHeaderModifier"] == {"remove": [mutations.CLUSTER_HEADER]}
        led[header["value"]] = rule["backendRefs"][0]["name"]
    assert led == {pool.cluster: pool.cluster for pool in config.pools.values()}
    assert not any("headers" in match for match in last["matches"])
    assert last["backendRefs"][0]["name"] == config.pools[config.default_pool].cluster


# --- Istio ---


def test_istio_asks_the_charts_service(config: Config) -> None:
    cluster = ISTIO_FILTER["grpc_service"]["envoy_grpc"]["cluster_name"]
    assert cluster == f"outbound|{DEFAULTS['service']['port']}||{RELEASE}.{NAMESPACE}.svc.cluster.local"
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
        [value] = {match["headers"][mutations.CLUSTER_HEADER]["exact"] for match in route["match"]}
        assert route["headers"] == {"request": {"remove": [mutations.CLUSTER_HEADER]}}
        led[value] = host(route)
    assert led == {pool.cluster: pool.cluster for pool in config.pools.values()}
    assert not any("headers" in match for match in last["match"])
    assert host(last) == config.pools[config.default_pool].cluster


def host(route: dict[str, Any]) -> str:
    [target] = route["route"]
    return str(target["destination"]["host"].split(".")[0])


# --- kgateway, the inference extension ---


def test_kgateway_asks_the_charts_service_and_removes_what_the_shipped_envoy_removes(config: Config) -> None:
    found = {each["kind"]: each["spec"] for each in shipped("kgateway")}
    ours = found["GatewayExtension"]["extProc"]
    assert ours["grpcService"]["backendRef"] == {"name": RELEASE, "port": DEFAULTS["service"]["port"]}
    assert seconds(ours["messageTimeout"]) > config.server.deadline_ms / 1_000
    settings = found["ListenerPolicy"]["default"]
    assert settings["perConnectionBufferLimitBytes"] > config.server.body_bytes_max
    removed = settings["httpSettings"]["earlyRequestHeaderModifier"]["remove"]
    assert [{"remove": name} for name in removed] == early_mutations(
        envoy.connection_manager(envoy.shipped())
    )


def test_the_inference_extensions_filter_is_istios_but_for_its_name_and_place() -> None:
    [found] = [each for each in shipped("inference-extension") if each["kind"] == "EnvoyFilter"]
    patches = {each["applyTo"]: each["patch"] for each in found["spec"]["configPatches"]}
    ours, theirs = patches["HTTP_FILTER"], PATCHES["HTTP_FILTER"]["patch"]
    assert ours["value"]["typed_config"] == theirs["value"]["typed_config"]
    assert ours["value"]["name"] != theirs["value"]["name"], "Istio overrides filters with that name"
    assert ours["operation"] == "INSERT_FIRST", "before the endpoint picker"
    assert patches["NETWORK_FILTER"] == PATCHES["NETWORK_FILTER"]["patch"]


def early_mutations(manager: dict[str, Any]) -> list[dict[str, str]]:
    [extension] = manager["early_header_mutation_extensions"]
    return list(extension["typed_config"]["mutations"])


def seconds(duration: str) -> float:
    return float(duration.removesuffix("s"))
