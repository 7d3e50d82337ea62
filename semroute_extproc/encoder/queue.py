"""A bounded queue in front of a model, and the worker threads that run it.

A text runs at once if a thread is free; other texts wait in order of arrival. The measured speed predicts
how long a text must wait. A text that would miss its deadline is refused on arrival, and a text that
becomes late while it waits is dropped. If no pass is running, a text runs regardless of the prediction:
otherwise the estimate could stay too high forever after a slow period.
"""

import asyncio
import os
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from queue import SimpleQueue
from threading import Lock, Thread, get_native_id
from time import monotonic, perf_counter

import structlog

from semroute_extproc.encoder.cuda import BATCH_MAX
from semroute_extproc.encoder.onnx import OnnxModel
from semroute_extproc.encoder.signals import RawOutput
from semroute_extproc.errors import EncoderUnavailable
from semroute_extproc.events import Emit, EncoderLost, ignore
from semroute_extproc.outcome import Cause

FAILURES_MAX, STALL_SECONDS_MAX = 3, 10.0
"""A GPU is lost after this many failed passes in a row, or if no pass ends for this long (docs/adr/0011)."""

CLOSE_SECONDS_MAX = 5.0  # for a thread's last pass; a thread in a hung driver is abandoned

CHARACTERS_PER_TOKEN, PASS_UNITS = 4.0, 16.0
"""In alphabetic scripts (with others, a unit takes longer), and the fixed cost of a pass in tokens."""

MEAN_GAIN, DEVIATION_GAIN, DEVIATIONS = 1 / 8, 1 / 4, 2.0
"""A slow pass takes the mean plus this many mean deviations; about 95 % of passes are faster."""

log = structlog.get_logger("semroute.encoder")

Result = list[RawOutput] | BaseException


class PassTime:
    """Seconds per unit of work: mean and deviation as in TCP (Jacobson 1988; RFC 6298, section 2)."""

    def __init__(self) -> None:
        self.mean = self.high = self._deviation = 0.0  # 0 before the first pass; `high` is of a slow pass

    def learn(self, seconds: float, units_done: float) -> None:
        """A pass of `units_done` units took `seconds`."""
        rate = seconds / units_done
        if self.mean == 0.0:
            self.mean, self._deviation = rate, rate / 2
        else:
            self._deviation += DEVIATION_GAIN * (abs(rate - self.mean) - self._deviation)
            self.mean += MEAN_GAIN * (rate - self.mean)
        self.high = self.mean + DEVIATIONS * self._deviation


@dataclass(eq=False, slots=True)
class _Work:
    text: str
    units: float
    deadline: float
    done: asyncio.Future[RawOutput]


