"""Strategies with an artifact behind the real Envoy, fitted in the test on a handful of prompts."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import pytest
from click.testing import CliRunner
from gateway import Gateway, chat, start_sidecar
from semroute_lab.common.writing import write_json
from semroute_lab.profile.tally import profile_of_sums, sums_of

from semroute_extproc.cli import main
from semroute_extproc.serve.offline import Scorer
from semroute_extproc.strategies.clusters import read_clusters

SUMS = [f"What is {a} plus {b} times {a + 3}?" for a in range(2, 7) for b in range(11, 15)]
LAWS = [
    f"Is a {what} liable for damages {when} under the common law of torts?"
    for what in ("landlord", "carrier", "minor", "trustee", "bailee")
    for when in ("caused by an agent", "after notice", "without negligence", "of a guest")
]
NEW_SUM = "How much is 27 plus 18 times 9?"
NEW_LAW = "Is an innkeeper liable for damages to luggage under the common law of torts?"
PRICES = {"small": {"input": 0.05, "output": 0.15}, "large": {"input": 0.6, "output": 1.7}}
KINDS = ("similarity", "factorization", "clusters")


def fitted(folder: Path) -> None:
    """Only the large model does sums; both know the law."""
    prompts = folder / "pairs.csv"
    with prompts.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["prompt", "strong_correct", "weak_correct"])
        writer.writerows([prompt, 1, 0] for prompt in SUMS)
        writer.writerows([prompt, 1, 1] for prompt in LAWS)
    more: dict[str, list[str]] = {
        "similarity": ["--neighbors", "10"],
        "factorization": [],
        "clusters": ["--clusters", "2", "--clusterings", "1"],
    }
    for kind in KINDS:
        out = str(folder / f"{kind}.npz")
        result = CliRunner().invoke(main, ["fit", kind, str(prompts), "-o", out, *more[kind]])
        assert result.exit_code == 0, result.output
    share = ["--artifact", str(folder / "similarity.npz"), "--strong-share", "0.5"]
    result = CliRunner().invoke(
        main, ["calibrate", str(prompts), *share, "-o", str(folder / "calibration.json")]
    )
    assert result.exit_code == 0, result.output

    clusters = read_clusters(folder / "clusters.npz")
    x = np.asarray([s.neighbors for s in Scorer.of().score_all([*SUMS, *LAWS])], dtype=np.float32)
    (folder / "profiles").mkdir()
    for name, sums in (("small", 1.0), ("large", 0.05)):
        errors = [sums] * len(SUMS) + [0.05] * len(LAWS)
        profile = profile_of_sums(clusters, sums_of(clusters, x, errors, []), model=f"{name}-model")
        write_json(folder / "profiles" / f"{name}.json", profile)


def configuration() -> dict[str, Any]:
    pair = {"weak": "small", "strong": "large", "strong_share": 0.5, "on_unknown": "large"}
    return {
        "server": {"deadline_ms": 1500, "drain_seconds": 0},
        "telemetry": {"log_format": "json"},
        "pools": {
            name: {
                "cluster": f"vllm-{name}",
                "model": f"{name}-model",
                "price": PRICES[name],
                "context": 100_000,
            }
            for name in PRICES
        },
        "default_pool": "large",
        "models": {kind: {"policy": kind} for kind in KINDS},
        "policies": {kind: {"otherwise": {"strategy": kind}} for kind in KINDS},
        "strategies": {
            "similarity": {
                "kind": "similarity",
                **pair,
                "artifact": "similarity.npz",
                "calibration": "calibration.json",
            },
            "factorization": {"kind": "factorization", **pair, "artifact": "factorization.npz"},
            "clusters": {
                "kind": "clusters",
                "artifact": "clusters.npz",
                "profiles": "profiles",
                "shrinkage": 1,
            },
        },
    }


async def ask(session: aiohttp.ClientSession, model: str, prompt: str, **headers: str) -> tuple[str, str]:
    """The pool that answered and the reason."""
    body = chat(prompt, model)
    async with session.post("/v1/chat/completions", json=body, headers=headers) as response:
        assert response.status == 200
        assert response.headers["x-semroute-outcome"] == "routed"
        return response.headers["x-sim-pool"], response.headers["x-semroute-reason"]


async def test_every_strategy_sends_each_topic_where_it_is_answered_best(
    tmp_path: Path, make_gateway: Callable[..., Gateway]
) -> None:
    fitted(tmp_path)
    config = tmp_path / "semroute.yaml"
    config.write_text(json.dumps(configuration()))
    check = CliRunner().invoke(main, ["check", str(config)])
    assert check.exit_code == 0, check.output
    sidecar = start_sidecar(tmp_path, config=config)
    try:
        gateway = make_gateway([sidecar])
        async with aiohttp.ClientSession(gateway.url) as session:
            for kind in KINDS:
                pool, reason = await ask(session, kind, NEW_SUM)
                assert pool == "large", (kind, reason)
                assert reason.startswith("error 0." if kind == "clusters" else kind), reason
                pool, reason = await ask(session, kind, NEW_LAW)
                assert pool == "small", (kind, reason)
                for prompt in (NEW_SUM, NEW_LAW):
                    assert (await ask(session, kind, prompt, **{"x-semroute-quality": "0"}))[0] == "small"
                    assert (await ask(session, kind, prompt, **{"x-semroute-quality": "1"}))[0] == "large"
    finally:
        sidecar.stop()


@pytest.mark.parametrize("kind", KINDS)
def test_a_configuration_without_its_artifact_is_refused_by_line(tmp_path: Path, kind: str) -> None:
    config = tmp_path / "semroute.yaml"
    (tmp_path / "profiles").mkdir()
    settings = configuration()
    settings["models"] = {}
    settings["policies"] = {}
    settings["strategies"] = {kind: {**settings["strategies"][kind], "calibration": None}}
    if kind == "clusters":
        del settings["strategies"][kind]["calibration"]
    config.write_text(json.dumps(settings, indent=1))
    result = CliRunner().invoke(main, ["check", str(config)])
    assert result.exit_code == 78
    assert f"strategies.{kind}.artifact: {tmp_path}/{kind}.npz: no such file" in result.stderr
