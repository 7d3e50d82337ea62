"""The sidecar's configuration in front of two real vLLM servers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from servers import CONTEXTS
from tiny_model import EFFORTS

from semroute_extproc.request.reasoning import FAMILIES

EFFORT_HEADER = "x-effort"
HAS_CONTROLLERS = HAS_JUDGE = True


def settings(metrics: Mapping[str, str]) -> dict[str, Any]:
    """Two pools, and for each family of models a pool beside them that says it serves that family.

    `metrics` are the URLs of the two servers' gauges by pool. Asking for `family-NAME` with the
    header `x-effort` has the switch of the family written.
    """
    pair = {"weak": "small", "strong": "large"}
    optional: dict[str, Any] = {}
    strategies: dict[str, Any] = {
        "pair": {**pair, "kind": "threshold", "threshold": 0.5},
        "even": {**pair, "kind": "threshold", "strong_share": 0.5},
    }
    if HAS_CONTROLLERS:
        # Fast, so that the tests need not wait; the queue alone presses.
        ramps = {"queue": {"begin": 0, "full": 0.5}}
        optional["controllers"] = {"load": {"ramps": ramps, "rise_seconds": 1, "fall_seconds": 2}}
    if HAS_JUDGE:
        url = metrics["large"].removesuffix("/metrics") + "/v1"
        judge = {"kind": "judge", "url": url, "model": "large-model", "timeout_ms": 9_000}
        strategies["judge"] = {**pair, **judge, "threshold": 0.5}
    small, large = _pool("small"), _pool("large")
    return {
        "server": {"deadline_ms": 10_000, "drain_seconds": 0},
        "telemetry": {"log_format": "json"},
        "pools": {
            "small": {**small, "price": {"input": 0.05, "output": 0.15}, "metrics": metrics["small"]},
            "large": {**large, "price": {"input": 0.6, "output": 1.7}, "metrics": metrics["large"]},
            **{f"family-{name}": {**small, "reasoning": name} for name in FAMILIES},
        },
        "default_pool": "large",
        "models": {
            "auto": {"policy": "main"},
            **{f"auto-{name}": {"policy": name} for name in strategies},
            "auto-weak": {"policy": "weak"},
            "auto-strong": {"policy": "strong"},
            **{f"family-{name}": {"policy": f"family-{name}"} for name in FAMILIES},
        },
        "policies": {
            "main": {"otherwise": {"strategy": "pair"}},
            **{name: {"otherwise": {"strategy": name}} for name in strategies},
            "weak": {"otherwise": {"pool": "small"}},
            "strong": {"otherwise": {"pool": "large"}},
            **{f"family-{name}": _policy(f"family-{name}") for name in FAMILIES},
        },
        "strategies": strategies,
        **optional,
    }


def settings_of_clients(metrics: Mapping[str, str]) -> dict[str, Any]:
    """Two pools with failover, sessions and clamped limits, and names as clients have them."""
    small = {"aliases": "gpt-4o-mini", "clamp": True, "price": {"input": 0.05, "output": 0.15}}
    large = {"price": {"input": 0.6, "output": 1.7}}
    return {
        "server": {"deadline_ms": 10_000, "drain_seconds": 0},
        "telemetry": {"log_format": "json"},
        "pools": {
            "small": {**_pool("small"), **small, "metrics": metrics["small"]},
            "large": {**_pool("large"), **large, "metrics": metrics["large"]},
        },
        "default_pool": "large",
        "models": {
            "auto": {"policy": "main"},
            "auto-weak": {"policy": "weak", "aliases": "claude-*"},
            "org/auto-weak": {"policy": "weak"},
            "auto-strong": {"policy": "strong"},
        },
        "policies": {
            "main": {"otherwise": {"strategy": "pair"}},
            "weak": {"otherwise": {"pool": "small"}},
            "strong": {"otherwise": {"pool": "large"}},
        },
        "strategies": {"pair": {"kind": "threshold", "weak": "small", "strong": "large", "threshold": 0.5}},
        "controllers": {"failover": {"exclude_seconds": 2}, "session": {}},
    }


def _pool(name: str) -> dict[str, Any]:
    return {"cluster": f"vllm-{name}", "model": f"{name}-model", "context": CONTEXTS[name]}


def _policy(pool: str) -> dict[str, Any]:
    header = f'"{EFFORT_HEADER}" in request.headers && request.headers["{EFFORT_HEADER}"]'
    rules = [
        {"name": effort, "when": f'{header} == "{effort}"', "pool": pool, "reasoning": effort}
        for effort in EFFORTS
    ]
    return {"rules": rules, "otherwise": {"pool": pool}}
