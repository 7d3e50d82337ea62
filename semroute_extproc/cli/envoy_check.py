"""Find problems in Envoy's configuration: requests that are not routed, are unsafe or time out.

Reads a static bootstrap, or the objects of a gateway that `semroute envoy` writes. The expectations of single
settings are in envoy_check.toml.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from ruamel.yaml.comments import CommentedBase

from semroute_extproc.cli.envoy_file import BODY_SLACK_BYTES, listening, message_seconds
from semroute_extproc.config import models
from semroute_extproc.envoy.replies import AFFINITY_HEADER, CLUSTER_HEADER
from semroute_extproc.policy.rules import TENANT_HEADER
from semroute_extproc.request.handover import HANDOVER_HEADER
from semroute_extproc.settings.base import did_you_mean

_TABLE = msgspec.toml.decode(Path(__file__).with_suffix(".toml").read_bytes())
REQUEST = {":method": "POST", ":path": "/v1/chat/completions", "content-type": "application/json"}
"""The request with which routes are tested."""
ACCESS_LOG, ANSWERS = "HttpGrpcAccessLogConfig", "semroute.answer"  # what the sidecar's accounting needs
ANSWER_SECONDS_MIN = 60.0  # a lower timeout of a route ends answers of models
_MODES = (
    *("request_body_mode", "response_header_mode", "response_body_mode"),
    *("request_trailer_mode", "response_trailer_mode"),
)
_BUFFERED = {"request_body_mode": "BUFFERED"}
_UNITS = {"ms": 1e-3, "m": 60.0, "h": 3_600.0, "Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30}
_STRINGS: Mapping[str, Callable[[str, str], bool]] = {
    "exact": str.__eq__,
    "prefix": str.startswith,
    "suffix": str.endswith,
    "contains": str.__contains__,
}
_CONDITIONS = {"prefix", "path", "safe_regex", "path_separated_prefix", "headers", "case_sensitive"}


class Finding(NamedTuple):
    """A problem of the file: its effect, and what to write instead."""

    line: int
    happens: str
    write: str
    note: bool = False  # a choice that may be intended


class Node:
    """A value and its line; a missing value is None, at the line of its parent."""

    def __init__(self, value: Any, line: int) -> None:
        self.value, self.line = value, line

    def __getitem__(self, path: str) -> "Node":
        """The value at a dotted path, in lower case or in camel case; `*` is the first one."""
        node = self
        for key in path.split(".") if path else ():
            values = node.values
            camel = re.sub("_(.)", lambda found: found[1].upper(), key)
            node = node._at(
                next(iter(values), None) if key == "*" else key if key in values else camel, values
            )
        return node

    def __iter__(self) -> Iterator["Node"]:
        values = self.values
        return (self._at(index, values) for index in (values if isinstance(self.value, list) else ()))

    @property
    def values(self) -> Mapping[Any, Any]:
        """The members of a mapping, or those of a list by index; empty for any other value."""
        values = dict(enumerate(self.value)) if isinstance(self.value, list) else self.value
        return values if isinstance(values, dict) else {}

    def _at(self, key: Any, values: Mapping[Any, Any]) -> "Node":
        places = self.value.lc.data if isinstance(self.value, CommentedBase) else None
        return Node(values.get(key), (places or {}).get(key, [self.line - 1])[0] + 1)

    def __bool__(self) -> bool:
        return self.value is not None

    def __str__(self) -> str:
        return "" if self.value is None else str(self.value)

    def number(self, default: float) -> float:
        """A number, a duration such as `3s`, or a quantity such as `33Mi`."""
        found = re.fullmatch(r"(-?\d+(?:\.\d+)?)([a-zA-Z]*)", str(self))
        return float(found[1]) * _UNITS.get(found[2], 1.0) if found else default

    def finds(self, happens: str, write: str, note: bool = False) -> Finding:
        """A finding at this line."""
        return Finding(self.line, happens, write, note)

    def is_a(self, message: str) -> bool:
        """Whether this is a typed configuration of a message."""
        return str(self["@type"]).endswith(f".{message}")


class _Check:
    """The checks of one configuration."""

    def __init__(self, config: models.Config) -> None:
        self.config, server = config, config.server
        self.failover, self.session = config.controllers.failover, config.controllers.session
        streams = server.streams_max * server.workers
        self.limits: dict[str, float] = {
            "deadline": server.deadline_ms / 1_000,
            "message": message_seconds(server),
            "body": server.body_bytes_max,
            "buffer": server.body_bytes_max + BODY_SLACK_BYTES,
            "messages": 2 * server.body_bytes_max,
            "streams": streams,
            "breaker": 4 * streams,
            "headers": server.max_headers_count - 1,
            "headers_kb": server.max_request_headers_kb - 1,
            "max_headers_count": server.max_headers_count,
            "max_request_headers_kb": server.max_request_headers_kb,
            "answer": ANSWER_SECONDS_MIN,
            "redirects": self.failover.pools_max - 2 if self.failover else 0,
            "retries": server.streams_max - 1,
        }

    def rows(self, section: str, node: Node) -> Iterator[Finding]:
        """The settings that a section of the table lists."""
        for row in _TABLE[section]:
            found, default = node[row["path"]], row.get("default")
            if "right" in row:
                right = (found.value if found else default) in row["right"]
            elif "above" in row:
                number = found.number(default)
                right = number > self.limits[row["above"]] or number == row.get("unlimited")
            else:
                right = row["has"] in [each.value for each in found] if "has" in row else bool(found)
            if not right:
                values = {**self.limits, "value": found}
                happens, write = row["happens"].format(**values), row["write"].format(**values)
                yield found.finds(happens, write, row.get("note", False))

    def bootstrap(self, root: Node) -> Iterator[Finding]:
        """A static bootstrap of Envoy."""
        yield from self.rows("bootstrap", root)
        resources = root["static_resources"]
        clusters = {str(each["name"]): each for each in resources["clusters"]}
        dynamic = bool(root["dynamic_resources"])
        if dynamic:
            yield root.finds("what is dynamic cannot be checked", "static_resources", note=True)
        else:
            yield from self.clusters(clusters, resources["clusters"])
        internal = any(each["internal_listener"] for each in resources["listeners"])
        if self.failover and not (internal or dynamic):
            yield resources.finds("nothing hands over a failed request", "the listener handover")
        routed = dynamic
        for listener in resources["listeners"]:
            for chain in (*listener["filter_chains"], listener["default_filter_chain"]):
                for manager in (each["typed_config"] for each in chain["filters"]):
                    filters = [each for each in manager["http_filters"] if each["disabled"].value is not True]
                    ours = [each for each in filters if each["typed_config"].is_a("ExternalProcessor")]
                    for part in (each["typed_config"] for each in ours[:1]):
                        routed = True
                        yield from self.manager(manager, filters, part)
                        yield from self.routes(manager, listener)
                        name = part["grpc_service.envoy_grpc.cluster_name"]
                        if str(name) in clusters:
                            yield from self.sidecar(clusters[str(name)])
                        elif not dynamic:
                            happens = f"no cluster {str(name)!r}{did_you_mean(str(name), clusters)}"
                            yield name.finds(f"{happens}, so nothing is routed", "its name")
        if not routed:
            yield resources.finds("no listener has an ext_proc filter, so nothing is routed", "the filter")

    def manager(self, manager: Node, filters: list[Node], ours: Node) -> Iterator[Finding]:
        """The connection manager: what is removed from clients' requests, its filters and their order.

        `filters` is empty for the part of a manager that a gateway adds to its own.
        """
        logged = any(log["typed_config"].is_a(ACCESS_LOG) for log in manager["access_log"])
        if filters:
            yield from self.rows("manager", manager)
            if self.config.accounting and not (logged and ANSWERS in str(manager["http_filters"])):
                write = "the filter and the log `accounting` of the shipped file"
                yield manager.finds("answers are not accounted for", write)
        yield from self.filter(ours)
        yield from self.rows("headers", manager)
        early = manager["early_header_mutation_extensions"]
        mutations = [each for one in early for each in one["typed_config.mutations"]]
        removed = [each["remove_on_match.key_matcher"] for each in mutations]
        removed += [Node({"exact": str(each["remove"]).lower()}, each.line) for each in mutations]
        for header, happens in _TABLE["internal"].items():
            if not any(_matches(each, header) for each in removed):
                yield early.finds(happens, f"{{remove: {header}}} in early_header_mutation_extensions")
        before = True
        for each in (each["typed_config"] for each in filters):
            before = before and each.line != ours.line
            if before and each.is_a("Router"):
                yield each.finds("the router ends the chain before ext_proc, so nothing is routed", "it last")
            if each.is_a("Buffer"):
                yield from self.rows("buffer", each)

    def filter(self, ours: Node) -> Iterator[Finding]:
        """The ext_proc filter."""
        yield from self.rows("filter", ours)
        yield from self.forwarded(ours["forward_rules"])
        mode, allowed = ours["processing_mode"], ours["allowed_override_modes"]
        if str(mode["request_body_mode"]) not in ("BUFFERED", "FULL_DUPLEX_STREAMED"):
            happens = "no body is read, so nothing is routed"
            if not self.config.server.allow_mode_override:
                yield mode.finds(happens, "request_body_mode: BUFFERED")
            elif (may := ours["allow_mode_override"]).value is not True:
                yield may.finds(happens, "allow_mode_override: true")
            elif list(allowed) and _mode(mode) | _BUFFERED not in map(_mode, allowed):
                write = "every field of processing_mode, and request_body_mode: BUFFERED"
                yield allowed.finds(f"the sidecar's mode is not allowed: {happens}", write)
        rules = ours["mutation_rules"]
        allow, forbid = (rules[f"{kind}_expression.regex"] for kind in ("allow", "disallow"))
        headers = [CLUSTER_HEADER, "content-length", "content-encoding", "content-type", "retry-after"]
        headers += [HANDOVER_HEADER] * bool(self.failover) + [AFFINITY_HEADER] * bool(self.session)
        for header in [*headers, ":path"] if self.config.server.path_prefixes else headers:
            listed = _fullmatch(allow, header) or rules["disallow_all"].value is not True
            system = header.startswith(":") and rules["disallow_system"].value is True
            if not listed or (system and not allow) or _fullmatch(forbid, header):
                happens = f"the sidecar may not set {header}, so Envoy drops this change"
                yield rules.finds(happens, f"{header} in mutation_rules.allow_expression")

    def forwarded(self, rules: Node) -> Iterator[Finding]:
        """Headers that the sidecar needs and does not get, and secrets that it gets and does not need."""
        needed = {**_TABLE["needed"], **(_TABLE["failover"] if self.failover else {})}
        lost = "conversations that it names do not keep their pool"
        needed |= dict.fromkeys(self.session.headers if self.session else (), lost)
        for name, policy in self.config.policies.items():
            for rule in policy.rules:
                read = re.findall(r"request\.headers\s*(?:\[\s*|\.)[\"']?([\w-]+)", rule.when)
                read += re.findall(r"[\"']([\w-]+)[\"']\s+in\s+request\.headers", rule.when)
                read += [TENANT_HEADER] * bool(re.search(r"(?<![\w.\"'-])tenant\b", rule.when))
                needed |= dict.fromkeys(map(str.lower, read), f"the rule {rule.name} of {name} never holds")
        allowed, hidden = (list(rules[f"{kind}_headers.patterns"]) for kind in ("allowed", "disallowed"))
        wanted = {*needed, *(self.session.identity if self.session else ())}
        for header in dict.fromkeys([*needed, *_TABLE["secrets"]["names"]]):
            passes = not allowed or any(_matches(each, header) for each in allowed)
            passes = passes and not any(_matches(each, header) for each in hidden)
            if not passes and header in needed:
                happens = f"{header} is hidden from the sidecar: {needed[header]}"
                yield rules.finds(happens, f"forward_rules that let {header} pass")
            elif passes and header not in wanted:
                happens, write = f"the sidecar gets {header}, which it does not need", "disallowed_headers"
                yield rules.finds(happens, f"{{exact: {header}}} in forward_rules.{write}", note=True)

    def sidecar(self, cluster: Node) -> Iterator[Finding]:
        """The sidecar's cluster."""
        yield from self.rows("sidecar", cluster)
        groups = cluster["load_assignment.endpoints"]
        places = {_place(each["endpoint.address"]) for group in groups for each in group["lb_endpoints"]}
        server = self.config.server
        for worker in range(server.workers if places else 0):
            host, port = listening(server, worker)
            where = host if port is None else f"{host}:{port}"
            # A host has several names, so only its port is compared.
            ports = {each.rpartition(":")[2] for each in places}
            if where not in places and (where[0] in "/@" or where.rpartition(":")[2] not in ports):
                happens = f"worker {worker} listens on {where} and gets no requests"
                yield groups.finds(happens, f"an endpoint with {where}")

    def clusters(self, clusters: Mapping[str, Node], at: Node) -> Iterator[Finding]:
        """The clusters of the pools."""
        for wanted, pool_name in models.clusters(self.config).items():
            if wanted not in clusters:
                happens = f"pools.{pool_name}.cluster: there is no cluster {wanted!r}"
                happens += f"{did_you_mean(wanted, clusters)}, so its requests get 503"
                yield at.finds(happens, "the cluster")
        for name, pool in self.config.pools.items():
            own = pool.cluster + self.failover.cluster_suffix if self.failover else ""
            if own in clusters:
                yield from self.rows("composite", clusters[own])
                members = clusters[own]["cluster_type.typed_config.clusters"]
                names = [str(each["name"]) for each in members]
                if {*names[:-1]} != {pool.cluster} or names[-1] not in clusters.keys() - {pool.cluster}:
                    happens = f"requests for pool {name} go to {', '.join(names) or 'no cluster'}"
                    yield members.finds(happens, f"{pool.cluster} twice, then handover")

    def routes(self, manager: Node, listener: Node) -> Iterator[Finding]:
        """Where requests go: decided ones, and those that the sidecar has not decided."""
        table, config = manager["route_config"], self.config
        if not table:
            yield manager.finds("routes of rds cannot be checked", "a static route_config", note=True)
        hosts = list(table["virtual_hosts"])
        ours = [host for host in hosts if CLUSTER_HEADER in str(host["routes"])]
        suffixes = ("", self.failover.cluster_suffix) if self.failover else ("",)
        for host in ours or hosts[:1]:
            yield from self.leads(host, listener, "", config.pools[config.default_pool].cluster)
            for pool in config.pools.values():
                for suffix in suffixes:
                    yield from self.leads(host, listener, pool.cluster + suffix, pool.cluster + suffix)
                    if suffix and (found := _route(host, pool.cluster + suffix)):
                        yield from self.rows("handing", found["route"])
            yield from self.named(host)
            for path in _TABLE["control"]["paths"]:
                if (found := _route(host, "", path))["route"]:
                    happens, write = f"clients reach {path} of a pool", "a route that answers 404 before"
                    yield found.finds(happens, f"{write} {path}", note=True)

    def leads(self, host: Node, listener: Node, chosen: str, wanted: str) -> Iterator[Finding]:
        """Whether a request with a routing header gets to a cluster, in time and with its body."""
        found = _route(host, chosen)
        route, name = found["route"], found["route.cluster"]
        by_header = chosen if str(route["cluster_header"]).lower() == CLUSTER_HEADER else ""
        if wanted not in (str(name), by_header):
            who = f"requests for {chosen!r}" if chosen else "requests that the sidecar has not decided"
            where = f"go to {str(name)!r}" if name else "find no cluster"
            yield name.finds(f"{who} {where}", f"a route to {wanted!r}, before others that match")
            return
        yield from self.rows("route", route)
        limits = (each["request_body_buffer_limit"] for each in (found, host))
        limit = next(filter(None, limits), listener["per_connection_buffer_limit_bytes"])
        yield from self.rows("limit", limit)
        for own in (each["typed_per_filter_config"] for each in (host, found)):
            if not chosen and "'disabled': True" in str(own):
                yield own.finds("the filter is off on the first route, so nothing is routed", "no `disabled`")

    def named(self, host: Node) -> Iterator[Finding]:
        """The routes that send a pool's own model to its pool while the sidecar is down, if there are any."""
        pairs = ((route, each) for route in host["routes"] for each in route["match.dynamic_metadata"])
        led = {str(each["value.string_match.exact"]): route["route.cluster"] for route, each in pairs}
        for name, pool in self.config.pools.items() if led else ():
            cluster = led.get(pool.model, Node(None, host["routes"].line))
            if str(cluster) != pool.cluster and (cluster or name != self.config.default_pool):
                where = repr(str(cluster)) if cluster else "the default pool"
                happens = f"without the sidecar, requests for {pool.model!r} go to {where}"
                yield cluster.finds(happens, f"a route to {pool.cluster}", note=not cluster)

    def gateway(self, kinds: Mapping[str, Node]) -> Iterator[Finding]:
        """The objects of a gateway, as `semroute envoy` writes them."""
        nothing = Node(None, 1)
        if self.failover:
            happens = "gateways have no clusters for controllers.failover"
            yield nothing.finds(happens, "no controllers.failover")
        if istio := kinds.get("EnvoyFilter"):
            patches = {str(each["applyTo"]): each["patch.value"] for each in istio["spec.configPatches"]}
            part = patches.get("NETWORK_FILTER", nothing)["typed_config"]
            yield from self.manager(part, [], patches.get("HTTP_FILTER", nothing)["typed_config"])
            limit = patches.get("LISTENER", nothing)["per_connection_buffer_limit_bytes"]
        else:
            yield from self.rows("headers", nothing)
            name = "kgateway" if "GatewayExtension" in kinds else "gateway"
            places = _TABLE["places"][name]
            ours, removed, limit = (kinds.get(kind, nothing)[path] for kind, path in places)
            yield from self.rows(name, ours)
            for header in _TABLE["internal"].keys() - {*map(str, removed)}:
                yield removed.finds(_TABLE["internal"][header], f"{header} among the headers to remove")
        route = kinds.get("HTTPRoute") or kinds.get("VirtualService", nothing)
        rules = route["spec.rules"] or route["spec.http"]
        yield from self.rows("limit", limit)
        for cluster in {pool.cluster for pool in self.config.pools.values()}:
            if not _rule(rules, cluster):
                yield rules.finds(f"requests for {cluster!r} find no route", f"a rule for {cluster}")
        if not _rule(rules):
            happens = "requests find no route before they are decided"
            yield rules.finds(happens, "a rule without the header")
        for path in _TABLE["control"]["paths"]:
            if found := _rule(rules, path=path):
                yield found.finds(f"clients reach {path} of a pool", "a condition on the path", note=True)


