"""Every strategy, controller, shadow and canary in one file, behind the real Envoy.

The file is docs/examples/every-strategy.yaml, as it is; only addresses come from the environment. Its
artifacts are made by the commands its head names. The last two tests change what is running.
"""

from __future__ import annotations

import csv
import json
import random
import shutil
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from click.testing import CliRunner
from gateway import Background, Gateway, Pools, chat, start_gateway, start_sidecar, wait_for
from openai_server import OpenAIServer, labeled
from semroute_demo.pool import Pool, Speed
from semroute_demo.sidecar import Sidecar

from semroute_extproc.cli import main

EXAMPLE = Path(__file__).resolve().parents[2] / "docs" / "examples" / "every-strategy.yaml"
DEADLINE_MS = 1_500.0
"""Above the file's, for a busy machine."""

CODE = [
    f"Write a Python function that {does} a {what}."
    for does in ("reverses", "sorts", "copies", "merges two halves of")
    for what in ("linked list", "binary tree", "hash table", "queue", "matrix")
]
LAWS = [
    f"Is a {what} liable for damages {when} under the common law of torts?"
    for what in ("landlord", "carrier", "minor", "trustee", "bailee")
    for when in ("caused by an agent", "after notice", "without negligence", "of a guest")
]
LANDS = (
    "France",
    "Japan",
    "Kenya",
    "Peru",
    "Italy",
    "Egypt",
    "Chile",
    "India",
    "Norway",
    "Canada",
    "Ghana",
    "Greece",
)
EASY = [f"What is the capital of {land}?" for land in LANDS]
HARD = [
    f"Prove rigorously that every {what} is {so}, and give a counterexample where compactness fails."
    for what in ("bounded sequence of operators", "closed convex set", "uniform limit", "Fourier series")
    for so in ("weakly closed", "norm attaining", "separable")
]
NEW_CODE = "Write a Python function that inserts a key into a balanced binary search tree."
NEW_LAW = "Is an innkeeper liable for damages to luggage under the common law of torts?"
NEW_EASY = "What is the capital of Spain?"
NEW_HARD = (
    "Prove rigorously that every compact operator is norm attaining, "
    "and give a counterexample where compactness fails."
)
VAGUE = "Hvað með hitt þá, og hvers vegna er það öðruvísi?"
"""In a language the bundle does not know: no domain can be right by chance."""

# The model's name, a prompt, and who is to answer it by which strategy for what reason.
CASES = [
    ("by-difficulty", NEW_EASY, "small", "difficulty", "difficulty "),
    ("by-difficulty", NEW_HARD, "large", "difficulty", "difficulty "),
    ("by-similarity", NEW_CODE, "large", "similarity", "similarity "),
    ("by-similarity", NEW_LAW, "small", "similarity", "similarity "),
    ("by-factors", NEW_CODE, "large", "factors", "factorization "),
    ("by-factors", NEW_LAW, "small", "factors", "factorization "),
    ("by-judge", NEW_CODE, "large", "judged", "judge's score "),
    ("by-judge", NEW_LAW, "small", "judged", "judge's score "),
    ("by-clusters", NEW_CODE, "large", "clusters", "error 0."),
    ("by-clusters", NEW_LAW, "small", "clusters", "error 0."),
    ("by-subject", NEW_CODE, "coder", "subject", "domain is computer science"),
    ("by-subject", NEW_LAW, "small", "subject", "domain is law"),
    ("by-subject", VAGUE, "large", "subject", ""),
    ("always-large", NEW_EASY, "large", "", "always large"),
    ("cheap", NEW_CODE, "small", "factors", "quality 0 was asked for"),
]
WEIGHING = ("by-difficulty", "by-similarity", "by-factors", "by-judge", "by-clusters", "canary")
"""Names whose policy weighs cost against quality, and so knows both ends."""


def command(*words: object, env: dict[str, str] | None = None) -> str:
    result = CliRunner().invoke(main, [str(word) for word in words], env=env)
    assert result.exit_code == 0, result.output
    return result.output


