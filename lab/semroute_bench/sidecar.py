"""Parts of the sidecar in this process: its session and its pipeline; no other module here builds any."""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

from semroute_demo.sidecar import CONFIG_PATH

from semroute_bench import load
from semroute_bench.servers import UNHURRIED
from semroute_extproc.config import source as config_source
from semroute_extproc.encoder import bundle
from semroute_extproc.encoder.cuda import CudaModel
from semroute_extproc.encoder.onnx import OnnxModel
from semroute_extproc.encoder.signals import Signals
from semroute_extproc.errors import BundleError, ConfigError
from semroute_extproc.policy.context import RoutingContext
from semroute_extproc.request.view import Api, Decide, RequestHead, RequestView, Turn
from semroute_extproc.serve import build
from semroute_extproc.strategies.judge_client import Judges


class Bare:
    """The session alone on one text's token ids."""

    def __init__(self, model: OnnxModel, text: str) -> None:
        framed = model.framer.frame(text)
        self.tokens = len(framed.ids)
        self.once = model.alone([framed])

    async def run(self) -> None:
        """One pass."""
        self.once()


def default_model() -> OnnxModel:
    """The shipped bundle on one thread."""
    return OnnxModel(bundle.load(bundle.default_bundle(), ("cpu",)), "cpu")


@asynccontextmanager
async def decisions(model: OnnxModel, text: str) -> AsyncIterator[Callable[[], Awaitable[object]]]:
    """A decision about a chat completion in this process: the demo's pipeline without a cache."""
    loaded = config_source.load(CONFIG_PATH, {f"SEMROUTE__{key.upper()}": v for key, v in UNHURRIED.items()})
    classifier = build.make_classifier(loaded.config, {build.DEFAULT: model})
    policies = build.make_policies(loaded, classifier.bundle)
    pipeline = build.make_pipeline(loaded, policies, classifier, Judges())
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


def float32(model: OnnxModel, text: str, folder: Path) -> Bare | None:
    """The same weights in float32, made from the GPU's float16 graph; None without `onnx`."""
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
    return Bare(_with_session(model, session), text)


def _with_session(model: OnnxModel, session: Any) -> OnnxModel:
    found = copy.copy(model)
    found._session = session
    return found


def gpu_missing() -> str:
    """Why no GPU can be used here; empty if one can."""
    try:
        CudaModel(bundle.load(bundle.default_bundle(), ("cuda",)))
    except (ConfigError, BundleError) as error:  # no device, or an image without its graph
        return str(error)
    return ""


def facts(
    request_id: str = "",
    difficulty: float = 0.4,
    tokens: int = 60,
    turns: Sequence[Turn] = (Turn("user", "hi"),),
    labels: Sequence[str] = ("other",),
    **signals: Any,
) -> RoutingContext:
    """A chat completion whose text was read; `signals` are further fields of `Signals`."""
    read = Signals(
        domain=labels[0],
        domain_probs=dict.fromkeys(labels, 1.0 / len(labels)),
        domain_entropy=0.0,
        difficulty=difficulty,
        unknown=False,
        tokens=tokens,
        truncated=False,
        language="en",
        **signals,
    )
    head = RequestHead("POST", "/v1/chat/completions", {"x-request-id": request_id})
    view = RequestView(Api.CHAT_COMPLETIONS, "auto", tuple(turns))
    return RoutingContext(head, view, "en", tokens, signals=read)


async def timed(call: Callable[[], Awaitable[object]], count: int) -> tuple[float, float]:
    """CPU and wall milliseconds per awaited call."""
    wall, cpu = perf_counter(), process_time()
    for _ in range(count):
        await call()
    return (process_time() - cpu) / count * 1e3, (perf_counter() - wall) / count * 1e3
