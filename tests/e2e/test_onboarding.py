"""A judge behind the real Envoy, and a model that joins a running server by a file."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from gateway import Background, Gateway, chat, start_sidecar, wait_for
from openai_server import OpenAIServer, completion, labeled
from semroute_demo.sidecar import Sidecar
from semroute_lab.common.writing import write_artifact

from semroute_extproc.cli import main
from semroute_extproc.serve.offline import Scorer
from semroute_extproc.strategies.artifact import ArtifactManifest
from semroute_extproc.strategies.clusters import ClustersArtifact

SUMS = [f"What is {a} plus {b} times {a + 3}?" for a in range(2, 8) for b in range(11, 14)]
LAWS = [
    f"Is a {what} liable for damages {when} under the common law of torts?"
    for what in ("landlord", "carrier", "minor", "trustee", "bailee", "principal")
    for when in ("caused by an agent", "after notice", "without negligence")
]


@pytest.fixture
def background() -> Iterator[Background]:
    running = Background()
    yield running
    running.close()


@pytest.fixture
def model_server(background: Background) -> Iterator[OpenAIServer]:
    running = OpenAIServer(lambda _: completion("?"))
    background.run(running.__aenter__())
    yield running
    background.run(running.__aexit__())


def configuration(strategies: dict[str, Any]) -> dict[str, Any]:
    return {
        "server": {"deadline_ms": 1500, "drain_seconds": 0},
        "telemetry": {"log_format": "json"},
        "pools": {
            "small": {
                "cluster": "vllm-small",
                "model": "small-model",
                "price": {"input": 0.05, "output": 0.15},
                "context": 100_000,
            },
            "large": {
                "cluster": "vllm-large",
                "model": "large-model",
                "price": {"input": 0.6, "output": 1.7},
                "context": 100_000,
            },
        },
        "default_pool": "large",
        "models": {"auto": {"policy": "main"}},
        "policies": {"main": {"otherwise": {"strategy": next(iter(strategies))}}},
        "strategies": strategies,
    }


def start(
    folder: Path, make_gateway: Callable[..., Gateway], strategies: dict[str, Any]
) -> tuple[Sidecar, Gateway]:
    config = folder / "semroute.yaml"
    config.write_text(json.dumps(configuration(strategies)))
    sidecar = start_sidecar(folder, config=config)
    return sidecar, make_gateway([sidecar])


async def pools_of(gateway: Gateway, prompts: list[str]) -> list[str]:
    import aiohttp

    async def ask(session: aiohttp.ClientSession, prompt: str) -> str:
        async with session.post("/v1/chat/completions", json=chat(prompt, "auto")) as response:
            assert response.status == 200
            assert response.headers["x-semroute-outcome"] == "routed"
            return response.headers["x-sim-pool"]

    async with aiohttp.ClientSession(gateway.url) as session:
        return [await ask(session, prompt) for prompt in prompts]


def metric(sidecar: Sidecar, line: str) -> float:
    page = sidecar.read_admin("/metrics")[1]
    found = [each for each in page.splitlines() if each.startswith(line)]
    return float(found[0].rpartition(" ")[2]) if found else 0.0


async def test_a_judge_decides_and_one_that_dies_costs_nobody_an_answer(
    tmp_path: Path,
    make_gateway: Callable[..., Gateway],
    model_server: OpenAIServer,
    background: Background,
) -> None:
    def judge(body: dict[str, Any]) -> dict[str, Any]:
        return labeled({"2": 0.9, "5": 0.1} if "torts" in body["messages"][1]["content"] else {"5": 1.0})

    model_server.answer = judge
    settings = {
        "weak": "small",
        "strong": "large",
        "threshold": 0.5,
        "timeout_ms": 700,
        "breaker_failures": 2,
    }
    strategies = {"s": {"kind": "judge", "url": model_server.url, "model": "j", **settings}}
    sidecar, gateway = start(tmp_path, make_gateway, strategies)
    try:
        assert await pools_of(gateway, [SUMS[0], LAWS[0], SUMS[0]]) == ["small", "large", "small"]
        assert metric(sidecar, 'semroute_judge_total{result="ok",strategy="s"}') == 2
        assert metric(sidecar, 'semroute_judge_total{result="cache",strategy="s"}') == 1
        background.run(model_server.__aexit__())
        assert len(await pools_of(gateway, SUMS[1:5])) == 4
        assert metric(sidecar, 'semroute_judge_total{result="breaker",strategy="s"}') == 2
        assert metric(sidecar, 'semroute_fallbacks_total{reason="deadline"}') == 0
        background.run(model_server.__aenter__())
    finally:
        sidecar.stop()


def cluster_artifact(path: Path) -> None:
    """Two clusters, of the shipped bundle's own embeddings of sums and of law."""
    scorer = Scorer.of()
    means = []
    for texts in (SUMS, LAWS):
        vectors = np.stack([signals.neighbors for signals in scorer.score_all(texts)])  # type: ignore[arg-type]
        means.append(vectors.mean(axis=0))
    centroids = np.stack(means).astype(np.float32)
    manifest = ArtifactManifest(
        kind="clusters",
        bundle=scorer.bundle.manifest.name,
        revision=scorer.bundle.revision,
        dimensions=centroids.shape[1],
        rows=len(SUMS) + len(LAWS),
    )
    write_artifact(path, ClustersArtifact(manifest, centroids, None, ("sums", "torts")))


