"""The encoder of a published bundle, kept as it is served: only the heads are fitted again.

The states are the int8 graph's own, so the heads learn what they will read. The new graphs are the old ones
up to the embedding, and the new heads behind them.
"""

from __future__ import annotations

import hashlib
import tempfile
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from semroute_extproc.encoder.bundle import Bundle
from semroute_lab.common.options import tracked
from semroute_lab.train import graphs
from semroute_lab.train.frames import Frames
from semroute_lab.train.graphs import Array
from semroute_lab.train.model import Heads, Outputs

EMBEDDING, NEIGHBORS = "sentence_embedding", "neighbour_embedding"


class Kept:
    """A bundle whose encoder is kept."""

    def __init__(self, bundle: Bundle, threads: int) -> None:
        """Raises BundleError for a bundle without the half-precision graph, the most exact one there is."""
        bundle.graph("cuda")
        self.bundle, self._threads = bundle, threads

    def read(self, frames: Frames, work: Path) -> tuple[Tensor, Tensor]:
        """The embedding and the recalled base embedding of every text, one text per pass; [rows, d] each.

        They are kept in `work` under a digest of the bundle and the ids.
        """
        ids = repr([framed.ids for framed in frames.framed])
        digest = hashlib.sha256(f"{self.bundle.revision} {ids}".encode()).hexdigest()
        file = work / f"kept-{digest[:24]}.pt"
        if not file.exists():
            torch.save(self._read(frames), file.with_suffix(".part"))
            file.with_suffix(".part").rename(file)
        first, second = torch.load(file, weights_only=True)
        return first, second

    def _read(self, frames: Frames) -> tuple[Tensor, Tensor]:
        session = graphs.cpu_session(str(self.bundle.graph("cpu")))

        def run(feed: graphs.Feed) -> list[Array]:
            found: list[Array] = session.run([EMBEDDING, NEIGHBORS], dict(feed))
            return found

        with ThreadPoolExecutor(self._threads) as pool:
            rows = list(tracked(pool.map(run, graphs.feeds(frames.framed)), len(frames), "embedding"))
        first, second = (torch.from_numpy(np.concatenate(column)) for column in zip(*rows, strict=True))
        return first, second

    def write(self, heads: Heads, work: Path, outputs: tuple[str, ...], opset: int) -> Iterator[Path]:
        """Write the bundle's graphs with other heads, and the float32 graph; their files."""
        with tempfile.TemporaryDirectory() as folder:
            plain, int8 = Path(folder) / "heads.onnx", Path(folder) / "heads.int8.onnx"
            _export(heads, plain, outputs, opset)
            graphs.write_int8(plain, int8, [])
            half = self.bundle.graph("cuda")
            wide = Path(folder) / "wide.onnx"
            graphs.write_widened(half, wide)
            for encoder, own, file in (
                (wide, plain, graphs.FP32_GRAPH),
                (self.bundle.graph("cpu"), int8, graphs.CPU_GRAPH),
                (half, plain, graphs.CUDA_GRAPH),
            ):
                graphs.join(encoder, own, EMBEDDING, outputs, work / file)
                yield work / file


class _Alone(nn.Module):  # type: ignore[misc]
    """The heads with a name, which their nodes carry."""

    def __init__(self, heads: Heads) -> None:
        super().__init__()
        self.heads = heads

    def forward(self, embedding: Tensor, surface: Tensor) -> tuple[Tensor, ...]:
        outputs: Outputs = self.heads(embedding, surface)
        return outputs[1:]


def _export(heads: Heads, file: Path, outputs: tuple[str, ...], opset: int) -> None:
    d, s = heads.recall.in_features, len(heads.surface_mean)
    names = {"input_names": ["embedding", "surface"], "output_names": list(outputs[1:])}
    axes = {name: {0: "batch"} for name in (*names["input_names"], *names["output_names"])}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        example = (torch.nn.functional.normalize(torch.ones(2, d), dim=-1), torch.zeros(2, s))
        settings = {"dynamo": False, "opset_version": opset, "dynamic_axes": axes}
        torch.onnx.export(_Alone(heads).eval(), example, str(file), **names, **settings)
