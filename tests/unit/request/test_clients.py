"""The judged text of real clients' requests: what the user wrote, whatever the client puts around it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from semroute_extproc.request import apis
from semroute_extproc.request.text import Judged, judged
from semroute_extproc.request.view import Api

FILE = YAML(typ="safe").load(Path(__file__).with_name("clients.yaml").read_text("utf-8"))
ASKS = FILE["asks"]
WRAPPED = [
    (name, client["api"], body) for name, client in FILE["clients"].items() for body in client["wrapped"]
]
HOUSEKEEPING = [
    (name, client["api"], kind, body)
    for name, client in FILE["clients"].items()
    for kind, body in client["housekeeping"].items()
]


def filled(body: Any, ask: str) -> Any:
    """The body with the ask in its place."""
    if isinstance(body, dict):
        return {key: filled(value, ask) for key, value in body.items()}
    if isinstance(body, list):
        return [filled(value, ask) for value in body]
    return body.replace("{{ask}}", ask) if isinstance(body, str) else body


def read(api: str, body: Any) -> Judged:
    return judged(apis.parse(Api(api), json.dumps(body).encode()).turns)


def test_every_client_has_asks_and_housekeeping():
    assert len(FILE["clients"]) == 15
    assert all(client["wrapped"] and client["housekeeping"] for client in FILE["clients"].values())


@pytest.mark.parametrize("ask", ASKS)
def test_a_bare_ask_is_judged_as_it_is(ask: str):
    assert read("chat_completions", {"messages": [{"role": "user", "content": ask}]}) == Judged(ask)


@pytest.mark.parametrize("ask", ASKS)
@pytest.mark.parametrize(
    ("client", "api", "body"), WRAPPED, ids=lambda value: value if isinstance(value, str) else ""
)
def test_the_ask_is_judged_without_what_the_client_adds(client: str, api: str, body: Any, ask: str):
    found = read(api, filled(body, ask))
    assert (found.text.strip(), found.housekeeping) == (ask, "")


@pytest.mark.parametrize(
    ("client", "api", "kind", "body"), HOUSEKEEPING, ids=lambda value: value if isinstance(value, str) else ""
)
def test_what_a_client_asks_for_by_itself_is_recognized(client: str, api: str, kind: str, body: Any):
    assert read(api, body).housekeeping == kind
