"""Write Envoy's side of a configuration, from the shipped files of envoy/.

The shipped files are the templates. They are edited as parsed documents that keep their comments: the example
configuration gives the shipped file, byte for byte.
"""

import copy
import io
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.scalarstring import DoubleQuotedScalarString

from semroute_extproc.config.source import Loaded
from semroute_extproc.envoy.replies import CLUSTER_HEADER
from semroute_extproc.errors import ConfigError
from semroute_extproc.settings.base import Problem, did_you_mean
from semroute_extproc.settings.process import Server

FILES = {
    name: f"{name}.yaml" for name in ("envoy", "envoy-gateway", "istio", "kgateway", "inference-extension")
}
"""What runs Envoy, and its template."""

BODY_SLACK_BYTES = 64 * 1024  # Envoy's limit on a body is this much above ours, so that our 413 comes first
MESSAGE_SECONDS_MIN, MESSAGE_SLACK_SECONDS = 3.0, 1.0
"""Lowest `message_timeout`, enough for a body near the limit, and its distance from the deadline."""
HEADERS_MORE = 32  # headers, and KiB, that `handover` accepts above the first listener's limits
ENVOY_HEADERS = {
    "envoy-gateway": {"max_headers_count": 100, "max_request_headers_kb": 60},
    "kgateway": {"max_headers_count": 100},
}
"""Envoy's own limits, where the gateway has no setting for them."""
RULES_MAX = 16  # of an HTTPRoute
PREFIXES = "(/openai|/anthropic|/api)?"  # the templates' expression of `server.path_prefixes`
WIDTH = 4_096  # the templates break their lines themselves

Address = tuple[str, int]
Places = Mapping[str, Sequence[Address]]  # servers of each pool
Json = dict[str, Any]


def template(target: str) -> Path:
    """The template, in an installed package or in a checkout."""
    places = Path(__file__).resolve().parents[1:3]
    installed, checkout = (place / "envoy" / FILES[target] for place in places)
    return installed if installed.is_file() else checkout


def render(
    loaded: Loaded, target: str, given: Mapping[str, Sequence[str]], listen: str, admin: str = ""
) -> str:
    """The file for `target`; `given` has URLs that replace the `endpoints` of pools; raises ConfigError."""
    config = loaded.config
    urls = {name: given.get(name) or pool.endpoints for name, pool in config.pools.items()}
    for name in given.keys() - urls.keys():
        raise ConfigError([f"--pool: there is no pool {name!r}{did_you_mean(name, urls)}"])
    places = {name: addresses(found) for name, found in urls.items()}
    problems = [
        Problem(("pools", name), f"has no endpoints: add them, or give --pool {name}=HOST:PORT")
        for name, found in places.items()
        if not found
    ]
    if target != "envoy":
        backend = "InferencePool" if target == "inference-extension" else "Service"
        kind = (
            f"{target} needs one {backend} for each pool, such as http://vllm.models.svc.cluster.local:8000"
        )
        wrong = [name for name, found in places.items() if len(found) > 1 or _is_ip(found)]
        problems += [Problem(("pools", name, "endpoints"), kind) for name in wrong]
        for name, most in ENVOY_HEADERS.get(target, {}).items():
            if getattr(config.server, name) > most:
                problems.append(Problem(("server", name), f"{target} has Envoy's own limit: write {most}"))
        if len(places) >= RULES_MAX:
            problems.append(Problem(("pools",), f"a route of {target} has room for {RULES_MAX - 1} pools"))
        if config.controllers.failover is not None:
            problem = f"{target} has no clusters for it: remove it"
            problems.append(Problem(("controllers", "failover"), problem))
    if problems:
        raise loaded.error(problems)
    yaml = YAML()
    yaml.preserve_quotes, yaml.width = True, WIDTH
    yaml.brace_single_entry_mapping_in_flow_sequence = True
    prefixes = "|".join(map(re.escape, config.server.path_prefixes))
    text = template(target).read_text().replace(PREFIXES, f"({prefixes})?")
    documents = list(yaml.load_all(text))
    if target == "envoy":
        _Bootstrap(documents[0], loaded, places).edit(
            *addresses([listen]), *addresses([admin] if admin else [])
        )
    else:
        _edit_objects(documents, loaded, places)
    written = io.StringIO()
    if len(documents) > 1:
        yaml.dump_all(documents, written)
    else:
        yaml.dump(documents[0], written)
    return written.getvalue()


