"""Explain where a request goes: run the server's own code on one request and show each step.

The request is fed to an `Exchange` as Envoy would send it. The edits are decoded from the serialized
replies, so the explanation cannot differ from the behavior.
"""

import asyncio
import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import msgspec
from google.protobuf.json_format import MessageToDict

from semroute_extproc.config.models import Config
from semroute_extproc.config.source import Loaded
from semroute_extproc.envoy._pb import external_processor_pb2 as pb
from semroute_extproc.envoy.exchange import Exchange
from semroute_extproc.outcome import Outcome, facts
from semroute_extproc.pipeline.pipeline import Pipeline
from semroute_extproc.policy.context import Choice, Decision, RoutingContext
from semroute_extproc.request.body import decode_body
from semroute_extproc.serve import build
from semroute_extproc.state.controllers import ControllerState

DEADLINE_MS = 5_000.0  # Long, so that a slow first pass does not cause a fallback

SIGNALS = ("domain_entropy", "difficulty", "unknown", "similarity", "tokens", "truncated", "language")
REQUEST = (
    *("api", "model", "stream", "turns", "images", "audio", "video", "files", "tools", "tool_loop"),
    *("json_mode", "effort", "max_output_tokens", "characters"),
)
"""Attributes of the signals and of the request to show, in order."""

FACTS = (
    *("outcome", "cause", "pool", "cluster", "model", "reasoning", "reason", "rule", "policy", "strategy"),
    *("fallback", "housekeeping"),
)
"""Facts of the outcome in the report, in order."""

DIGITS_MAX = 4_000  # Of an integer; Python reads some more.


class _Watching(ControllerState):
    """The current controllers of a running server; a decision does not change them."""

    def __init__(self, live: ControllerState) -> None:
        vars(self).update(vars(live))

    def decided(self, context: RoutingContext, decision: Decision, key: str, now: float) -> str:
        return decision.session

    def sent(self, pool: str, now: float, client: str = "") -> None:
        pass

    def failed(self, pool: str, failure: str, now: float, client: str = "") -> None:
        pass


def explain(loaded: Loaded, path: str, headers: Mapping[str, str], body: bytes) -> dict[str, Any]:
    """Decide one request as a server without traffic would; raises ConfigError or BundleError."""
    loaded = dataclasses.replace(loaded, config=_patient(loaded.config))
    models = build.open_models(loaded.config)

    async def run() -> dict[str, Any]:
        classifier, judges = build.make_classifier(loaded.config, models), build.make_judges(loaded)
        try:
            policies = build.make_policies(loaded, classifier.bundle)
            pipeline = Pipeline(loaded.config, policies, classifier, judges=judges)
            return await _explained(pipeline, path, headers, body)
        finally:
            await classifier.close()
            await asyncio.gather(*(judge.close() for judge in judges.values()))

    return asyncio.run(run())


async def explain_live(
    live: Pipeline, controllers: ControllerState, path: str, headers: Mapping[str, str], body: bytes
) -> dict[str, Any]:
    """Decide one request as the running server would now, without a trace in its state or its metrics."""
    config, watching = _patient(live.config), _Watching(controllers)
    pipeline = Pipeline(config, live.plans, live.classifier, judges=live.judges, controllers=watching)
    return await _explained(pipeline, path, headers, body)


def _patient(config: Config) -> Config:
    server = config.server.model_copy(update={"deadline_ms": DEADLINE_MS})
    return config.model_copy(update={"server": server})


async def _explained(
    pipeline: Pipeline, path: str, headers: Mapping[str, str], body: bytes
) -> dict[str, Any]:
    exchange = Exchange(build.exchange_settings(pipeline))
    step = exchange.receive(_headers_message(path, headers, body))
    if step.outcome is None:
        whole = pb.HttpBody(body=body, end_of_stream=True)
        step = exchange.receive(pb.ProcessingRequest(request_body=whole))
    outcome, replies = step.outcome, step.replies
    if step.decide is not None:
        outcome = await pipeline.decide(step.decide)
        replies = exchange.decided(outcome)
    assert outcome is not None, "a complete request without an outcome. This is a bug."
    plain = body
    if outcome.body is not None:
        encoding = exchange.head.headers.get("content-encoding", "")
        plain = decode_body(body, encoding, pipeline.config.server.body_bytes_max)
    report = _report(outcome, _edits(replies, outcome, plain))
    if (decision := outcome.decision) is not None and decision.strategy and outcome.signals is not None:
        strategy = pipeline.plans[outcome.policy].strategies[decision.strategy]
        report["near"] = [each._asdict() for each in strategy.near(outcome.signals)]
    return report


