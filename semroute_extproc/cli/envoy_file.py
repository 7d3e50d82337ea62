"""Write Envoy's side of a configuration, from the templates `*.yaml.j2` in this folder.

The files in envoy/ are what the templates give for the example configuration; tools/gen_docs.py writes them.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from semroute_extproc.config.source import Loaded
from semroute_extproc.errors import ConfigError
from semroute_extproc.settings.base import Problem, did_you_mean
from semroute_extproc.settings.process import Server

TARGETS = ("envoy", "envoy-gateway", "istio", "kgateway", "inference-extension")
FILES = {target: f"{target}.yaml" for target in TARGETS}  # What runs Envoy, and its file in envoy/.

BODY_SLACK_BYTES = 64 * 1024  # Envoy's limit on a body is this much above ours, so that our 413 comes first
MESSAGE_SECONDS_MIN, MESSAGE_SLACK_SECONDS = 3.0, 1.0
"""Lowest `message_timeout`, enough for a body near the limit, and its distance from the deadline."""
MESSAGE_BYTES_MIN, REQUESTS_MIN = 64 * 1024**2, 16_384  # lowest limits on a gRPC message and on open streams
ENVOY_HEADERS = {
    "envoy-gateway": {"max_headers_count": 100, "max_request_headers_kb": 60},
    "kgateway": {"max_headers_count": 100},
}
"""Envoy's own limits, where the gateway has no setting for them."""
RULES_MAX = 16  # of an HTTPRoute
LISTEN, ADMIN = "0.0.0.0:10000", "127.0.0.1:9901"

Address = tuple[str, int]

_PLAIN = re.compile(r"/?-?[A-Za-z][\w./@-]*(:[\w./@-]+)*|[0-9]+(\.[0-9]+){3}", re.ASCII)
_NOT_TEXT = ("true", "false", "null", "yes", "no", "on", "off", "y", "n")


def render(
    loaded: Loaded, target: str, given: Mapping[str, Sequence[str]], listen: str = LISTEN, admin: str = ADMIN
) -> str:
    """The file for `target`; `given` has URLs that replace the `endpoints` of pools; raises ConfigError."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined  # Imported only if it is used.

    config, server = loaded.config, loaded.config.server
    urls = {name: given.get(name) or pool.endpoints for name, pool in config.pools.items()}
    for name in given.keys() - urls.keys():
        raise ConfigError([f"--pool: there is no pool {name!r}{did_you_mean(name, urls)}"])
    places = {name: addresses(found) for name, found in urls.items()}
    if problems := [*_problems(loaded, target, places)]:
        raise loaded.error(problems)
    pools = {
        name: {"name": name, "cluster": pool.cluster, "model": pool.model, "places": places[name]}
        for name, pool in config.pools.items()
    }
    values = {
        "server": server,
        "failover": config.controllers.failover,
        "pools": [*pools.values()],
        "default": pools[config.default_pool],
        "hosts": dict.fromkeys(host for found in places.values() for host, _ in found),
        "sockets": [listening(server, worker) for worker in range(server.workers)],
        "listen": addresses([listen])[0],
        "admin": addresses([config.controllers.envoy_admin or admin])[0],
        "body_limit": server.body_bytes_max + BODY_SLACK_BYTES,
        "message_bytes": max(MESSAGE_BYTES_MIN, 2 * server.body_bytes_max),
        "message_seconds": f"{message_seconds(server):g}",
        "prefixes": "|".join(map(re.escape, server.path_prefixes)),
        "requests": max(REQUESTS_MIN, 4 * server.streams_max * server.workers),
    }
    loader = FileSystemLoader(Path(__file__).parent)
    templates = Environment(loader=loader, undefined=StrictUndefined, autoescape=False)  # noqa: S701 - YAML
    templates.trim_blocks = templates.keep_trailing_newline = True
    templates.filters["scalar"] = scalar
    return templates.get_template(f"{FILES[target]}.j2").render(values)


def _problems(loaded: Loaded, target: str, places: Mapping[str, Sequence[Address]]) -> Iterable[Problem]:
    """What of the configuration `target` cannot do."""
    for name, found in places.items():
        if not found:
            yield Problem(("pools", name), f"has no endpoints: add them, or give --pool {name}=HOST:PORT")
        elif target != "envoy" and (len(found) > 1 or re.fullmatch(r"[0-9.]+|.*:.*", found[0][0])):
            backend = "InferencePool" if target == "inference-extension" else "Service"
            kind = f"one {backend} for each pool, such as http://vllm.models.svc.cluster.local:8000"
            yield Problem(("pools", name, "endpoints"), f"{target} needs {kind}")
    if target != "envoy" and len(places) >= RULES_MAX:
        yield Problem(("pools",), f"a route of {target} has room for {RULES_MAX - 1} pools")
    for name, most in ENVOY_HEADERS.get(target, {}).items():
        if getattr(loaded.config.server, name) > most:
            yield Problem(("server", name), f"{target} has Envoy's own limit: write {most}")
    if target != "envoy" and loaded.config.controllers.failover is not None:
        yield Problem(("controllers", "failover"), f"{target} has no clusters for it: remove it")


def addresses(urls: Iterable[str]) -> list[Address]:
    """Host and port of each URL or `host:port`; raises ConfigError."""
    found = [re.fullmatch(r"(?:http://)?(?:\[(.+)\]|([^:/]*)):([0-9]{1,5})/?", url) for url in urls]
    if None in found:
        raise ConfigError([f"not HOST:PORT: {', '.join(urls)}"])
    return [(each[1] or each[2], int(each[3])) for each in found if each]


def message_seconds(server: Server) -> float:
    """Envoy's `message_timeout`: above the deadline, so that our fallback comes first."""
    return max(MESSAGE_SECONDS_MIN, server.deadline_ms / 1_000 + MESSAGE_SLACK_SECONDS)


def listening(server: Server, worker: int = 0) -> tuple[str, int | None]:
    """Where Envoy finds a worker: a host and its port, or the path of a socket and None."""
    where = server.address(worker)
    if where.startswith(("unix:", "unix-abstract:")):
        kind, _, path = where.partition(":")
        return ("@" if kind == "unix-abstract" else "") + path, None
    [(host, port)] = addresses([where])
    return "127.0.0.1" if host in ("0.0.0.0", "::", "") else host, port  # noqa: S104 - not bound


def scalar(text: str) -> str:
    """A string in YAML 1.1 and 1.2, also within brackets; in quotes only if it needs them."""
    plain = _PLAIN.fullmatch(text) and text.lower() not in _NOT_TEXT
    return text if plain else json.dumps(text, ensure_ascii=False)
