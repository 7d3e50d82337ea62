"""The cases of the table at a real Envoy: one process with a listener for each variant of the filter."""

from __future__ import annotations

import json
import signal
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h2.config
import h2.connection
import h2.events
import pytest
from gateway import (
    Background,
    Gateway,
    Pools,
    RawResponse,
    RawUpstream,
    chunked,
    read_message,
    start_gateway,
    start_sidecar,
    wait_for,
)
from semroute_demo.envoy import (
    EXT_PROC,
    Bootstrap,
    Variant,
    clusters,
    connection_manager,
    ext_proc,
    variant,
)
from semroute_demo.pool import Fault
from semroute_demo.process import free_port
from semroute_demo.sidecar import Sidecar
from table import ENVOY, VARIANTS, AtEnvoy, chat

pytestmark = pytest.mark.e2e

PATH = "/v1/chat/completions"
HEAD = [b"host: x", b"content-type: application/json"]
SPOOFED = [b"x-semroute-cluster: vllm-small", b"x-semroute-tenant: acme", b"x_semroute_cluster: vllm-small"]
SECRET = b"Bearer a-key-that-the-sidecar-must-not-see"
LATE_SECONDS = 0.05
STREAMS_MAX = 16  # of the sidecar behind TCP: clients can hold more streams than it has
UPGRADES = {"upgrade": "to a raw server", "upgrade, the response too": "to a raw server, the response too"}


@dataclass
class Subject:
    """The running gateway, and the ports of its listeners by variant."""

    gateway: Gateway
    pools: Pools
    sidecar: Sidecar
    behind_tcp: Sidecar
    ports: dict[str, int] = field(default_factory=dict)


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Subject]:
    folder, background, upstream = tmp_path_factory.mktemp("envoy"), Background(), RawUpstream()
    pools = Pools(background)
    port = free_port()
    own = {"SERVER__LISTEN": f"127.0.0.1:{port}", "SERVER__STREAMS_MAX": str(STREAMS_MAX)}
    sidecars = [
        start_sidecar(folder),
        start_sidecar(folder, "behind-tcp", **own, CONTROLLERS__FAILOVER="{}"),
    ]

    def edit(bootstrap: Bootstrap) -> None:
        add_variants(bootstrap, sidecars[0].socket, port)

    extra = {"vllm-raw": upstream.address}
    gateway = start_gateway(folder, sidecars[:1], pools, addresses=extra, edit=edit)
    try:
        found = json.loads(gateway.envoy.read_admin("/listeners", format="json"))["listener_statuses"]
        ports = {
            each["name"]: each["local_address"]["socket_address"]["port_value"]
            for each in found
            if "socket_address" in each["local_address"]
        }
        ports["as shipped"] = ports.pop("ingress")
        wait_for(lambda: gateway.envoy.healthy("semroute-tcp"), 10, "the sidecar behind TCP to be healthy")
        time.sleep(0.1)  # What the main thread knows reaches Envoy's workers a moment later.
        yield Subject(gateway, pools, sidecars[0], sidecars[1], ports)
    finally:
        gateway.envoy.stop()
        for sidecar in sidecars:
            sidecar.stop()
        pools.stop()
        upstream.close()
        background.close()


def add_variants(bootstrap: Bootstrap, sidecar_socket: Path, port: int) -> None:
    """A listener for each variant, and the cluster of the sidecar behind TCP."""
    resources = bootstrap["static_resources"]
    over_tcp = json.loads(json.dumps(clusters(bootstrap)["semroute"]).replace("semroute", "semroute-tcp", 1))
    over_tcp["name"] = over_tcp["load_assignment"]["cluster_name"] = "semroute-tcp"
    [endpoint] = over_tcp["load_assignment"]["endpoints"][0]["lb_endpoints"]
    endpoint["endpoint"]["address"] = {"socket_address": {"address": "127.0.0.1", "port_value": port}}
    added = []
    response = VARIANTS["the response too"]["mode"]
    more = {
        "to a raw server": {"raw": True},
        UPGRADES["upgrade, the response too"]: {"raw": True, "mode": response},
    }
    for name, changes in {**VARIANTS, **more}.items():
        if name == "as shipped":
            continue
        filter_changes = dict(changes.get("ext_proc", {}))
        if not changes.get("override", True):
            filter_changes |= {"allow_mode_override": False, "allowed_override_modes": None}
        own = Variant(
            [str(sidecar_socket)], {}, processing_mode=changes.get("mode", {}), ext_proc=filter_changes
        )
        made = variant(bootstrap, own)
        change(made, changes)
        listener = made["static_resources"]["listeners"][0]
        listener["name"] = name
        added.append(listener)
    resources["listeners"] += added
    resources["clusters"].append(over_tcp)


