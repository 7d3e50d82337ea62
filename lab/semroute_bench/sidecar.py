"""Parts of the sidecar in this process: its session and its pipeline; only this module builds them."""

import copy
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from time import process_time
from typing import Any

from semroute_demo.sidecar import CONFIG_PATH

from semroute_bench import load
from semroute_bench.servers import UNHURRIED
from semroute_extproc.config import source as config_source
from semroute_extproc.encoder import bundle
from semroute_extproc.encoder.onnx import OnnxModel
from semroute_extproc.encoder.signals import Signals
from semroute_extproc.pipeline.pipeline import Pipeline
from semroute_extproc.policy.context import RoutingContext
from semroute_extproc.request.view import Api, Decide, RequestHead, RequestView, Turn
from semroute_extproc.serve import build


class Bare:
    """The session alone on one text's token ids."""

    def __init__(self, model: OnnxModel, text: str) -> None:
        framed = model.framer.frame(text)
        self.tokens, self.once = len(framed.ids), model.alone([framed])

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
    classifier = build.make_classifier(loaded.config, {bundle.DEFAULT: model})
    policies = build.make_policies(loaded, classifier.bundle)
    pipeline = Pipeline(loaded.config, policies, classifier)
    head = RequestHead("POST", "/v1/chat/completions")
    request = Decide(head, Api.CHAT_COMPLETIONS, load.chat(load.ROUTED, text))
    try:
        yield lambda: pipeline.decide(request)
    finally:
        await classifier.close()


def without_passes(model: OnnxModel, text: str) -> OnnxModel:
    """The model with its outputs for `text` recorded in place of its session."""
    values, found = Bare(model, text).once(), copy.copy(model)

    class Recorded:
        def run(self, *_: Any) -> Any:
            return values

    found._session = Recorded()
    return found


def read_context(request_id: str, difficulty: float = 0.4, tokens: int = 60, **more: Any) -> RoutingContext:
    """A chat completion whose text was read; `more` are further fields of `Signals`."""
    read = {"domain": "other", "domain_probs": {}, "domain_entropy": 0.0, "unknown": False, **more}
    signals = Signals(difficulty=difficulty, tokens=tokens, truncated=False, language="en", **read)
    head = RequestHead("POST", "/v1/chat/completions", {"x-request-id": request_id})
    view = RequestView(Api.CHAT_COMPLETIONS, "auto", (Turn("user", "hi"),))
    return RoutingContext(head, view, "en", tokens, signals=signals)


async def timed(call: Callable[[], Awaitable[object]], count: int) -> float:
    """CPU milliseconds per awaited call."""
    before = process_time()
    for _ in range(count):
        await call()
    return (process_time() - before) / count * 1e3
