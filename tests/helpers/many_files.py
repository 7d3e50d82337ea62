"""A decision log and a table in many files, and the commands that read them, for tests of the engines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from click.testing import CliRunner, Result
from live_log import SHIPPED, chat, write_log
from semroute_lab.common.writing import write_artifact

from semroute_extproc.cli import main
from semroute_extproc.settings.process import DecisionLog
from semroute_extproc.strategies.artifact import ArtifactManifest
from semroute_extproc.strategies.clusters import ClustersArtifact
from semroute_extproc.telemetry.decision_log import log_files

CONFIG = """\
encoder: {by_language: {}}
telemetry: {decision_log: {path: made, embedding: true, prompts: true}}
pools:
  small: {cluster: s, model: weak, price: {input: 1, output: 2}}
  large: {cluster: l, model: strong, price: {input: 10, output: 20}}
default_pool: large
models: {auto: {policy: main}}
policies:
  main:
    rules: [{name: signals, when: "difficulty > 1.0", pool: large}]
    otherwise: {strategy: STRATEGY}
strategies:
  coin: {kind: weighted, weights: {small: 1, large: 1}}
  pair: {kind: threshold, weak: small, strong: large, threshold: 0.5}
"""
PROMPTS = 150  # Each is asked four times, so that most have answers of both models.


def make_home(home: Path) -> Path:
    """A log of Parquet files and one of JSON Lines, a table in folders, two configurations, and clusters."""
    for name, strategy in (("semroute", "coin"), ("new", "pair")):
        (home / f"{name}.yaml").write_text(CONFIG.replace("STRATEGY", strategy))
    rng = np.random.default_rng(0)
    hard = [round(float(each), 3) for each in rng.uniform(0.02, 0.98, PROMPTS)]
    texts = [f"Tell me about thing number {n} {hard[n]}" for n in range(PROMPTS)] * 4
    made = write_log(home / "semroute.yaml", ((chat(text), {}) for text in texts))
    lines = list[dict[str, Any]]()
    for number, line in enumerate((made / "decisions-0.jsonl").read_text().splitlines()):
        record = json.loads(line) | {"time": float(number)}
        good = record["model"] == "strong" or record["difficulty"] < 0.6
        said = {"outcome": float(good), "source": "user", "time": 1e6 + number}
        used = {"output_tokens": 100 + number % 7, "duration_ms": 10.0, "time": 1e6 + number}
        ids = {"request_id": record["request_id"]}
        lines += [record, {"record": "usage", **ids, **used}, {"record": "outcome", **ids, **said}]
    # Outcomes come late: most are in another file than their decision.
    lines.sort(key=lambda each: each["time"])
    settings = DecisionLog(path=home / "log", format="parquet", rotate_bytes=300_000, keep=1_000)
    files = log_files(settings, 0)
    for line in lines:
        files.append(json.dumps(line).encode() + b"\n")
    files.close()
    assert len(list((home / "log").glob("date=*/*.parquet"))) >= 3
    x = SHIPPED.centroids[:4]
    about = {"bundle": SHIPPED.manifest.name, "revision": SHIPPED.revision, "dimensions": x.shape[1]}
    manifest = ArtifactManifest(kind="clusters", rows=4, seed=0, **about)
    write_artifact(home / "k.npz", ClustersArtifact(manifest, x, None, tuple("abcd")))
    for number in range(4):
        part = home / "table" / f"split={('dev', 'test')[number % 2]}"
        part.mkdir(parents=True, exist_ok=True)
        level = rng.uniform(size=50)
        columns = {"prompt": [f"{number} {n}" for n in range(50)], "outcome.strong": np.ones(50)}
        pq.write_table(pa.table(columns | {"outcome.weak": level.round()}), part / f"{number}.parquet")
    return home


BUNDLE = ("--bundle", str(SHIPPED.path))
MODELS = ("--strong-model", "strong", "--weak-model", "weak")
FIT, COLUMN = (*BUNDLE, "--json", "-o", "OUT"), ("--column", "outcome.strong")
COMMANDS: dict[str, tuple[object, ...]] = {
    "replay": ("replay", "log", "-c", "new.yaml", "--bootstrap", 50, "--json"),
    "share": ("calibrate", "log", "--strong-share", 0.3, *BUNDLE, "--json"),
    "drop": ("calibrate", "log", "--max-quality-drop", 0.05, "--bootstrap", 50, *MODELS, *BUNDLE, "--json"),
    "clusters": (
        "fit",
        "clusters",
        "log",
        "--clusters",
        4,
        "--clusterings",
        1,
        *BUNDLE,
        "--json",
        "-o",
        "OUT",
    ),
    "similarity": ("fit", "similarity", "log", *BUNDLE, "--json", "-o", "OUT"),
    "factorization": ("fit", "factorization", "log", *BUNDLE, "--json", "-o", "OUT"),
    "profile": (
        "profile",
        "fit",
        "log",
        "--column",
        "outcome.strong",
        "--clusters",
        "k.npz",
        *BUNDLE,
        "--out",
        "OUT",
    ),
    "eval": ("eval", "pair", "table", "--no-bundle", "--bootstrap", 50, "--json", "-"),
}


IN_PARTS = ("--memory", 1)


def run(name: str, home: Path, out: Path, *more: object) -> Any:
    """What a command prints or writes."""
    paths = {name: home / name for name in ("log", "table", "new.yaml", "k.npz")} | {"OUT": out}
    arguments = [str(paths.get(each, each)) for each in COMMANDS[name]]  # type: ignore[call-overload]
    result: Result = CliRunner().invoke(main, [*arguments, *map(str, more)])
    assert result.exit_code == 0, result.output
    if name == "profile":
        return json.loads(out.read_text())
    return json.loads(result.stdout) | {"artifact": out.read_bytes() if out.exists() else b""}