def addresses(urls: Iterable[str]) -> list[Address]:
    """Host and port of each URL or `host:port`; raises ConfigError."""
    found = [re.fullmatch(r"(?:http://)?(?:\[(.+)\]|([^:/]*)):([0-9]{1,5})/?", url) for url in urls]
    if None in found:
        raise ConfigError([f"not HOST:PORT: {', '.join(urls)}"])
    return [(each[1] or each[2], int(each[3])) for each in found if each]


def _is_ip(found: Sequence[Address]) -> bool:
    return any(re.fullmatch(r"[0-9.]+|.*:.*", host) for host, _ in found)


def message_seconds(server: Server) -> float:
    """Envoy's `message_timeout`: above the deadline, so that our fallback comes first."""
    return max(MESSAGE_SECONDS_MIN, server.deadline_ms / 1_000 + MESSAGE_SLACK_SECONDS)


def listening(server: Server, worker: int = 0) -> Json:
    """Envoy's address of a worker."""
    where = server.address(worker)
    if where.startswith("unix:"):
        return {"pipe": {"path": where.removeprefix("unix:")}}
    if where.startswith("unix-abstract:"):
        return {"pipe": {"path": "@" + where.removeprefix("unix-abstract:")}}
    [(host, port)] = addresses([where])
    return _socket(("127.0.0.1" if host in ("0.0.0.0", "::", "") else host, port))  # noqa: S104 - not bound


def connection_manager(bootstrap: Json) -> Json:
    """The connection manager of the first listener."""
    listener = bootstrap["static_resources"]["listeners"][0]
    return listener["filter_chains"][0]["filters"][0]["typed_config"]  # type: ignore[no-any-return]


def _socket(address: Address) -> Json:
    host, port = address
    quoted = DoubleQuotedScalarString(host) if ":" in host else host  # `::1` is not YAML everywhere
    return {"socket_address": {"address": quoted, "port_value": port}}


def _named(items: Iterable[Json], name: str) -> Json:
    return next(item for item in items if item["name"] == name)


def _merge(old: Any, new: Any) -> Any:
    """`old` with the values of `new`; nodes whose keys stay keep their comments."""
    if not (isinstance(old, dict) and isinstance(new, dict) and old.keys() == new.keys()):
        return new
    for key, value in new.items():
        old[key] = _merge(old[key], value)
    return old


def _repeat(items: list[Any], count: int, edit: Callable[[int, Json], None]) -> None:
    """Make a list of copies of its first item, each edited; blank lines after the item stay at the end."""
    first = items[0]
    items[:] = [copy.deepcopy(first) for _ in range(count)]
    for index, item in enumerate(items):
        edit(index, item)
        for tokens in item.ca.items.values() if index < count - 1 else ():
            if tokens[2] is not None:
                tokens[2].value = tokens[2].value.split("\n")[0] + "\n"


