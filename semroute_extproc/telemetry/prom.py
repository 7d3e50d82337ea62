"""Prometheus metrics. Every label takes its values from a bounded set; docs/metrics.md lists them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from threading import Lock
from typing import Any, TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.metrics import MetricWrapperBase

from semroute_extproc import __version__
from semroute_extproc.events import Decided, Event
from semroute_extproc.outcome import Kind
from semroute_extproc.policy.shadow import Shadow
from semroute_extproc.state.pool_metrics import GAUGES

BUCKETS = tuple(0.00025 * 2**n for n in range(13))
"""Seconds, from a quarter of a millisecond to one second, doubling."""


M = TypeVar("M", bound=MetricWrapperBase)

MODEL_LABELS = ("bundle", "revision", "provider", "graph", "language")
"""What `semroute_model_info` says of each encoder."""


class PrometheusSink:
    """Counts decisions, and holds the gauges that the rest of the server sets."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        r = self.registry
        self._decisions = Counter(
            "semroute_decisions",
            "Requests dealt with.",
            ["pool", "rule", "strategy", "domain", "outcome"],
            registry=r,
        )
        self._causes = Counter(
            "semroute_outcomes", "Requests dealt with, by why.", ["outcome", "cause"], registry=r
        )
        self._fallbacks = Counter(
            "semroute_fallbacks",
            "Decisions made without the encoder although it was wanted.",
            ["reason"],
            registry=r,
        )
        self._judged = Counter(
            "semroute_judge",
            "Decisions for which a judge was wanted, by what came of it: ok, cache, timeout, breaker, busy, "
            "connection, http, unparsable, error.",
            ["strategy", "result"],
            registry=r,
        )
        self._duration = Histogram(
            "semroute_decision_duration_seconds",
            "From the complete body to the decision.",
            registry=r,
            buckets=BUCKETS,
        )
        self._stages = Histogram(
            "semroute_stage_duration_seconds",
            "One stage of a decision.",
            ["stage"],
            registry=r,
            buckets=BUCKETS,
        )
        self._cache = Counter(
            "semroute_cache", "Texts looked up in the cache of signals.", ["result"], registry=r
        )
        self._truncated = Counter(
            "semroute_truncated", "Texts that did not fit the encoder's window.", registry=r
        )
        self._unknown = Counter("semroute_unknown", "Texts out of the bundle's distribution.", registry=r)
        self.errors = Counter("semroute_internal_errors", "Exceptions that nobody expected.", registry=r)
        self.refused = Counter(
            "semroute_refused_streams",
            "Streams refused because server.streams_max were open; what Envoy makes of them is its own.",
            registry=r,
        )
        self.inflight = Gauge("semroute_inflight_streams", "Open ext_proc streams.", registry=r)
        self._queue = Gauge("semroute_queue_depth", "Texts waiting for the encoder.", registry=r)
        self._build = Gauge("semroute_build_info", "Always 1.", ["version"], registry=r)
        self._model = Gauge("semroute_model_info", "Always 1.", MODEL_LABELS, registry=r)
        self._gpu = Counter(
            "semroute_gpu_events",
            "Troubles of a GPU and their end: out_of_memory, lost, on_cpu, retry_failed, recovered.",
            ["bundle", "event"],
            registry=r,
        )
        self._gpu_lost = Gauge(
            "semroute_gpu_lost",
            "1 while an encoder does without the GPU it was to run on. Absent if that never happened.",
            ["bundle"],
            registry=r,
        )
        self._load = Gauge(
            "semroute_pool_load",
            "What a pool's own metrics say: running, waiting, kv_cache_usage. Absent where unknown.",
            ["pool", "gauge"],
            registry=r,
        )
        self._profiles = Gauge(
            "semroute_profiles", "Profiles that a clusters strategy goes by.", ["strategy"], registry=r
        )
        self._profiles_rejected = Gauge(
            "semroute_profiles_rejected",
            "Profiles that cannot be used as they are now; what they said when last good holds.",
            ["strategy"],
            registry=r,
        )
        self._scrapes = Counter(
            "semroute_pool_scrape_failures",
            "Metrics pages of pools that could not be read.",
            ["pool"],
            registry=r,
        )
        self._pressure = Gauge(
            "semroute_pool_pressure",
            "What the load controller makes of a pool's load, 0 (quiet or unknown) to 1 (full).",
            ["pool"],
            registry=r,
        )
        self._leaning = Gauge(
            "semroute_budget_leaning",
            "What a budget adds to the log-odds of its strategy's strong share.",
            ["strategy"],
            registry=r,
        )
        self._target = Gauge(
            "semroute_budget_target",
            "What a budget holds its strategy to: a strong share, or dollars a request.",
            ["strategy"],
            registry=r,
        )
        self._realised = Gauge(
            "semroute_budget_realised",
            "Mean of the strategy's decisions over the budget's window, in the target's unit.",
            ["strategy"],
            registry=r,
        )
        self._sessions = Counter(
            "semroute_sessions",
            "Routed requests, by what their conversation's pool meant: new, same, kept, locked, moved, lost, "
            "none.",
            ["result"],
            registry=r,
        )
        self._entries = Gauge(
            "semroute_session_entries",
            "Requests by which conversations are known again.",
            registry=r,
        )
        self.remote = Counter(
            "semroute_session_remote_errors",
            "Troubles with the shared memory of conversations: timeout, error, paused, write_error, "
            "write_dropped.",
            ["what"],
            registry=r,
        )
        self._shadows = Counter(
            "semroute_shadow_decisions",
            "What shadows would have done, beside the live policy's pool.",
            ["policy", "shadow", "pool", "agreement"],
            registry=r,
        )
        self._refresh: Callable[[], None] = lambda: None
        self._scraping = Lock()
        self._config = Gauge("semroute_config_info", "Always 1.", ["sha256", "generation"], registry=r)
        self.reload_successful = Gauge(
            "semroute_config_last_reload_successful", "1 if the last reload was taken, else 0.", registry=r
        )
        self.reload_timestamp = Gauge(
            "semroute_config_last_reload_success_timestamp_seconds",
            "When a reload was last taken.",
            registry=r,
        )
        self._build.labels(__version__).set(1)
        # As many as there are label sets, which the configuration and the bundle bound.
        self._children: dict[tuple[MetricWrapperBase | str, ...], MetricWrapperBase] = {}

    def handle(self, event: Event) -> None:
        """See `Sink.handle`."""
        if isinstance(event, Decided):
            self.decided(event)

    def decided(self, event: Decided) -> None:
        """Take a decision."""
        outcome = event.outcome
        decision, signals = outcome.decision, outcome.signals
        self._child(
            self._decisions,
            outcome.pool,
            decision.rule if decision else "",
            decision.strategy if decision else "",
            signals.domain if signals else "",
            outcome.kind.value,
        ).inc()
        self._child(self._causes, outcome.kind.value, outcome.cause).inc()
        if outcome.kind is Kind.FALLBACK:
            self._child(self._fallbacks, outcome.cause).inc()
        if decision and decision.judge:
            self._child(self._judged, decision.strategy, decision.judge).inc()
        if outcome.total_ms:
            self._duration.observe(outcome.total_ms / 1e3)
        for name, ms in outcome.milliseconds().items():
            self._child(self._stages, name).observe(ms / 1e3)
        if outcome.session:
            self._child(self._sessions, outcome.session).inc()
        for shadow in outcome.shadows:
            self.shadowed(shadow)
        if signals is not None:
            if signals.truncated:
                self._truncated.inc()
            if signals.unknown:
                self._unknown.inc()

    def _child(self, metric: M, *labels: str) -> M:
        """The child of a metric for its labels; looking it up here takes a tenth of what it takes there."""
        key: tuple[MetricWrapperBase | str, ...] = (metric, *labels)
        child = self._children.get(key)
        if child is None:
            child = self._children[key] = metric.labels(*labels)
        return child  # type: ignore[return-value]

    def looked_up(self, hit: bool) -> None:
        """The cache of signals was asked for a text."""
        self._child(self._cache, "hit" if hit else "miss").inc()

    def watch_queue(self, depth: Callable[[], int]) -> None:
        """Read the queue's depth whenever the metrics are read."""
        self._queue.set_function(depth)

    def set_models(self, descriptions: Sequence[Mapping[str, str]]) -> None:
        """Name the bundles and the providers in use."""
        self._model.clear()
        for each in descriptions:
            self._model.labels(*(each[key] for key in MODEL_LABELS)).set(1)

    def gpu_event(self, bundle: str, event: str) -> None:
        """Count what happened to a GPU; see `encoder.failover.Told`. Any thread may call."""
        self._gpu.labels(bundle, event).inc()
        if event in ("lost", "recovered"):
            self._gpu_lost.labels(bundle).set(event == "lost")

    def set_load(self, pool: str, load: Mapping[str, float]) -> None:
        """Take a pool's load; gauges that are unknown now disappear."""
        for gauge in GAUGES:
            if gauge in load:
                self._load.labels(pool, gauge).set(load[gauge])
            else:
                self._load.remove_by_labels({"pool": pool, "gauge": gauge})

    def set_profiles(self, strategy: str, used: int, rejected: int) -> None:
        """Take how many profiles a strategy has."""
        self._profiles.labels(strategy).set(used)
        self._profiles_rejected.labels(strategy).set(rejected)

    def forget_profiles(self, strategy: str) -> None:
        """The strategy is there no more."""
        for gauge in (self._profiles, self._profiles_rejected):
            gauge.remove_by_labels({"strategy": strategy})

    def scrape_failed(self, pool: str) -> None:
        """Count a metrics page that could not be read."""
        self._scrapes.labels(pool).inc()

    def shadowed(self, shadow: Shadow) -> None:
        """Count what a shadow would have done."""
        self._shadows.labels(shadow.policy, shadow.shadow, shadow.pool, shadow.agreement.value).inc()

    def watch_controllers(self, status: Callable[[], Mapping[str, Any]]) -> None:
        """Read the controllers' state (`Controllers.status`) whenever the metrics are read."""
        self._refresh = lambda: self._set_controllers(status())

    def _set_controllers(self, status: Mapping[str, Any]) -> None:
        for gauge in (self._pressure, self._leaning, self._target, self._realised):
            gauge.clear()
        for pool, state in status["pools"].items():
            self._pressure.labels(pool).set(state["pressure"])
        for strategy, state in status["budgets"].items():
            self._leaning.labels(strategy).set(state["leaning"])
            self._target.labels(strategy).set(state["target"])
            if state["realised"] is not None:
                self._realised.labels(strategy).set(state["realised"])
        self._entries.set((status["sessions"] or {}).get("entries", 0))

    def set_config(self, sha256: str, generation: int) -> None:
        """Name the live configuration."""
        self._config.clear()
        self._config.labels(sha256[:12], str(generation)).set(1)

    def exposition(self) -> bytes:
        """The metrics in Prometheus' text format."""
        # Gauges are cleared and set again: a second scrape must not see them in between.
        with self._scraping:
            self._refresh()
            return generate_latest(self.registry)
