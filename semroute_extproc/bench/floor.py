"""The transport's floor: an external processor on grpc.aio that reads, answers and decides nothing.

python -m semroute_extproc.bench.floor unix:/path
"""

from __future__ import annotations

import asyncio
import os
import sys
from typing import Any

import grpc
import grpc.aio

from semroute_extproc import mutations
from semroute_extproc._pb import external_processor_pb2 as pb
from semroute_extproc.server import GRPC_EXPERIMENTS, SERVICE

REPLIES = (mutations.ask_for_body(0), mutations.CONTINUE["request_body"])


async def process(_: Any, context: grpc.aio.ServicerContext[Any, Any]) -> None:
    """Ask for the body, then let the request go on."""
    number = 0
    while await context.read() is not grpc.aio.EOF:
        await context.write(REPLIES[number])
        number += 1


async def serve(address: str) -> None:
    """Serve until terminated, with the settings of gRPC that the sidecar has."""
    os.environ.setdefault("GRPC_EXPERIMENTS", GRPC_EXPERIMENTS)
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    method: Any = grpc.stream_stream_rpc_method_handler(
        process, request_deserializer=pb.ProcessingRequest.FromString
    )
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, {"Process": method}),))
    server.add_insecure_port(address)
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    from semroute_extproc.app import loop_factory

    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(serve(sys.argv[1]))