def check(documents: Iterable[Any], config: models.Config) -> list[Finding]:
    """Every finding in the documents of one file, by line."""
    roots = [Node(document, 1) for document in documents] or [Node(None, 1)]
    kinds = {str(root["kind"]): root for root in roots if root["kind"]}
    checks = _Check(config)
    return sorted({*(checks.gateway(kinds) if kinds else checks.bootstrap(roots[0]))})


def _mode(mode: Node) -> dict[str, str]:
    """The fields of a mode as Envoy compares them; those that are not set have the value 0."""
    return {name: str(mode[name]) for name in _MODES if str(mode[name]) not in ("", "DEFAULT", "NONE")}


def _place(address: Node) -> str:
    tcp = address["socket_address"]
    return f"{tcp['address']}:{tcp['port_value']}" if tcp else str(address["pipe.path"])


def _route(host: Node, chosen: str, path: str = REQUEST[":path"]) -> Node:
    """The first route that matches the request with this routing header."""
    headers = {**REQUEST, ":path": path, **({CLUSTER_HEADER: chosen} if chosen else {})}
    return next((each for each in host["routes"] if _fits(each["match"], headers)), Node(None, host.line))


def _rule(rules: Node, chosen: str = "", path: str = REQUEST[":path"]) -> Node:
    """The rule of a gateway for a path and a routing header; none if only the rules without it match."""
    for rule in rules:
        for match in [*rule["matches"], *rule["match"]] or [Node(None, rule.line)]:
            wanted = str(match["headers.*.value"] or match["headers.*.exact"])
            where = match["path.value"] or match["uri.*"]
            kind = str(match["path.type"] or next(iter(match["uri"].values), "PathPrefix")).lower()
            if kind in ("regularexpression", "regex"):
                fits = _fullmatch(where, path)
            else:
                fits = path == str(where) if kind == "exact" else path.startswith(str(where))
            if wanted == chosen and (fits or not where):
                return rule
    return Node(None, rules.line)


