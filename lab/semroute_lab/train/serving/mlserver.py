"""The graph as a custom runtime of MLServer.

MLServer's own batching joins requests without regard to their shapes, so this runtime batches itself: what
arrives during a pass shares the next one.
"""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from graph import INPUTS, Graph
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse
from mlserver.utils import get_model_uri

WAITING_MAX = 256  # requests; more are refused


class SemrouteRuntime(MLModel):  # type: ignore[misc]
    """MLServer creates one for each version."""

    async def load(self) -> bool:
        """Open the graph next to the model's settings."""
        graph = Graph(Path(await get_model_uri(self.settings)))
        count, self._waiting = graph.settings["threads"], asyncio.Queue[Any](WAITING_MAX)
        self._threads = ThreadPoolExecutor(count)
        self._passes = [asyncio.create_task(self._serve(graph)) for _ in range(count)]
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """One request's share of a pass."""
        inputs = {each.name: NumpyCodec.decode_input(each) for each in payload.inputs}
        done = asyncio.get_running_loop().create_future()
        self._waiting.put_nowait(({name: inputs[name] for name in INPUTS}, done))
        outputs = [NumpyCodec.encode_output(name, values) for name, values in (await done).items()]
        return InferenceResponse(model_name=self.name, model_version=self.version, outputs=outputs)

    async def _serve(self, graph: Graph) -> None:
        loop, most = asyncio.get_running_loop(), graph.settings["texts_max"]
        while True:
            batch = [await self._waiting.get()]
            while len(batch) < most and not self._waiting.empty():
                batch.append(self._waiting.get_nowait())
            results: list[Any]
            try:
                results = await loop.run_in_executor(self._threads, graph.run, [each for each, _ in batch])
            except Exception as error:
                results = [error] * len(batch)
            for (_, done), result in zip(batch, results, strict=True):
                if not done.done():  # its client is still there
                    done.set_exception(result) if isinstance(result, Exception) else done.set_result(result)
