"""What every section of the configuration shares: names, efforts, bounds, problems. Pure."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    StringConstraints,
    ValidationInfo,
)

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.:/@-]{0,127}$")]
"""A name that is safe as a header value and as a metric label."""

Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
"""Reasoning efforts, as vLLM names them."""

EFFORTS: tuple[str, ...] = get_args(Effort)

POOLS_MAX = 64
RULES_MAX = 128
MODELS_MAX = 256
STRATEGIES_MAX = 128
POLICIES_MAX = 128
"""Bounds of the configuration, and with them of every metric's label set."""


def _effort(value: Any) -> Any:
    """`off` and `on` are what people write; YAML 1.1 reads them as booleans."""
    if isinstance(value, bool):
        return "medium" if value else "none"
    return {"off": "none", "on": "medium"}.get(value, value) if isinstance(value, str) else value


EffortSetting = Annotated[Effort, BeforeValidator(_effort)]


def _in_folder(path: Path, info: ValidationInfo) -> Path:
    folder = (info.context or {}).get("folder")
    return path if folder is None else Path(folder) / path


FilePath = Annotated[Path, AfterValidator(_in_folder)]
"""A file or directory; relative to the folder of the configuration, the context of validation."""


def several(value: Any) -> Any:
    """A single name may be given without a list."""
    return (value,) if isinstance(value, str) else value


class Model(BaseModel):
    """Refuses unknown keys and numbers that are not finite, and never changes."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


@dataclass(frozen=True, slots=True)
class Problem:
    """Something wrong at one place of the configuration."""

    path: tuple[str | int, ...]
    message: str


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A hint to append to an error about an unknown name, empty if no known name is close."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f" (did you mean {near[0]!r}?)" if near else ""


def pair_of(strategy: object) -> tuple[str, str] | None:
    """The weak and the strong pool of a strategy's settings; None if it has no such pair."""
    weak, strong = getattr(strategy, "weak", None), getattr(strategy, "strong", None)
    return (weak, strong) if isinstance(weak, str) and isinstance(strong, str) else None