def change(bootstrap: Bootstrap, changes: dict[str, Any]) -> None:
    """The changes of a variant that are not fields of the filter."""
    manager = connection_manager(bootstrap)
    host, filters = manager["route_config"]["virtual_hosts"][0], manager["http_filters"]
    if "cluster" in changes:
        ext_proc(bootstrap)["grpc_service"]["envoy_grpc"]["cluster_name"] = changes["cluster"]
    if not changes.get("retries", True):
        del host["retry_policy"]
    if changes.get("twice"):
        second = deepcopy(filters[0])
        second["name"] = "second"
        second["typed_config"]["stat_prefix"] = "second"
        filters.insert(1, second)
    if changes.get("per_route"):
        filters[0]["disabled"] = True
        package = "type.googleapis.com/envoy.extensions.filters.http.ext_proc.v3"
        enabled = {
            "@type": "type.googleapis.com/envoy.config.route.v3.FilterConfig",
            "config": {"@type": f"{package}.ExtProcPerRoute", "overrides": {}},
        }
        host["routes"][-1]["typed_per_filter_config"] = {EXT_PROC: enabled}
    if changes.get("raw"):
        host["routes"] = host["routes"][-1:]  # whatever the sidecar decides
        host["routes"][0]["route"]["cluster"] = "vllm-raw"


# --- Clients ---


def ask(port: int, lines: Sequence[bytes], body: bytes = b"") -> list[RawResponse]:
    """Every response on one connection, until it is closed or idle."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        connection.sendall(b"\r\n".join([*lines, b"", b""]) + body)
        return [read_message(connection.makefile("rb"))]


def post(
    port: int, *more: bytes, body: bytes | None = None, path: str = PATH, version: bytes = b"HTTP/1.1"
) -> RawResponse:
    data = chat() if body is None else body
    first = b"POST " + path.encode() + b" " + version
    [response] = ask(port, [first, *HEAD, b"content-length: %d" % len(data), *more], data)
    return response


def post_with_a_late_end(port: int) -> RawResponse:
    """The last chunk, which is empty, comes when the sidecar has seen the body if it ever sees it before."""
    lines = [b"POST " + PATH.encode() + b" HTTP/1.1", *HEAD, b"transfer-encoding: chunked", b"", b""]
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        connection.sendall(b"\r\n".join(lines) + b"%x\r\n%s\r\n" % (len(chat()), chat()))
        time.sleep(LATE_SECONDS)
        connection.sendall(b"0\r\n\r\n")
        return read_message(connection.makefile("rb"))


def post_chunked(port: int, pieces: Sequence[bytes], trailers: Sequence[str] = ()) -> RawResponse:
    lines = [b"POST " + PATH.encode() + b" HTTP/1.1", *HEAD, b"transfer-encoding: chunked", b"te: trailers"]
    [response] = ask(port, lines, chunked(pieces, trailers))
    return response


class Http2:
    """A connection with prior knowledge of HTTP/2."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=20)
        self._state = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
        self._state.initiate_connection()
        self.statuses: dict[int, str] = {}

    def head(self, stream: int) -> None:
        fields = [(":method", "POST"), (":path", PATH), (":scheme", "http"), (":authority", "x")]
        self._state.send_headers(stream, [*fields, ("content-type", "application/json")])
        self._socket.sendall(self._state.data_to_send())

    def body(self, stream: int, trailers: Sequence[tuple[str, str]] = ()) -> None:
        self._state.send_data(stream, chat(), end_stream=not trailers)
        if trailers:
            self._state.send_headers(stream, list(trailers), end_stream=True)
        self._socket.sendall(self._state.data_to_send())

    def reset(self, stream: int) -> None:
        self._state.reset_stream(stream)
        self._socket.sendall(self._state.data_to_send())

    def read(self, count: int) -> dict[int, str]:
        """Stream to word, once `count` streams have ended."""
        words: dict[int, str] = {}
        ended = 0
        while ended < count:
            for event in self._state.receive_data(self._socket.recv(65_536)):
                if isinstance(event, h2.events.ResponseReceived):
                    fields = {key.decode(): value.decode() for key, value in event.headers or ()}
                    words[event.stream_id] = fields.get("x-sim-pool", fields[":status"])
                ended += isinstance(event, h2.events.StreamEnded | h2.events.StreamReset)
            self._socket.sendall(self._state.data_to_send())
        return words

    def close(self) -> None:
        self._socket.close()


