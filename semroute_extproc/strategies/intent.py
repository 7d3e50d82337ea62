"""Intent: an expert by domain or task, a generalist for unclear text.

Samba-CoE v0.3 routes to experts by embedding and sends a query whose router confidence is low to a
strong generalist; here the confidence is the entropy of the calibrated head, H(p) / log k.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from semroute_extproc.policy.context import Candidates, Choice, RoutingContext, Strategy
from semroute_extproc.settings.base import did_you_mean
from semroute_extproc.strategies.idea import Site, StrategySettings


class IntentSettings(StrategySettings):
    """Selects an expert pool by domain or task; unclear texts go to a generalist (Samba-CoE v0.3)."""

    kind: Literal["intent"]
    by: Literal["domain", "task"] = Field("domain", description="Bundle head that selects the expert.")
    experts: dict[str, str] = Field(min_length=1, description="Pool of each label.")
    otherwise: str = Field(description="Pool for labels without an expert.")
    on_unknown: str = Field(description="Pool for unknown texts and for texts above `max_entropy`.")
    max_entropy: float = Field(
        0.6, gt=0, le=1, description="Entropy limit, as a fraction of the maximum entropy."
    )

    def named_pools(self) -> Iterator[tuple[tuple[str, ...], str]]:
        """The experts' pools and the two others."""
        yield from ((("experts", label), pool) for label, pool in self.experts.items())
        yield ("otherwise",), self.otherwise
        yield ("on_unknown",), self.on_unknown

    def compile(self, site: Site) -> Intent:
        """By a head of the bundle, which must have every label."""
        manifest = site.manifest
        head = manifest.task if self.by == "task" else manifest.domain
        labels = head.labels if head is not None else ()
        if not labels:
            site.problem("by", f"bundle {manifest.name} has no {self.by} head")
        for label in self.experts if labels else ():
            if label not in labels:
                message = f"bundle {manifest.name} has no {self.by} {label!r}{did_you_mean(label, labels)}"
                site.problem("experts", message, label)
        return Intent(self)


class Intent(Strategy):
    """The expert of the most likely label, unless the text is unknown or the entropy too high."""

    needs_signals = True
    hard_preferences = False

    def __init__(self, settings: IntentSettings) -> None:
        self._settings = settings

    def choose(self, context: RoutingContext, candidates: Candidates) -> Choice:
        """The score is the entropy, as a share of its maximum."""
        assert context.signals is not None
        signals, settings = context.signals, self._settings
        if settings.by == "task":
            label, probabilities = signals.task, signals.task_probs
            positive = [p for p in probabilities.values() if p > 0]
            entropy = -sum(p * math.log(p) for p in positive) / math.log(max(len(probabilities), 2))
        else:
            label, probabilities, entropy = signals.domain, signals.domain_probs, signals.domain_entropy
        # A language's own bundle may have no such head.
        if signals.unknown or not label or entropy > settings.max_entropy:
            why = f"{settings.by} is unsure" if label else f"{settings.by} is unknown in its language"
            if signals.unknown:
                why = "text is out of distribution"
            reason = f"{why} (entropy {entropy:.2f})"
            return Choice(settings.on_unknown, reason, (settings.otherwise,), entropy, settings.max_entropy)
        expert = settings.experts.get(label, settings.otherwise)
        reason = f"{settings.by} is {label} ({probabilities[label]:.2f})"
        others = (settings.otherwise, settings.on_unknown)
        return Choice(expert, reason, others, entropy, settings.max_entropy)
