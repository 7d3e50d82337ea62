"""Prometheus metrics. Every label has a bounded set of values; docs/metrics.md lists them."""

import time
from collections.abc import Callable, Mapping
from functools import cache, partial
from threading import Lock
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.metrics import MetricWrapperBase

from semroute_extproc import __version__
from semroute_extproc import events as ev
from semroute_extproc.outcome import Kind
from semroute_extproc.policy.context import Shadow
from semroute_extproc.telemetry.bus import by_type

MODEL_LABELS = ("bundle", "revision", "provider", "graph", "language")
"""Labels of `semroute_model_info`, keys of `Classifier.describe`."""

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

Durations = partial(Histogram, buckets=tuple(0.00025 * 2**n for n in range(13)))
"""Seconds, from a quarter of a millisecond to one second, doubling."""

JUDGE_CALLS = "Judge calls: ok, cache, timeout, breaker, busy, connection, http, unparsable, error."
STORE_ERRORS = "Shared session store: timeout, error, paused, write_error, write_dropped."
SHADOWS = "Shadow policies' decisions, compared with the live policy's."

METRICS: tuple[tuple[Callable[..., MetricWrapperBase], str, str, str], ...] = (
    (Counter, "decisions", "pool rule strategy domain outcome", "Requests handled."),
    (Counter, "outcomes", "outcome cause", "Requests handled, by cause."),
    (Counter, "fallbacks", "reason", "Requests that fell back, by reason."),
    (Counter, "judge", "strategy result", JUDGE_CALLS),
    (Durations, "decision_duration_seconds", "", "Time from the complete body to the decision."),
    (Durations, "stage_duration_seconds", "stage", "Time of one stage of a decision."),
    (Counter, "cache", "result", "Lookups in the signal cache, by result: hit, miss."),
    (Counter, "truncated", "", "Texts that did not fit the encoder's window."),
    (Counter, "unknown", "", "Out-of-distribution texts."),
    (Counter, "left_out_characters", "kind", "Text that was not judged: block, template, document, …"),
    (Counter, "housekeeping", "kind", "Requests that applications make by themselves: title, summary, …"),
    (Counter, "internal_errors", "", "Unexpected exceptions."),
    (Counter, "refused_streams", "", "Streams refused because of server.streams_max."),
    (Gauge, "inflight_streams", "", "Open ext_proc streams."),
    (Gauge, "queue_depth", "", "Texts waiting for the encoder."),
    (Gauge, "build_info", "version", "Always 1."),
    (Gauge, "model_info", " ".join(MODEL_LABELS), "Always 1."),
    (Counter, "gpu_events", "bundle event", "GPU failures: out_of_memory, lost."),
    (Gauge, "gpu_lost", "bundle", "1 after the GPU is lost, until the process exits; else absent."),
    (Gauge, "pool_load", "pool gauge", "A pool's running, waiting, kv_cache_usage; absent if unknown."),
    (Gauge, "profiles", "strategy", "Profiles that a clusters strategy uses."),
    (Gauge, "profiles_rejected", "strategy", "Unusable profile files; their last good content is used."),
    (Counter, "pool_scrape_failures", "pool", "Failed scrapes of a pool's metrics page."),
    (Gauge, "pool_pressure", "pool", "A pool's pressure in the load controller, 0 to 1 (full)."),
    (Gauge, "pool_excluded", "pool", "1 while a pool is excluded after failures or being tested, else 0."),
    (Counter, "failovers", "pool to failure", "Requests that `pool` failed, and that went to another pool."),
    (Gauge, "budget_leaning", "strategy", "Bias of the budget on the log-odds of the strong share."),
    (Gauge, "budget_target", "strategy", "The budget's target: strong share, or dollars per request."),
    (Gauge, "budget_realised", "strategy", "Mean over the budget's window, in the target's unit."),
    (Gauge, "traffic_threshold", "strategy", "Score from which its own traffic goes to the strong pool."),
    (Gauge, "traffic_reference", "strategy", "The same threshold for the reference traffic or calibration."),
    (Gauge, "traffic_scores", "strategy", "Scores of its requests that set the threshold, at most 2000."),
    (Gauge, "traffic_realised", "strategy", "Strong share of the last 2000 requests that scores decided."),
    (Counter, "sessions", "result", "Requests by conversation: new, same, kept, locked, moved, lost, none."),
    (Gauge, "session_entries", "", "Entries in the memory of conversations."),
    (Counter, "session_remote_errors", "what", STORE_ERRORS),
    (Counter, "shadow_decisions", "policy shadow pool agreement", SHADOWS),
    (Gauge, "config_info", "sha256 generation", "Always 1."),
    (Gauge, "config_last_reload_successful", "", "1 if the last reload succeeded, else 0."),
    (Gauge, "config_last_reload_success_timestamp_seconds", "", "Unix time of the last good reload."),
)
"""Kind, name without `semroute_` and `_total`, labels separated by spaces, and meaning."""

