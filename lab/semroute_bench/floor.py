"""The transport's floor: an external processor that reads, answers and decides nothing.

python -m semroute_bench.floor unix:/path          on grpc.aio, as the sidecar is
python -m semroute_bench.floor unix:/path threads  on grpc's synchronous server and a thread pool
python -m semroute_bench.floor unix:/path passes   on grpc.aio, with a pass of the encoder on the
                                                           same token ids for each body: the least that a
                                                           decision can cost behind this transport
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health

from semroute_extproc.encoder.cores import usable_cores
from semroute_extproc.envoy import replies as mutations
from semroute_extproc.envoy._pb import external_processor_pb2 as pb
from semroute_extproc.envoy.server import GRPC_EXPERIMENTS, SERVICE

REPLIES = (mutations.ask_for_body(0), mutations.CONTINUE["request_body"])

THREADS = 32
"""Of the synchronous server: a stream holds one for as long as it is open."""

OPTIONS = [("grpc.so_reuseport", 0)]


async def process(_: Any, context: grpc.aio.ServicerContext[Any, Any]) -> None:
    """Ask for the body, then let the request go on."""
    number = 0
    while await context.read() is not grpc.aio.EOF:
        await context.write(REPLIES[number])
        number += 1


class Passes:
    """The session alone on one text's token ids, for each body, on a thread a core as the sidecar has."""

    def __init__(self) -> None:
        from semroute_bench.direct import Bare, default_model
        from semroute_bench.load import prompt_of

        model = default_model()
        self._once = Bare(model, prompt_of(model.framer, 64)).once
        self._lanes = ThreadPoolExecutor(usable_cores())

    async def process(self, _: Any, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        """Ask for the body, run a pass, let the request go on."""
        loop = asyncio.get_running_loop()
        number = 0
        while await context.read() is not grpc.aio.EOF:
            if number == 1:
                await loop.run_in_executor(self._lanes, self._once)
            await context.write(REPLIES[number])
            number += 1


def process_in_thread(requests: Iterator[Any], _: grpc.ServicerContext) -> Iterator[bytes]:
    """The same on the synchronous server."""
    for number, _request in enumerate(requests):
        yield REPLIES[number]


def _handler(behaviour: Any) -> grpc.GenericRpcHandler:
    method: Any = grpc.stream_stream_rpc_method_handler(
        behaviour, request_deserializer=pb.ProcessingRequest.FromString
    )
    return grpc.method_handlers_generic_handler(SERVICE, {"Process": method})


async def serve(address: str, behaviour: Any = process) -> None:
    """Serve until terminated, with the settings of gRPC that the sidecar has; Envoy finds it healthy."""
    server = grpc.aio.server(options=OPTIONS)
    server.add_generic_rpc_handlers((_handler(behaviour),))
    well = health.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(well, server)
    for service in ("", SERVICE):
        await well.set(service, health_pb2.HealthCheckResponse.SERVING)
    server.add_insecure_port(address)
    await server.start()
    await server.wait_for_termination()


def serve_in_threads(address: str) -> None:
    """The same on the synchronous server."""
    server = grpc.server(ThreadPoolExecutor(THREADS), options=OPTIONS)
    server.add_generic_rpc_handlers((_handler(process_in_thread),))
    server.add_insecure_port(address)
    server.start()
    server.wait_for_termination()


if __name__ == "__main__":
    from semroute_extproc.serve.app import loop_factory

    os.environ.setdefault("GRPC_EXPERIMENTS", GRPC_EXPERIMENTS)
    if sys.argv[2:] == ["threads"]:
        serve_in_threads(sys.argv[1])
    else:
        with asyncio.Runner(loop_factory=loop_factory()) as runner:
            mode = sys.argv[2:]
            runner.run(serve(sys.argv[1], Passes().process if mode == ["passes"] else process))
