"""`bundle.json`: the description of a bundle, as pydantic models. Pure."""

import hashlib
from functools import cached_property
from typing import Literal

from pydantic import Field

from semroute_extproc.settings.base import Model, Quantiles

Device = Literal["cpu", "cuda"]


class EncoderSpec(Model):
    """Where the weights come from, and how text is framed for them."""

    base: str
    base_sha256: str
    dimensions: int = Field(gt=0)
    window: int = Field(ge=8, le=8192)  # most ids of one input, [CLS] and [SEP] included
    cls_id: int
    sep_id: int
    pad_id: int
    unk_id: int


class LabelHead(Model):
    """A classification head: its labels, and the temperature its logits are divided by."""

    labels: tuple[str, ...] = Field(min_length=2)
    temperature: float = Field(gt=0)


class DifficultyHead(Model):
    """p = sigmoid(scale · logit + shift); `quantiles` are p at 0, 1, … 100 % of reference traffic."""

    scale: float = Field(gt=0)
    shift: float
    quantiles: Quantiles


class UnknownSpec(Model):
    """When the bundle abstains."""

    centroids: str
    threshold: float = Field(ge=-1, le=1)
    unk_share_max: float = Field(ge=0, le=1)


class FileEntry(Model):
    """One file of the bundle."""

    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    bytes: int = Field(ge=0)


class Manifest(Model):
    """`bundle.json`."""

    format: int = 1  # the one that this package reads
    name: str
    version: str
    description: str = ""
    encoder: EncoderSpec
    graphs: dict[Device, str]
    surface: tuple[str, ...]
    domain: LabelHead
    task: LabelHead | None = None
    difficulty: DifficultyHead
    unknown: UnknownSpec
    languages: tuple[str, ...] = ("en",)  # those it was trained on; text in another is unknown
    files: dict[str, FileEntry]

    @cached_property
    def revision(self) -> str:
        """Twelve hexadecimal digits that change with every served file and setting."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:12]
