"""From a calibrated network to a published bundle: manifest, graphs, parity."""

from __future__ import annotations

import json
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from semroute_extproc.encoder import manifest as form
from semroute_extproc.encoder.manifest import EncoderSpec, LabelHead, Manifest
from semroute_extproc.errors import BundleError
from semroute_extproc.request.text import SURFACE_NAMES
from semroute_lab.train import fill, graphs
from semroute_lab.train.bert import TEXTS_MAX, Encoder, smooth
from semroute_lab.train.datasets import DOMAINS, TASKS, Example
from semroute_lab.train.fit import States
from semroute_lab.train.frames import Frames
from semroute_lab.train.graphs import Array, publish
from semroute_lab.train.kept import Kept
from semroute_lab.train.model import Heads, Network
from semroute_lab.train.sources import LOGS
from semroute_lab.train.spec import BundleSpec, Say

OPSET = 20  # ONNX operator set: the first with Gelu, which half precision needs as one operator
INPUTS = ("input_ids", "attention_mask", "surface")
OUTPUTS = ("sentence_embedding", "domain_logits", "difficulty_logit", "task_logits", "neighbour_embedding")

ORDINARY = (("everyday",), ("everyday", "exam", "hard_chat"))
"""Groups of kinds; of each, at most the share `unknown_share` is called unknown."""

PARITY_FP32 = 1e-4  # Largest difference between torch and its fp32 graph, relative to 1 + its size
PARITY_ROWS = 64  # Texts on which the graphs are compared with the network


def make_manifest(
    spec: BundleSpec,
    base: EncoderSpec,
    heads: Heads,
    rows: Sequence[Example],
    calibrate: Sequence[Example],
    fit: States,
    check: States,
    seed: int,
) -> tuple[Manifest, Tensor]:
    """Calibrate on the calibration rows; the manifest (its files still empty) and the centroids [k, d]."""
    with torch.inference_mode():
        _, domain, difficulty, task, asked = heads(check.pooled, check.surface)
        known = heads.recalled(heads.parts(fit.pooled, fit.surface))
    balanced = known[_balanced(rows, spec.known.source_rows_max, seed)]
    centroids = fill.spherical_kmeans(balanced, spec.known.centroids, seed)
    share = spec.known.unknown_share
    groups = [torch.tensor([row.kind in kinds for row in calibrate]) for kinds in ORDINARY]
    groups = [rows for rows in groups if bool(rows.any())] or [torch.ones(len(calibrate), dtype=torch.bool)]
    threshold = min(fill.unknown_threshold(asked[rows], centroids, share) for rows in groups)
    scale, shift = fill.platt(difficulty, check.targets.difficulty, check.targets.weight)
    kinds = [row.kind for row in calibrate]
    # A user's own logs are the user's traffic.
    traffic = {LOGS: 1.0} if LOGS in kinds else spec.traffic
    shares = torch.tensor([traffic.get(kind, 0.0) / max(1, kinds.count(kind)) for kind in kinds])
    scored = torch.sigmoid(scale * difficulty + shift)
    quantiles = fill.quantiles(scored, shares if bool(shares.any()) else None)
    share = spec.known.unk_share_max
    served: dict[form.Device, str] = {"cpu": graphs.CPU_GRAPH}
    if spec.base.architecture == "bert":  # the other is cheap enough on a CPU next to a GPU
        served["cuda"] = graphs.CUDA_GRAPH
    manifest = Manifest(
        name=spec.name,
        version=spec.version,
        description=spec.description,
        encoder=base,
        graphs=served,
        surface=SURFACE_NAMES,
        domain=LabelHead(labels=DOMAINS, temperature=fill.temperature(domain, check.targets.domain)),
        task=LabelHead(labels=TASKS, temperature=fill.temperature(task, check.targets.task)),
        difficulty=form.DifficultyHead(scale=scale, shift=shift, quantiles=tuple(quantiles)),
        unknown=form.UnknownSpec(centroids="centroids.npy", threshold=threshold, unk_share_max=share),
        languages=spec.languages,
        files={},
    )
    return manifest, centroids


def _balanced(rows: Sequence[Example], most: int, seed: int) -> Tensor:
    """Indices of the fit rows for the centroids, at most `most` per source."""
    taken: Counter[str] = Counter()
    chosen = []
    for i in torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed)).tolist():
        taken[rows[i].source] += 1
        if taken[rows[i].source] <= most:
            chosen.append(i)
    return torch.tensor(chosen)


