"""Every row of docs/clients.md, through the shipped Envoy."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import brotli
import pytest
import yarl
import zstandard
from gateway import Gateway

from semroute_extproc.request import forms
from semroute_extproc.request.paths import PATHS, place_of

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "clients.md").read_text()
CLIENTS = PAGE.partition("## Clients")[2].partition("\n## ")[0]
ROWS = [
    [cell.strip().strip("`") for cell in line.strip("|").split("|")[1:]]
    for line in CLIENTS.splitlines()
    if re.match(r"\|.*\| `(GET|POST) ", line)
]
JSON = {"content-type": "application/json"}
BODY: dict[str, Any] = {
    "messages": [{"role": "user", "content": "What is the capital of Australia?"}],
    "input": "What is the capital of Australia?",
    "prompt": "What is the capital of Australia?",
    "max_tokens": 9,
}


def form(model: str, file_first: bool, length: int) -> tuple[bytes, dict[str, str]]:
    parts = [b'name="file"; filename="a.wav"\r\n\r\n' + bytes(length)]
    if model:
        parts.insert(file_first, b'name="model"\r\n\r\n' + model.encode())
    written = b"".join(b"--x\r\ncontent-disposition: form-data; " + part + b"\r\n" for part in parts)
    return written + b"--x--\r\n", {"content-type": "multipart/form-data; boundary=x"}


def sent(kind: str, model: str) -> tuple[bytes, dict[str, str]]:
    """The body and the headers of a row."""
    plain = json.dumps({**({"model": model} if model else {}), **BODY}).encode()
    makers: dict[str, Callable[[], tuple[bytes, dict[str, str]]]] = {
        "none": lambda: (b"", {}),
        "JSON": lambda: (plain, JSON),
        "zstd": lambda: (zstandard.compress(plain), {**JSON, "content-encoding": "zstd"}),
        "br": lambda: (brotli.compress(plain), {**JSON, "content-encoding": "br"}),
        "byte order mark": lambda: (b"\xef\xbb\xbf" + plain, JSON),
        "token ids": lambda: (json.dumps({"model": model, "input": [[1, 2], [3]]}).encode(), JSON),
        "form": lambda: form(model, False, 300_000),
        "form, file first": lambda: form(model, True, 300_000),
        "form of 40 MB": lambda: form(model, False, 40_000_000),
    }
    return makers[kind]()


@pytest.mark.parametrize(
    ("request_line", "kind", "model", "pool", "path"), ROWS, ids=lambda cell: cell or "none"
)
async def test_a_client_of_the_table_reaches_its_pool(
    client: aiohttp.ClientSession,
    gateway: Gateway,
    request_line: str,
    kind: str,
    model: str,
    pool: str,
    path: str,
) -> None:
    method, _, target = request_line.partition(" ")
    data, headers = sent(kind, "" if model == "–" else model)
    url = yarl.URL(gateway.url + target, encoded=True)
    async with client.request(
        method, url, data=io.BytesIO(data) if data else None, headers=headers
    ) as response:
        await response.read()
    assert response.headers["x-semroute-pool"] == pool
    received = (gateway.small if pool == "small" else gateway.large).received
    if path == "–":
        return
    assert received[-1].path == path
    if kind != "form of 40 MB":
        assert response.status == 200
        assert response.headers["x-sim-pool"] == pool
        is_form = "form" in kind
        own = (
            forms.model_of(received[-1].body, headers["content-type"])
            if is_form
            else json.loads(received[-1].body)["model"]
        )
        assert own == ("" if is_form and model == "–" else f"{pool}-model")
        assert "content-encoding" not in received[-1].headers
        assert received[-1].headers["content-length"] == str(len(received[-1].body))


def test_the_table_has_every_path() -> None:
    prefixes = ("/openai", "/anthropic", "/api")
    assert {place_of(row[0].partition(" ")[2], prefixes).path for row in ROWS} >= set(PATHS)


@pytest.mark.parametrize("name", ["org/fixed-embedder", "org%2Ffixed-embedder", "claude-opus-5"])
async def test_a_model_is_described_with_its_slash_escaped_or_not(
    client: aiohttp.ClientSession, gateway: Gateway, name: str
) -> None:
    async with client.get(yarl.URL(f"{gateway.url}/openai/v1/models/{name}", encoded=True)) as response:
        card = await response.json()
    assert (card["id"], card["owned_by"]) == (name.replace("%2F", "/"), "semroute")
    assert card["max_model_len"] == 10_000_000


async def test_anthropics_clients_get_the_list_in_their_shape(client: aiohttp.ClientSession) -> None:
    async with client.get("/anthropic/v1/models", headers={"anthropic-version": "2023-06-01"}) as response:
        listed = await response.json()
    assert not listed["has_more"]
    assert {"auto", "small-model"} <= {model["id"] for model in listed["data"]}
