"""A tiny BERT as a base: a bundle trains on it in seconds."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from semroute_lab.train.spec import SHIPPED, BaseSpec, BundleSpec, read_spec


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
    words = ["what", "is", "the", "prove", "that", "for", "all", "fix", "my", "tax", "cell", "court"]
    vocabulary = {token: i for i, token in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words])}
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
    base = (
        f'[base]\nname = "tiny"\nsha256 = "{hashlib.sha256(weights).hexdigest()}"\n{sizes}inner = {inner}\n\n'
    )
    text = SHIPPED.read_text()
    start, end = text.index("[base]"), text.index("# Reference traffic")
    text = (text[:start] + base + text[end:]).replace("window = 128", "window = 32")
    text = text.replace("tune_window = 96", "tune_window = 24").replace("clusterings = 64", "clusterings = 4")
    spec = folder / "tiny.toml"
    spec.write_text(text)
    return folder, spec
