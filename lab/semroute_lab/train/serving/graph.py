"""Runs a bundle's graph in a model server, as the sidecar would. Needs NumPy and ONNX Runtime only."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

INPUTS = ("input_ids", "attention_mask", "surface")


class Graph:
    """One session. `run` is thread-safe."""

    def __init__(self, folder: Path) -> None:
        """Open the graph that `graph.json` in `folder` describes."""
        self.settings = json.loads((folder / "graph.json").read_text())
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if self.settings["device"] == "cuda":
            onnxruntime.preload_dlls()
        more = {"providers": [f"{self.settings['device'].upper()}ExecutionProvider"], "enable_fallback": 0}
        more["disabled_optimizers"] = self.settings["disabled_optimizers"]
        self._session = onnxruntime.InferenceSession(str(folder / self.settings["graph"]), options, **more)
        self._outputs = list(self.settings["outputs"])

    def run(self, requests: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """One pass for requests of any lengths, in their order; every output is [texts, values]."""
        longest = max(each["input_ids"].shape[1] for each in requests)
        width = next((length for length in self.settings["lengths"] if length >= longest), longest)
        pads = {"input_ids": self.settings["pad_id"], "attention_mask": 0}
        feeds = {
            name: np.concatenate([_padded(each[name], width, pads.get(name)) for each in requests])
            for name in INPUTS
        }
        found = [values.reshape(len(values), -1) for values in self._session.run(self._outputs, feeds)]
        ends = np.cumsum([len(each["surface"]) for each in requests])[:-1]
        parts = zip(*(np.split(values, ends) for values in found), strict=True)
        return [dict(zip(self._outputs, part, strict=True)) for part in parts]


def _padded(values: Any, width: int, pad: int | None) -> Any:
    missing = width - values.shape[1]
    return values if pad is None else np.pad(values, ((0, 0), (0, missing)), constant_values=pad)