def over_http2(port: int, trailers: Sequence[tuple[str, str]] = ()) -> str:
    client = Http2(port)
    client.head(1)
    client.body(1, trailers)
    words = client.read(1)
    client.close()
    return words[1]


# --- Events ---


def word(response: RawResponse) -> str:
    """The pool that answered, or else the status."""
    return response.headers.get("x-sim-pool", str(response.status))


def crowded(subject: Subject, port: int, case: AtEnvoy) -> str:
    if "count" in case.more:  # besides host, content-type and content-length
        return word(post(port, *(b"x-h%d: y" % number for number in range(case.more["count"] - 3))))
    each = case.more["size"] // 10 - len(b"x-h0: ")
    return word(post(port, *(b"x-h%d: " % number + b"y" * each for number in range(10))))


def spoofed(subject: Subject, port: int, _: AtEnvoy) -> str:
    response = post(port, *SPOOFED, body=chat("auto-strong"))
    assert not {"x-semroute-cluster", "x_semroute_cluster", "x-semroute-tenant"} & set(
        subject.pools.large.received[-1].headers
    )
    return word(response)


def spoofed_on_retry(subject: Subject, port: int, _: AtEnvoy) -> str:
    subject.pools.small.faults.append(Fault(status=503))
    found = word(post(port, *SPOOFED))
    attempts = list(subject.pools.small.received)
    assert len(attempts) == 2
    assert not any("x-semroute-cluster" in each.headers for each in attempts)
    return found


def pipelined(subject: Subject, port: int, _: AtEnvoy) -> str:
    data = chat()
    one = b"\r\n".join(
        [b"POST " + PATH.encode() + b" HTTP/1.1", *HEAD, b"content-length: %d" % len(data), b"", b""]
    )
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        connection.sendall((one + data) * 2)
        stream = connection.makefile("rb")
        return " ".join(word(read_message(stream)) for _ in range(2))


def reset_streams(subject: Subject, port: int, _: AtEnvoy) -> str:
    client = Http2(port)
    for stream in range(1, 101, 2):
        client.head(stream)
        client.reset(stream)
    client.head(101)
    client.body(101)
    found = client.read(1)[101]
    client.close()
    return found


def held_streams(subject: Subject, port: int, _: AtEnvoy) -> str:
    """Other clients are routed meanwhile, and each held request is answered when its body comes."""
    client, streams = Http2(port), range(1, 2 * 3 * STREAMS_MAX, 2)
    for stream in streams:
        client.head(stream)
    wait_for(lambda: counted(subject.behind_tcp, "too_many_uploads") > 0, 5, "the oldest to be passed on")
    found = word(post(port))
    for stream in streams:
        client.body(stream)
    answered = client.read(len(streams))
    assert set(answered.values()) == {"small", "large"}
    assert list(answered.values()).count("small") >= STREAMS_MAX // 2
    assert len(answered) == len(streams), "a held request was lost"
    client.close()
    return found


def counted(sidecar: Sidecar, cause: str) -> float:
    page = sidecar.read_admin("/metrics")[1].splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in page if f'cause="{cause}"' in line)


def upgrade(subject: Subject, _: int, case: AtEnvoy) -> str:
    port = subject.ports[UPGRADES[case.event]]
    lines = [
        b"GET " + PATH.encode() + b" HTTP/1.1",
        b"host: x",
        b"connection: upgrade",
        b"upgrade: websocket",
    ]
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        connection.sendall(b"\r\n".join([*lines, b"", b""]))
        stream = connection.makefile("rb")
        response = read_message(stream)
        for text in (b"one", b"two"):
            connection.sendall(text)
            assert stream.read(3) == text.upper()
    return str(response.status)