def _headers_message(path: str, headers: Mapping[str, str], body: bytes) -> pb.ProcessingRequest:
    message = pb.ProcessingRequest()
    message.protocol_config.request_body_mode = pb.ProcessingMode.BUFFERED
    sent = {":method": "POST", ":path": path, "content-type": "application/json"}
    sent |= {"content-length": str(len(body)), **{key.lower(): value for key, value in headers.items()}}
    for key, value in sent.items():
        raw = value.encode("utf-8", "surrogateescape")
        message.request_headers.headers.headers.add(key=key, raw_value=raw)
    message.request_headers.end_of_stream = not body
    return message


def _report(outcome: Outcome, edits: dict[str, Any]) -> dict[str, Any]:
    decision = outcome.decision or Decision("", "")
    choice = decision.choice or Choice("", "")
    signals, view, threshold = outcome.signals, outcome.view, choice.threshold
    known = facts(outcome)
    report: dict[str, Any] = {
        **{name: known.get(name) for name in FACTS},
        "reason": outcome.reason,  # not cut
        "score": choice.score,
        # JSON has no infinity, so an unreachable threshold is shown as 1.
        "threshold": None if threshold is None else min(threshold, 1.0),
        "others": list(decision.others),
        "source": choice.source,
        "near": [],
        "trace": [step._asdict() for step in decision.trace],
        "shadows": msgspec.to_builtins(outcome.shadows),
        "text": outcome.text or None,
        "left_out": [each._asdict() for each in outcome.left_out],
        "signals": None,
        "request": None,
        "edits": edits,
        "stages_ms": {name: round(ms, 3) for name, ms in outcome.milliseconds().items()},
        "total_ms": round(outcome.total_ms, 3),
    }
    if signals is not None:
        report["signals"] = {
            "domain": {"label": signals.domain, "probs": signals.domain_probs},
            "task": {"label": signals.task, "probs": signals.task_probs} if signals.task else None,
            **{name: getattr(signals, name) for name in SIGNALS},
        }
    if view is not None:
        changed = {"turns": len(view.turns), "effort": view.effort or None}
        report["request"] = {name: getattr(view, name) for name in REQUEST} | changed
    return report


def _integer(digits: str) -> int | str:
    return int(digits) if len(digits) <= DIGITS_MAX else digits


def _edits(replies: tuple[bytes, ...], outcome: Outcome, body: bytes) -> dict[str, Any]:
    """The mutations, read back from the serialized replies."""
    sets: dict[str, str] = {}
    removes: list[str] = []
    metadata: dict[str, Any] = {}
    for reply in replies:
        response = pb.ProcessingResponse.FromString(reply)
        metadata.update(MessageToDict(response.dynamic_metadata).get("semroute", {}))
        for part in (response.request_headers, response.request_body):
            mutation = part.response.header_mutation
            sets.update((each.header.key, each.header.raw_value.decode()) for each in mutation.set_headers)
            removes.extend(mutation.remove_headers)
    edits: dict[str, Any] = {"headers": {"set": sets, "remove": removes}, "metadata": metadata, "body": None}
    if outcome.body is not None and outcome.body != body:
        # As Python reads it, because msgspec reads no lone surrogates; an integer may be too long for it.
        old, new = (json.loads(each, parse_int=_integer) for each in (body, outcome.body))
        changed = {key: value for key, value in new.items() if key not in old or value != old[key]}
        edits["body"] = {"bytes": len(outcome.body), "changed": changed}
    if outcome.answer is not None:
        edits["answer"] = {"status": outcome.answer.status, "body": json.loads(outcome.answer.body)}
    return edits
