"""Intent: an expert by domain or task, a generalist for unclear text.

Samba-CoE v0.3 routes to experts by embedding and sends a query whose router confidence is low to a
strong generalist; here the confidence is the entropy of the calibrated head, H(p) / log k.
"""

from typing import Literal

from pydantic import Field

from semroute_extproc.encoder.signals import entropy
from semroute_extproc.policy.context import Candidates, Choice, RoutingContext, Strategy
from semroute_extproc.settings.base import PoolName, did_you_mean
from semroute_extproc.strategies.idea import Site, StrategySettings, Unfit


class IntentSettings(StrategySettings):
    """Selects an expert pool by domain or task; unclear texts go to a generalist (Samba-CoE v0.3)."""

    kind: Literal["intent"]
    by: Literal["domain", "task"] = Field("domain", description="Bundle head that selects the expert.")
    experts: dict[str, PoolName] = Field(min_length=1, description="Pool of each label.")
    otherwise: PoolName = Field(description="Pool for labels without an expert.")
    on_unknown: PoolName = Field(description="Pool for unknown texts and for texts above `max_entropy`.")
    max_entropy: float = Field(0.6, gt=0, le=1, description="Limit, as a fraction of the maximum entropy.")

    def compile(self, site: Site) -> Strategy:
        """Compile for a head of the bundle, which must have every label; raises Unfit."""
        bundle, head = site.manifest.name, site.manifest.task if self.by == "task" else site.manifest.domain
        if head is None:
            raise Unfit("by", f"bundle {bundle} has no {self.by} head")
        for label in (each for each in self.experts if each not in head.labels):
            hint = did_you_mean(label, head.labels)
            site.problem("experts", f"bundle {bundle} has no {self.by} {label!r}{hint}", label)
        return Intent(self)


class Intent(Strategy):
    """The expert of the most likely label, unless the text is unknown or the entropy is too high."""

    needs_signals, hard_preferences = True, False

    def __init__(self, settings: IntentSettings) -> None:
        self._settings = settings

    def choose(self, context: RoutingContext, candidates: Candidates) -> Choice:
        """The score is the entropy, as a share of its maximum."""
        assert context.signals is not None
        signals, settings = context.signals, self._settings
        by, most = settings.by, settings.max_entropy
        if by == "task":
            label, probabilities = signals.task, signals.task_probs
            doubt = entropy(probabilities.values())
        else:
            label, probabilities, doubt = signals.domain, signals.domain_probs, signals.domain_entropy
        if label and not signals.unknown and doubt <= most:
            reason = f"{by} is {label} ({probabilities[label]:.2f})"
            expert = settings.experts.get(label, settings.otherwise)
            return Choice(expert, reason, (settings.otherwise, settings.on_unknown), doubt, most)
        # The bundle of another language may lack this head.
        why = f"{by} is unsure" if label else f"{by} is unknown in its language"
        reason = f"{'text is out of distribution' if signals.unknown else why} (entropy {doubt:.2f})"
        return Choice(settings.on_unknown, reason, (settings.otherwise,), doubt, most)
