"""`semroute replay`: the same configuration decides the same, another one differs where it must."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from live_log import SHIPPED, chat, write_log
from semroute_lab.common.writing import write_artifact
from semroute_lab.replay.cli import replay
from semroute_lab.replay.report import Bootstrap

from semroute_extproc.strategies.artifact import ArtifactManifest
from semroute_extproc.strategies.similarity import SimilarityArtifact

CONFIG = """\
server: {deadline_ms: 10000}
encoder: {by_language: {}}
telemetry: {decision_log: {path: log, headers: [x-tier], embedding: EMBEDDING, prompts: PROMPTS}}
pools:
  small: {cluster: s, model: org/small, price: {input: 1, output: 2}, context: 3000}
  large: {cluster: l, model: org/large, price: {input: 10, output: 20}}
default_pool: large
models:
  auto: {policy: main, canary: {explore: 0.2}}
policies:
  main:
    rules:
    - {name: tier, when: 'request.headers["x-tier"] == "free"', pool: small}
    - {name: stuck, when: request.reask, pool: large}
    - {name: law, when: domain == "law" && tools == 0, strategy: fixed}
    otherwise: {strategy: pair}
  explore: {otherwise: {strategy: coin}}
strategies:
  pair: {kind: threshold, weak: small, strong: large, strong_share: 0.3}
  fixed: {kind: threshold, weak: small, strong: large, threshold: THRESHOLD}
  coin: {kind: weighted, weights: {small: 1, large: 3}}
  experts: {kind: intent, experts: {law: large}, otherwise: small, on_unknown: small, max_entropy: 1.0}
controllers:
  session: {}
  budgets: {pair: {strong_share: 0.4}}
