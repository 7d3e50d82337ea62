"""What a gateway's control plane makes of our objects, as a bootstrap of Envoy: no control plane runs here.

Routes, early header removal, the buffer limit and the ext_proc filter come from the objects; the rest is the
least that runs. As Envoy Gateway and kgateway do it, the filter is off and each route turns it on. As Istio
does it, an InferencePool's route replaces server and mode of every filter with the name of Istio's own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

Json = dict[str, Any]
TYPE = "type.googleapis.com/envoy."
PICKER = "envoy.filters.http.ext_proc"
"""The name of Istio's filter that asks the endpoint picker of a route's InferencePool."""
DESTINATION = "x-gateway-destination-endpoint"
HTTP2 = {
    "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
        "@type": f"{TYPE}extensions.upstreams.http.v3.HttpProtocolOptions",
        "explicit_http_config": {"http2_protocol_options": {}},
    }
}


def bootstrap(
    documents: Sequence[Json], socket: str, pools: Mapping[str, int], pickers: Mapping[str, int] | None = None
) -> Json:
    """An Envoy with the objects; `pools` and `pickers` are the ports of each Service or InferencePool."""
    specs = {each["kind"]: each["spec"] for each in documents}
    manager: Json = {
        "@type": f"{TYPE}extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "ingress",
        "normalize_path": True,
    }
    listener: Json = {"name": "ingress", "address": _tcp(0)}
    name = "semroute"
    if "EnvoyFilter" in specs:
        patches = {each["applyTo"]: each["patch"]["value"] for each in specs["EnvoyFilter"]["configPatches"]}
        manager.update(patches["NETWORK_FILTER"]["typed_config"])
        listener.update(patches["LISTENER"])
        name, ours = patches["HTTP_FILTER"]["name"], dict(patches["HTTP_FILTER"]["typed_config"])
        ours["grpc_service"] = {"envoy_grpc": {"cluster_name": "semroute"}}
    else:
        ours = _kgateway(specs, listener, manager) if "GatewayExtension" in specs else {}
        ours = ours or _envoy_gateway(specs, listener, manager)
    filters = [{"name": name, "typed_config": ours, "disabled": "EnvoyFilter" not in specs}]
    if pickers:
        nothing = {"request_header_mode": "SKIP", "response_header_mode": "SKIP"}
        unused: Json = {
            "@type": ours["@type"],
            "grpc_service": {"envoy_grpc": {"cluster_name": "semroute"}},
            "processing_mode": nothing,
        }
        filters.append({"name": PICKER, "typed_config": unused})
    router = {"@type": f"{TYPE}extensions.filters.http.router.v3.Router"}
    manager["http_filters"] = [*filters, {"name": "envoy.filters.http.router", "typed_config": router}]
    spec = specs.get("HTTPRoute") or specs["VirtualService"]
    routes = list(_routes(spec, name if filters[0]["disabled"] else "", pickers or {}))
    manager["route_config"] = {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": routes}]}
    chain = {"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}
    listener["filter_chains"] = [{"filters": [chain]}]
    sidecar = {
        **_cluster("semroute", {"pipe": {"path": socket}}),
        "health_checks": [
            {
                "timeout": "1s",
                "interval": "0.2s",
                "no_traffic_interval": "0.2s",
                "unhealthy_threshold": 2,
                "healthy_threshold": 1,
                "grpc_health_check": {"service_name": "envoy.service.ext_proc.v3.ExternalProcessor"},
            }
        ],
        "typed_extension_protocol_options": HTTP2,
    }
    clusters = [sidecar]
    for pool, port in pools.items():
        if pickers:  # the picker's header says where
            by_header = {"use_http_header": True, "http_header_name": DESTINATION}
            clusters.append(
                {
                    "name": pool,
                    "type": "ORIGINAL_DST",
                    "lb_policy": "CLUSTER_PROVIDED",
                    "original_dst_lb_config": by_header,
                }
            )
            picker = _cluster(f"{pool}-picker", _tcp(pickers[pool]))
            clusters.append({**picker, "typed_extension_protocol_options": HTTP2})
        else:
            clusters.append(_cluster(pool, _tcp(port)))
    return {
        "admin": {"address": _tcp(0)},
        "static_resources": {"listeners": [listener], "clusters": clusters},
    }


def _envoy_gateway(specs: Mapping[str, Any], listener: Json, manager: Json) -> Json:
    traffic = specs["ClientTrafficPolicy"]
    listener["per_connection_buffer_limit_bytes"] = (
        int(traffic["connection"]["bufferLimit"].removesuffix("Mi")) * 1024**2
    )
    _remove_early(manager, traffic["headers"]["earlyRequestHeaders"]["remove"])
    [ours] = specs["EnvoyExtensionPolicy"]["extProc"]
    assert ours["processingMode"] == {"request": {}, "allowModeOverride": True}
    mode = {"request_header_mode": "SEND", "response_header_mode": "SKIP"}
    found = _filter(mode, ours["messageTimeout"], ours["failOpen"])
    return {
        **found,
        "metadata_options": {"receiving_namespaces": {"untyped": ours["metadata"]["writableNamespaces"]}},
    }


def _kgateway(specs: Mapping[str, Any], listener: Json, manager: Json) -> Json:
    default = specs["ListenerPolicy"]["default"]
    listener["per_connection_buffer_limit_bytes"] = default["perConnectionBufferLimitBytes"]
    manager["max_request_headers_kb"] = default["httpSettings"]["maxRequestHeadersKb"]
    _remove_early(manager, default["httpSettings"]["earlyRequestHeaderModifier"]["remove"])
    ours = specs["GatewayExtension"]["extProc"]
    assert specs["TrafficPolicy"]["extProc"] == {"extensionRef": {"name": "semroute"}}
    found = _filter(_snake(ours["processingMode"]), ours["messageTimeout"], ours["failOpen"])
    default = {"requestHeaderMode": "SEND"}  # which the CRD adds
    allowed = [_snake({**default, **each}) for each in ours["allowedProcessingModeOverrides"]]
    return {**found, "allowed_override_modes": allowed}


def _filter(mode: Json, timeout: str, fail_open: bool) -> Json:
    return {
        "@type": f"{TYPE}extensions.filters.http.ext_proc.v3.ExternalProcessor",
        "stat_prefix": "semroute",
        "grpc_service": {"envoy_grpc": {"cluster_name": "semroute"}},
        "processing_mode": mode,
        "allow_mode_override": True,
        "message_timeout": timeout,
        "failure_mode_allow": fail_open,
    }


def _snake(fields: Mapping[str, str]) -> Json:
    return {
        "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in key): value
        for key, value in fields.items()
    }


def _remove_early(manager: Json, names: Iterable[str]) -> None:
    mutation = {
        "@type": f"{TYPE}extensions.http.early_header_mutation.header_mutation.v3.HeaderMutation",
        "mutations": [{"remove": name} for name in names],
    }
    manager["early_header_mutation_extensions"] = [
        {"name": "envoy.http.early_header_mutation.header_mutation", "typed_config": mutation}
    ]


def _routes(spec: Mapping[str, Any], turned_on: str, pickers: Mapping[str, int]) -> Iterator[Json]:
    """Envoy's routes: of a VirtualService in order, of an HTTPRoute the most specific first."""
    if "http" in spec:
        for rule in spec["http"]:
            target = rule["route"][0]["destination"]["host"].partition(".")[0]
            removed = rule.get("headers", {}).get("request", {}).get("remove", [])
            for match in rule["match"]:
                headers = {name: each["exact"] for name, each in match.get("headers", {}).items()}
                yield _route(match["uri"]["regex"], headers, target, removed)
        return
    found = [(rule, match) for rule in spec["rules"] for match in rule["matches"]]
    found.sort(key=lambda each: (-len(each[1]["path"]["value"]), -len(each[1].get("headers", ()))))
    for rule, match in found:
        assert match["path"]["type"] == "RegularExpression"
        headers = {each["name"]: each["value"] for each in match.get("headers", ())}
        removed = [
            name for each in rule.get("filters", ()) for name in each["requestHeaderModifier"]["remove"]
        ]
        target = rule["backendRefs"][0]["name"]
        route = _route(match["path"]["value"], headers, target, removed)
        if turned_on:
            on = {"@type": f"{TYPE}config.route.v3.FilterConfig", "config": {}}
            route["typed_per_filter_config"] = {turned_on: on}
        if pickers:
            mode = {"request_header_mode": "SEND", "request_body_mode": "FULL_DUPLEX_STREAMED"}
            mode |= {"request_trailer_mode": "SEND", "response_header_mode": "SKIP"}
            own = {
                "processing_mode": mode,
                "grpc_service": {"envoy_grpc": {"cluster_name": f"{target}-picker"}},
            }
            per_route = {
                "@type": f"{TYPE}extensions.filters.http.ext_proc.v3.ExtProcPerRoute",
                "overrides": own,
            }
            route["typed_per_filter_config"] = {PICKER: per_route}
        yield route


def _route(regex: str, headers: Mapping[str, str], cluster: str, removed: Sequence[str]) -> Json:
    wanted = [{"name": name, "string_match": {"exact": value}} for name, value in headers.items()]
    match = {"safe_regex": {"regex": regex}, "headers": wanted}
    return {
        "match": match,
        "route": {"cluster": cluster, "timeout": "0s"},
        "request_headers_to_remove": list(removed),
    }


def _cluster(name: str, address: Json) -> Json:
    endpoints = [{"lb_endpoints": [{"endpoint": {"address": address}}]}]
    return {"name": name, "load_assignment": {"cluster_name": name, "endpoints": endpoints}}


def _tcp(port: int) -> Json:
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}