class EncodeQueue:
    """Encodes texts with an `OnnxModel`; belongs to the event loop it is created on."""

    def __init__(
        self, model: OnnxModel, threads: int, queue_max: int, emit: Emit = ignore, niceness: int = 0
    ) -> None:
        """`threads` passes run at once, and `queue_max` texts may wait; `emit` is called from any thread.

        `niceness` gives the event loop priority: it must also answer requests that are not encoded.
        """
        self.bundle, self._model, self._queue_max = model.bundle, model, queue_max
        self._emit = model.emit = emit
        self._niceness = niceness
        self._batch_max = 1 if model.device == "cpu" else BATCH_MAX  # a CPU is not faster with more
        self._loop = asyncio.get_running_loop()
        # Lets the threads compute the loop's time: uvloop's clock must not be read from another thread.
        self._ahead = self._loop.time() - monotonic()
        self._lock = Lock()  # guards the fields below, which the event loop and the threads change
        self._time = PassTime()
        self._queue = deque[_Work]()
        self._running = set[_Work]()
        self._last_take = 0.0  # when a thread last started or ended a pass (the loop's clock)
        self._failures = 0  # in a row
        self._refusal: Cause | None = None  # ERROR once the GPU is lost, CLOSED when closed
        self._free = threads  # waiting threads; while one waits, the queue is empty
        self._handed = SimpleQueue[list[_Work]]()  # to threads that wait; an empty list ends a thread
        self._threads = [Thread(target=self._work, name=f"encoder-{n}", daemon=True) for n in range(threads)]
        for thread in self._threads:
            thread.start()

    @property
    def waiting(self) -> int:
        """Texts in the queue."""
        return len(self._queue)

    def describe(self) -> dict[str, str]:
        """The bundle, provider, graph and threads, for the log and the metrics."""
        return {
            "bundle": self.bundle.manifest.name,
            "revision": self.bundle.revision,
            "provider": self._model.provider,
            "graph": self.bundle.graph(self._model.device).name,
            "threads": str(len(self._threads)),
            "texts_per_pass": str(self._batch_max),
        }

    async def encode(self, text: str, deadline: float) -> RawOutput:
        """Encode `text` before `deadline` (the loop's clock, seconds); raises EncoderUnavailable."""
        tokens = min(len(text) / CHARACTERS_PER_TOKEN, self.bundle.manifest.encoder.window)
        work = _Work(text, PASS_UNITS + tokens, deadline, self._loop.create_future())
        self._admit(work)
        timer = self._loop.call_at(deadline, _fail, [work], Cause.DEADLINE)
        try:
            return await work.done
        finally:
            timer.cancel()
            with self._lock:
                if work in self._queue:  # it is late, or its caller has gone
                    self._queue.remove(work)

    async def close(self) -> None:
        """Stop; queued work gets EncoderUnavailable(CLOSED)."""
        self._refuse(Cause.CLOSED)
        for _ in self._threads:
            self._handed.put([])
        for thread in self._threads:
            await asyncio.to_thread(thread.join, CLOSE_SECONDS_MAX)

    def _admit(self, work: _Work) -> None:
        """Give the work to a free thread or queue it; raises EncoderUnavailable if it would be late."""
        if self._running and self._loop.time() - self._last_take > STALL_SECONDS_MAX:
            self._lose(f"no pass has ended for {STALL_SECONDS_MAX:g} seconds")
        with self._lock:
            if self._refusal is not None:
                raise EncoderUnavailable(self._refusal)
            if not self._free and self._overloaded(work):
                raise EncoderUnavailable(Cause.OVERLOADED)
            self._queue.append(work)
            if self._free and (batch := self._take()):
                self._free -= 1
                self._handed.put(batch)

    def _overloaded(self, work: _Work) -> bool:
        """Whether the queue is full, or a slow pass after all waiting and half the running work is late."""
        ahead = sum(each.units for each in self._queue) + sum(each.units for each in self._running) / 2
        seconds = self._time.mean * ahead / len(self._threads) + self._time.high * work.units
        return len(self._queue) >= self._queue_max or self._loop.time() + seconds > work.deadline

    def _refuse(self, cause: Cause) -> None:
        """Refuse new texts, and fail those that wait or run."""
        with self._lock:
            self._refusal, unanswered = cause, [*self._queue, *self._running]
            self._queue.clear()
        _fail(unanswered, cause)

    def _lose(self, reason: str) -> None:
        """Report once that the GPU is lost, if the model runs on one; on the event loop."""
        if self._model.device != "cpu" and self._refusal is None:
            self._refuse(Cause.ERROR)
            self._emit(EncoderLost(self.bundle.manifest.name, reason))

    def _take(self) -> list[_Work]:
        """The oldest work that can be done in time. The last work is dropped only after its deadline."""
        batch: list[_Work] = []
        self._last_take = now = monotonic() + self._ahead
        while self._queue and len(batch) < self._batch_max:
            work = self._queue.popleft()
            idle = not self._queue and not batch and not self._running
            if work.deadline <= now or (not idle and now + self._time.mean * work.units > work.deadline):
                self._loop.call_soon_threadsafe(_fail, [work], Cause.DEADLINE)
            elif not work.done.done():
                batch.append(work)
        self._running.update(batch)
        return batch

    def _work(self) -> None:
        """Run work in a thread, which takes its next work itself, without waiting for the event loop."""
        with suppress(OSError):  # a sandbox may forbid it
            os.setpriority(
                os.PRIO_PROCESS, get_native_id(), os.getpriority(os.PRIO_PROCESS, 0) + self._niceness
            )
        while batch := self._handed.get():
            while batch:
                batch = self._pass(batch)

    def _pass(self, batch: list[_Work]) -> list[_Work]:
        """Run a pass, report it to the event loop and return the next work; keeps no outputs meanwhile."""
        started = perf_counter()
        result = self._run([work.text for work in batch])
        seconds = perf_counter() - started
        with self._lock:
            self._running.difference_update(batch)
            if not isinstance(result, BaseException):
                self._time.learn(seconds, sum(work.units for work in batch))
            following = self._take()
        self._loop.call_soon_threadsafe(self._done, batch, result, not following)
        return following

    def _run(self, texts: list[str]) -> Result:
        framed = None
        try:
            framed = [self._model.framer.frame(text) for text in texts]
            outputs = self._model.run(framed)
        except BaseException as error:  # a panic in the tokenizer's Rust is not an Exception
            if framed is not None:  # an error while framing is not a failure of the device
                self._failures += 1
            return error
        self._failures = 0
        return outputs

    def _done(self, batch: list[_Work], result: Result, waits: bool) -> None:
        """A pass is done, and its thread may wait; on the event loop, where futures are resolved."""
        if waits:
            # Take again here, so that on a GPU all texts that have arrived by now share the next pass.
            with self._lock:
                if following := self._take():
                    self._handed.put(following)
                else:
                    self._free += 1
        if isinstance(result, BaseException):
            log.error("encoder.failed", exc_info=result)
            _fail(batch, Cause.ERROR)
            if self._failures >= FAILURES_MAX:
                self._lose(f"{self._failures} passes in a row failed")
            return
        for work, output in zip(batch, result, strict=True):
            if not work.done.done():
                work.done.set_result(output)


def _fail(batch: list[_Work], cause: Cause) -> None:
    for work in batch:
        if not work.done.done():
            work.done.set_exception(EncoderUnavailable(cause))
