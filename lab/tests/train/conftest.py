"""A tiny base of each architecture: a bundle trains on it in seconds."""

from __future__ import annotations

import contextlib
import hashlib
import io
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from semroute_lab.train.spec import SHIPPED, BaseSpec, BundleSpec, read_spec

WORDS = ["what", "is", "the", "prove", "that", "for", "all", "fix", "my", "tax", "cell", "court"]
PIECES = [("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0), ("\u2581", -3.0)]
PIECES += [(f"\u2581{word}", -2.0) for word in WORDS] + [(digit, -4.0) for digit in "0123456789"]
PIECES += [("co", -2.5), ("urt", -2.5), ("cou", -9.0), ("c", -5.0), ("o", -5.0), ("rt", -3.5)]
"""Pieces of the small SentencePiece model and the logarithms of their probabilities."""


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Tests run side by side, and threads of tiny products would wait for each other."""
    with contextlib.suppress(ImportError):
        import torch

        torch.set_num_threads(1)


@pytest.fixture
def tiny() -> BaseSpec:
    """Sizes of an encoder for tests of the network alone."""
    sizes = {"vocabulary": 50, "positions": 16, "dimensions": 8, "layers": 2, "heads": 2, "inner": 16}
    return BaseSpec(name="tiny", sha256="0", **sizes)


@pytest.fixture
def shipped() -> BundleSpec:
    """The specification of the shipped bundle."""
    return read_spec()


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The directory of a tiny random checkpoint, and the specification of a bundle made from it."""
    torch = pytest.importorskip("torch", reason="the extra `train` is not installed")
    from safetensors.torch import save
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    folder = tmp_path_factory.mktemp("base")
    vocabulary = {token: i for i, token in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    torch.manual_seed(0)
    d, inner = 16, 32
    shapes = {
        "embeddings.word_embeddings.weight": (len(vocabulary), d),
        "embeddings.position_embeddings.weight": (64, d),
        "embeddings.token_type_embeddings.weight": (2, d),
        "embeddings.LayerNorm.weight": (d,),
        "embeddings.LayerNorm.bias": (d,),
    }
    products = {
        "attention.self.query": (d, d),
        "attention.self.key": (d, d),
        "attention.self.value": (d, d),
        "attention.output.dense": (d, d),
        "attention.output.LayerNorm": (d,),
        "intermediate.dense": (inner, d),
        "output.dense": (d, inner),
        "output.LayerNorm": (d,),
    }
    for name, shape in products.items():
        shapes[f"encoder.layer.0.{name}.weight"] = shape
        shapes[f"encoder.layer.0.{name}.bias"] = shape[:1]
    weights = save({name: torch.randn(shape) * 0.3 for name, shape in shapes.items()})
    (folder / "model.safetensors").write_bytes(weights)
    sizes = f"vocabulary = {len(vocabulary)}\npositions = 64\ndimensions = {d}\nlayers = 1\nheads = 2\n"
    sizes += f"inner = {inner}\n"
    return folder, small_spec(SHIPPED, folder, weights, sizes)


def small_spec(shipped: Path, folder: Path, weights: bytes, base: str) -> Path:
    """A shipped specification with a small base, whose fields beside name and digest are in `base`."""
    text = shipped.read_text()
    start, end = text.index("[base]"), text.index("# Reference traffic")
    digest = hashlib.sha256(weights).hexdigest()
    lines = text[:start].splitlines()
    sizes = {"window": 32, "tune_window": 24}
    lines = [f"{n} = {sizes[n]}" if (n := line.partition(" = ")[0]) in sizes else line for line in lines]
    own = f'\n[base]\nname = "tiny"\nsha256 = "{digest}"\n{base}\n'
    rest = text[end:].replace("clusterings = 64", "clusterings = 4")
    spec = folder / "tiny.toml"
    spec.write_text("\n".join(lines) + own + rest)
    return spec


@pytest.fixture(scope="session")
def use_tensors() -> dict[str, Any]:
    """Tensors of a tiny encoder under the names of the package's: chunks q1 … q17, products, norms."""
    rng = np.random.default_rng(0)
    d, channels, summary, hidden = 16, 8, 12, 10

    def drawn(*shape: int) -> Any:
        return (rng.normal(size=shape) / shape[0] ** 0.5).astype(np.float32)

    found = {f"q{n}": rng.integers(0, 256, (3, d), dtype=np.uint8) for n in range(1, 18)}
    found |= {"scale": rng.uniform(0.01, 0.02, 17), "lo": rng.uniform(-2.0, -1.0, 17)}
    for size in (2, 3, 5):
        found |= {f"proj{size}": drawn(d, channels), f"proj_b{size}": drawn(channels)}
        found |= {f"ln_g{size}": 1.0 + drawn(channels), f"ln_b{size}": drawn(channels)}
        for layer in (1, 2):
            found[f"w{layer}_{size}"] = drawn(size * channels, channels)
            found[f"b{layer}_{size}"] = drawn(channels)
    state = d + 3 * channels
    found |= {"ln_g": 1.0 + drawn(state), "ln_b": drawn(state)}
    found |= {"cnn_W": drawn(state, summary), "cnn_b": drawn(summary)}
    found |= {"d0": drawn(summary, hidden), "d1": drawn(hidden, hidden), "p1": drawn(summary, hidden)}
    return found | {"d2": drawn(hidden, 14), "d3": drawn(14, d), "p3": drawn(hidden, d)}


@pytest.fixture(scope="session")
def pieces() -> dict[str, int]:
    """The ids of the pieces of the small SentencePiece model."""
    return {piece: number for number, (piece, _) in enumerate(PIECES)}


@pytest.fixture(scope="session")
def sentencepiece() -> bytes:
    """A SentencePiece model of `PIECES`, as a serialized ModelProto; its normalizer turns A into a."""

    def message(number: int, value: bytes) -> bytes:
        size, length = len(value), b""
        while size > 127:
            length, size = length + bytes([size & 127 | 128]), size >> 7
        return bytes([number << 3 | 2]) + length + bytes([size]) + value

    pieces = (message(1, piece.encode()) + b"\x15" + struct.pack("<f", score) for piece, score in PIECES)
    # A double array: from the root, the byte of A leads to unit 256, whose value is a place in the texts.
    units = [0] * 512
    units[ord("A")] = ord("A") | 1 << 8 | (ord("A") ^ 256) << 10
    charsmap = struct.pack("<I", 4 * len(units)) + struct.pack(f"<{len(units)}I", *units) + b"a\0"
    normalizer = message(1, b"tiny") + message(2, charsmap) + b"\x18\x01"
    return b"".join(message(1, piece) for piece in pieces) + message(3, normalizer)


@pytest.fixture(scope="session")
def tiny_use(
    tmp_path_factory: pytest.TempPathFactory, use_tensors: dict[str, Any], sentencepiece: bytes
) -> tuple[Path, Path]:
    """The directory of a tiny convolutional checkpoint, and the specification of a bundle made from it."""
    folder = tmp_path_factory.mktemp("use")
    stream = io.BytesIO()
    np.savez(stream, **use_tensors)
    (folder / "weights.npz").write_bytes(stream.getvalue())
    (folder / "sp.model").write_bytes(sentencepiece)
    base = 'architecture = "use"\nweights = "weights.npz"\ntokenizer = "sp.model"\ndimensions = 16\n'
    base += 'cls = "<s>"\nsep = "</s>"\npad = "<unk>"\nunk = "<unk>"\nmask = "<unk>"\n'
    return folder, small_spec(SHIPPED.with_name("semroute-use.toml"), folder, stream.getvalue(), base)