Reading = float | Mapping[tuple[str, ...], float]
"""A gauge's value, or label values to value."""


class PrometheusSink:
    """Holds every metric: events change them, and observed gauges are read at each scrape."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._metrics: dict[str, Any] = {
            name: kind(f"semroute_{name}", text, labels.split(), registry=self.registry)
            for kind, name, labels, text in METRICS
        }
        # Cache of children, bounded by configuration and bundle; a lookup takes a tenth of `labels`' time.
        self._child = cache(self._uncached_child)
        self._loads: Mapping[tuple[str, ...], float] = {}
        self._observed: dict[str, Callable[[], Reading]] = {"pool_load": lambda: self._loads}
        self._scraping = Lock()
        handlers: dict[type[ev.Event], Any] = {
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
        self.handle = by_type(handlers)
        self._child("build_info", __version__).set(1)

    def observe(self, name: str, read: Callable[[], Reading]) -> None:
        """Read a gauge of `METRICS` at each scrape; label values that `read` does not return disappear."""
        self._observed[name] = read

    def exposition(self) -> bytes:
        """Every metric in Prometheus' text format."""
        # Gauges are cleared and set again, so a concurrent scrape must wait.
        with self._scraping:
            for name, read in self._observed.items():
                gauge, reading = self._metrics[name], read()
                if not isinstance(reading, Mapping):
                    gauge.set(reading)
                    continue
                gauge.clear()
                for labels, value in reading.items():
                    gauge.labels(*labels).set(value)
            return generate_latest(self.registry)

    def _uncached_child(self, name: str, *labels: str) -> Any:
        return self._metrics[name].labels(*labels) if labels else self._metrics[name]

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
        if (failed := outcome.failed) is not None:
            self._count("failovers", failed.tried[-1], outcome.pool, failed.failure)
        for shadow in outcome.shadows:
            self._shadowed(shadow)
        for kind, characters in outcome.left_out:
            self._child("left_out_characters", kind).inc(characters)
        if outcome.housekeeping:
            self._count("housekeeping", outcome.housekeeping)
        if signals is not None and signals.truncated:
            self._count("truncated")
        if signals is not None and signals.unknown:
            self._count("unknown")

    def _shadowed(self, shadow: Shadow) -> None:
        self._count("shadow_decisions", shadow.policy, shadow.shadow, shadow.pool, shadow.agreement.value)

    def _lost(self, event: ev.EncoderLost) -> None:
        self._count("gpu_events", event.bundle, "lost")
        self._child("gpu_lost", event.bundle).set(1)

    def _scraped(self, event: ev.Scraped) -> None:
        if event.failed:
            self._count("pool_scrape_failures", event.pool)
        others = {key: value for key, value in self._loads.items() if key[0] != event.pool}
        self._loads = {**others, **{(event.pool, gauge): value for gauge, value in event.load.items()}}

    def _profiles_read(self, event: ev.ProfilesRead) -> None:
        for name, count in (("profiles", event.used), ("profiles_rejected", len(event.problems))):
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
