"""Prometheus metrics. Every label takes its values from a bounded set; docs/metrics.md lists them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from threading import Lock
from typing import Any, NamedTuple

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.metrics import MetricWrapperBase

from semroute_extproc import __version__
from semroute_extproc import events as ev
from semroute_extproc.outcome import Kind
from semroute_extproc.policy.shadow import Shadow

PREFIX = "semroute_"

MODEL_LABELS = ("bundle", "revision", "provider", "graph", "language")
"""Labels of `semroute_model_info`, keys of `Classifier.describe`."""

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


Durations = partial(Histogram, buckets=tuple(0.00025 * 2**n for n in range(13)))
"""Seconds, from a quarter of a millisecond to one second, doubling."""


class Metric(NamedTuple):
    """One row of the table; names are without `semroute_` and `_total`."""

    kind: Callable[..., MetricWrapperBase]
    name: str
    labels: str
    """Separated by spaces."""
    help: str


METRICS = (
    Metric(Counter, "decisions", "pool rule strategy domain outcome", "Requests handled."),
    Metric(Counter, "outcomes", "outcome cause", "Requests handled, by cause."),
    Metric(Counter, "fallbacks", "reason", "Requests that fell back, by reason."),
    Metric(
        Counter,
        "judge",
        "strategy result",
        "Judge calls: ok, cache, timeout, breaker, busy, connection, http, unparsable, error.",
    ),
    Metric(Durations, "decision_duration_seconds", "", "Time from the complete body to the decision."),
    Metric(Durations, "stage_duration_seconds", "stage", "Time of one stage of a decision."),
    Metric(Counter, "cache", "result", "Lookups in the signal cache, by result: hit, miss."),
    Metric(Counter, "truncated", "", "Texts that did not fit the encoder's window."),
    Metric(Counter, "unknown", "", "Out-of-distribution texts."),
    Metric(Counter, "internal_errors", "", "Unexpected exceptions."),
    Metric(Counter, "refused_streams", "", "Streams refused because of server.streams_max."),
    Metric(Gauge, "inflight_streams", "", "Open ext_proc streams."),
    Metric(Gauge, "queue_depth", "", "Texts waiting for the encoder."),
    Metric(Gauge, "build_info", "version", "Always 1."),
    Metric(Gauge, "model_info", " ".join(MODEL_LABELS), "Always 1."),
    Metric(Counter, "gpu_events", "bundle event", "GPU failures: out_of_memory, lost."),
    Metric(
        Gauge, "gpu_lost", "bundle", "1 if an encoder's GPU was lost (the process then exits), else absent."
    ),
    Metric(Gauge, "pool_load", "pool gauge", "A pool's running, waiting, kv_cache_usage; absent if unknown."),
    Metric(Gauge, "profiles", "strategy", "Profiles that a clusters strategy uses."),
    Metric(Gauge, "profiles_rejected", "strategy", "Invalid profile files; the last valid content is used."),
    Metric(Counter, "pool_scrape_failures", "pool", "Failed scrapes of a pool's metrics page."),
    Metric(Gauge, "pool_pressure", "pool", "Filtered pressure of a pool, from 0 to 1 (full)."),
    Metric(Gauge, "budget_leaning", "strategy", "Bias of the budget on the log-odds of the strong share."),
    Metric(Gauge, "budget_target", "strategy", "The budget's target: strong share, or dollars per request."),
    Metric(Gauge, "budget_realised", "strategy", "Actual mean in the budget's window, in the target's unit."),
    Metric(
        Counter, "sessions", "result", "Requests by conversation: new, same, kept, locked, moved, lost, none."
    ),
    Metric(Gauge, "session_entries", "", "Entries in the memory of conversations."),
    Metric(
        Counter,
        "session_remote_errors",
        "what",
        "Shared session store: timeout, error, paused, write_error, write_dropped.",
    ),
    Metric(
        Counter,
        "shadow_decisions",
        "policy shadow pool agreement",
        "Shadow policies' decisions, compared with the live policy's.",
    ),
    Metric(Gauge, "config_info", "sha256 generation", "Always 1."),
    Metric(Gauge, "config_last_reload_successful", "", "1 if the last reload succeeded, else 0."),
    Metric(Gauge, "config_last_reload_success_timestamp_seconds", "", "Time of the last successful reload."),
)

Reading = float | Mapping[tuple[str, ...], float]
"""A gauge's value, or label values to value."""