class _Bootstrap:
    """The template of a bootstrap, and the configuration that it is edited for."""

    def __init__(self, document: Json, loaded: Loaded, places: Places) -> None:
        self.document, self.config, self.places = document, loaded.config, places
        self.failover = loaded.config.controllers.failover
        self.limit = self.config.server.body_bytes_max + BODY_SLACK_BYTES
        self.resources: Json = document["static_resources"]

    def edit(self, listen: Address, admin: Address | None = None) -> None:
        """Write every value that depends on the configuration or the machine."""
        _merge(self.resources["listeners"][0]["address"], _socket(listen))
        if self.failover and self.failover.envoy_admin:
            [admin] = addresses([self.failover.envoy_admin])
        if admin:
            _merge(self.document["admin"]["address"], _socket(admin))
        handover, server = _named(self.resources["listeners"], "handover"), self.config.server
        more = handover["filter_chains"][0]["filters"][0]["typed_config"]
        more["common_http_protocol_options"]["max_headers_count"] = server.max_headers_count + HEADERS_MORE
        more["max_request_headers_kb"] = server.max_request_headers_kb + HEADERS_MORE
        if not self.failover:
            del self.document["bootstrap_extensions"]
            self.resources["listeners"].remove(handover)
        self._edit_routes()
        self._edit_filter()
        self._edit_clusters()

    def _edit_routes(self) -> None:
        manager, server = connection_manager(self.document), self.config.server
        manager["common_http_protocol_options"]["max_headers_count"] = server.max_headers_count
        manager["max_request_headers_kb"] = server.max_request_headers_kb
        host = manager["route_config"]["virtual_hosts"][0]
        host["request_body_buffer_limit"], routes = self.limit, host["routes"]
        config, handing = self.config, _named(routes, "picked-or-next")
        if self.failover:
            handing["match"]["headers"][0]["string_match"]["suffix"] = self.failover.cluster_suffix
        else:
            routes.remove(handing)
        _named(routes, "default")["route"]["cluster"] = config.pools[config.default_pool].cluster
        at = next(index for index, route in enumerate(routes) if route["name"].startswith("named-"))
        others = [(name, pool) for name, pool in config.pools.items() if name != config.default_pool]

        def edit(index: int, route: Json) -> None:
            (name, pool), [condition] = others[index], route["match"]["dynamic_metadata"]
            route["name"], route["route"]["cluster"] = f"named-{name}", pool.cluster
            condition["value"]["string_match"]["exact"] = pool.model

        named = routes[at : at + 1]
        _repeat(named, len(others), edit)
        del routes[at]
        for route in reversed(named):
            routes.insert(at, route)

    def _edit_filter(self) -> None:
        server = self.config.server
        filters = connection_manager(self.document)["http_filters"]
        ours = _named(filters, "envoy.filters.http.ext_proc")["typed_config"]
        ours["message_timeout"] = f"{message_seconds(server):g}s"
        grpc = ours["grpc_service"]["envoy_grpc"]
        grpc["max_receive_message_length"] = max(
            grpc["max_receive_message_length"], 2 * server.body_bytes_max
        )
        if not server.allow_mode_override:
            ours["processing_mode"]["request_body_mode"] = "BUFFERED"
            ours["allow_mode_override"] = False
            del ours["allowed_override_modes"]

    def _edit_clusters(self) -> None:
        config, clusters = self.config, self.resources["clusters"]
        found = {cluster["name"]: cluster for cluster in clusters}
        ours = found["semroute"]
        ours["per_connection_buffer_limit_bytes"] = self.limit
        [thresholds] = ours["circuit_breakers"]["thresholds"]
        for key in ("max_requests", "max_pending_requests"):
            thresholds[key] = max(thresholds[key], 4 * config.server.streams_max * config.server.workers)
        sockets = [listening(config.server, worker) for worker in range(config.server.workers)]
        self._set_endpoints(ours, sockets)
        if "pipe" not in sockets[0]:
            ours["type"] = "STRICT_DNS"
        made, handing = [ours], []
        for index, (name, pool) in enumerate(config.pools.items()):
            model = "vllm-small" if index == 0 else "vllm-large"  # the first one has the anchors
            cluster, after = found[model], found[f"{model}-or-next"]
            if index > 1:  # a shallow copy, which keeps the aliases
                cluster, after = copy.copy(cluster), copy.copy(after)
            cluster["name"] = pool.cluster
            cluster["load_assignment"] = copy.deepcopy(cluster["load_assignment"])
            self._set_endpoints(cluster, [_socket(place) for place in self.places[name]])
            made.append(cluster)
            if self.failover:
                after["name"] = pool.cluster + self.failover.cluster_suffix
                after["cluster_type"] = copy.deepcopy(after["cluster_type"])
                for member in after["cluster_type"]["typed_config"]["clusters"][:2]:
                    member["name"] = pool.cluster
                handing.append(after)
        clusters[:] = [*made, *handing, *([found["handover"]] if self.failover else [])]

    def _set_endpoints(self, cluster: Json, where: Sequence[Json]) -> None:
        assigned = cluster["load_assignment"]
        assigned["cluster_name"] = cluster["name"]

        def edit(index: int, item: Json) -> None:
            item["endpoint"]["address"] = _merge(item["endpoint"]["address"], where[index])

        _repeat(assigned["endpoints"][0]["lb_endpoints"], len(where), edit)