def table(path: Path, **outcomes: list[tuple[str, float]]) -> None:
    """A CSV of prompts with a column of outcomes for each name."""
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["prompt", *outcomes])
        for row in zip(*outcomes.values(), strict=True):
            writer.writerow([row[0][0], *(outcome for _, outcome in row)])


def fit(folder: Path) -> None:
    """What the file's head says; the small model can do no code and nothing hard."""
    prompts, traffic, clusters = folder / "prompts.csv", folder / "traffic.csv", folder / "clusters.npz"
    topics = [*CODE, *LAWS]
    table(
        prompts,
        strong_correct=[(prompt, 1) for prompt in topics],
        weak_correct=[(prompt, float(prompt in LAWS)) for prompt in topics],
        coder_correct=[(prompt, 1.0 if prompt in CODE else index % 2) for index, prompt in enumerate(topics)],
    )
    table(
        traffic,
        strong_correct=[(prompt, 1) for prompt in (*EASY, *HARD)],
        weak_correct=[(prompt, float(prompt in EASY)) for prompt in (*EASY, *HARD)],
    )
    command("fit", "similarity", prompts, "-o", folder / "similarity.npz", "--neighbors", 10)
    command("fit", "factorization", prompts, "-o", folder / "factors.npz")
    command("fit", "clusters", prompts, "-o", clusters, "--clusters", 2, "--clusterings", 1)
    command("calibrate", traffic, "--max-quality-drop", 0.05, "-o", folder / "difficulty.json")
    share = ("--artifact", folder / "similarity.npz", "--strong-share", 0.5)
    command("calibrate", prompts, *share, "-o", folder / "similarity.json")
    (folder / "profiles").mkdir()
    profiles = {"small": "weak", "large": "strong", "coder": "coder"}
    for name, column in profiles.items():
        # The coder's is kept back: it joins while the server runs.
        out = folder / ("" if name == "coder" else "profiles") / f"{name}.json"
        of = ("--column", f"{column}_correct", "--model", f"org/{name}", "--clusters", clusters)
        command("profile", "fit", prompts, *of, "--out", out)


@dataclass
class Running:
    """The file at work, and what is behind it."""

    folder: Path
    settings: dict[str, str]
    """Addresses, as the environment gives them."""
    gateway: Gateway
    sidecar: Sidecar
    background: Background
    pools: dict[str, Pool]
    judge: OpenAIServer
    page: Pool
    """The coder's metrics page, on a server of its own."""

    @property
    def config(self) -> Path:
        return self.folder / EXAMPLE.name

    def metric(self, line: str) -> float:
        """The value of the first line of the metrics page that begins so; 0 if there is none."""
        found = [
            each for each in self.sidecar.read_admin("/metrics")[1].splitlines() if each.startswith(line)
        ]
        return float(found[0].rpartition(" ")[2]) if found else 0.0


def judgment(body: dict[str, Any]) -> dict[str, Any]:
    """The judge thinks little of the small model's code."""
    return labeled({"2": 0.9, "5": 0.1} if "Python" in body["messages"][1]["content"] else {"5": 1.0})


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory, pools: Pools) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("every")
    fit(folder)
    shutil.copy(EXAMPLE, folder)
    background = Background()
    speed = Speed(first_token_seconds=0.005, token_seconds=0.0, slots=64)
    served = {name: Pool(name, (f"org/{name}",), speed) for name in ("small", "large", "coder")}
    page = Pool("page", ("org/coder",), speed)
    judge = OpenAIServer(judgment)
    for server in (*served.values(), page, judge):
        background.run(server.__aenter__())
    pages = {"small": served["small"], "large": served["large"], "coder": page}
    settings = {
        f"POOLS__{name.upper()}__METRICS": f"http://127.0.0.1:{pool.port}/metrics"
        for name, pool in pages.items()
    }
    settings["STRATEGIES__JUDGED__URL"] = judge.url
    settings["STRATEGIES__JUDGED__TIMEOUT_MS"] = "900"
    settings["SERVER__DEADLINE_MS"] = str(DEADLINE_MS)
    sidecar = start_sidecar(folder, config=folder / EXAMPLE.name, **settings)
    addresses = {f"vllm-{name}": ("127.0.0.1", pool.port) for name, pool in served.items()}
    gateway = start_gateway(folder, [sidecar], pools, addresses=addresses)
    yield Running(folder, settings, gateway, sidecar, background, served, judge, page)
    gateway.envoy.stop()
    sidecar.stop()
    for server in (*served.values(), page, judge):
        background.run(server.__aexit__())
    background.close()


