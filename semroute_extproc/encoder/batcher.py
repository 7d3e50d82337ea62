"""A bounded queue and a fixed number of lanes in front of a model.

A lane is a thread that frames and runs the texts it is handed. A text that comes while a lane is
free goes to it at once; the others wait in order of arrival, and whichever lane is done first takes
the oldest. On CPU one text a pass and one lane a core is best: a larger batch only waits longer for
the same arithmetic. On a GPU one lane with batches fills the device.

What cannot be done in time is not begun. The lanes' own speed says how long the queue in front of
a text will take: one that would come out late is refused on arrival as `overloaded`, and one that
has become late while it waited is dropped. So a burst costs those their decision that are one too
many, and not everybody. A free lane always tries, or a slow moment would never be unlearnt.
"""

from __future__ import annotations

import asyncio
import traceback
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from queue import SimpleQueue
from threading import Thread
from time import perf_counter

import structlog

from semroute_extproc.encoder.cuda import BATCH_MAX
from semroute_extproc.encoder.onnx import OnnxModel
from semroute_extproc.encoder.passes import PassTime, units
from semroute_extproc.errors import EncoderUnavailable
from semroute_extproc.signals import RawOutput

CLOSE_SECONDS_MAX = 5.0
"""How long closing waits for a lane's last pass; a driver that hangs keeps its thread."""

log = structlog.get_logger("semroute.encoder")


@dataclass(eq=False, slots=True)
class _Work:
    text: str
    units: float
    deadline: float
    done: asyncio.Future[RawOutput]


class Batcher:
    """An `Encoder` over an `OnnxModel`; belongs to the event loop it is created on."""

    def __init__(self, model: OnnxModel, lanes: int, queue_max: int) -> None:
        """`lanes` passes run at once; `queue_max` texts wait at most, more are refused."""
        self._model = model
        self._lanes = lanes
        self._queue_max = queue_max
        self._batch_max = 1 if model.device == "cpu" else BATCH_MAX
        self._window = model.bundle.encoder.window
        self._time = PassTime()
        self._loop = asyncio.get_running_loop()
        self._queue: deque[_Work] = deque()
        self._running: set[_Work] = set()
        self._free = lanes
        self._closed = False
        self._handed: SimpleQueue[list[_Work] | None] = SimpleQueue()
        self._threads = [Thread(target=self._lane, name=f"encoder-{n}", daemon=True) for n in range(lanes)]
        for thread in self._threads:
            thread.start()

    @property
    def waiting(self) -> int:
        """Texts in the queue."""
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
            "texts_a_pass": str(self._batch_max),
        }

    async def encode(self, text: str, deadline: float) -> RawOutput:
        """See `Encoder.encode`."""
        work = _Work(text, units(len(text), self._window), deadline, self._loop.create_future())
        self._admit(work)
        self._queue.append(work)
        self._dispatch()
        timer = self._loop.call_at(deadline, self._expire, work)
        try:
            return await work.done
        finally:
            timer.cancel()
            if work in self._queue:
                self._queue.remove(work)  # its caller has gone

    async def close(self) -> None:
        """See `Encoder.close`."""
        self._closed = True
        _fail([*self._queue, *self._running], "closed")
        self._queue.clear()
        for _ in self._threads:
            self._handed.put(None)
        for thread in self._threads:
            await asyncio.to_thread(thread.join, CLOSE_SECONDS_MAX)

    def _admit(self, work: _Work) -> None:
        """Raise EncoderUnavailable if the work would not be done in time."""
        if self._closed:
            raise EncoderUnavailable("closed")
        if self._free and not self._queue:
            return
        if len(self._queue) >= self._queue_max or self._done_at(work) > work.deadline:
            raise EncoderUnavailable("overloaded")

    def _done_at(self, work: _Work) -> float:
        """When the work would be done behind all that waits and half of what runs, at a slow pace."""
        ahead = sum(each.units for each in self._queue) + sum(each.units for each in self._running) / 2
        return self._loop.time() + self._time.mean * ahead / self._lanes + self._time.high * work.units

    def _expire(self, work: _Work) -> None:
        _fail([work], "deadline")
        if work in self._queue:
            self._queue.remove(work)

    def _dispatch(self) -> None:
        """Hand waiting work to free lanes."""
        while self._free and self._queue and (batch := self._take()):
            self._free -= 1
            self._running.update(batch)
            self._handed.put(batch)

    def _take(self) -> list[_Work]:
        """The oldest work that can still be done in time; the last of all is tried anyway."""
        batch: list[_Work] = []
        now = self._loop.time()
        while self._queue and len(batch) < self._batch_max:
            work = self._queue.popleft()
            idle = not self._queue and not batch and self._free == self._lanes
            if work.deadline <= now or (not idle and now + self._time.mean * work.units > work.deadline):
                _fail([work], "deadline")
            elif not work.done.done():
                batch.append(work)
        return batch

    def _finished(self, batch: list[_Work], outputs: list[RawOutput] | BaseException, seconds: float) -> None:
        """A lane is done; on the event loop."""
        self._free += 1
        self._running.difference_update(batch)
        if isinstance(outputs, BaseException):
            log.error("encoder.failed", exc_info=outputs)
            # Whoever keeps the error does not keep what its frames hold: texts, and a session's memory.
            traceback.clear_frames(outputs.__traceback__)
            _fail(batch, "error")
        else:
            self._time.learn(seconds, sum(work.units for work in batch))
            for work, output in zip(batch, outputs, strict=True):
                if not work.done.done():
                    work.done.set_result(output)
        if not self._closed:
            self._dispatch()

    def _lane(self) -> None:
        """Run what is handed over, until None is; in a thread of its own."""
        while (batch := self._handed.get()) is not None:
            started = perf_counter()
            outputs: list[RawOutput] | BaseException
            try:
                outputs = self._run([work.text for work in batch])
            except BaseException as error:  # a panic in the tokenizer's Rust is no Exception
                outputs = error
            self._loop.call_soon_threadsafe(self._finished, batch, outputs, perf_counter() - started)

    def _run(self, texts: list[str]) -> list[RawOutput]:
        return self._model.run([self._model.framer.frame(text) for text in texts])


def _fail(batch: Iterable[_Work], reason: str) -> None:
    for work in batch:
        if not work.done.done():
            work.done.set_exception(EncoderUnavailable(reason))
