"""The sidecar that is measured: its session, its pipeline in this process, and the server as a child process.

The only module of the benchmarks that builds parts of the sidecar.
"""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

from semroute_demo.sidecar import CONFIG_PATH, Sidecar

from semroute_bench.machine import children, resident_mib
from semroute_extproc.config import source as config_source
from semroute_extproc.encoder import bundle
from semroute_extproc.encoder.onnx import OnnxModel
from semroute_extproc.envoy.exchange import Decide
from semroute_extproc.request.view import Api, RequestHead
from semroute_extproc.serve import app
from semroute_extproc.strategies.judging.live import Judges

UNHURRIED = {"encoder__cache_entries": "0", "server__deadline_ms": "5000"}
"""Settings for measurements of a decision's cost, where it does not matter whether it is in time."""

BUSY = 16
"""Streams at once that keep one server busy."""


class Measured(Sidecar):
    """A sidecar with the demo's configuration; its decisions are logged to a file as in service."""

    def __init__(self, folder: Path, **settings: str) -> None:
        """Start it. `settings` such as `server__workers="2"` replace those of the configuration."""
        folder.mkdir()
        super().__init__(
            CONFIG_PATH, folder, {f"SEMROUTE__{key.upper()}": value for key, value in settings.items()}
        )
        started = perf_counter()
        self.start()
        self.start_seconds = perf_counter() - started
        self.pids = [self.process.pid] if len(self.sockets) == 1 else children(self.process.pid)

    def resident_mib(self) -> list[float]:
        """Resident memory of every worker."""
        return list(map(resident_mib, self.pids))


class Bare:
    """The session alone on one text's token ids."""

    def __init__(self, model: OnnxModel, text: str) -> None:
        framed = model.framer.frame(text)
        self.tokens = len(framed.ids)
        self.once = model.alone([framed])


def default_model() -> OnnxModel:
    """The shipped bundle on one thread."""
    return OnnxModel(bundle.load(bundle.default_bundle(), ("cpu",)), "cpu", threads=1)


@asynccontextmanager
async def decisions(model: OnnxModel, text: str) -> AsyncIterator[Callable[[], Awaitable[object]]]:
    """A decision about a chat completion in this process: the demo's pipeline without a cache."""
    from semroute_bench import load

    loaded = config_source.load(CONFIG_PATH, {f"SEMROUTE__{key.upper()}": v for key, v in UNHURRIED.items()})
    classifier = app.make_classifier(loaded.config, {app.DEFAULT: model})
    pipeline = app.make_generation(1, loaded, classifier, lambda _: None, Judges()).pipeline
    head = RequestHead("POST", "/v1/chat/completions", {})
    request = Decide(head, Api.CHAT_COMPLETIONS, load.chat(load.ROUTED, text))
    try:
        yield lambda: pipeline.decide(request)
    finally:
        await classifier.close()


def without_passes(model: OnnxModel, text: str) -> OnnxModel:
    """The model with its outputs for `text` recorded in place of its session."""
    values = Bare(model, text).once()

    class Recorded:
        def run(self, *_: Any) -> Any:
            return values

    return _with_session(model, Recorded())


def float32_pass(model: OnnxModel, text: str, folder: Path) -> Callable[[], object] | None:
    """A pass of the same weights in float32, made from the GPU's float16 graph; None without `onnx`."""
    if importlib.util.find_spec("onnx") is None:
        return None
    import onnxruntime
    from semroute_lab.train.graphs import write_widened

    path = folder / "fp32.onnx"
    write_widened(model.bundle.path / model.bundle.manifest.graphs["cuda"], path)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return Bare(_with_session(model, session), text).once


def _with_session(model: OnnxModel, session: Any) -> OnnxModel:
    found = copy.copy(model)
    found._session = session
    return found


def timed(call: Callable[[], object], count: int) -> tuple[float, float]:
    """CPU and wall milliseconds per call."""
    wall, cpu = perf_counter(), process_time()
    for _ in range(count):
        call()
    return (process_time() - cpu) / count * 1e3, (perf_counter() - wall) / count * 1e3


async def timed_async(call: Callable[[], Awaitable[object]], count: int) -> tuple[float, float]:
    """CPU and wall milliseconds per awaited call."""
    wall, cpu = perf_counter(), process_time()
    for _ in range(count):
        await call()
    return (process_time() - cpu) / count * 1e3, (perf_counter() - wall) / count * 1e3
