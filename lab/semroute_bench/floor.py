"""A do-nothing external processor on `grpc.aio`, like the sidecar: it reads and replies, but decides nothing.

    python -m semroute_bench.floor unix:/path [passes]

With `passes` it runs the encoder for each body: the least that a decision can cost on this transport.
"""

import asyncio
import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc.aio
import uvloop
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health

from semroute_extproc.envoy import replies
from semroute_extproc.envoy._pb import external_processor_pb2 as pb
from semroute_extproc.envoy.server import GRPC_EXPERIMENTS, SERVICE
from semroute_extproc.io.cores import usable_cores

REPLIES = (replies.ask_for_body(0), replies.CONTINUE["request_body"])


def process(once: Callable[[], object] | None = None) -> Any:
    """A processor that calls `once` for each body, on as many threads as the sidecar has."""
    threads = ThreadPoolExecutor(usable_cores())

    async def respond(_: Any, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        for number, reply in enumerate(REPLIES):
            if await context.read() is grpc.aio.EOF:
                return
            if number == 1 and once is not None:
                await asyncio.get_running_loop().run_in_executor(threads, once)
            await context.write(reply)

    return respond


def handler(behavior: Any) -> grpc.GenericRpcHandler:
    """The service with `behavior` as its one method."""
    method: Any = grpc.stream_stream_rpc_method_handler(behavior, pb.ProcessingRequest.FromString)
    return grpc.method_handlers_generic_handler(SERVICE, {"Process": method})


async def serve(address: str, once: Callable[[], object] | None = None) -> None:
    """Serve with the sidecar's settings of gRPC until terminated; Envoy finds it healthy."""
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    server.add_generic_rpc_handlers((handler(process(once)),))
    healthy = health.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(healthy, server)
    for service in ("", SERVICE):
        await healthy.set(service, health_pb2.HealthCheckResponse.SERVING)
    server.add_insecure_port(address)
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    os.environ.setdefault("GRPC_EXPERIMENTS", GRPC_EXPERIMENTS)
    arguments: list[Any] = sys.argv[1:2]
    if sys.argv[2:] == ["passes"]:
        from semroute_bench import load
        from semroute_bench.sidecar import Bare, default_model

        model = default_model()
        arguments.append(Bare(model, load.prompt_of(model.framer, 64)).once)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(*arguments))
