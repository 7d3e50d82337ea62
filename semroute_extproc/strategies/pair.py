"""Base of the strategies with a pair of pools: settings, calibration, cutoff and a pool for unknown text."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

from pydantic import Field, model_validator

from semroute_extproc.encoder.signals import Signals
from semroute_extproc.policy.context import Candidates, Choice, Near, RoutingContext, Strategy
from semroute_extproc.settings.base import FilePath, PoolName, Share
from semroute_extproc.strategies.artifact import ArtifactManifest, Floats
from semroute_extproc.strategies.calibration import Calibration, read_calibration
from semroute_extproc.strategies.cutoff import Cutoff
from semroute_extproc.strategies.idea import Site, StrategySettings, Unfit

T = TypeVar("T")
Score = Callable[[Signals], float | None]
"""P(the strong model wins) for a text; None if the score does not apply to the text's bundle."""


def of_embedding(manifest: ArtifactManifest, score: Callable[[Floats], T]) -> Callable[[Signals], T | None]:
    """A score of embeddings (d,), for texts that the artifact's bundle read."""

    def of(signals: Signals) -> T | None:
        x = manifest.embedding(signals)
        return None if x is None else score(x)

    return of


class PairSettings(StrategySettings):
    """Selects weak or strong by one score; exactly one of three settings sets the strong share."""

    weak: PoolName = Field(description="The cheaper pool.")
    strong: PoolName = Field(description="The more expensive pool.")
    strong_share: Share | None = Field(None, description="Share of the strong pool; see `follow_traffic`.")
    threshold: Share | None = Field(None, description="Score from which the strong pool is used.")
    max_quality_drop: Share | None = Field(
        None,
        description="Largest quality loss relative to the strong pool; selects the lowest strong share. "
        "Needs a calibration with outcomes.",
    )
    calibration: FilePath | None = Field(
        None, description="File of `semroute calibrate`: scores and outcomes of your own prompts."
    )
    follow_traffic: bool = Field(
        True,
        description="Whether `strong_share` is of the strategy's own requests. If false, the threshold is "
        "fixed by the calibration's prompts or else the reference traffic.",
    )
    on_unknown: PoolName | None = Field(None, description="Pool for unknown texts; default: strong.")
    files: ClassVar[Mapping[str, Callable[[Path], Any]]] = {"calibration": read_calibration}
    weighs_cost: ClassVar[bool] = True
    one_of: ClassVar = ("strong_share", "threshold", "max_quality_drop")

    @model_validator(mode="after")
    def _calibrated_drop(self) -> Self:
        if self.max_quality_drop is not None and self.calibration is None:
            raise ValueError("max_quality_drop needs a calibration")
        if self.weak == self.strong:
            raise ValueError("weak and strong are the same pool")
        return self

    def _calibrated(self, site: Site, artifact: str) -> Calibration | None:
        """The calibration, which must be of this score and digest; None if not set. Raises Unfit."""
        if self.calibration is None:
            return None
        found = site.files.get("calibration")
        if not isinstance(found, Calibration):
            raise Unfit
        if found.score != self.kind:
            raise Unfit("calibration", f"is of a {found.score} score, but this strategy is a {self.kind}")
        if found.revision != site.manifest.revision:
            made = f"was made with bundle {found.bundle} {found.revision}, but this is {site.bundle}"
            raise Unfit("calibration", f"{made}: make it again with this bundle")
        if found.artifact != artifact:
            raise Unfit("calibration", f"is of artifact {found.artifact}, but this is {artifact}")
        if self.max_quality_drop is not None and found.quality is None:
            unknown = "the calibration has no outcomes, so the quality loss is unknown"
            raise Unfit("max_quality_drop", unknown)
        return found

    def cutoff(
        self, site: Site, quantiles: Sequence[float], what: str, artifact: str = "", digits: int = 2
    ) -> Cutoff:
        """The cutoff of a score; a calibration's quantiles override `quantiles` of the reference traffic.

        `artifact` is the digest of what scores. A quality drop is one at a fixed threshold. Raises Unfit.
        """
        share, of = self.strong_share, "the reference scores"
        if (calibration := self._calibrated(site, artifact)) is not None:
            quantiles, of = calibration.quantiles, "your calibration prompts"
            if self.max_quality_drop is not None:
                share = calibration.share_for_drop(self.max_quality_drop)
        settings: dict[str, Any] = {"share": share, "threshold": self.threshold, "digits": digits, "of": of}
        follow = self.follow_traffic and self.strong_share is not None
        return Cutoff(self.weak, self.strong, quantiles, **settings, what=what, follow=follow)


class Pair(Strategy):
    """Strong if score ≥ t, where t comes from a threshold, a strong share or a quality drop."""

    needs_signals = hard_preferences = True

    def __init__(
        self,
        score: Score,
        cutoff: Cutoff,
        on_unknown: str | None,
        near: Callable[[Signals], Sequence[Near] | None] = lambda _: None,
    ) -> None:
        self.score, self._cutoff, self._on_unknown = score, cutoff, on_unknown or cutoff.strong
        self.follows, self._near = cutoff.follows, near

    def near(self, signals: Signals) -> Sequence[Near]:
        """See `Strategy`."""
        return self._near(signals) or ()

    def choose(self, context: RoutingContext, candidates: Candidates) -> Choice:
        """Unknown text goes to `on_unknown`, unless the client has a hard preference."""
        signals, cutoff = context.signals, self._cutoff
        score = self.score(signals) if signals is not None else None
        choice = cutoff.choose(0.0 if score is None else score, context)
        if context.hard_preference:
            return dataclasses.replace(choice, score=score)
        assert signals is not None
        if not (signals.unknown or score is None):
            return choice
        unread = f"{cutoff.what} is unknown in its language"
        why = "text is out of distribution" if signals.unknown else unread
        return Choice(self._on_unknown, why, (cutoff.strong, cutoff.weak), score, choice.threshold)
