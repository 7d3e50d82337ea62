"""Prometheus metrics. Every label has a bounded set of values; docs/metrics.md lists them."""

import time
from collections.abc import Callable, Mapping
from functools import cache, partial
from pathlib import Path
from threading import Lock
from typing import Any

import msgspec
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.metrics import MetricWrapperBase

from semroute_extproc import __version__
from semroute_extproc import events as ev
from semroute_extproc.outcome import Kind
from semroute_extproc.policy.context import Shadow
from semroute_extproc.request.usage import FINISHES
from semroute_extproc.telemetry.bus import by_type

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

KINDS: Mapping[str, Callable[..., MetricWrapperBase]] = {
    "counter": Counter,
    "gauge": Gauge,
    "duration": partial(Histogram, buckets=tuple(0.00025 * 2**n for n in range(13))),
    "latency": partial(Histogram, buckets=tuple(0.001 * 2**n for n in range(18))),
}
"""Kind of a metric in metrics.toml. The buckets of a duration double from a quarter of a millisecond to 1 s,
those of a latency from a millisecond to 131 s."""

METRICS = msgspec.toml.decode(Path(__file__).with_name("metrics.toml").read_bytes())
MODEL_LABELS = METRICS["model_info"][1].split()  # keys of `Classifier.describe`

SOURCES_MAX = 16  # of outcomes that are counted by name; any other is `other`

Reading = float | Mapping[tuple[str, ...], float]  # a gauge's value, or label values to value


class PrometheusSink:
    """Holds every metric: events change them, and observed gauges are read at each scrape."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._metrics: dict[str, Any] = {
            name: KINDS[kind](f"semroute_{name}", text, labels.split(), registry=self.registry)
            for name, (kind, labels, text) in METRICS.items()
        }
        # Cache of children, bounded by configuration and bundle; a lookup takes a tenth of `labels`' time.
        self._child = cache(self._uncached_child)
        self.loads: Mapping[tuple[str, ...], float] = {}  # Pool and gauge to the value at the last scrape.
        self._observed: dict[str, Callable[[], Reading]] = {"pool_load": lambda: self.loads}
        self._scraping = Lock()
        self._sources = set[str]()
        handlers: dict[type[ev.Event], Any] = {
            ev.Decided: self._decided,
            ev.Accounted: self._accounted,
            ev.Shadowed: lambda event: self._shadowed(event.shadow),
            ev.Failed: lambda _: self._count("internal_errors"),
            ev.StreamRefused: lambda _: self._count("refused_streams"),
            ev.CacheLookup: lambda event: self._count("cache", "hit" if event.hit else "miss"),
            ev.RemoteEncoded: lambda event: self._count("remote_encodes", event.bundle, event.result),
            ev.OutOfMemory: lambda event: self._count("gpu_events", event.bundle, "out_of_memory"),
            ev.EncoderLost: self._lost,
            ev.Scraped: self._scraped,
            ev.EnvoyChecked: lambda event: self._child("envoy_check_failures").inc(event.failed),
            ev.ProfilesRead: self._profiles_read,
            ev.Reloaded: self._reloaded,
            ev.ReloadRejected: self._reload_rejected,
            ev.LogDropped: lambda event: self._child("log_lines_dropped").inc(event.lines),
            ev.RecordsWritten: self._records,
            ev.OutcomeReported: self._reported,
            ev.SharedStoreFailed: lambda event: self._count("shared_store_errors", event.what),
            ev.SessionStoreError: lambda event: self._count("session_remote_errors", event.what),
        }
        self.handle = by_type(handlers)
        self._child("build_info", __version__).set(1)

    def observe(self, name: str, read: Callable[[], Reading]) -> None:
        """Read a gauge at each scrape; label values that `read` does not return disappear."""
        self._observed[name] = read

    def totals(self, *names: str) -> dict[tuple[str, ...], float]:
        """Current counters: name and label values to value."""
        return {
            (name, *sample.labels.values()): sample.value
            for name in names
            for sample in self._metrics[name].collect()[0].samples
            if sample.name.endswith("_total")
        }

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
        self._count("decisions", outcome.pool, rule, strategy, signals.domain if signals else "", kind)
        self._count("outcomes", kind, outcome.cause)
        if outcome.kind is Kind.FALLBACK:
            self._count("fallbacks", outcome.cause)
        if decision and decision.judge:
            self._count("judge", strategy, decision.judge)
        if outcome.total_ms:
            self._child("decision_duration_seconds").observe(outcome.total_ms / 1e3)
        for name, ms in outcome.milliseconds().items():
            self._child("stage_duration_seconds", name).observe(ms / 1e3)
        if decision and decision.limited:
            self._count("limited", strategy if decision.limited == "strategy" else "", decision.limited)
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

    def _accounted(self, event: ev.Accounted) -> None:
        self._count("answers", event.pool, FINISHES.get(event.finish, "other"))
        if event.problem:
            self._count("answers_unread", event.pool, event.problem)
        labels, usage = (event.pool, event.rule, event.model, event.tenant), event.usage
        counts = {"input": usage.input, "cached_input": usage.cached, "output": usage.output}
        counts |= {"reasoning_output": usage.reasoning, "estimated_output": usage.output * usage.estimated}
        for kind, count in counts.items():
            self._child("tokens", *labels, kind).inc(count)
        for name in ("dollars", "baseline_dollars", "cache_saved_dollars"):
            self._child(name, *labels).inc(max(0.0, getattr(event, name)))
        if (seconds := event.first_token_seconds) is not None:
            self._child("time_to_first_token_seconds", event.pool).observe(seconds)
        if event.tokens_per_second:
            self._child("time_per_output_token_seconds", event.pool).observe(1 / event.tokens_per_second)

    def _shadowed(self, shadow: Shadow) -> None:
        self._count("shadow_decisions", shadow.policy, shadow.shadow, shadow.pool, shadow.agreement.value)

    def _records(self, event: ev.RecordsWritten) -> None:
        name, labels = ("decision_log_lost", (event.lost,)) if event.lost else ("decision_log_records", ())
        self._child(name, *labels).inc(event.count)

    def _reported(self, event: ev.OutcomeReported) -> None:
        if len(self._sources) < SOURCES_MAX:
            self._sources.add(event.source)
        source = event.source if event.source in self._sources else "other"
        self._count("reported", event.pool, event.label or "score", source)

    def _lost(self, event: ev.EncoderLost) -> None:
        self._count("gpu_events", event.bundle, "lost")
        self._child("gpu_lost", event.bundle).set(1)

    def _scraped(self, event: ev.Scraped) -> None:
        if event.failed:
            self._count("pool_scrape_failures", event.pool)
        others = {key: value for key, value in self.loads.items() if key[0] != event.pool}
        self.loads = {**others, **{(event.pool, gauge): value for gauge, value in event.load.items()}}

    def _profiles_read(self, event: ev.ProfilesRead) -> None:
        for name, count in (("profiles", event.used), ("profiles_rejected", len(event.problems))):
            if event.used is None:
                self._metrics[name].remove_by_labels({"strategy": event.strategy})
            else:
                self._metrics[name].labels(event.strategy).set(count)

    def _reload_rejected(self, _: ev.ReloadRejected) -> None:
        self._count("config_reloads_rejected")
        self._child("config_last_reload_successful").set(0)

    def _reloaded(self, event: ev.Reloaded) -> None:
        self._child("config_last_reload_successful").set(1)
        if event.changed:
            self._metrics["config_info"].clear()
            self._metrics["config_info"].labels(event.sha256[:12], str(event.generation)).set(1)
            self._child("config_last_reload_success_timestamp_seconds").set(time.time())
