"""An encoder on a GPU that goes to the CPU while the GPU fails, and back.

A GPU whose passes keep failing is given up: its session is closed, which frees its memory, and texts go
to the bundle's graph for the CPU, if it has one; without one they fall back. The GPU is tried again
with a new session, soon at first and then ever later. Nobody waits for any of this: what cannot be
encoded at the moment falls back at once.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping

import structlog

from semroute_extproc.encoder.bundle import Device
from semroute_extproc.encoder.cuda import CudaModel
from semroute_extproc.encoder.onnx import OnnxModel
from semroute_extproc.encoder.queue import Batcher
from semroute_extproc.encoder.signals import RawOutput
from semroute_extproc.errors import EncoderUnavailable
from semroute_extproc.outcome import Cause

FAILURES_MAX = 3
"""Failed calls in a row after which the GPU is given up."""

STALL_SECONDS_MAX = 10.0
"""A GPU is given up, too, if for so long no text was encoded although some were asked for: a driver that
hangs reports no failure."""

RETRY_SECONDS_MIN = 1.0
RETRY_SECONDS_MAX = 60.0
"""Pause before the GPU is tried again; it doubles each time."""

STEADY_SECONDS = 60.0
"""A GPU that has worked for so long is tried again without the pauses of earlier times."""

Opener = Callable[[Device], OnnxModel]
"""Opens a warm model of one bundle on a device; raises whatever keeps it from that."""

Told = Callable[[str, str], None]
"""Takes a bundle's name and what happened: `out_of_memory`, `lost`, `on_cpu`, `retry_failed` or
`recovered`."""

log = structlog.get_logger("semroute.encoder")


class Failover:
    """An `Encoder` over a `CudaModel`; belongs to the event loop it is created on."""

    def __init__(
        self, model: CudaModel, opener: Opener, lanes: Mapping[Device, int], queue_max: int, on_event: Told
    ) -> None:
        """`lanes` and `queue_max` as for a `Batcher`; `on_event` may be called from any thread."""
        self._bundle = model.bundle
        self._open = opener
        self._lanes = lanes
        self._queue_max = queue_max
        self._on_event = on_event
        self._loop = asyncio.get_running_loop()
        self._cpu: Batcher | None = None
        self._pause = RETRY_SECONDS_MIN
        self._recovery: asyncio.Task[None] | None = None
        self._failing_since: float | None = None
        """The first text that was not encoded since one was."""
        self._closed = False
        self._take(model)

    @property
    def waiting(self) -> int:
        """Texts in the queue."""
        return sum(batcher.waiting for batcher in (self._gpu, self._cpu) if batcher)

    def describe(self) -> dict[str, str]:
        """See `Encoder.describe`: of what encodes now; the provider is `none` where nothing does."""
        live = self._gpu or self._cpu
        return live.describe() if live else {**self._described, "provider": "none"}

    async def encode(self, text: str, deadline: float) -> RawOutput:
        """See `Encoder.encode`."""
        live = self._gpu or self._cpu
        if self._closed or live is None:
            raise EncoderUnavailable(Cause.CLOSED if self._closed else Cause.ERROR)
        try:
            output = await live.encode(text, deadline)
        except EncoderUnavailable:
            if live is self._gpu and not self._closed:
                self._failed(live)
            raise
        self._failing_since = None
        return output

    async def close(self) -> None:
        """See `Encoder.close`."""
        self._closed = True
        if self._recovery is not None:
            self._recovery.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._recovery
        for batcher in (self._gpu, self._cpu):
            if batcher is not None:
                await batcher.close()

    def _take(self, model: OnnxModel) -> None:
        """Encode with this GPU model from now on."""
        assert isinstance(model, CudaModel), "a GPU's model that is none. This is a bug."
        name = self._bundle.manifest.name
        model.on_out_of_memory = lambda: self._on_event(name, "out_of_memory")
        self._model = model
        self._gpu: Batcher | None = Batcher(model, self._lanes["cuda"], self._queue_max)
        self._described = self._gpu.describe()
        self._since = self._loop.time()
        self._failing_since = None

    def _failed(self, gpu: Batcher) -> None:
        """A text was not encoded."""
        now = self._loop.time()
        if self._failing_since is None:
            self._failing_since = now
        if self._model.failures >= FAILURES_MAX or now - self._failing_since > STALL_SECONDS_MAX:
            self._lose(gpu)

    def _lose(self, gpu: Batcher) -> None:
        """Give the GPU up until it works again."""
        if self._loop.time() - self._since > STEADY_SECONDS:
            self._pause = RETRY_SECONDS_MIN
        self._gpu = None
        self._tell("lost")
        self._recovery = self._loop.create_task(self._recover(gpu))

    async def _recover(self, gpu: Batcher) -> None:
        """The CPU's graph now, and the GPU once it works."""
        if self._cpu is None and "cpu" in self._bundle.manifest.graphs:
            try:
                model = await asyncio.to_thread(self._open, "cpu")
                self._cpu = Batcher(model, self._lanes["cpu"], self._queue_max)
            except Exception:  # without it, texts fall back
                log.exception("gpu.no_cpu_graph", bundle=self._bundle.manifest.name)
            else:
                self._tell("on_cpu")
        await gpu.close()
        self._model.close()
        while self._gpu is None:
            await asyncio.sleep(self._pause)
            self._pause = min(2 * self._pause, RETRY_SECONDS_MAX)
            try:
                self._take(await asyncio.to_thread(self._open, "cuda"))
            except Exception as error:  # ONNX Runtime's own exceptions share no public base
                self._tell("retry_failed", error=str(error), pause=self._pause)
        self._tell("recovered")

    def _tell(self, event: str, **facts: object) -> None:
        name = self._bundle.manifest.name
        report = log.info if event in ("on_cpu", "recovered") else log.error
        report(f"gpu.{event}", bundle=name, provider=self.describe()["provider"], **facts)
        self._on_event(name, event)
