"""A bounded queue and a fixed number of lanes in front of a model.

A lane is a thread that frames and runs the texts it is handed. A text that comes while a lane is
free goes to it at once; the others wait in order of arrival, and a lane that is done takes the
oldest. On CPU one text a pass and one lane a core is best: a larger batch only waits longer for the
same arithmetic. On a GPU one lane with batches fills the device.

What cannot be done in time is not begun. The lanes' own speed says how long the queue in front of
a text will take: one that would come out late is refused on arrival as `overloaded`, and one that
has become late while it waited is dropped. So a burst costs those their decision that are one too
many, and not everybody. Where nothing else is under way a text is tried whatever the lanes' speed is
thought to be, or a slow moment would never be unlearnt.
"""

from __future__ import annotations

import asyncio
import traceback
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from queue import SimpleQueue
from threading import Lock, Thread
from time import monotonic, perf_counter

import structlog

from semroute_extproc.encoder.cuda import BATCH_MAX
from semroute_extproc.encoder.onnx import OnnxModel
from semroute_extproc.encoder.passes import PassTime, units
from semroute_extproc.encoder.signals import RawOutput
from semroute_extproc.errors import EncoderUnavailable
from semroute_extproc.outcome import Cause

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
        self._loop = asyncio.get_running_loop()
        # Lanes tell the loop's time by it: uvloop's own clock is not to be read from another thread.
        self._ahead = self._loop.time() - monotonic()
        self._lock = Lock()
        """Guards what follows: the event loop adds and removes, the lanes take."""
        self._time = PassTime()
        self._queue: deque[_Work] = deque()
        self._running: set[_Work] = set()
        self._free = lanes
        """Lanes that wait; while there is one the queue is empty."""
        self._closed = False
        self._handed: SimpleQueue[list[_Work]] = SimpleQueue()
        """To lanes that wait; nothing is the sign to end."""
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
        timer = self._loop.call_at(deadline, self._expire, work)
        try:
            return await work.done
        finally:
            timer.cancel()
            self._withdraw(work)  # its caller may have gone

    async def close(self) -> None:
        """See `Encoder.close`."""
        with self._lock:
            self._closed = True
            unanswered = [*self._queue, *self._running]
            self._queue.clear()
        _fail(unanswered, Cause.CLOSED)
        for _ in self._threads:
            self._handed.put([])
        for thread in self._threads:
            await asyncio.to_thread(thread.join, CLOSE_SECONDS_MAX)

    def _admit(self, work: _Work) -> None:
        """Hand the work to a free lane or queue it; EncoderUnavailable if it would not be done in time."""
        with self._lock:
            if self._closed:
                raise EncoderUnavailable(Cause.CLOSED)
            if self._free:
                self._queue.append(work)
                batch, late = self._take()
                if late:
                    raise EncoderUnavailable(Cause.DEADLINE)
                self._free -= 1
                self._handed.put(batch)
            elif len(self._queue) >= self._queue_max or self._done_at(work) > work.deadline:
                raise EncoderUnavailable(Cause.OVERLOADED)
            else:
                self._queue.append(work)

    def _done_at(self, work: _Work) -> float:
        """When the work would be done behind all that waits and half of what runs, at a slow pace."""
        ahead = sum(each.units for each in self._queue) + sum(each.units for each in self._running) / 2
        return self._loop.time() + self._time.mean * ahead / self._lanes + self._time.high * work.units

    def _expire(self, work: _Work) -> None:
        _fail([work], Cause.DEADLINE)
        self._withdraw(work)

    def _withdraw(self, work: _Work) -> None:
        """Nobody waits for it any more."""
        with self._lock:
            if work in self._queue:
                self._queue.remove(work)

    def _take(self) -> tuple[list[_Work], list[_Work]]:
        """The oldest work that can still be done in time, and what cannot; the very last is tried anyway."""
        batch: list[_Work] = []
        late: list[_Work] = []
        now = monotonic() + self._ahead
        while self._queue and len(batch) < self._batch_max:
            work = self._queue.popleft()
            idle = not self._queue and not batch and not self._running
            if work.deadline <= now or (not idle and now + self._time.mean * work.units > work.deadline):
                late.append(work)
            elif not work.done.done():
                batch.append(work)
        self._running.update(batch)
        return batch, late

    def _lane(self) -> None:
        """Run what is handed over and then what waits, until nothing is handed; in a thread of its own.

        The lane takes its next work itself: through the event loop it would come a turn of the loop later.
        """
        while batch := self._handed.get():
            while batch:
                batch = self._pass(batch)

    def _pass(self, batch: list[_Work]) -> list[_Work]:
        """Run a pass, tell the event loop, and give the next; what it held is gone while the lane waits."""
        started = perf_counter()
        outputs = self._run([work.text for work in batch])
        seconds = perf_counter() - started
        with self._lock:
            self._running.difference_update(batch)
            if not isinstance(outputs, BaseException):
                self._time.learn(seconds, sum(work.units for work in batch))
            following, late = self._take()
        self._loop.call_soon_threadsafe(self._done, batch, outputs, late, not following)
        return following

    def _run(self, texts: list[str]) -> list[RawOutput] | BaseException:
        try:
            return self._model.run([self._model.framer.frame(text) for text in texts])
        except BaseException as error:  # a panic in the tokenizer's Rust is no Exception
            return error

    def _done(
        self, batch: list[_Work], outputs: list[RawOutput] | BaseException, late: list[_Work], waits: bool
    ) -> None:
        """A pass is done, and its lane may wait; on the event loop, where futures are resolved."""
        if waits:
            # Only here is the lane free: on a GPU all that has come by now shares the next pass.
            with self._lock:
                following, more = self._take()
                if following:
                    self._handed.put(following)
                else:
                    self._free += 1
            late = late + more
        _fail(late, Cause.DEADLINE)
        if isinstance(outputs, BaseException):
            log.error("encoder.failed", exc_info=outputs)
            # Whoever keeps the error does not keep what its frames hold: texts, and a session's memory.
            traceback.clear_frames(outputs.__traceback__)
            _fail(batch, Cause.ERROR)
            return
        for work, output in zip(batch, outputs, strict=True):
            if not work.done.done():
                work.done.set_result(output)


def _fail(batch: Iterable[_Work], cause: Cause) -> None:
    for work in batch:
        if not work.done.done():
            work.done.set_exception(EncoderUnavailable(cause))
