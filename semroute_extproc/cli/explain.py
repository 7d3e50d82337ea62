"""Explain where a request goes: the server's own code on one request, with its steps.

The request is played to an `Exchange` as Envoy would send it. The edits are read back from the bytes that
would have gone over the wire, so the explanation cannot differ from the behavior.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import msgspec
from google.protobuf.json_format import MessageToDict
from rich.console import Console
from rich.table import Table

from semroute_extproc.config.source import Loaded
from semroute_extproc.envoy._pb import external_processor_pb2 as pb
from semroute_extproc.envoy.exchange import Exchange
from semroute_extproc.outcome import Outcome
from semroute_extproc.request.body import decode_body
from semroute_extproc.serve import build
from semroute_extproc.strategies.judge_client import Judges

DEADLINE_MS = 5_000.0
"""Generous, so that a cold machine does not turn the explanation into a fallback."""

SIGNALS = (
    *("domain", "domain_entropy", "task", "difficulty", "unknown"),
    *("similarity", "tokens", "truncated", "language"),
)
REQUEST = (
    *("api", "model", "stream", "turns", "images", "tools", "tool_loop", "json_mode", "effort"),
    *("max_output_tokens", "characters"),
)
"""Attributes of the signals and of the request that are shown, in order."""


def explain(
    loaded: Loaded, path: str, headers: Mapping[str, str], body: bytes, method: str = "POST"
) -> dict[str, Any]:
    """Decide one request as the server would; raises ConfigError or BundleError."""
    server = loaded.config.server.model_copy(update={"deadline_ms": DEADLINE_MS})
    config = loaded.config.model_copy(update={"server": server})
    loaded = dataclasses.replace(loaded, config=config)
    models = build.make_models(config, build.load_bundles(config))

    async def run() -> dict[str, Any]:
        classifier, judges = build.make_classifier(config, models), Judges()
        policies = build.make_policies(loaded, classifier.bundle)
        pipeline = build.make_pipeline(loaded, policies, classifier, judges)
        judges.adopt(pipeline.judges)
        exchange = Exchange(build.exchange_settings(pipeline))
        try:
            step = exchange.receive(_headers_message(method, path, headers, body))
            if step.outcome is None:
                step = exchange.receive(_body_message(body))
            outcome, replies = step.outcome, step.replies
            if step.decide is not None:
                outcome = await pipeline.decide(step.decide)
                replies = exchange.decided(outcome)
        finally:
            await classifier.close()
            await judges.close()
        assert outcome is not None, "a complete request without an outcome. This is a bug."
        plain = body
        if outcome.body is not None:
            encoding = exchange.head.headers.get("content-encoding", "")
            plain = decode_body(body, encoding, config.server.body_bytes_max)
        return _report(outcome, replies, plain)

    return asyncio.run(run())


def _headers_message(method: str, path: str, headers: Mapping[str, str], body: bytes) -> pb.ProcessingRequest:
    message = pb.ProcessingRequest()
    message.protocol_config.request_body_mode = pb.ProcessingMode.BUFFERED
    pseudo = {":method": method, ":path": path}
    plain = {"content-type": "application/json", "content-length": str(len(body))}
    for key, value in {**pseudo, **plain, **{k.lower(): v for k, v in headers.items()}}.items():
        raw = value.encode("utf-8", "surrogateescape")
        message.request_headers.headers.headers.add(key=key, raw_value=raw)
    message.request_headers.end_of_stream = not body
    return message


def _body_message(body: bytes) -> pb.ProcessingRequest:
    message = pb.ProcessingRequest()
    message.request_body.body = body
    message.request_body.end_of_stream = True
    return message


def _report(outcome: Outcome, replies: tuple[bytes, ...], body: bytes) -> dict[str, Any]:
    decision, signals = outcome.decision, outcome.signals
    report: dict[str, Any] = {
        "outcome": outcome.kind.value,
        "cause": outcome.cause,
        "pool": outcome.pool or None,
        "cluster": outcome.cluster or None,
        "model": outcome.model or None,
        "reasoning": decision.reasoning if decision else None,
        "reason": outcome.reason,
        "rule": (decision.rule or None) if decision else None,
        "policy": outcome.policy or None,
        "strategy": (decision.strategy or None) if decision else None,
        "score": decision.score if decision else None,
        "threshold": _finite(decision.threshold) if decision else None,
        "fallback": decision.fallback if decision else None,
        "trace": [
            {"what": step.what, "name": step.name, "result": step.result}
            for step in (decision.trace if decision else ())
        ],
        "shadows": [dataclasses.asdict(shadow) for shadow in outcome.shadows],
        "text": outcome.text or None,
        "signals": None,
        "request": None,
        "edits": _edits(replies, outcome, body),
        "stages_ms": {name: round(ms, 3) for name, ms in outcome.milliseconds().items()},
        "total_ms": round(outcome.total_ms, 3),
    }
    if signals is not None:
        report["signals"] = {
            **{name: getattr(signals, name) for name in SIGNALS},
            "domain": {"label": signals.domain, "probs": signals.domain_probs},
            "task": {"label": signals.task, "probs": signals.task_probs} if signals.task else None,
        }
    if (view := outcome.view) is not None:
        report["request"] = {
            **{name: getattr(view, name) for name in REQUEST},
            "api": view.api.value,
            "turns": len(view.turns),
            "effort": view.effort or None,
        }
    return report


def _finite(value: float | None) -> float | None:
    """JSON has no infinity: a threshold that nothing reaches is shown as 1."""
    return None if value is None else min(value, 1.0)


def _edits(replies: tuple[bytes, ...], outcome: Outcome, body: bytes) -> dict[str, Any]:
    """The mutations, read back from the serialized replies."""
    sets: dict[str, str] = {}
    removes: list[str] = []
    metadata: dict[str, Any] = {}
    for reply in replies:
        response = pb.ProcessingResponse.FromString(reply)
        kind = response.WhichOneof("response")
        metadata.update(MessageToDict(response.dynamic_metadata).get("semroute", {}))
        if kind not in ("request_headers", "request_body"):
            continue
        mutation = getattr(response, kind).response.header_mutation
        sets.update((option.header.key, option.header.raw_value.decode()) for option in mutation.set_headers)
        removes.extend(mutation.remove_headers)
    edits: dict[str, Any] = {
        "headers": {"set": sets, "remove": removes},
        "metadata": metadata,
        "body": None,
    }
    if outcome.body is not None and outcome.body != body:
        edits["body"] = {"bytes": len(outcome.body), "changed": _changed(body, outcome.body)}
    if outcome.answer is not None:
        edits["answer"] = {"status": outcome.answer.status, "body": json.loads(outcome.answer.body)}
    return edits


def _changed(old: bytes, new: bytes) -> dict[str, Any]:
    """Top-level members whose value differs, with the new value; the others are not decoded."""
    before, after = (msgspec.json.decode(body, type=dict[str, msgspec.Raw]) for body in (old, new))
    return {key: msgspec.json.decode(value) for key, value in after.items() if before.get(key) != value}


def print_report(report: Mapping[str, Any], console: Console) -> None:
    """The report for people."""
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold cyan", no_wrap=True)
    table.add_column(overflow="fold")
    for key in ("outcome", "pool", "cluster", "model", "reasoning", "reason", "rule", "strategy", "fallback"):
        if report[key]:
            table.add_row(key, str(report[key]))
    for shadow in report["shadows"]:
        table.add_row("shadow", f"{shadow['shadow']}: {shadow['pool'] or shadow['agreement']}")
    if signals := report["signals"]:
        top = sorted(signals["domain"]["probs"].items(), key=lambda item: -item[1])[:3]
        table.add_row("domain", ", ".join(f"{label} {p:.2f}" for label, p in top))
        if signals["task"]:
            table.add_row("task", signals["task"]["label"])
        table.add_row("difficulty", f"{signals['difficulty']:.3f}")
        cut = ", truncated" if signals["truncated"] else ""
        known = ", unknown" if signals["unknown"] else ""
        table.add_row("text", f"{signals['tokens']} tokens{cut}, {signals['language']}{known}")
    for step in report["trace"]:
        table.add_row(step["what"], f"{step['name']}: {step['result']}")
    for key, value in report["edits"]["headers"]["set"].items():
        table.add_row("set header", f"{key}: {value}")
    for key in report["edits"]["headers"]["remove"]:
        table.add_row("remove header", key)
    if body := report["edits"]["body"]:
        for key, value in body["changed"].items():
            table.add_row("set in body", f"{key}: {json.dumps(value)}")
    if answer := report["edits"].get("answer"):
        table.add_row("answer", f"{answer['status']} {json.dumps(answer['body'])}")
    stages = ", ".join(f"{name} {ms:.2f}" for name, ms in report["stages_ms"].items())
    table.add_row(
        "time", f"{report['total_ms']:.2f} ms ({stages})" if stages else f"{report['total_ms']:.2f} ms"
    )
    console.print(table)