def _fits(match: Node, headers: Mapping[str, str]) -> bool:
    path = headers[":path"]
    if {re.sub("([A-Z])", r"_\1", str(key)).lower() for key in match.values} - _CONDITIONS:
        return False  # a condition that not every request meets
    part = match["path_separated_prefix"]
    within = bool(part) and f"{path}/".startswith(f"{part}/")
    if not (_matches(match, path) or path == str(match["path"]) or within):
        return False
    return all(_header_fits(each, headers.get(str(each["name"]).lower())) for each in match["headers"])


def _header_fits(matcher: Node, value: str | None) -> bool:
    fits = (value is not None) == (matcher["present_match"].value is not False)
    if matcher["string_match"]:
        fits = value is not None and _matches(matcher["string_match"], value)
    return fits != (matcher["invert_match"].value is True)


def _matches(matcher: Node, text: str) -> bool:
    """Whether a StringMatcher, or the path of a route, matches."""
    fold: Callable[[str], str] = str.lower if matcher["ignore_case"].value is True else str
    found = [_STRINGS[kind](fold(text), fold(str(matcher[kind]))) for kind in _STRINGS if matcher[kind]]
    return any(found) or _fullmatch(matcher["safe_regex.regex"], text)


def _fullmatch(regex: Node, text: str) -> bool:
    """Whether a regular expression matches; one that only Envoy can read is taken to match."""
    try:
        return bool(regex) and re.fullmatch(str(regex), text) is not None
    except re.error:
        return True
