"""One ONNX Runtime session whose provider is what the operator asked for."""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from semroute_extproc.encoder.bundle import Bundle, Device
from semroute_extproc.encoder.preprocess import Framed, Framer
from semroute_extproc.encoder.signals import RawOutput
from semroute_extproc.errors import BundleError, ConfigError

PROVIDERS: dict[Device, str] = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
"""ONNX Runtime's name of the execution provider of each device."""

LEFT_OUT: dict[Device, list[str]] = {"cpu": ["SkipLayerNormFusion"], "cuda": []}
"""Optimisations of ONNX Runtime that cost more than they save: its fused sum and normalisation takes
five times as long on the CPU as the two nodes it replaces (docs/performance.md)."""

WARMUP_LENGTHS = (8, 32, 64)
"""Lengths in tokens run once before serving, so that the first request does not pay for it."""


class OnnxModel:
    """A bundle's graph on one device. `run` is thread-safe and releases the interpreter lock."""

    def __init__(self, bundle: Bundle, device: Device, threads: int) -> None:
        """Create the session.

        ONNX Runtime silently runs on the CPU when CUDA cannot be used; that is a ConfigError
        here, because an operator who asked for a GPU must not find out from the latency.
        """
        self.bundle = bundle
        self.device: Device = device
        self.framer = Framer(bundle.path / "tokenizer.json", bundle.encoder)
        self._session = _session(bundle, device, threads)
        self._outputs = [output.name for output in self._session.get_outputs()]
        missing = {"sentence_embedding", "domain_logits", "difficulty_logit"} - set(self._outputs)
        if missing:
            raise BundleError(f"{bundle.graph(device)}: the graph has no output {sorted(missing)[0]}")
        self.provider: str = self._session.get_providers()[0]

    def warm_up(self) -> None:
        """Run a few shapes once; raises BundleError if the outputs are not what the manifest describes."""
        for length in WARMUP_LENGTHS:
            [output] = self.run([self.framer.frame("word " * length)])
        manifest = self.bundle.manifest
        wanted = {
            "sentence_embedding": (len(output.embedding), manifest.encoder.dimensions),
            "neighbour_embedding": (len(output.neighbours), manifest.encoder.dimensions),
            "domain_logits": (len(output.domain_logits), len(manifest.domain.labels)),
        }
        if manifest.task is not None and output.task_logits is not None:
            wanted["task_logits"] = (len(output.task_logits), len(manifest.task.labels))
        for name, (given, described) in wanted.items():
            if given != described:
                graph = self.bundle.graph(self.device)
                raise BundleError(
                    f"{graph}: {name} has {given} values, and bundle.json describes {described}"
                )

    def alone(self, batch: Sequence[Framed]) -> Callable[[], object]:
        """The session's pass over `batch` and nothing else: what `semroute bench` compares with."""
        feeds = self._feeds(batch)
        return lambda: self._session.run(self._outputs, feeds)

    def _feeds(self, batch: Sequence[Framed], width: int = 0) -> dict[str, Any]:
        """The graph's inputs, padded to the longest member and at least to `width`."""
        longest = max(width, max(len(framed.ids) for framed in batch))
        ids = np.full((len(batch), longest), self.bundle.encoder.pad_id, dtype=np.int64)
        mask = np.zeros((len(batch), longest), dtype=np.int64)
        for row, framed in enumerate(batch):
            ids[row, : len(framed.ids)] = framed.ids
            mask[row, : len(framed.ids)] = 1
        surface = np.asarray([framed.surface for framed in batch], dtype=np.float32)
        return {"input_ids": ids, "attention_mask": mask, "surface": surface}

    def run(self, batch: Sequence[Framed]) -> list[RawOutput]:
        """One pass over `batch`, padded to its longest member."""
        values = self._session.run(self._outputs, self._feeds(batch))
        named: dict[str, Any] = dict(zip(self._outputs, values, strict=True))
        tasks = named.get("task_logits")
        neighbours = named.get("neighbour_embedding", named["sentence_embedding"])
        return [
            RawOutput(
                embedding=named["sentence_embedding"][row],
                neighbours=neighbours[row],
                domain_logits=named["domain_logits"][row],
                difficulty_logit=float(named["difficulty_logit"][row]),
                task_logits=None if tasks is None else tasks[row],
                tokens=framed.tokens,
                truncated=framed.truncated,
                unk_share=framed.unk_share,
            )
            for row, framed in enumerate(batch)
        ]


def _session(bundle: Bundle, device: Device, threads: int) -> Any:
    runtime = import_runtime()
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # Lanes share the cores with the event loop: a spinning worker would take it from them.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if device == "cuda":
        runtime.preload_dlls()
    path = bundle.graph(device)
    if PROVIDERS[device] not in runtime.get_available_providers():
        raise _not_provided(device, runtime, runtime.get_available_providers()[-1])
    try:
        # Its own fallback would rebuild the session on the CPU when a pass fails, and say so on stdout only.
        session = runtime.InferenceSession(
            str(path),
            options,
            providers=[PROVIDERS[device]],
            disabled_optimizers=LEFT_OUT[device],
            enable_fallback=0,
        )
    except Exception as error:  # ONNX Runtime's own exceptions share no public base
        raise BundleError(f"{path}: {error}") from None
    if session.get_providers()[0] != PROVIDERS[device]:
        # The GPU build lists CUDA as available on any machine; only a session tells.
        raise _not_provided(device, runtime, session.get_providers()[0])
    return session


def _not_provided(device: Device, runtime: Any, instead: str) -> ConfigError:
    return ConfigError(
        [
            f"encoder.device: {device} was asked for, but ONNX Runtime {runtime.__version__} would use "
            f"{instead}: install the extra 'gpu' and check the CUDA driver, or set device: cpu"
        ]
    )


def import_runtime() -> Any:
    """ONNX Runtime's module; raises ConfigError if there is none, or two builds in one place."""
    builds = [
        name
        for name in ("onnxruntime", "onnxruntime-gpu")
        if any(True for _ in importlib.metadata.distributions(name=name))
    ]
    if len(builds) == 2:
        raise ConfigError(
            [
                "onnxruntime and onnxruntime-gpu are both installed and overwrite each other: uninstall "
                "both, then install semroute-extproc[cpu] or semroute-extproc[gpu]"
            ]
        )
    # Its own telemetry writes files and knows an endpoint; a sidecar that reads prompts has neither.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        import onnxruntime
    except ImportError:
        raise ConfigError(
            ["ONNX Runtime is missing: install semroute-extproc[cpu] or semroute-extproc[gpu]"]
        ) from None
    return onnxruntime
