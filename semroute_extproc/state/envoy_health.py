"""The clusters that Envoy cannot send a request to, read from its admin address.

Envoy checks hosts, ejects those that fail and resolves their names; with its view a pool is excluded before
a request meets the failure. The page is that of `/clusters?format=json` (envoy.admin.v3.Clusters).
"""

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
import structlog

from semroute_extproc.events import Emit, EnvoyChecked
from semroute_extproc.state.pool_metrics import INTERVAL_SECONDS, read

PAGE = "/clusters?format=json"
NO_CLUSTER, NO_HOST = "Envoy has no such cluster", "Envoy has no host"
UNHEALTHY = "Envoy: hosts are unhealthy"
FLAGS = (
    *("failed_active_health_check", "failed_outlier_check", "pending_active_hc"),
    "excluded_via_immediate_hc_fail",
)
"""Each true one keeps requests away from a host (envoy.admin.v3.HostHealthStatus)."""

logger = structlog.get_logger("semroute.envoy")


class _Host(msgspec.Struct):
    health_status: dict[str, Any] = {}

    @property
    def healthy(self) -> bool:
        status = self.health_status.get("eds_health_status", "HEALTHY")
        return status in ("HEALTHY", "UNKNOWN", "DEGRADED") and not any(map(self.health_status.get, FLAGS))


class _Cluster(msgspec.Struct):
    name: str
    host_statuses: list[_Host] = []


class _Clusters(msgspec.Struct):
    cluster_statuses: list[_Cluster] = []


def problems(page: bytes) -> dict[str, str]:
    """Every cluster of Envoy, and why it takes no request; empty if it does. Raises msgspec.DecodeError."""
    found = {}
    for cluster in msgspec.json.decode(page, type=_Clusters).cluster_statuses:
        hosts = [host.healthy for host in cluster.host_statuses]
        found[cluster.name] = "" if any(hosts) else UNHEALTHY if hosts else NO_HOST
    return found


def read_problems(address: str) -> dict[str, str]:
    """The `problems` of the Envoy with an admin address; raises what the client or the decoder raises."""
    return problems(read(address.rstrip("/") + PAGE))


async def watch(address: Callable[[], str | None], emit: Emit) -> None:
    """Read the page in each interval, until cancelled, and emit `EnvoyChecked`.

    `address` is called each time, so that a reload takes effect. While the page cannot be read, nothing is
    known of any cluster; a change is logged.
    """
    readable = True
    while True:
        clusters: Mapping[str, str] | None = None
        if (url := address()) is not None:
            try:
                clusters = await asyncio.to_thread(read_problems, url)
            except Exception as error:  # any failure of the client, or another page
                if readable:
                    logger.warning("envoy.unreadable", problem=f"{type(error).__name__}: {error}")
            readable = clusters is not None
        emit(EnvoyChecked(clusters or {}, failed=url is not None and clusters is None))
        await asyncio.sleep(INTERVAL_SECONDS)
