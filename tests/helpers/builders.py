"""What several unit tests build: a manifest, a bundle without a graph, a configuration, an encoder."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from semroute_extproc.config.models import Config, Problem, contradictions, names_in
from semroute_extproc.encoder.bundle import Bundle
from semroute_extproc.encoder.classifier import Classifier
from semroute_extproc.encoder.manifest import (
    DifficultyHead,
    EncoderSpec,
    LabelHead,
    Manifest,
    UnknownSpec,
)
from semroute_extproc.encoder.signals import RawOutput, Signals
from semroute_extproc.errors import EncoderUnavailable
from semroute_extproc.outcome import Cause
from semroute_extproc.policy import plan
from semroute_extproc.policy.context import Decision, RoutingContext
from semroute_extproc.request.text import SURFACE_NAMES
from semroute_extproc.settings.names import Names
from semroute_extproc.state.controllers import ControllerState
from semroute_extproc.strategies.registry import compile_all

LABELS = ("math", "law", "other")
MANIFEST = Manifest(
    format=1,
    name="test",
    version="1",
    encoder=EncoderSpec(
        base="b", base_sha256="0", dimensions=4, window=16, cls_id=1, sep_id=2, pad_id=0, unk_id=3
    ),
    graphs={"cpu": "model.onnx"},
    surface=SURFACE_NAMES,
    domain=LabelHead(labels=LABELS, temperature=1.0),
    task=LabelHead(labels=("code", "chat"), temperature=1.0),
    difficulty=DifficultyHead(scale=1.0, shift=0.0, quantiles=tuple(n / 100 for n in range(101))),
    unknown=UnknownSpec(centroids="c.npy", threshold=0.3, unk_share_max=0.3),
    files={},
)
BUNDLE = Bundle(Path("nowhere"), MANIFEST, np.eye(4, dtype=np.float32))

POOLS: dict[str, Any] = {
    "small": {"cluster": "s", "model": "m-s", "context": 1_000, "tools": False, "reasoning": "qwen3"},
    "large": {"cluster": "l", "model": "m-l", "context": 100_000, "reasoning": "deepseek-v3"},
    "eyes": {"cluster": "e", "model": "m-e", "context": 8_000, "images": True},
}
PAIR: dict[str, Any] = {"kind": "threshold", "weak": "small", "strong": "large", "strong_share": 0.3}


def config(**changes: Any) -> Config:
    """A small configuration; `changes` replace whole sections."""
    settings = {
        "pools": POOLS,
        "default_pool": "large",
        "models": {"auto": {"policy": "main"}},
        "policies": {"main": {"otherwise": {"strategy": "s"}}},
        "strategies": {"s": PAIR},
    }
    document = {**settings, **changes}
    return Config.model_validate(document, context=names_in(document))


def wrong(**changes: Any) -> list[str]:
    """What is wrong with such a configuration."""
    try:
        return [problem.message for problem in contradictions(config(**changes))]
    except ValidationError as error:
        return [detail["msg"] for detail in error.errors()]


def names(settings: Config) -> Names:
    """What clients may ask for."""
    return Names(settings.models, settings.policies, settings.pools, settings.default_pool)


def build_policies(settings: Config, *artifacts: Any) -> tuple[dict[str, plan.PolicyPlan], list[Problem]]:
    """Every policy of a configuration, with the artifacts of its strategies, and what is wrong."""
    strategies, problems = compile_all(settings, MANIFEST, *artifacts)
    plans, more = plan.build(settings.pools, settings.default_pool, settings.policies, strategies)
    return plans, [*problems, *more]


def plans(settings: Config, *artifacts: Any) -> dict[str, plan.PolicyPlan]:
    """Every policy of a configuration in which nothing is wrong."""
    found, problems = build_policies(settings, *artifacts)
    assert problems == []
    return found


def decided(subject: plan.PolicyPlan, context: RoutingContext) -> Decision:
    """The decision from what is in the context."""
    decision = subject.decide_now(context)
    assert decision is not None
    return decision


def controller_state(settings: Config) -> ControllerState:
    """The controllers of a configuration."""
    state = ControllerState(b"key")
    state.configure(settings.pools, settings.controllers, settings.strategies)
    return state


def raw(difficulty_logit: float = 0.0, domain: int = 0, **changes: Any) -> RawOutput:
    """An encoder's output: sure of `domain`, near the first centroid."""
    logits = np.full(len(LABELS), -4.0, dtype=np.float32)
    logits[domain] = 4.0
    values: dict[str, Any] = {
        "embedding": np.array([1, 0, 0, 0], dtype=np.float32),
        "neighbors": np.array([1, 0, 0, 0], dtype=np.float32),
        "domain_logits": logits,
        "difficulty_logit": difficulty_logit,
        "task_logits": np.array([3.0, -3.0], dtype=np.float32),
        "tokens": 5,
        "truncated": False,
        "unk_share": 0.0,
    }
    return RawOutput(**{**values, **changes})


def classifier(encoder: Any) -> Classifier:
    """A classifier with one encoder for every language."""
    return Classifier(encoder, {})


class FakeEncoder:
    """An encoder that gives fixed answers and records the texts."""

    bundle = BUNDLE

    def __init__(
        self, answer: Callable[[str], RawOutput] | Exception | None = None, delay: float = 0.0
    ) -> None:
        self.answer = answer or (lambda _: raw())
        self.delay = delay
        self.texts: list[str] = []
        self.waiting = self.closed = 0

    async def encode(self, text: str, deadline: float) -> RawOutput:
        """Answer after the delay, unless the deadline comes first."""
        self.texts.append(text)
        try:
            async with asyncio.timeout_at(deadline):
                await asyncio.sleep(self.delay)
        except TimeoutError:
            raise EncoderUnavailable(Cause.DEADLINE) from None
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer(text)

    def describe(self) -> dict[str, str]:
        """Nothing of interest."""
        return {"bundle": "test", "revision": "0", "provider": "fake", "graph": "none"}

    async def close(self) -> None:
        """Count the calls."""
        self.closed += 1


def signals(**changes: Any) -> Signals:
    values: dict[str, Any] = {
        "domain": "math",
        "domain_probs": {"math": 0.9, "law": 0.05, "other": 0.05},
        "domain_entropy": 0.3,
        "difficulty": 0.5,
        "unknown": False,
        "tokens": 10,
        "truncated": False,
        "language": "en",
        "task": "code",
        "task_probs": {"code": 0.95, "chat": 0.05},
    }
    return Signals(**{**values, **changes})
