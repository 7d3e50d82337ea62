"""One ONNX Runtime session on the configured device."""

import os
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from typing import Any

import numpy as np

from semroute_extproc.encoder.bundle import Bundle
from semroute_extproc.encoder.manifest import Device, Manifest
from semroute_extproc.encoder.preprocess import Framed, Framer
from semroute_extproc.encoder.signals import RawOutput
from semroute_extproc.errors import BundleError, ConfigError
from semroute_extproc.events import Emit, ignore

SLOW_ON_CPU = ["SkipLayerNormFusion"]
WARMUP_LENGTHS = (8, 32, 64)  # Lengths in tokens of the warm-up passes, so that the first request is not slow


class OnnxModel:
    """A bundle's graph on one device, on one thread. `run` is thread-safe and releases the GIL."""

    def __init__(self, bundle: Bundle, device: Device, session: Any = None) -> None:
        """Create the session, unless one is given; raises ConfigError or BundleError."""
        self.bundle, self.device = bundle, device
        self.emit: Emit = ignore  # the device's events; set by the queue that runs the model
        self.framer = Framer(bundle.path / "tokenizer.json", bundle.manifest.encoder)
        self._session = session or _open_session(bundle, device)
        self._outputs = [output.name for output in self._session.get_outputs()]
        for name in ("sentence_embedding", "domain_logits", "difficulty_logit"):
            if name not in self._outputs:
                raise BundleError(f"{bundle.graph(device)}: the graph has no output {name}")
        self.provider: str = self._session.get_providers()[0]

    def warm_up(self) -> None:
        """Run a few shapes once; raises BundleError if the outputs do not match the manifest."""
        for length in WARMUP_LENGTHS:
            [output] = self.run([self.framer.frame("word " * length)])
        found = (output.embedding, output.neighbors, output.domain_logits, output.task_logits)
        for (name, described), values in zip(widths(self.bundle.manifest).items(), found, strict=False):
            if values is not None and described != len(values):
                problem = f"{self.bundle.graph(self.device)}: {name} has {len(values)} values"
                raise BundleError(f"{problem}, and bundle.json describes {described}")

    def run(self, batch: Sequence[Framed]) -> list[RawOutput]:
        """One pass over `batch`, padded to its longest member."""
        return raw_outputs(batch, dict(zip(self._outputs, self.alone(batch)(), strict=True)))

    def alone(self, batch: Sequence[Framed]) -> Callable[[], Any]:
        """Return a function that runs only the session on `batch`; benchmarks use it as a baseline."""
        width = self._width(max(len(framed.ids) for framed in batch))
        feeds = inputs(batch, width, self.bundle.manifest.encoder.pad_id)
        return lambda: self._session.run(self._outputs, feeds)

    def _width(self, longest: int) -> int:
        return longest


def inputs(batch: Sequence[Framed], width: int, pad_id: int) -> dict[str, Any]:
    """The graph's inputs, [texts, width] each, and of `surface` [texts, 12]."""
    ids = np.full((len(batch), width), pad_id, dtype=np.int64)
    mask = np.zeros_like(ids)
    for row, framed in enumerate(batch):
        ids[row, : len(framed.ids)] = framed.ids
        mask[row, : len(framed.ids)] = 1
    surface = np.asarray([framed.surface for framed in batch], dtype=np.float32)
    return {"input_ids": ids, "attention_mask": mask, "surface": surface}


def widths(manifest: Manifest) -> dict[str, int]:
    """The graph's outputs, and how many values each has for a text; `neighbour_embedding` may be missing."""
    tasks = {"task_logits": len(manifest.task.labels)} if manifest.task else {}
    embeddings = dict.fromkeys(("sentence_embedding", "neighbour_embedding"), manifest.encoder.dimensions)
    return {**embeddings, "domain_logits": len(manifest.domain.labels), **tasks}


def raw_outputs(batch: Sequence[Framed], outputs: Mapping[str, Any]) -> list[RawOutput]:
    """The graph's outputs, text by text."""
    embeddings, difficulties = outputs["sentence_embedding"], outputs["difficulty_logit"].tolist()
    neighbors = outputs.get("neighbour_embedding", embeddings)
    tasks = outputs.get("task_logits", [None] * len(batch))
    rows = zip(batch, embeddings, neighbors, outputs["domain_logits"], difficulties, tasks, strict=True)
    return [
        RawOutput(embedding, near, domain, difficulty, task, text.tokens, text.truncated, text.unk_share)
        for text, embedding, near, domain, difficulty, task in rows
    ]


def import_runtime() -> Any:
    """ONNX Runtime's module; raises ConfigError if it is missing or two builds are installed."""
    if all(any(metadata.distributions(name=name)) for name in ("onnxruntime", "onnxruntime-gpu")):
        clash = "onnxruntime and onnxruntime-gpu are both installed and overwrite each other: uninstall both"
        raise ConfigError([f"{clash}, then install semroute-extproc[cpu] or semroute-extproc[gpu]"])
    # ONNX Runtime's telemetry writes files and sends data. This process reads prompts, so turn it off.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        import onnxruntime
    except ImportError:
        extras = "semroute-extproc[cpu] or semroute-extproc[gpu]"
        raise ConfigError([f"ONNX Runtime is missing: install {extras}"]) from None
    return onnxruntime


def _open_session(bundle: Bundle, device: Device) -> Any:
    """A session on `device`; raises BundleError, or ConfigError where ONNX Runtime would use another."""
    runtime = import_runtime()
    options = runtime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # The event loop shares the cores, and a spinning thread would delay it.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # On the CPU the fused node takes five times as long as the nodes it replaces (docs/performance.md).
    slow = SLOW_ON_CPU if device == "cpu" else []
    path, wanted = bundle.graph(device), f"{device.upper()}ExecutionProvider"
    if device == "cuda":
        runtime.preload_dlls()
    used = runtime.get_available_providers()[-1]
    if wanted in runtime.get_available_providers():
        try:
            # With the fallback, a failed pass would silently move the session to the CPU.
            session = runtime.InferenceSession(
                str(path), options, providers=[wanted], disabled_optimizers=slow, enable_fallback=0
            )
        except Exception as error:  # ONNX Runtime's own exceptions share no public base
            raise BundleError(f"{path}: {error}") from None
        # The GPU build lists CUDA as available on every machine; only a session shows what it uses.
        used = session.get_providers()[0]
        if used == wanted:
            return session
    asked = f"encoder.device: {device} was asked for, but ONNX Runtime {runtime.__version__} would use {used}"
    raise ConfigError([f"{asked}: install the extra 'gpu' and check the CUDA driver, or set device: cpu"])