@pytest.fixture
def running(started: Running, watch: Callable[[Gateway], None]) -> Running:
    watch(started.gateway)
    return started


async def ask(
    running: Running, model: str, prompt: str = NEW_CODE, tries: int = 1, **headers: str
) -> dict[str, Any]:
    """The decision's metadata; every request is a conversation of its own unless it names one."""
    body = chat(prompt, model, max_tokens=300, reasoning_effort="low")
    return await send(running, body, tries, **headers)


async def send(running: Running, body: dict[str, Any], tries: int = 1, **headers: str) -> dict[str, Any]:
    """Send; `tries` is how often this request id will then have been logged."""
    request_id = headers.setdefault("x-request-id", str(uuid.uuid4()))
    headers.setdefault("x-semroute-session", str(uuid.uuid4()))
    async with (
        aiohttp.ClientSession(running.gateway.url) as session,
        session.post("/v1/chat/completions", json=body, headers=headers) as response,
    ):
        await response.read()
        assert response.status == 200
        assert response.headers["x-semroute-outcome"] == "routed"
        answered = response.headers["x-sim-pool"]
    wait_for(lambda: len(lines(running, request_id)) >= tries, 5, f"the log's line of {request_id}")
    facts: dict[str, Any] = lines(running, request_id)[-1]["semroute"]
    assert facts["pool"] == answered, "the pool that was chosen is the pool that answered"
    assert "fallback" not in facts
    assert facts["decision_ms"] < DEADLINE_MS
    return facts


@pytest.mark.parametrize(
    ("model", "prompt", "pool", "strategy", "reason"), CASES, ids=lambda value: str(value)[:24]
)
async def test_each_name_is_decided_by_its_strategy(
    running: Running, model: str, prompt: str, pool: str, strategy: str, reason: str
) -> None:
    facts = await ask(running, model, prompt)
    assert (facts.get("strategy", ""), facts["pool"]) == (strategy, pool), facts["reason"]
    assert facts["reason"].startswith(reason)


async def test_the_judge_was_asked_and_remembers(running: Running) -> None:
    prompt = "Write a Python function that nobody has asked about."
    assert [(await ask(running, "by-judge", prompt))["judge"] for _ in range(2)] == ["ok", "cache"]


async def test_an_intent_that_is_not_clear_abstains(running: Running) -> None:
    reason = (await ask(running, "by-subject", VAGUE))["reason"]
    assert reason.startswith("text is out of distribution"), reason


@pytest.mark.parametrize("model", WEIGHING)
async def test_both_ends_of_quality_are_promises(running: Running, model: str) -> None:
    for prompt in (NEW_CODE, NEW_LAW):
        for quality, pool in (("0", "small"), ("1", "large")):
            facts = await ask(running, model, prompt, **{"x-semroute-quality": quality})
            assert facts["pool"] == pool, (prompt, facts["reason"])


async def test_effort_follows_the_difficulty_and_not_the_client(running: Running) -> None:
    for prompt, effort, thinking in ((NEW_EASY, "none", False), (NEW_HARD, "high", True)):
        facts = await ask(running, "by-difficulty", prompt)
        assert (facts["reasoning"], facts["reasoning_from"]) == (effort, "policy"), facts["difficulty"]
        received = json.loads(running.pools[facts["pool"]].received[-1].body)
        assert received["chat_template_kwargs"]["enable_thinking"] is thinking


async def test_a_rule_comes_before_its_policys_strategy(running: Running) -> None:
    facts = await ask(running, "by-difficulty", NEW_HARD, **{"x-tier": "free"})
    assert (facts["pool"], facts["rule"]) == ("small", "free-tier")


async def test_shadows_are_recorded_and_not_acted_on(running: Running) -> None:
    facts = await ask(running, "by-difficulty", NEW_EASY)
    assert facts["pool"] == "small"
    assert [shadow.split("=")[0] for shadow in facts["shadow"].split()] == ["similarity", "clusters"]


