"""The graph as a model of Triton's Python backend."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import triton_python_backend_utils as triton
from graph import INPUTS, Graph


class TritonPythonModel:
    """Triton creates one for each instance, in a process of its own."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Open the graph next to this file."""
        self._graph = Graph(Path(args["model_repository"], args["model_version"]))

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """One pass for the batch that Triton made."""
        find, answer = triton.get_input_tensor_by_name, triton.InferenceResponse
        texts = [{name: find(each, name).as_numpy() for name in INPUTS} for each in requests]
        return [answer([triton.Tensor(*each) for each in found.items()]) for found in self._graph.run(texts)]
