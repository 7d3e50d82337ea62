"""A bounded queue and a fixed number of lanes in front of a model.

A lane takes the oldest waiting texts, frames and runs them in a thread, and wakes their callers.
On CPU one text a pass and one lane a core is best: a larger batch only waits longer for the same
arithmetic. On a GPU one lane with batches fills the device.
"""

from __future__ import annotations

import asyncio
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import structlog

from semroute_extproc.encoder.onnx import OnnxModel
from semroute_extproc.errors import EncoderUnavailable
from semroute_extproc.signals import RawOutput

BATCH_TOKENS_MAX = 16_384
"""Most tokens of one GPU pass, padding included (batch size × longest member)."""

GPU_BATCH_MAX = 128
"""Most texts of one GPU pass."""

log = structlog.get_logger("semroute.encoder")


@dataclass(eq=False, slots=True)
class _Work:
    text: str
    deadline: float
    done: asyncio.Future[RawOutput]


class Batcher:
    """An `Encoder` over an `OnnxModel`; belongs to the event loop it is created on."""

    def __init__(self, model: OnnxModel, lanes: int, queue_max: int) -> None:
        """`lanes` passes run at once; `queue_max` texts wait at most, more are refused."""
        self._model = model
        self._lanes = lanes
        self._queue_max = queue_max
        self._batch_max = 1 if model.device == "cpu" else GPU_BATCH_MAX
        self._queue: deque[_Work] = deque()
        self._arrived = asyncio.Event()
        self._pool = ThreadPoolExecutor(lanes, thread_name_prefix="encoder")
        self._tasks = [asyncio.create_task(self._lane()) for _ in range(lanes)]
        self._closed = False

    @property
    def waiting(self) -> int:
        """Texts in the queue, vanished callers included."""
        return len(self._queue)

    def describe(self) -> dict[str, str]:
        """See `Encoder.describe`."""
        bundle = self._model.bundle
        return {
            "bundle": bundle.manifest.name,
            "revision": bundle.revision,
            "provider": self._model.provider,
            "graph": bundle.graph(self._model.device).name,
            "lanes": str(self._lanes),
        }

    async def encode(self, text: str, deadline: float) -> RawOutput:
        """See `Encoder.encode`."""
        if self._closed:
            raise EncoderUnavailable("closed")
        if len(self._queue) >= self._queue_max:
            raise EncoderUnavailable("overloaded")
        work = _Work(text, deadline, asyncio.get_running_loop().create_future())
        self._queue.append(work)
        self._arrived.set()
        try:
            async with asyncio.timeout_at(deadline):
                return await work.done
        except TimeoutError:
            raise EncoderUnavailable("deadline") from None

    async def close(self) -> None:
        """See `Encoder.close`."""
        self._closed = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for work in self._queue:
            if not work.done.done():
                work.done.set_exception(EncoderUnavailable("closed"))
        self._queue.clear()
        await asyncio.to_thread(self._pool.shutdown)

    async def _lane(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            batch = self._take(loop.time())
            if not batch:
                self._arrived.clear()
                await self._arrived.wait()
                continue
            try:
                outputs = await loop.run_in_executor(self._pool, self._run, [work.text for work in batch])
            except (asyncio.CancelledError, GeneratorExit):
                _fail(batch, "closed")
                raise
            except BaseException:  # a panic in the tokenizer's Rust is no Exception; the lane outlives it
                log.exception("encoder.failed")
                _fail(batch, "error")
                continue
            for work, output in zip(batch, outputs, strict=True):
                if not work.done.done():
                    work.done.set_result(output)

    def _take(self, now: float) -> list[_Work]:
        """The oldest work whose caller still waits and whose deadline has not passed."""
        batch: list[_Work] = []
        while self._queue and len(batch) < self._batch_max:
            work = self._queue.popleft()
            if not work.done.done() and work.deadline > now:
                batch.append(work)
        return batch

    def _run(self, texts: list[str]) -> list[RawOutput]:
        framed = [self._model.framer.frame(text) for text in texts]
        if len(framed) == 1:
            return self._model.run(framed)
        # Neighbours in length share a pass, so that short texts are not padded to the longest.
        order = sorted(range(len(framed)), key=lambda index: len(framed[index].ids))
        outputs: dict[int, RawOutput] = {}
        group: list[int] = []
        for index in order:
            if group and (len(group) + 1) * len(framed[index].ids) > BATCH_TOKENS_MAX:
                outputs.update(zip(group, self._model.run([framed[i] for i in group]), strict=True))
                group = []
            group.append(index)
        outputs.update(zip(group, self._model.run([framed[i] for i in group]), strict=True))
        return [outputs[index] for index in range(len(framed))]


def _fail(batch: list[_Work], reason: str) -> None:
    for work in batch:
        if not work.done.done():
            work.done.set_exception(EncoderUnavailable(reason))