@pytest.mark.parametrize(
    ("model", "fact", "drawn"),
    [("drawn", "pool", {"small", "large"}), ("canary", "policy", {"difficulty", "similarity"})],
)
async def test_canaries_draw_by_request_id(running: Running, model: str, fact: str, drawn: set[str]) -> None:
    """Of sixteen fixed ids both halves have some, and a retry goes where the first try went."""
    rng = random.Random(model)
    # Of version 4: Envoy writes that digit into any other.
    ids = [str(uuid.UUID(int=rng.getrandbits(128), version=4)) for _ in range(16)]
    seen = [(await ask(running, model, NEW_LAW, **{"x-request-id": each}))[fact] for each in ids]
    assert set(seen) == drawn
    for each, first in zip(ids[:3], seen, strict=False):
        again = await ask(running, model, NEW_LAW, tries=2, **{"x-request-id": each})
        assert again[fact] == first


def lines(running: Running, request_id: str) -> list[dict[str, Any]]:
    return [line for line in running.gateway.envoy.access_log() if line["request_id"] == request_id]


async def test_a_conversation_keeps_its_pool_in_a_tool_loop(running: Running) -> None:
    named = {"x-semroute-session": "conversation"}
    assert (await ask(running, "by-factors", NEW_CODE, **named))["pool"] == "large"
    loop = chat(NEW_LAW, "by-factors", max_tokens=1)
    loop["messages"] += [
        {"role": "assistant", "content": "Looking."},
        {"role": "tool", "content": "42", "tool_call_id": "1"},
    ]
    facts = await send(running, loop, **named)
    assert (facts["pool"], facts["session"]) == ("large", "locked")


def test_the_controllers_show_what_they_know(running: Running) -> None:
    wait_for(
        lambda: all(
            pool["known"]
            for pool in json.loads(running.sidecar.read_admin("/controllers")[1])["pools"].values()
        ),
        10,
        "every pool's page to be read",
    )
    assert running.metric('semroute_budget_target{strategy="factors"}') == 0.5
    assert running.metric("semroute_sessions_total{") > 0


def test_check_and_explain_understand_the_same_file(running: Running) -> None:
    env = {f"SEMROUTE__{key}": value for key, value in running.settings.items()}
    command("check", "-c", running.config, env=env)
    for model, pool, strategy in (("by-judge", "large", "judged"), ("by-clusters", "large", "clusters")):
        words = ("explain", "-c", running.config, "--model", model, "--text", NEW_CODE, "--json")
        told = json.loads(command(*words, env=env))
        assert (told["pool"], told["strategy"]) == (pool, strategy), told["reason"]


async def test_a_new_model_joins_by_its_profile_and_gets_what_it_is_good_at(running: Running) -> None:
    assert running.metric('semroute_profiles{strategy="clusters"}') == 2
    shutil.copy(running.folder / "coder.json", running.folder / "profiles")
    wait_for(lambda: running.metric('semroute_profiles{strategy="clusters"}') == 3, 15, "the coder to join")
    assert (await ask(running, "by-clusters", NEW_CODE))["pool"] == "coder"
    assert (await ask(running, "by-clusters", NEW_LAW))["pool"] == "small"


async def test_a_dead_judge_and_a_dead_metrics_page_cost_nobody_an_answer(running: Running) -> None:
    """Both are counted; `send` holds every decision to the deadline."""
    running.background.run(running.judge.__aexit__())
    running.background.run(running.page.stop())
    # The default breaker opens after five failures in a row.
    came = [(await ask(running, "by-judge", prompt))["judge"] for prompt in CODE[:7]]
    assert set(came[:5]) <= {"connection", "timeout"}
    assert came[5:] == ["breaker"] * 2
    failures = 'semroute_pool_scrape_failures_total{pool="coder"}'
    wait_for(lambda: running.metric(failures) > 0, 15, "the dead page to be counted")
    for model in (*WEIGHING, "by-subject", "always-large"):
        await ask(running, model, NEW_LAW)
    assert running.metric('semroute_fallbacks_total{reason="deadline"}') == 0
