"""A simulated GPU: the part of an ONNX Runtime session that is used, with the failures of a device."""

from __future__ import annotations

from collections.abc import Mapping
from threading import Event
from time import sleep
from types import SimpleNamespace
from typing import Any

import numpy as np

OUTPUTS = ("sentence_embedding", "domain_logits", "difficulty_logit")

ARENA = (
    "[ONNXRuntimeError] : 1 : FAIL : Non-zero status code returned while running MatMul node. "
    "bfc_arena.cc:376 Failed to allocate memory for requested buffer of size 201326592"
)
"""ONNX Runtime's message when its arena cannot grow."""

GONE = "[ONNXRuntimeError] : 1 : FAIL : CUDA failure 999: unknown error ; GPU=0 ; expr=cudaStreamSynchronize"


class Gpu:
    """A device and the session on it. The difficulty of a text is the number of its tokens."""

    def __init__(self, seconds: Mapping[int, float] | None = None) -> None:
        """`seconds` is how long a pass takes, by its number of texts or the next larger one."""
        self.seconds = seconds or {}
        self.texts_max = 1_000
        """A pass with more finds no memory."""
        self.there = True
        self.answers = Event()
        """Not set: a pass hangs."""
        self.answers.set()
        self.shapes: list[tuple[int, int]] = []
        """Texts and padded length of every pass that was run."""

    def get_outputs(self) -> list[Any]:
        return [SimpleNamespace(name=name) for name in OUTPUTS]

    def get_providers(self) -> list[str]:
        return ["CUDAExecutionProvider"]

    def run(self, _: list[str], feeds: dict[str, Any]) -> list[Any]:
        texts, length = feeds["input_ids"].shape
        self.answers.wait()
        if not self.there:
            raise RuntimeError(GONE)
        if texts > self.texts_max:
            raise RuntimeError(ARENA)
        sleep(min((self.seconds[size] for size in self.seconds if size >= texts), default=0.0))
        self.shapes.append((texts, length))
        tokens = feeds["attention_mask"].sum(axis=1)
        return [np.ones((texts, 4), np.float32), np.zeros((texts, 3), np.float32), tokens]
