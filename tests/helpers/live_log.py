"""A decision log written by the sidecar's own pipeline, with an encoder that answers by the text."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from builders import FakeEncoder

from semroute_extproc.config.source import load
from semroute_extproc.encoder import bundle
from semroute_extproc.encoder.classifier import Classifier
from semroute_extproc.encoder.signals import RawOutput
from semroute_extproc.events import Decided, Reloaded, ignore
from semroute_extproc.pipeline.pipeline import Pipeline
from semroute_extproc.request.view import Api, Decide, RequestHead
from semroute_extproc.serve import build
from semroute_extproc.state.controllers import ControllerState
from semroute_extproc.telemetry.decision_log import DecisionWriter

SHIPPED = bundle.load(bundle.default_bundle())


def raw(text: str) -> RawOutput:
    """The difficulty is the number at the end of the text; the domain is the one it names, if any."""
    manifest = SHIPPED.manifest
    assert manifest.task is not None
    number = float(text.rsplit(" ", 1)[-1])
    logit = (np.log(number / (1 - number)) - manifest.difficulty.shift) / manifest.difficulty.scale
    domains = np.array([4.0 * (label in text) for label in manifest.domain.labels], dtype=np.float32)
    x = SHIPPED.centroids[int(number * 100) % len(SHIPPED.centroids)]
    tasks = np.arange(len(manifest.task.labels), dtype=np.float32)
    return RawOutput(x, x, domains, float(logit), tasks, 5, False, 0.0)


def chat(text: str, *before: str, **members: Any) -> dict[str, Any]:
    """A conversation: the user's turns, with an answer between two of them."""
    turns = [{"role": "user", "content": each} for each in (*before, text)]
    answer = {"role": "assistant", "content": "Here you are."}
    said = [turn for each in turns for turn in (each, answer)][:-1]
    return {"model": "auto", "messages": said, **members}


def write_log(config: Path, requests: Iterable[tuple[Mapping[str, Any], Mapping[str, str]]]) -> Path:
    """Decide requests (body and headers) one after another; returns the folder of the log."""
    loaded = load(config)
    settings = loaded.config.telemetry.decision_log
    assert settings is not None
    encoder = FakeEncoder(raw)
    encoder.bundle = SHIPPED
    plans = build.make_policies(loaded, SHIPPED)
    controllers = ControllerState(b"key")
    controllers.configure(loaded.config.pools, loaded.config.controllers, loaded.config.strategies)
    controllers.follow(next(iter(plans.values())).strategies)
    classifier: Any = Classifier(encoder, {})  # type: ignore[arg-type]
    pipeline = Pipeline(loaded.config, plans, classifier, controllers=controllers)
    writer = DecisionWriter(settings, 0, ignore)
    writer.handle(Reloaded(loaded.sha256, 1))

    async def run() -> None:
        for number, (body, headers) in enumerate(requests):
            head = RequestHead("POST", "/v1/chat/completions", {"x-request-id": f"id-{number}", **headers})
            outcome = await pipeline.decide(Decide(head, Api.CHAT_COMPLETIONS, json.dumps(body).encode()))
            writer.handle(Decided(outcome, head.request_id, head.path, (), 1, 2, 3, observed=False))

    asyncio.run(run())
    writer.close()
    return settings.path
