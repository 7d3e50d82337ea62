"""Ask the servers of the pools what they are: for `semroute check --live` and `semroute up`."""

import os
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import click
import msgspec

from semroute_extproc.cli.operate import render
from semroute_extproc.cli.unlikely import holding, located
from semroute_extproc.config.source import Loaded
from semroute_extproc.errors import EndpointError, Exit
from semroute_extproc.settings.base import Problem, did_you_mean
from semroute_extproc.settings.pools import Pool
from semroute_extproc.state.pool_metrics import fetch, read

ANSWER_SECONDS_MAX = 5.0  # for a server to answer a question about itself
TICK_SECONDS = 2.0  # between two signs of progress
ASKED_MAX = 16  # servers at a time
DATA: dict[str, Any] = msgspec.toml.decode(Path(__file__).with_suffix(".toml").read_bytes())


def ask(url: str, key: str = "", body: object = None) -> tuple[int, bytes]:
    """Status and, if it is good, body of the answer to a GET or to a POST of `body`; raises EndpointError."""
    import httpx2  # Takes 60 ms, which `--help` should not.

    headers, method = {"authorization": f"Bearer {key}"} if key else {}, "GET" if body is None else "POST"
    try:
        return 200, read(url, ANSWER_SECONDS_MAX, method, headers=headers, json=body)
    except httpx2.HTTPStatusError as error:
        return error.response.status_code, b""
    except (httpx2.HTTPError, httpx2.InvalidURL, TimeoutError) as error:
        problem = f"{url.partition('/v1/')[0]} does not answer ({str(error) or type(error).__name__})"
        raise EndpointError("connection", f"{problem}: is vLLM running?") from None


def cards(base: str, key: str) -> list[dict[str, Any]]:
    """The models that a server lists, at least one; raises EndpointError."""
    status, answer = ask(page := f"{base}/v1/models", key)
    if status in (401, 403):
        hint = "the key is refused" if key else "it needs a key: export one and name it with --api-key-env"
        raise EndpointError("http", f"{page} answers {status}: {hint}")
    try:
        cards = msgspec.json.decode(answer)["data"]
        found = [card for card in cards if isinstance(card["id"], str) and card["id"].isprintable()]
    except Exception:  # no list, in any of many ways
        problem = f"answers {status}, not a list of models: is it an OpenAI-compatible server?"
        raise EndpointError("unreadable", f"{page} {problem}") from None
    if not found:
        raise EndpointError("unreadable", f"{base} serves no model")
    return found


def examine(name: str, pool: Pool, base: str, key: str, tools: bool) -> dict[str, Any]:
    """What a server of a pool says, as live.toml describes it; `tools` requests a call of one token."""
    server = {**DATA["unknown"], "pool": name, "model": pool.model, "base": base}
    server["page"] = page = pool.metrics or f"{base}/metrics"
    try:
        served = {card["id"]: card for card in cards(base, key)}
        server |= {"served": [*served], "lora": [each for each, card in served.items() if card.get("parent")]}
        limit = served.get(pool.model, {}).get("max_model_len")
        server["limit"] = limit if type(limit) is int else 0
        with suppress(Exception):  # whatever the page is
            server["load"] = bool(fetch(page, pool.gauges))
        server["health"], _ = ask(f"{base}/health")
        if tools and pool.model in served:
            call = {"model": pool.model, **DATA["call"]}
            server["tools"], _ = ask(f"{base}/v1/chat/completions", key, call)
    except EndpointError as error:
        server["error"] = str(error)
    return server


def check(loaded: Loaded, api_key_env: str, tools: bool) -> Exit:
    """Print a table of every pool's servers, and what was found; the exit status. Raises EndpointError."""
    if not (key := os.environ.get(api_key_env, "")) and api_key_env:
        raise EndpointError("setup", f"the environment has no {api_key_env}")
    settings, say, found = loaded.config.model_dump(), partial(click.echo, err=True), set[str]()
    with ThreadPoolExecutor(ASKED_MAX) as threads:
        asked = [
            threads.submit(examine, name, pool, base.rstrip("/"), key, tools)
            for name, pool in loaded.config.pools.items()
            for base in pool.endpoints or [(pool.metrics or "").removesuffix("/metrics")]
            if base
        ]
        while rest := wait(asked, TICK_SECONDS).not_done:
            say(f"waiting for {len(rest)} of {len(asked)} servers")
    servers = [each.result() for each in asked]
    click.echo(render("live.txt", {"servers": servers}))
    for server in servers:
        facts = {**settings, **server, "did_you_mean": did_you_mean}
        only = {"pools": {server["pool"]: settings["pools"][server["pool"]]}}
        for row, problem in holding(DATA["check"], only, facts):
            found.add(row["kind"])
            say(located(loaded, problem, "note: " * (row["kind"] == "note")))
    for name in settings["pools"].keys() - {server["pool"] for server in servers}:
        say(located(loaded, Problem(("pools", name), "has no endpoints, so nothing was asked"), "note: "))
    return Exit.CONFIG if "wrong" in found else Exit.UNAVAILABLE if "silent" in found else Exit.OK
