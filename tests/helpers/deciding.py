"""Requests through a whole pipeline."""

from __future__ import annotations

import json
from typing import Any

import msgspec
from builders import FakeEncoder, classifier, config, controller_state, plans

from semroute_extproc.config.models import Config
from semroute_extproc.events import Event, Failed, Shadowed
from semroute_extproc.outcome import Outcome
from semroute_extproc.pipeline.pipeline import Pipeline
from semroute_extproc.request.view import Api, Decide, RequestHead


def pipeline(
    settings: Config | None = None, encoder: FakeEncoder | None = None, **more: Any
) -> tuple[Pipeline, list[str]]:
    settings = settings or config()
    more.setdefault("controllers", controller_state(settings))
    failures: list[str] = []
    told = more.pop("told", [])

    def emit(event: Event) -> None:
        if isinstance(event, Failed):
            failures.append(event.request_id)
        elif isinstance(event, Shadowed):
            told.append(event.shadow)

    plan = more.pop("plans", None) or plans(settings)
    subject = Pipeline(settings, plan, classifier(encoder or FakeEncoder()), emit, **more)
    return subject, failures


def request(body: Any, api: Api = Api.CHAT_COMPLETIONS, **headers: str) -> Decide:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    fields = {key.replace("_", "-"): value for key, value in headers.items()}
    return Decide(RequestHead("POST", "/v1/chat/completions", fields), api, data)


def chat(text: str = "hello", model: str = "auto", **members: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": text}], **members}


async def outcome_of(
    decide: Decide, settings: Config | None = None, encoder: FakeEncoder | None = None
) -> Outcome:
    subject, failures = pipeline(settings, encoder)
    outcome = await subject.decide(decide)
    assert failures == []
    return outcome


def edited(outcome: Outcome) -> dict[str, Any]:
    assert outcome.body is not None
    found: dict[str, Any] = json.loads(outcome.body)
    return found


LONELY = b'{"model": "auto", "messages": [{"role": "user", "content": "hi \\ud83d"}], "top_p": NaN}'
FREE = {"name": "free", "when": '"x-tier" in request.headers', "pool": "small"}
TURNS = [
    {"role": "user", "content": "hello"},
    {"role": "assistant", "content": "hi"},
    {"role": "user", "content": "prove it"},
]


def conversation(messages: list[dict[str, Any]]) -> dict[str, Any]:
    return {"model": "auto", "messages": messages}


def two_policies(**main: Any) -> dict[str, Any]:
    return {
        "main": {"otherwise": {"strategy": "s"}, **main},
        "other": {"otherwise": {"pool": "eyes"}},
        "same": {"otherwise": {"strategy": "s"}},
    }


def named(decide: Decide, model: str) -> Decide:
    """The request with a model that its path or query names."""
    return msgspec.structs.replace(decide, model=model)