def profile(server: OpenAIServer, model: str, folder: Path, out: Path) -> None:
    """What an operator does: ask the model its questions and write what came of it to `out`."""
    questions = folder / "questions.jsonl"
    rows = [{"prompt": text, "grader": "regex", "answer": "right"} for text in (*SUMS, *LAWS)]
    questions.write_text("\n".join(map(json.dumps, rows)))
    command = ["profile", "run", "--endpoint", server.url, "--model", model, "--questions", str(questions)]
    done = CliRunner().invoke(main, [*command, "--clusters", str(folder / "clusters.npz"), "--out", str(out)])
    assert done.exit_code == 0, done.output


async def test_a_new_model_joins_a_running_server_and_gets_what_it_is_good_at(
    tmp_path: Path, make_gateway: Callable[..., Gateway], model_server: OpenAIServer
) -> None:
    def answer(body: dict[str, Any]) -> dict[str, Any]:
        """The large model knows everything, the small one sums."""
        torts = "torts" in body["messages"][-1]["content"]
        return completion("wrong" if torts and body["model"] == "small-model" else "right")

    model_server.answer = answer
    profiles = tmp_path / "profiles"
    profiles.mkdir()
    cluster_artifact(tmp_path / "clusters.npz")
    await asyncio.to_thread(profile, model_server, "large-model", tmp_path, profiles / "large.json")
    clusters = {"kind": "clusters", "artifact": "clusters.npz", "profiles": "profiles", "estimate": "laplace"}
    sidecar, gateway = start(tmp_path, make_gateway, {"s": clusters})
    try:
        mixed = [*SUMS[:4], *LAWS[:4]]
        assert await pools_of(gateway, mixed) == ["large"] * 8, "the only model that is known"

        await asyncio.to_thread(profile, model_server, "small-model", tmp_path, tmp_path / "small.json")
        text = (tmp_path / "small.json").read_text()
        (profiles / "small.json").write_text(text[:100])
        wait_for(lambda: metric(sidecar, "semroute_profiles_rejected") == 1, 15, "the half file to be seen")
        assert await pools_of(gateway, mixed) == ["large"] * 8, "half a file changes nothing"

        (profiles / "small.json").write_text(text)
        wait_for(lambda: metric(sidecar, 'semroute_profiles{strategy="s"}') == 2, 15, "the model to join")
        assert metric(sidecar, "semroute_profiles_rejected") == 0
        assert await pools_of(gateway, mixed) == ["small"] * 4 + ["large"] * 4

        (profiles / "small.json").write_text("{")
        wait_for(lambda: metric(sidecar, "semroute_profiles_rejected") == 1, 15, "the bad file to be seen")
        assert await pools_of(gateway, mixed) == ["small"] * 4 + ["large"] * 4, "what was last good holds"

        (profiles / "small.json").unlink()
        wait_for(lambda: metric(sidecar, 'semroute_profiles{strategy="s"}') == 1, 15, "the model to leave")
        assert await pools_of(gateway, mixed) == ["large"] * 8
    finally:
        sidecar.stop()