"""


def write_config(path: Path, **changes: str) -> Path:
    """The configuration; `pair="…"` replaces a line, capitals replace a word."""
    text = CONFIG
    for name, value in {"THRESHOLD": "0.5", "EMBEDDING": "false", "PROMPTS": "false", **changes}.items():
        if name.isupper():
            text = text.replace(name, value)
        else:
            lines = text.splitlines()
            at = next(at for at, line in enumerate(lines) if line.strip().startswith(f"{name}:"))
            lines[at] = lines[at].split(name + ":")[0] + f"{name}: {value}"
            text = "\n".join(lines) + "\n"
    path.write_text(text)
    return path


def requests(count: int = 240) -> Iterator[tuple[Mapping[str, Any], Mapping[str, str]]]:
    """All kinds: tiers, domains, conversations, tools, long prompts, named pools, unknown models."""
    rng = np.random.default_rng(1)
    for number in range(count):
        kind, difficulty = number % 12, round(float(rng.uniform(0.01, 0.99)), 4)
        text = f"{('Explain this law', 'Tell me about a thing')[number % 2]} number {number} {difficulty}"
        headers = (
            {"x-tier": "free"} if kind == 1 else {"x-session-id": f"s{number // 24}"} if kind > 8 else {}
        )
        body = chat(text)
        if kind == 2:
            body = chat(text, text)
        elif kind == 3:
            tool = {"type": "function", "function": {"name": "f", "parameters": {}}}
            body = chat(text, tools=[tool], max_tokens=50)
        elif kind == 4:
            body = chat(f"{'word ' * 4_000} {text}")
        elif kind == 5:
            body["model"] = ("org/small", "gpt-9")[number % 2]
        elif kind == 6:
            headers["x-semroute-quality"] = ("0", "0.5", "1")[number % 3]
        yield body, headers


def run(log: Path, config: Path, *more: object) -> dict[str, Any]:
    arguments = [str(log), "-c", str(config), "--json", "--examples", "100000", *map(str, more)]
    result: Result = CliRunner().invoke(replay, arguments)
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


@pytest.mark.parametrize(
    "change",
    [
        {"facts": "x"},
        {"facts": [1]},
        {"headers": [1]},
        {"bounds": 5},
        {"bounds": [1]},
        {"counted": {"small": 5}},
    ],
)
def test_a_damaged_record_is_counted_and_kept(log: Path, config: Path, tmp_path: Path, change: Any) -> None:
    first, *rest = (each for each in records(log) if each.get("strategy"))
    lines = [json.dumps(each) for each in ({**first, **change}, *rest)]
    (tmp_path / "log.jsonl").write_text("\n".join(lines))
    report = run(tmp_path / "log.jsonl", config)
    assert report["decisions"] == len(lines)
    assert report["kept"] == {"the record is damaged": 1}


def test_a_request_that_no_pool_can_serve_any_more_is_refused(
    log: Path, config: Path, tmp_path: Path
) -> None:
    first, *rest = (each for each in records(log) if each.get("strategy"))
    first["facts"]["max_output_tokens"] = 10**9
    (tmp_path / "log.jsonl").write_text("\n".join(map(json.dumps, (first, *rest))))
    assert run(tmp_path / "log.jsonl", config)["pools"]["(refused)"]["after"]["value"] > 0


@pytest.mark.parametrize(
    "line", ['{"record": "decision", "failed_pools": 5}', '{"record": "decision", "x": %s}' % ("[" * 10**5)]
)
def test_a_line_that_is_no_record_is_counted(log: Path, config: Path, tmp_path: Path, line: str) -> None:
    (tmp_path / "log.jsonl").write_text("\n".join([line, *map(json.dumps, records(log))]))
    assert run(tmp_path / "log.jsonl", config)["unreadable"] == 1


def test_what_a_client_wrote_controls_no_terminal(tmp_path: Path) -> None:
    own = write_config(tmp_path / "semroute.yaml", PROMPTS="true")
    made = [
        {**each, "request_id": "\x9b2J", "prompt": "\x1b]0;a\x07"}
        for each in records(write_log(own, requests(6)))
    ]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps({**each, "pool": "gone"}) + "\n" for each in made))
    result = CliRunner().invoke(replay, [str(tmp_path / "log.jsonl"), "-c", str(own)])
    assert "?2J" in result.stdout
    assert all(each.isprintable() for each in result.stdout.replace("\n", ""))


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_config(tmp_path_factory.mktemp("replay") / "semroute.yaml")


@pytest.fixture(scope="module")
def log(config: Path) -> Path:
    """All decisions but those of named pools and unknown models were made by a policy."""
    return write_log(config, requests())


def records(log: Path) -> list[dict[str, Any]]:
    lines = (log / "decisions-0.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_the_same_configuration_decides_every_request_as_it_did(log: Path, config: Path) -> None:
    report = run(log, config)
    assert report["flips"] == []
    assert report["agreement"]["value"] == 1.0
    assert report["decisions"] == 240
    assert report["kept"] == {"no policy decided": 20}
    # The log is not trivial: every way to decide occurs.
    made = records(log)
    for column, values in {
        "rule": {"tier", "stuck", "law"},
        "strategy": {"pair", "fixed", "coin"},
        "canary": {"explore"},
        "session": {"new", "same", "kept", "moved"},
        "pool": {"small", "large"},
    }.items():
        assert values <= {each.get(column) for each in made}, column
    assert len({each["threshold"] for each in made if each.get("strategy") == "pair"}) > 10
    assert any("bias" in each for each in made)


@pytest.mark.parametrize("named", [True, False])
def test_a_changed_threshold_flips_exactly_the_requests_between_both(
    log: Path, config: Path, tmp_path: Path, named: bool
) -> None:
    new = write_config(tmp_path / "new.yaml", THRESHOLD="0.8")
    report = run(log, new, *(["--old", config] if named else []))
    made = {each["request_id"]: each for each in records(log) if each.get("strategy") == "fixed"}
    between = {
        key
        for key, each in made.items()
        if 0.5 <= each["score"] < 0.8
        and each["prompt_tokens"] < 2_000  # The prompt fits the small pool.
        and each.get("quality") not in (0.0, 1.0)  # Its threshold is used.
        and each["session"] != "same"  # A conversation does not move down, but may not move up now.
    }
    assert len(between) > 5
    flipped = {each["request_id"]: (each["before"], each["after"]) for each in report["examples"]}
    fixed = flipped.keys() & made.keys()
    assert fixed == between
    assert {flipped[key] for key in fixed} == {("large", "small")}
    if named:
        # The other strategy is the same, so its logged thresholds hold.
        assert flipped.keys() == fixed


def test_more_share_costs_more_dollars_within_its_interval(log: Path, config: Path, tmp_path: Path) -> None:
    pair = "{kind: threshold, weak: small, strong: large, strong_share: 0.9}"
    report = run(log, write_config(tmp_path / "new.yaml", pair=pair), "--old", config)
    large = report["pools"]["large"]
    assert large["after"]["value"] > large["before"]["value"]
    assert large["after"]["low"] < large["after"]["value"] < large["after"]["high"]
    dollars = report["dollars_per_thousand"]
    assert dollars["difference"]["low"] > 0
    assert dollars["after"]["value"] - dollars["before"]["value"] == pytest.approx(
        dollars["difference"]["value"]
    )
    # By hand: prices per million tokens, 300 tokens of an answer or its limit.
    price, total = {"small": (1, 2), "large": (10, 20)}, 0.0
    made = [each for each in records(log) if "facts" in each]
    for each in made:
        output = min(each["facts"]["max_output_tokens"] or 300, 300)
        total += (price[each["pool"]][0] * each["prompt_tokens"] + price[each["pool"]][1] * output) / 1e6
    assert dollars["before"]["value"] == pytest.approx(1_000 * total / len(made))


def test_usage_replaces_the_estimate_and_gives_the_latency(log: Path, config: Path, tmp_path: Path) -> None:
    folder = tmp_path / "log"
    folder.mkdir()
    made = [each for each in records(log) if "facts" in each]
    usage = [
        {
            "record": "usage",
            "request_id": each["request_id"],
            "input_tokens": 1_000_000,
            "output_tokens": 0,
            "duration_ms": 100 if each["pool"] == "small" else 500,
        }
        for each in made
    ]
    (folder / "a.jsonl").write_text("".join(json.dumps(each) + "\n" for each in [*made, *usage]))
    report = run(folder, config)
    large = sum(each["pool"] == "large" for each in made) / len(made)
    assert report["dollars_per_thousand"]["before"]["value"] == pytest.approx(1_000 * (1 + 9 * large))
    assert report["latency_ms"]["before"] == pytest.approx(100 + 400 * large)
    assert report["usage_rows"] == len(made)


def test_an_expert_needs_only_the_logged_probabilities(log: Path, config: Path, tmp_path: Path) -> None:
    text = write_config(tmp_path / "new.yaml").read_text().replace("strategy: pair}", "strategy: experts}")
    (tmp_path / "new.yaml").write_text(text)
    report = run(log, tmp_path / "new.yaml", "--old", config)
    assert report["decided_again"] == 220
    for each in report["examples"]:
        assert each["after"] in each["reason"] or "domain" in each["reason"]


@pytest.mark.parametrize(
    ("when", "missing"),
    [
        ('request.headers["x-team"] == "a"', "the header x-team (decision_log.headers)"),
        ('"x-team" in request.headers', "the header x-team (decision_log.headers)"),
        ("request.headers.exists(h, h == 'x-team')", "the header * (decision_log.headers)"),
        ('request.tenant == "a"', "the header x-semroute-tenant (decision_log.headers)"),
        ('request.text.contains("x")', "text (decision_log.prompts)"),
        ('request.user == "x"', "text (decision_log.prompts)"),
    ],
)
def test_a_condition_on_what_is_not_logged_keeps_the_decision_and_says_so(
    log: Path, tmp_path: Path, when: str, missing: str
) -> None:
    tier = next(line for line in CONFIG.splitlines() if "name: tier" in line)
    new = write_config(tmp_path / "new.yaml")
    quoted = json.dumps(when)
    new.write_text(new.read_text().replace(tier, f"    - {{name: other, when: {quoted}, pool: small}}"))
    report = run(log, new)
    assert report["kept"][f"the log lacks {missing}"] > 100


def test_logged_prompts_answer_what_signals_and_facts_do_not(tmp_path: Path) -> None:
    """Of requests that a rule decided there are no signals: the encoder reads their texts now."""
    own = write_config(tmp_path / "semroute.yaml", PROMPTS="true")
    made = write_log(own, list(requests(36)))
    assert run(made, own)["agreement"]["value"] == 1.0
    tier = next(line for line in CONFIG.splitlines() if "name: tier" in line)
    word = tier.replace("tier", "word").replace(
        'request.headers["x-word"] == "free"', 'request.text.contains("zzz")'
    )
    new = tmp_path / "new.yaml"
    new.write_text(own.read_text().replace(tier, word + "\n" + tier.replace("pool: small", "strategy: pair")))
    report = run(made, new, "--old", own)
    assert report["decided_again"] == 33
    assert all(each["prompt"] for each in report["examples"])
    bare = records(made)
    for each in bare:
        each.pop("prompt", None)
    (tmp_path / "bare.jsonl").write_text("".join(json.dumps(each) + "\n" for each in bare))
    new.write_text(own.read_text().replace(tier, tier.replace("pool: small", "strategy: pair")))
    missing = "the log lacks signals of this bundle and prompts (decision_log.prompts)"
    assert run(tmp_path / "bare.jsonl", new, "--old", own)["kept"][missing] >= 1


def test_the_output_fits_80_columns(log: Path, config: Path, tmp_path: Path) -> None:
    pair = "{kind: threshold, weak: small, strong: large, strong_share: 0.9}"
    new = write_config(tmp_path / "new.yaml", pair=pair)
    result = CliRunner().invoke(replay, [str(log), "-c", str(new), "--old", str(config)])
    assert result.exit_code == 0, result.output
    assert max(map(len, result.stdout.splitlines())) <= 80
    tier = next(line for line in CONFIG.splitlines() if "name: tier" in line)
    new.write_text(new.read_text().replace(tier, tier.replace("x-tier", "x-" + "long-" * 12)))
    result = CliRunner().invoke(replay, [str(log), "-c", str(new)])
    assert "kept: the log lacks the header x-long" in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 80


def test_the_output_names_what_changes(log: Path, config: Path, tmp_path: Path) -> None:
    pair = "{kind: threshold, weak: small, strong: large, strong_share: 0.9}"
    new = write_config(tmp_path / "new.yaml", pair=pair)
    result = CliRunner().invoke(replay, [str(log), "-c", str(new), "--old", str(config)])
    for word in ("agree", "large", "dollars per 1,000", "flips", "small to large", "id-"):
        assert word in result.stdout


def test_lines_that_are_no_records_are_counted(log: Path, config: Path, tmp_path: Path) -> None:
    made = (log / "decisions-0.jsonl").read_text()
    (tmp_path / "a.jsonl").write_text(made + '{"cut\n\n[1]\n' + made.splitlines()[0] + "\n")
    result = CliRunner().invoke(replay, [str(tmp_path / "a.jsonl"), "-c", str(config)])
    assert f"note: 3 lines are no records, such as {tmp_path}/a.jsonl:243" in result.output


def test_a_file_without_decisions_is_refused(config: Path, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("{}\n")
    result = CliRunner().invoke(replay, [str(tmp_path / "a.jsonl"), "-c", str(config)])
    assert result.exit_code != 0
    assert "expected records of decisions" in result.output


def test_a_log_that_is_larger_than_memory_is_read(log: Path, config: Path, tmp_path: Path) -> None:
    """The same command on a log of 80 times the size takes little more memory, in every process."""
    made = [each for each in records(log) if "facts" in each]

    def peak(copies: int) -> int:
        folder = tmp_path / f"log-{copies}"
        folder.mkdir()
        with (folder / "a.jsonl").open("w") as stream:
            for copy in range(copies):
                for each in made:
                    stream.write(json.dumps({**each, "request_id": f"{each['request_id']}-{copy}"}) + "\n")
                    use = {
                        "record": "usage",
                        "request_id": f"{each['request_id']}-{copy}",
                        "output_tokens": 3,
                    }
                    stream.write(json.dumps({**use, "pad": "x" * 500}) + "\n")
        code = (
            "import resource, sys; from semroute_lab.replay.cli import replay\n"
            "try: replay(sys.argv[1:])\n"
            "except SystemExit as end: assert not end.code\n"
            "which = resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN\n"
            "print(max(resource.getrusage(each).ru_maxrss for each in which))"
        )
        bounds = ["--bootstrap", "50", "--memory", "1"]
        command = [sys.executable, "-c", code, str(folder), "-c", str(config), "--json", *bounds]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        report, kib = done.stdout.splitlines()
        assert json.loads(report)["decided_again"] == copies * len(made)
        return int(kib)

    small, large = peak(1), peak(80)
    size = sum(path.stat().st_size for path in (tmp_path / "log-80").iterdir()) / 1024
    assert large - small < size / 2


def test_a_record_that_lacks_a_column_is_kept(log: Path, config: Path, tmp_path: Path) -> None:
    first, *_ = (each for each in records(log) if "facts" in each)
    del first["facts"]["images"]
    (tmp_path / "a.jsonl").write_text(json.dumps(first) + "\n")
    assert run(tmp_path / "a.jsonl", config)["kept"] == {"the log lacks 'images'": 1}


@pytest.mark.parametrize("embedding", ["true", "false"])
def test_a_strategy_with_an_artifact_reads_the_embedding_or_the_score_that_was_logged(
    tmp_path: Path, embedding: str
) -> None:
    """Its scores are the same in both cases; only with the embedding can another strategy read it."""
    artifact = tmp_path / "similar.npz"
    rng = np.random.default_rng(3)
    vectors = rng.standard_normal((40, SHIPPED.centroids.shape[1])).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    manifest = ArtifactManifest(
        kind="similarity",
        bundle=SHIPPED.manifest.name,
        revision=SHIPPED.revision,
        dimensions=vectors.shape[1],
        rows=40,
        seed=0,
    )
    wins = rng.uniform(size=40).astype(np.float32)
    quantiles = tuple(np.linspace(0.4, 0.6, 101).tolist())
    write_artifact(artifact, SimilarityArtifact(manifest, vectors, None, wins, 10.0, 0, quantiles))
    similar = "{kind: similarity, weak: small, strong: large, artifact: similar.npz, strong_share: SHARE}"
    own = write_config(tmp_path / "semroute.yaml", pair=similar.replace("SHARE", "0.3"), EMBEDDING=embedding)
    made = write_log(own, list(requests(60)))
    assert run(made, own)["agreement"]["value"] == 1.0
    more = write_config(tmp_path / "more.yaml", pair=similar.replace("SHARE", "0.9"), EMBEDDING=embedding)
    assert run(made, more, "--old", own)["decided_again"] == 55
    other = run(made, more)
    missing = other["kept"].get("the log lacks the embedding (decision_log.embedding)", 0)
    assert (missing > 10) == (embedding == "false")


def test_the_streamed_bootstrap_has_the_width_of_the_normal_interval() -> None:
    rng = np.random.default_rng(5)
    drawn = Bootstrap(2_000, seed=1)
    for value in (values := rng.normal(3.0, 1.0, 5_000)):
        drawn.add(float(value), float(value) + 1.0)
    found = drawn.means(1.0)
    assert found is not None
    half = 1.96 * values.std() / np.sqrt(len(values))
    for name, middle in (("before", values.mean()), ("after", values.mean() + 1)):
        figure = found[name]
        assert figure["value"] == pytest.approx(middle)
        assert (figure["high"] - figure["low"]) / 2 == pytest.approx(half, rel=0.15)
    assert found["difference"]["low"] == pytest.approx(1.0)
    assert Bootstrap(10, seed=1).means(1.0) is None