def _edit_objects(documents: list[Json], loaded: Loaded, places: Places) -> None:
    """Write what depends on the configuration into the objects of a gateway."""
    server = loaded.config.server
    limit, seconds = server.body_bytes_max + BODY_SLACK_BYTES, f"{message_seconds(server):g}s"
    hosts = list(dict.fromkeys(host for name in loaded.config.pools for host, _ in places[name]))
    for document in documents:
        spec = document["spec"]
        match document["kind"]:
            case "ClientTrafficPolicy":
                mebibytes = math.ceil((server.body_bytes_max + 1) / 1024**2)
                spec["connection"]["bufferLimit"] = f"{mebibytes}Mi"
            case "EnvoyExtensionPolicy":
                [ours] = spec["extProc"]
                ours["messageTimeout"], [reference] = seconds, ours["backendRefs"]
                reference["port"] = _port(server, reference["port"])
            case "ListenerPolicy":
                spec["default"]["perConnectionBufferLimitBytes"] = limit
                spec["default"]["httpSettings"]["maxRequestHeadersKb"] = server.max_request_headers_kb
            case "GatewayExtension":
                spec["extProc"]["messageTimeout"] = seconds
                reference = spec["extProc"]["grpcService"]["backendRef"]
                reference["port"] = _port(server, reference["port"])
            case "BackendConfigPolicy":
                _repeat(
                    spec["targetRefs"],
                    len(hosts),
                    lambda index, each: each.update(name=hosts[index].partition(".")[0]),
                )
            case "EnvoyFilter":
                _edit_patches(spec["configPatches"], server, limit, seconds)
            case "HTTPRoute" | "VirtualService":
                _set_rules(spec.get("rules") or spec["http"], loaded, places)
    names = [document["metadata"]["name"] for document in documents]
    if "vllm-small" in names:  # Istio's destinations
        first, later = (documents[names.index(name)] for name in ("vllm-small", "vllm-large"))
        del documents[names.index("vllm-small") :]
        for index, host in enumerate(hosts):
            documents.append(copy.deepcopy(later if index else first))
            documents[-1]["metadata"]["name"], documents[-1]["spec"]["host"] = host.partition(".")[0], host


def _edit_patches(items: Sequence[Json], server: Server, limit: int, seconds: str) -> None:
    """The patches of an EnvoyFilter."""
    patches = {each["applyTo"]: each["patch"]["value"] for each in items}
    patches["LISTENER"]["per_connection_buffer_limit_bytes"] = limit
    manager = patches["NETWORK_FILTER"]["typed_config"]
    manager["common_http_protocol_options"]["max_headers_count"] = server.max_headers_count
    manager["max_request_headers_kb"] = server.max_request_headers_kb
    ours = patches["HTTP_FILTER"]["typed_config"]
    ours["message_timeout"] = seconds
    grpc = ours["grpc_service"]["envoy_grpc"]
    outbound, port, *rest = grpc["cluster_name"].split("|")
    grpc["cluster_name"] = "|".join([outbound, str(_port(server, port)), *rest])


def _set_rules(rules: list[Json], loaded: Loaded, places: Places) -> None:
    """One rule for each cluster, and the last one, without its header, for the default pool."""
    first, later, last = rules
    shared = {
        id(value): value for each in first.values() for value in _paths(each)
    }  # the anchors of the paths
    rules.clear()
    for name, pool in loaded.config.pools.items():
        rules.append(rule := copy.deepcopy(later if rules else first, dict(shared)))
        for each in rule.get("matches") or rule["match"]:
            condition = each["headers"][0 if "path" in each else CLUSTER_HEADER]
            condition["value" if "value" in condition else "exact"] = pool.cluster
        _lead(rule, places[name])
    _lead(last, places[loaded.config.default_pool])
    rules.append(last)


def _paths(matches: Any) -> list[Any]:
    """The conditions on paths of a rule's matches."""
    items = matches if isinstance(matches, list) else []
    return [each[key] for each in items for key in ("path", "uri") if key in each]


def _lead(rule: Json, found: Sequence[Address]) -> None:
    """Lead a rule to the one server of a pool."""
    [(host, port)] = found
    if "route" in rule:
        destination = rule["route"][0]["destination"]
        destination["host"], destination["port"]["number"] = host, port
        return
    [backend] = rule["backendRefs"]
    backend["name"], _, rest = host.partition(".")
    if "port" in backend:  # an InferencePool has its own
        backend["port"] = port
    if rest:
        backend["namespace"] = rest.partition(".")[0]


def _port(server: Server, shipped: Any) -> Any:
    """The port of a sidecar that does not listen on a socket file."""
    return shipped if server.listen.startswith("unix") else addresses([server.listen])[0][1]
