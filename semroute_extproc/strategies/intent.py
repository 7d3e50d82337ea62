"""The intent strategy: an expert by domain or task, a generalist for the unsure.

Pure. Samba-CoE v0.3 routes to experts by embedding and sends a query whose router confidence is
low to a strong generalist; here the confidence is the entropy of the calibrated head.
"""

from __future__ import annotations

import math

from semroute_extproc.config.models import IntentStrategy
from semroute_extproc.policy.context import Candidates, Choice, RoutingContext, Strategy


class Intent(Strategy):
    """The expert of the most likely label, unless the text is unknown or the entropy too high."""

    needs_signals = True
    hard_preferences = False

    def __init__(self, settings: IntentStrategy) -> None:
        self._settings = settings

    def choose(self, facts: RoutingContext, candidates: Candidates) -> Choice:
        """The score is the entropy, as a share of its maximum."""
        assert facts.signals is not None
        signals, settings = facts.signals, self._settings
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
            return Choice(settings.unsure, reason, (settings.otherwise,), entropy, settings.max_entropy)
        expert = settings.experts.get(label, settings.otherwise)
        reason = f"{settings.by} is {label} ({probabilities[label]:.2f})"
        return Choice(expert, reason, (settings.otherwise, settings.unsure), entropy, settings.max_entropy)
