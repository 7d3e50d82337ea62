"""Parts of the sidecar in this process: its session and its pipeline; only this module builds them."""

import json
import re
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from operator import itemgetter
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

_YARDSTICK = json.dumps({"headers": load.HEADERS, "text": load.LONG})
_WORD = re.compile(r"\w+")


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
async def decisions(
    model: OnnxModel, text: str, name: str = load.ROUTED, cached: str = "0"
) -> AsyncIterator[Callable[[], Awaitable[object]]]:
    """A decision about a chat completion in this process: the demo's pipeline.

    `name` is the request's model. With a `cached` text the pass runs once, and no thread is woken after that.
    """
    changed = {**UNHURRIED, "encoder__cache_entries": cached}
    loaded = config_source.load(CONFIG_PATH, {f"SEMROUTE__{key.upper()}": v for key, v in changed.items()})
    classifier = build.make_classifier(loaded.config, {bundle.DEFAULT: model})
    policies = build.make_policies(loaded, classifier.bundle)
    pipeline = Pipeline(loaded.config, policies, classifier)
    head = RequestHead("POST", "/v1/chat/completions")
    request = Decide(head, Api.CHAT_COMPLETIONS, load.chat(name, text))
    try:
        yield lambda: pipeline.decide(request)
    finally:
        await classifier.close()


async def yardstick() -> None:
    """Fixed work in Python, of a decision's kind: JSON, a pattern, counts, many small objects."""
    body = json.loads(_YARDSTICK)
    words = Counter(_WORD.findall(body["text"].lower()))
    json.dumps({**body, "words": sorted(words.items(), key=itemgetter(1), reverse=True)})


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
