"""A server of the Open Inference Protocol with a bundle's real graph, and all the ways it can misbehave."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from functools import cache
from pathlib import Path
from typing import Any

import grpc
import numpy as np

from semroute_extproc.encoder._pb.inference_pb2 import ModelInferRequest, ModelInferResponse
from semroute_extproc.encoder.bundle import Bundle
from semroute_extproc.encoder.onnx import SLOW_ON_CPU, import_runtime

DTYPES = {"INT64": np.dtype("<i8"), "FP32": np.dtype("<f4")}
Act = Callable[[ModelInferResponse, grpc.aio.ServicerContext], Awaitable[ModelInferResponse | bytes]]


async def honest(response: ModelInferResponse, context: object) -> ModelInferResponse:
    """Send the answer as it is."""
    return response


class InferenceServer(AbstractAsyncContextManager["InferenceServer"]):
    """Serves a bundle's CPU graph on a loopback port; `act` decides what becomes of each right answer."""

    def __init__(self, bundle: Bundle, act: Act = honest, port: int = 0, credentials: Any = None) -> None:
        self.act, self.port, self._credentials = act, port, credentials
        self._session = _session(bundle.graph("cpu"))
        self.requests: list[ModelInferRequest] = []
        self.metadata: dict[str, str] = {}
        self.cancelled = 0

    @property
    def url(self) -> str:
        return f"{'https' if self._credentials else 'http'}://127.0.0.1:{self.port}"

    async def start(self) -> None:
        self._server = grpc.aio.server()
        method = grpc.unary_unary_rpc_method_handler(self._infer)
        service = grpc.method_handlers_generic_handler(
            "inference.GRPCInferenceService", {"ModelInfer": method}
        )
        self._server.add_generic_rpc_handlers((service,))
        address = f"127.0.0.1:{self.port}"
        if self._credentials is None:
            self.port = self._server.add_insecure_port(address)
        else:
            self.port = self._server.add_secure_port(address, self._credentials)
        await self._server.start()

    async def stop(self) -> None:
        await self._server.stop(None)

    async def __aenter__(self) -> InferenceServer:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    def response(self, request: ModelInferRequest) -> ModelInferResponse:
        """The right answer: one pass of the graph."""
        feeds = {
            tensor.name: np.frombuffer(content, DTYPES[tensor.datatype]).reshape(tensor.shape)
            for tensor, content in zip(request.inputs, request.raw_input_contents, strict=True)
        }
        answer = ModelInferResponse(model_name=request.model_name, model_version=request.model_version)
        for output, values in zip(self._session.get_outputs(), self._session.run(None, feeds), strict=True):
            answer.outputs.add(name=output.name, datatype="FP32", shape=values.shape)
            answer.raw_output_contents.append(values.astype("<f4").tobytes())
        return answer

    async def _infer(self, wire: bytes, context: grpc.aio.ServicerContext) -> bytes:
        request = ModelInferRequest.FromString(wire)
        self.requests.append(request)
        self.metadata = dict(context.invocation_metadata() or ())  # type: ignore[arg-type]
        try:
            answer = await self.act(self.response(request), context)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return answer if isinstance(answer, bytes) else answer.SerializeToString()


@cache
def _session(graph: Path) -> Any:
    runtime = import_runtime()
    options = runtime.SessionOptions()
    options.intra_op_num_threads = 1
    return runtime.InferenceSession(str(graph), options, disabled_optimizers=SLOW_ON_CPU)
