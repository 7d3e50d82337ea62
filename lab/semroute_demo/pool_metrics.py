"""The metrics of a simulated vLLM pool: vLLM's names and labels, for what the simulation knows."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram


class PoolMetrics:
    """vLLM's metric names and labels, for what the simulation knows."""

    def __init__(self, model: str) -> None:
        self.registry = CollectorRegistry()
        names, values = ("engine", "model_name"), ("0", model)

        def gauge(name: str, text: str) -> Gauge:
            return Gauge(f"vllm:{name}", text, names, registry=self.registry).labels(*values)

        def counter(name: str, text: str) -> Counter:
            return Counter(f"vllm:{name}", text, names, registry=self.registry).labels(*values)

        def histogram(name: str, text: str) -> Histogram:
            return Histogram(f"vllm:{name}_seconds", text, names, registry=self.registry).labels(*values)

        self.running = gauge("num_requests_running", "Requests in execution.")
        self.waiting = gauge("num_requests_waiting", "Requests waiting for a slot.")
        self.cache = gauge("kv_cache_usage_perc", "Share of the KV cache in use, 0 to 1.")
        self.prompt_tokens = counter("prompt_tokens", "Prompt tokens processed.")
        self.generation_tokens = counter("generation_tokens", "Tokens generated.")
        self.first_token = histogram("time_to_first_token", "Time to first token.")
        self.latency = histogram("e2e_request_latency", "Time from arrival to the last token.")
        self._finished = Counter(
            "vllm:request_success", "Finished requests.", (*names, "finished_reason"), registry=self.registry
        )
        self._labels = values

    def finish(self, reason: str) -> None:
        """Count a finished request; `reason` as in OpenAI's `finish_reason`."""
        self._finished.labels(*self._labels, reason).inc()
