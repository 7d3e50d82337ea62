"""Recent traffic for the page: the last decisions, and counts by minute. Its memory is bounded."""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Mapping
from threading import Lock
from typing import Any

import msgspec

from semroute_extproc.events import Decided, Event
from semroute_extproc.outcome import Outcome, facts
from semroute_extproc.telemetry.log import VALUE_CHARACTERS_MAX

DECISIONS_MAX = 500  # that are kept; without their bodies, a few KB each
MINUTES_MAX = 60  # of counts
SAMPLE_SECONDS = 5.0  # Interval of reading the counters
TEXT_CHARACTERS_MAX = 2_000  # of a judged text, if prompts may be logged
OUTPUT_TOKENS = 300  # of an answer; a request may ask for fewer

DOLLARS = ("dollars", "baseline_dollars", "cache_saved_dollars")  # of answers, with `accounting`
COUNTERS = ("decisions", "fallbacks", "outcomes", "shadow_decisions", "log_lines_dropped", *DOLLARS)
"""Metrics whose counts by minute are kept."""

Counts = Mapping[tuple[str, ...], float]  # a metric and its label values, to its value
LIGHT = dict.fromkeys(("body", "view", "context", "handover"))  # Not kept: they hold bodies and prompts.


class Seen(msgspec.Struct, frozen=True):
    """One decision, as it is kept."""

    outcome: Outcome
    request_id: str
    path: str
    time: float
    observed: bool
    answer_tokens: int


class Recent:
    """The sink that keeps the last decisions, and the counts of the last hour."""

    def __init__(
        self, read: Callable[[], Counts], prompts: bool = False, clock: Callable[[], float] = time.time
    ) -> None:
        """`read` returns the counters as of now. With `prompts`, judged texts are kept."""
        self._read, self._clock, self._characters = read, clock, TEXT_CHARACTERS_MAX if prompts else 0
        self._seen = deque[Seen](maxlen=DECISIONS_MAX)
        self._minutes = deque[tuple[int, dict[tuple[str, ...], float]]](maxlen=MINUTES_MAX)
        self._last, self._sampling = read(), Lock()

    def handle(self, event: Event) -> None:
        """Keep a decision; other events are ignored."""
        if type(event) is Decided:
            outcome, view = event.outcome, event.outcome.view
            answer = min(view.max_output_tokens or OUTPUT_TOKENS, OUTPUT_TOKENS) if view else OUTPUT_TOKENS
            kept: Outcome = msgspec.structs.replace(outcome, text=outcome.text[: self._characters], **LIGHT)
            names = event.request_id[:VALUE_CHARACTERS_MAX], event.path[:VALUE_CHARACTERS_MAX]
            self._seen.append(Seen(kept, *names, event.ended_ns / 1e9, event.observed, answer))

    def minutes(self) -> list[tuple[int, list[list[Any]]]]:
        """Minutes since the epoch, oldest first, each with its counts as `[metric, label…, count]`."""
        with self._sampling:
            now, minute = self._read(), int(self._clock() // 60)
            if not self._minutes or self._minutes[-1][0] != minute:
                self._minutes.append((minute, {}))
            counts = self._minutes[-1][1]
            for key, value in now.items():
                if gained := value - self._last.get(key, 0.0):
                    counts[key] = counts.get(key, 0) + (int(gained) if gained % 1 == 0 else gained)
            self._last = now
            return [(minute, [[*key, n] for key, n in counts.items()]) for minute, counts in self._minutes]

    async def sample(self) -> None:
        """Count by minute, also while no one reads the page; until cancelled."""
        while True:
            await asyncio.sleep(SAMPLE_SECONDS)
            await asyncio.to_thread(self.minutes)

    @property
    def seen(self) -> list[Seen]:
        """The decisions, newest first; from any thread."""
        return [*reversed(self._seen.copy())]


def details(seen: Seen) -> dict[str, Any]:
    """All about one decision, as JSON has it."""
    outcome, decision = seen.outcome, seen.outcome.decision
    choice = decision.choice if decision else None
    reported = facts(outcome) | {"reason": outcome.reason}
    reported.pop("reasoning_from", None)  # Known only with the view.
    found: dict[str, Any] = {
        **{name: getattr(seen, name) for name in ("request_id", "path", "time", "observed")},
        **{name: getattr(outcome, name) for name in ("prompt_tokens", "text", "total_ms")},
        **{name: msgspec.to_builtins(getattr(outcome, name)) for name in ("shadows", "stages", "left_out")},
        "facts": reported,
        "trace": [step._asdict() for step in decision.trace] if decision else [],
        "others": decision.others if decision else (),
    }
    if choice is not None and choice.threshold is not None:
        found |= {"score": choice.score, "threshold": min(choice.threshold, 1.0), "source": choice.source}
    return found
