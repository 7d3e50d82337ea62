"""Servers that do nothing: external processors that read, answer and decide nothing.

    python -m semroute_bench.floor unix:/path MODE

MODE is `aio` (`grpc.aio`, as the sidecar), `threads` (gRPC's synchronous server with a thread pool) or
`passes` (`grpc.aio` with a pass of the encoder on the same token ids for each body: the least that a
decision can cost on this transport). The server in C++ is benchmarks/floor.cc.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health
from semroute_demo.process import Process, ProcessError

from semroute_bench import load
from semroute_bench.samples import Figures, Samples, Say, Size
from semroute_extproc.encoder.cores import usable_cores
from semroute_extproc.envoy import replies
from semroute_extproc.envoy._pb import external_processor_pb2 as pb
from semroute_extproc.envoy.server import GRPC_EXPERIMENTS, SERVICE

REPLIES = (replies.ask_for_body(0), replies.CONTINUE["request_body"])
"""Ask for the body, then let the request continue."""

THREADS = 32
"""Threads of the synchronous server; an open stream occupies one."""

READY_SECONDS_MAX = 30.0

BUILD_SECONDS_MAX = 600.0
"""How long the server in C++ may take to build on a slow machine."""

CHECKOUT = Path(__file__).resolve().parents[2]

SIDECAR, NATIVE = "the sidecar, pool named", "gRPC in C++"
SERVERS = {"grpc.aio": "aio", "grpc, threads": "threads", NATIVE: "native"}
"""Row of the table to mode."""


class DoNothing:
    """A do-nothing server as a child process, serving on `MODE.sock` in `folder`."""

    def __init__(self, folder: Path, mode: str = "aio") -> None:
        """Start it; raises `ProcessError` if it does not start, or cannot be built."""
        socket = folder / f"{mode}.sock"
        command = [sys.executable, "-m", "semroute_bench.floor", f"unix:{socket}", mode]
        if mode == "native":
            command = [str(build()), f"unix:{socket}", *(reply.hex() for reply in REPLIES)]
        self._process = Process(mode, command, folder / f"{mode}.log")
        self._process.start(socket.exists, READY_SECONDS_MAX)
        self.sockets = [socket]
        self.pids = [self._process.pid]

    def stop(self) -> None:
        """End it."""
        self._process.stop()


def build() -> Path:
    """The server in C++, built if it is older than its sources; raises `ProcessError` with the reason."""
    if not (CHECKOUT / "benchmarks" / "floor.mk").is_file():
        raise ProcessError("its source is in a checkout only")
    command = ["make", "-sC", str(CHECKOUT), "-f", "benchmarks/floor.mk"]
    try:
        subprocess.run(command, capture_output=True, text=True, check=True, timeout=BUILD_SECONDS_MAX)
    except FileNotFoundError:
        raise ProcessError("no make") from None
    except subprocess.CalledProcessError as error:
        raise ProcessError(str(error.stderr).strip().splitlines()[0]) from None
    except subprocess.TimeoutExpired:
        raise ProcessError(f"the build took longer than {BUILD_SECONDS_MAX:g} s") from None
    return CHECKOUT / "build" / "floor" / "floor"


async def measure(size: Size, folder: Path, say: Say) -> Figures:
    """CPU milliseconds per stream and streams per second of each server, in turn.

    `left out` names the servers that are not available here, and why.
    """
    from semroute_bench.client import Target
    from semroute_bench.sidecar import BUSY, UNHURRIED, Measured

    say("servers that do nothing")
    request, samples, left_out = load.exchange(load.chat(load.NAMED)), Samples(), {}
    async with AsyncExitStack() as exits:
        targets = {SIDECAR: await Target.of(Measured(folder / "floors", **UNHURRIED), exits)}
        for name, mode in SERVERS.items():
            try:
                targets[name] = await Target.of(DoNothing(folder, mode), exits)
            except ProcessError as error:
                say(f"not measured: {name}: {error}")
                left_out[name] = str(error)
        for target in targets.values():
            await target.send(request, 20 * BUSY, BUSY)
        for _ in range(size.rounds):
            for at_once, count in ((BUSY, size.floor_streams), (1, size.floor_streams // 4)):
                for name, target in targets.items():
                    await target.measure(samples, f"{name} x{at_once}", request, count, at_once)
    found = samples.medians()
    rows = [
        {"server": name}
        | {f"x{n} {what}": found[f"{name} x{n} {what}"] for n in (BUSY, 1) for what in ("cpu ms", "a second")}
        for name in targets
    ]
    return {"floors": {"servers": rows, "left out": left_out}}


async def process(_: Any, context: grpc.aio.ServicerContext[Any, Any]) -> None:
    """Answer each message with the next reply."""
    number = 0
    while await context.read() is not grpc.aio.EOF:
        await context.write(REPLIES[number])
        number += 1


class Passes:
    """A pass of the session for each body, on a thread per core as in the sidecar."""

    def __init__(self) -> None:
        from semroute_bench.sidecar import Bare, default_model

        model = default_model()
        self._once = Bare(model, load.prompt_of(model.framer, 64)).once
        self._threads = ThreadPoolExecutor(usable_cores())

    async def process(self, _: Any, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        """Ask for the body, run a pass, let the request continue."""
        await context.read()
        await context.write(REPLIES[0])
        await context.read()
        await asyncio.get_running_loop().run_in_executor(self._threads, self._once)
        await context.write(REPLIES[1])
        await context.read()


def _process_in_thread(requests: Iterator[Any], _: grpc.ServicerContext) -> Iterator[bytes]:
    for number, _request in enumerate(requests):
        yield REPLIES[number]


def handler(behavior: Any) -> grpc.GenericRpcHandler:
    """The service whose one method is `behavior`."""
    method: Any = grpc.stream_stream_rpc_method_handler(
        behavior, request_deserializer=pb.ProcessingRequest.FromString
    )
    return grpc.method_handlers_generic_handler(SERVICE, {"Process": method})


async def _serve(address: str, behavior: Any) -> None:
    """Serve with the sidecar's settings of gRPC; Envoy finds it healthy."""
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    server.add_generic_rpc_handlers((handler(behavior),))
    healthy = health.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(healthy, server)
    for service in ("", SERVICE):
        await healthy.set(service, health_pb2.HealthCheckResponse.SERVING)
    server.add_insecure_port(address)
    await server.start()
    await server.wait_for_termination()


def _serve_in_threads(address: str) -> None:
    server = grpc.server(ThreadPoolExecutor(THREADS), options=[("grpc.so_reuseport", 0)])
    server.add_generic_rpc_handlers((handler(_process_in_thread),))
    server.add_insecure_port(address)
    server.start()
    server.wait_for_termination()


def main(address: str, mode: str) -> None:
    """Serve until terminated."""
    from semroute_extproc.serve.app import loop_factory

    os.environ.setdefault("GRPC_EXPERIMENTS", GRPC_EXPERIMENTS)
    if mode == "threads":
        _serve_in_threads(address)
        return
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(_serve(address, Passes().process if mode == "passes" else process))


if __name__ == "__main__":
    main(*sys.argv[1:])
