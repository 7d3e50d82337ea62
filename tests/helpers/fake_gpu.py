"""A GPU that is not there: an ONNX Runtime session's surface, with the troubles of a device."""

from __future__ import annotations

from threading import Event
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from semroute_extproc.encoder import onnx
from semroute_extproc.encoder.bundle import Bundle

OUTPUTS = ("sentence_embedding", "domain_logits", "difficulty_logit")

ARENA = (
    "[ONNXRuntimeError] : 1 : FAIL : Non-zero status code returned while running MatMul node. "
    "bfc_arena.cc:376 Failed to allocate memory for requested buffer of size 201326592"
)
"""What ONNX Runtime says when its arena cannot grow."""

GONE = "[ONNXRuntimeError] : 1 : FAIL : CUDA failure 999: unknown error ; GPU=0 ; expr=cudaStreamSynchronize"


class Gpu:
    """One device, and the sessions that were opened on it."""

    def __init__(self) -> None:
        self.texts_max = 1_000
        """A pass of more finds no memory."""
        self.there = True
        self.answers = Event()
        """Unset, a pass hangs."""
        self.answers.set()
        self.shapes: list[tuple[int, int]] = []
        """Of every pass that was run: texts and padded length."""
        self.open = 0

    def session(self) -> Session:
        """A session on it."""
        if not self.there:
            raise RuntimeError(GONE)
        return Session(self)


class Session:
    """Gives each text the number of its tokens as its difficulty."""

    def __init__(self, gpu: Gpu) -> None:
        self._gpu = gpu
        gpu.open += 1

    def __del__(self) -> None:
        self._gpu.open -= 1

    def get_outputs(self) -> list[Any]:
        return [SimpleNamespace(name=name) for name in OUTPUTS]

    def get_providers(self) -> list[str]:
        return ["CUDAExecutionProvider"]

    def run(self, _: list[str], feeds: dict[str, Any]) -> list[Any]:
        texts, length = feeds["input_ids"].shape
        self._gpu.answers.wait()
        if not self._gpu.there:
            raise RuntimeError(GONE)
        if texts > self._gpu.texts_max:
            raise RuntimeError(ARENA)
        self._gpu.shapes.append((texts, length))
        tokens = feeds["attention_mask"].sum(axis=1)
        return [np.ones((texts, 4), np.float32), np.zeros((texts, 3), np.float32), tokens]


def install(gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have every session for `cuda` be opened on `gpu`; the CPU stays what it is."""
    real = onnx._session

    def session(bundle: Bundle, device: Any, threads: int) -> Any:
        return gpu.session() if device == "cuda" else real(bundle, device, threads)

    monkeypatch.setattr(onnx, "_session", session)