def credentials(subject: Subject, port: int, _: AtEnvoy) -> str:
    found = word(post(port, b"authorization: " + SECRET, b"cookie: " + SECRET, b"x-api-key: " + SECRET))
    assert subject.pools.small.received[-1].headers["authorization"] == SECRET.decode()
    assert SECRET.decode() not in subject.sidecar.process.log_path.read_text()
    return found


def handed_over(subject: Subject, _: int, case: AtEnvoy) -> str:
    """Behind TCP the sidecar hands a failed request on, and the listener `handover` takes all its headers."""
    subject.pools.small.faults.append(Fault(status=500))
    more = [b"x-h%d: y" % number for number in range(97)]
    found = word(post(subject.ports["over TCP"], *more))
    assert len(subject.pools.small.received) == 1
    return found


def spoofed_while_paused(subject: Subject, _: int, case: AtEnvoy) -> str:
    """No answer within `message_timeout`: the request goes where it would go without the sidecar."""
    subject.behind_tcp.process.send(signal.SIGSTOP)
    try:
        return word(post(subject.ports["over TCP"], *SPOOFED, body=chat("large-model")))
    finally:
        subject.behind_tcp.process.send(signal.SIGCONT)


BIG = chat(user="x" * 300_000)
Sender = Callable[[Subject, int, AtEnvoy], str]
SENDERS: dict[str, Sender] = {
    "JSON": lambda s, port, c: word(post(port)),
    "chunked": lambda s, port, c: word(post_chunked(port, [chat()[:20], chat()[20:]])),
    "a late last chunk": lambda s, port, c: word(post_with_a_late_end(port)),
    "trailers": lambda s, port, c: word(post_chunked(port, [chat()[:20], chat()[20:]], ["x-check: 7"])),
    "large": lambda s, port, c: word(post(port, body=BIG)),
    "HTTP/2": lambda s, port, c: over_http2(port),
    "HTTP/2 trailers": lambda s, port, c: over_http2(port, [("x-check", "7")]),
    "empty": lambda s, port, c: word(post(port, body=b"")),
    "not JSON": lambda s, port, c: word(post(port, body=b"{no}")),
    "GET": lambda s, port, c: word(ask(port, [b"GET /health HTTP/1.1", b"host: x"])[0]),
    "unknown path": lambda s, port, c: word(post(port, path="/v1/unheard-of")),
    "request ID": lambda s, port, c: word(post(port, b"x-request-id: \xff\xfe\xc3")),
    "header": lambda s, port, c: word(post(port, b"x-any: \xff\xfe", b"x-semroute-session: \xc3(")),
    "headers": crowded,
    "spoofed": spoofed,
    "spoofed on retry": spoofed_on_retry,
    "absolute form": lambda s, port, c: word(post(port, path="http://x" + PATH)),
    "pipelined": pipelined,
    "HTTP/1.0": lambda s, port, c: word(post(port, version=b"HTTP/1.0")),
    "two lengths": lambda s, port, c: word(post(port, b"content-length: 7")),
    "length and encoding": lambda s, port, c: word(post(port, b"transfer-encoding: chunked")),
    "CONNECT": lambda s, port, c: word(ask(port, [b"CONNECT x:443 HTTP/1.1", b"host: x:443"])[0]),
    "reset": reset_streams,
    "held": held_streams,
    "upgrade": upgrade,
    "upgrade, the response too": upgrade,
    "credentials": credentials,
    "handed over with 100 headers": handed_over,
    "spoofed while paused": spoofed_while_paused,
}


@pytest.mark.parametrize("case", ENVOY, ids=lambda case: f"{case.area}/{case.name}".replace(" ", "-"))
def test_a_request_goes_where_the_table_says(subject: Subject, case: AtEnvoy) -> None:
    subject.pools.clear()
    assert SENDERS[case.event](subject, subject.ports[case.variant], case) == case.expected


def test_envoy_misunderstood_and_rejected_nothing(subject: Subject) -> None:
    found = subject.gateway.envoy.stats("ext_proc")
    for counter in ("spurious_msgs_received", "rejected_header_mutations", "clear_route_cache_ignored"):
        assert {name: count for name, count in found.items() if name.endswith(counter) and count} == {}
    assert counted(subject.sidecar, "unreadable_message") == 0


def test_the_names_of_the_cases_are_unique() -> None:
    names = [f"{case.area}/{case.name}" for case in ENVOY]
    assert len(set(names)) == len(names)
    assert {case.event for case in ENVOY} == set(SENDERS)