class PrometheusSink:
    """Holds every metric: events change them, and observed gauges are read at each scrape."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._metrics: dict[str, Any] = {
            name: kind(PREFIX + name, text, labels.split(), registry=self.registry)
            for kind, name, labels, text in METRICS
        }
        # At most one per label set; the configuration and the bundle bound those.
        self._children: dict[tuple[str, ...], Any] = {}
        self._gauges_of: dict[str, set[str]] = {}
        """Pool to the gauges of its load that are set."""
        self._observed: dict[str, Callable[[], Reading]] = {}
        self._scraping = Lock()
        self._handlers: dict[type[ev.Event], Callable[[Any], None]] = {
            ev.Decided: self._decided,
            ev.Shadowed: lambda event: self._shadowed(event.shadow),
            ev.Failed: lambda _: self._count("internal_errors"),
            ev.StreamRefused: lambda _: self._count("refused_streams"),
            ev.CacheLookup: lambda event: self._count("cache", "hit" if event.hit else "miss"),
            ev.OutOfMemory: lambda event: self._count("gpu_events", event.bundle, "out_of_memory"),
            ev.EncoderLost: self._lost,
            ev.Scraped: self._scraped,
            ev.ProfilesRead: self._profiles_read,
            ev.Reloaded: self._reloaded,
            ev.ReloadRejected: lambda _: self._child("config_last_reload_successful").set(0),
            ev.SessionStoreError: lambda event: self._count("session_remote_errors", event.what),
        }
        self._child("build_info", __version__).set(1)

    def handle(self, event: ev.Event) -> None:
        """See `Sink.handle`."""
        if (handler := self._handlers.get(type(event))) is not None:
            handler(event)

    def observe(self, name: str, read: Callable[[], Reading]) -> None:
        """Read a gauge of `METRICS` at each scrape; label values that `read` does not return disappear."""
        self._observed[name] = read

    def exposition(self) -> bytes:
        """Every metric in Prometheus' text format."""
        # Gauges are cleared and set again: a concurrent scrape must not see them in between.
        with self._scraping:
            for name, read in self._observed.items():
                reading = read()
                if isinstance(reading, Mapping):
                    self._metrics[name].clear()
                    for labels, value in reading.items():
                        self._metrics[name].labels(*labels).set(value)
                else:
                    self._metrics[name].set(reading)
            return generate_latest(self.registry)

    def _child(self, name: str, *labels: str) -> Any:
        """A metric's child for its labels. The lookup here takes a tenth of the library's time."""
        key = (name, *labels)
        child = self._children.get(key)
        if child is None:
            metric = self._metrics[name]
            child = self._children[key] = metric.labels(*labels) if labels else metric
        return child

    def _count(self, name: str, *labels: str) -> None:
        self._child(name, *labels).inc()

    def _decided(self, event: ev.Decided) -> None:
        outcome = event.outcome
        decision, signals, kind = outcome.decision, outcome.signals, outcome.kind.value
        rule, strategy = (decision.rule, decision.strategy) if decision else ("", "")
        domain = signals.domain if signals else ""
        self._count("decisions", outcome.pool, rule, strategy, domain, kind)
        self._count("outcomes", kind, outcome.cause)
        if outcome.kind is Kind.FALLBACK:
            self._count("fallbacks", outcome.cause)
        if decision and decision.judge:
            self._count("judge", strategy, decision.judge)
        if outcome.total_ms:
            self._child("decision_duration_seconds").observe(outcome.total_ms / 1e3)
        for name, ms in outcome.milliseconds().items():
            self._child("stage_duration_seconds", name).observe(ms / 1e3)
        if outcome.session:
            self._count("sessions", outcome.session)
        for shadow in outcome.shadows:
            self._shadowed(shadow)
        if signals is not None and signals.truncated:
            self._count("truncated")
        if signals is not None and signals.unknown:
            self._count("unknown")

    def _shadowed(self, shadow: Shadow) -> None:
        labels = (shadow.policy, shadow.shadow, shadow.pool, shadow.agreement.value)
        self._count("shadow_decisions", *labels)

    def _lost(self, event: ev.EncoderLost) -> None:
        self._count("gpu_events", event.bundle, "lost")
        self._child("gpu_lost", event.bundle).set(1)

    def _scraped(self, event: ev.Scraped) -> None:
        if event.failed:
            self._count("pool_scrape_failures", event.pool)
        gauges = self._metrics["pool_load"]
        for gauge, value in event.load.items():
            gauges.labels(event.pool, gauge).set(value)
        for gauge in self._gauges_of.get(event.pool, set()) - event.load.keys():
            gauges.remove(event.pool, gauge)
        self._gauges_of[event.pool] = set(event.load)

    def _profiles_read(self, event: ev.ProfilesRead) -> None:
        counts = {"profiles": event.used, "profiles_rejected": len(event.problems)}
        for name, count in counts.items():
            if event.used is None:
                self._metrics[name].remove_by_labels({"strategy": event.strategy})
            else:
                self._metrics[name].labels(event.strategy).set(count)

    def _reloaded(self, event: ev.Reloaded) -> None:
        self._child("config_last_reload_successful").set(1)
        if event.changed:
            self._metrics["config_info"].clear()
            self._metrics["config_info"].labels(event.sha256[:12], str(event.generation)).set(1)
            self._child("config_last_reload_success_timestamp_seconds").set(time.time())