def write(
    network: Network | Kept,
    heads: Heads,
    manifest: Manifest,
    centroids: Tensor,
    frames: Frames,
    out: Path,
    work: Path,
    say: Say,
) -> None:
    """Export the graphs, compare them, and publish the bundle in `out`."""
    fp32, int8, fp16 = (work / name for name in (graphs.FP32_GRAPH, graphs.CPU_GRAPH, graphs.CUDA_GRAPH))
    sample = frames.take(frames.spread(PARITY_ROWS))
    served = [int8, *([fp16] if "cuda" in manifest.graphs else [])]
    if isinstance(network, Kept):
        list(network.write(heads, work, OUTPUTS, OPSET))
        reference = _outputs(graph_run(fp32), sample)
    else:
        reference = _exported(network, fp32, frames, sample, say)
        texts = frames.take(frames.spread(graphs.CALIBRATION_TEXTS_MAX))
        graphs.write_int8(fp32, int8, graphs.feeds(texts.framed))
        if fp16 in served:
            graphs.write_fp16(fp32, fp16)
    np.save(work / "centroids.npy", centroids.numpy().astype(np.float32))
    files = [*graphs.move_table(int8), *served[1:]]
    for graph in served:
        found = _outputs(graph_run(graph), sample)
        say(f"{graph.name} against fp32: {json.dumps(_difference(reference, found))}")
    publish(manifest, [work / "tokenizer.json", work / "centroids.npy", *files], out)
    say(f"published {out}")


def _exported(network: Network, fp32: Path, frames: Frames, sample: Frames, say: Say) -> dict[str, Array]:
    """Write the float32 graph; its outputs on the sample, which must be the network's."""
    if isinstance(network.encoder, Encoder):
        smooth(network.encoder, frames, frames.spread(TEXTS_MAX))
    write_fp32(network, fp32)
    reference = _outputs(graph_run(fp32), sample)
    parity = _difference(_outputs(network.eval(), sample), reference)
    say(f"fp32 graph against torch: {json.dumps(parity)}")
    if max(parity.values()) > PARITY_FP32:
        raise BundleError(f"{fp32}: an output differs from torch by more than {PARITY_FP32:g}: {parity}")
    return reference


def write_fp32(network: Network, file: Path) -> None:
    """Trace the network to an fp32 graph with dynamic batch and length."""
    network.eval()
    ids = torch.ones(2, 9, dtype=torch.long)
    example = (ids, torch.ones_like(ids), torch.zeros(2, len(network.heads.surface_mean)))
    axes: dict[str, dict[int, str]] = {name: {0: "batch"} for name in (*INPUTS, *OUTPUTS)}
    for name in ("input_ids", "attention_mask"):
        axes[name][1] = "tokens"
    with warnings.catch_warnings():
        # The tracer warns of Python numbers, which are constants of the architecture here.
        warnings.simplefilter("ignore")
        names = {"input_names": list(INPUTS), "output_names": list(OUTPUTS), "dynamic_axes": axes}
        torch.onnx.export(network, example, str(file), dynamo=False, opset_version=OPSET, **names)


def graph_run(file: Path) -> Callable[..., Sequence[Array]]:
    """A graph on the CPU as a function of the inputs' tensors."""
    session = graphs.cpu_session(str(file))

    def run(*tensors: Tensor) -> Sequence[Array]:
        feed = {name: tensor.numpy() for name, tensor in zip(INPUTS, tensors, strict=True)}
        found: Sequence[Array] = session.run(list(OUTPUTS), feed)
        return found

    return run


def _outputs(run: Callable[..., Sequence[Array | Tensor]], frames: Frames) -> dict[str, Array]:
    """Every output for every text, one text per pass as in serving; each [rows, …]."""
    with torch.inference_mode():
        rows = [[np.asarray(each) for each in run(*frames.batch([i]))] for i in range(len(frames))]
    return {name: np.concatenate([row[at] for row in rows]) for at, name in enumerate(OUTPUTS)}


def _difference(ours: Mapping[str, Array], other: Mapping[str, Array]) -> dict[str, float]:
    """The largest difference of each output, relative to 1 + its size."""
    found = {name: np.abs(x - other[name]) / (1.0 + np.abs(x)) for name, x in ours.items()}
    return {name: round(float(each.max()), 6) for name, each in found.items()}
