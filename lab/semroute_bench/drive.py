"""One client as a process of its own, so that several workers are loaded by several cores.

python -m semroute_bench.drive SOCKET COUNT AT_ONCE

Connects, says `ready`, waits for a line, sends COUNT routed requests and prints what became of them.
"""

from __future__ import annotations

import asyncio
import json
import sys
from time import perf_counter
from typing import Any

from semroute_bench import load
from semroute_bench.wire import connect
from semroute_extproc.envoy._pb import external_processor_pb2 as pb
from semroute_extproc.serve.app import loop_factory


async def drive(socket: str, count: int, at_once: int) -> dict[str, Any]:
    """Seconds, milliseconds of each request, and how many of them were decided."""
    decided = 0

    def seen(reply: bytes) -> None:
        nonlocal decided
        fields = pb.ProcessingResponse.FromString(reply).dynamic_metadata.fields
        decided += fields["semroute"].struct_value.fields["outcome"].string_value == "routed"

    request = load.exchange(load.chat("auto"))
    wire = await connect(socket)
    await wire.closed([request] * at_once, at_once)
    print("ready", flush=True)  # noqa: T201
    await asyncio.to_thread(sys.stdin.readline)
    started = perf_counter()
    ms = await wire.closed([request] * count, at_once, seen)
    seconds = perf_counter() - started
    wire.close()
    return {"seconds": seconds, "ms": ms, "decided": decided}


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        result = runner.run(drive(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
    print(json.dumps(result))  # noqa: T201
