"""Types shared by every section of the configuration: names, efforts, bounds, problems. Pure."""

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationInfo,
    model_validator,
)

POOLS_MAX = 64
RULES_MAX = 128
MODELS_MAX = 256
STRATEGIES_MAX = 128
POLICIES_MAX = 128  # Limits of the configuration, which also bound every metric's label set.

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.:/@-]{0,127}$")]
"""A name that is safe as a header value and as a metric label."""

Share = Annotated[float, Field(ge=0, le=1)]

Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
"""Reasoning efforts, as vLLM names them."""

EFFORTS: tuple[str, ...] = get_args(Effort)


def _effort(value: Any) -> Any:
    """`off` and `on` are aliases; YAML 1.1 reads them as booleans."""
    if isinstance(value, bool):
        return "medium" if value else "none"
    return {"off": "none", "on": "medium"}.get(value, value) if isinstance(value, str) else value


EffortInput = Effort | Literal["off", "on"] | bool
EffortSetting = Annotated[Effort, BeforeValidator(_effort, json_schema_input_type=EffortInput)]


FilePath = Annotated[
    Path, AfterValidator(lambda path, info: Path((info.context or {}).get("folder", "")) / path)
]
"""A file or directory, relative to the folder of the configuration (the validation context)."""

NAMES_MAX = 32  # headers or members in one list
HeaderName = Annotated[str, Field(pattern=r"^[a-z0-9_-]{1,64}$")]
HeaderNames = Annotated[tuple[HeaderName, ...], Field(max_length=NAMES_MAX)]


_URL = re.compile(r"""(?<=://)((?:[^\s"']*(?=@))?)([^\s"'?]*\??)([^\s"']*)""")


def redacted(text: str) -> str:
    """Mask the user, password and query of every URL in a text, in linear time; the length is kept."""
    return _URL.sub(lambda url: "*" * len(url[1]) + url[2] + "*" * len(url[3]), text)


Url = Annotated[str, PlainSerializer(redacted)]  # A URL that is shown without its user, password and query.


def several(value: Any) -> Any:
    """Accept a single name instead of a list."""
    return (value,) if isinstance(value, str) else value


def _ascending(values: tuple[float, ...]) -> tuple[float, ...]:
    if list(values) != sorted(values):
        raise ValueError("quantiles must ascend")
    return values


QUANTILES = 101
_EACH = Field(min_length=QUANTILES, max_length=QUANTILES)
Quantiles = Annotated[tuple[float, ...], _EACH, AfterValidator(_ascending)]
"""A score at 0, 1, … 100 % of some traffic."""


def _reference(kind: str) -> AfterValidator:
    """Checks a name against the names of its kind in the validation context, if there are any."""

    def check(name: str, info: ValidationInfo) -> str:
        known = (info.context or {}).get(kind)
        if known is not None and name not in known:
            raise ValueError(f"there is no {kind} {name!r}" + did_you_mean(name, known))
        return name

    return AfterValidator(check)


PoolName = Annotated[str, _reference("pool")]
PolicyName = Annotated[str, _reference("policy")]
StrategyName = Annotated[str, _reference("strategy")]
Family = Annotated[str, _reference("reasoning family")]
"""References to other sections; `config.models.names_in` finds what they may name."""


class Model(BaseModel):
    """Immutable; rejects unknown keys and numbers that are not finite."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    one_of: ClassVar[tuple[str, ...]] = ()  # settings of which exactly one must be given

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        if self.one_of and [getattr(self, name) for name in self.one_of].count(None) != len(self.one_of) - 1:
            *first, last = self.one_of
            raise ValueError(f"give exactly one of {', '.join(first)} and {last}")
        return self


@dataclass(frozen=True, slots=True)
class Problem:
    """An error at one location in the configuration."""

    path: tuple[str | int, ...]
    message: str


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A hint to append to an error about an unknown name; empty if no other known name is similar."""
    near = difflib.get_close_matches(name, [each for each in known if each != name], n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""


def pair_of(strategy: object) -> tuple[str, str] | None:
    """The weak and the strong pool of a strategy's settings; None if it has no such pair."""
    weak, strong = getattr(strategy, "weak", None), getattr(strategy, "strong", None)
    return (weak, strong) if isinstance(weak, str) and isinstance(strong, str) else None
