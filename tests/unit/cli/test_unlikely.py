"""Every check of unlikely.toml holds for the setting that it is about, and not for others."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest

from semroute_extproc.cli import unlikely
from semroute_extproc.cli.envoy_file import MESSAGE_SECONDS_MIN
from semroute_extproc.config import source
from semroute_extproc.encoder import bundle
from semroute_extproc.state.pool_metrics import INTERVAL_SECONDS

CONFIG = """\
---
pools:
  small: {cluster: a, model: org/small, context: 8000, price: {input: 0.1, output: 0.2}}
  large: {cluster: b, model: org/large, context: 9000, price: {input: 1, output: 2}, metrics: 'http://b:1'}
default_pool: large
models: {auto: {policy: main}}
policies: {main: {otherwise: {strategy: pair}}, other: {otherwise: {pool: small}}}
strategies:
  pair: {kind: threshold, weak: small, strong: large, strong_share: 0.3}
  fixed: {kind: threshold, weak: small, strong: large, threshold: 0.5}
...
"""
MACHINE = {"cores": 4, "memory": 10**9, "pass_ms": 9.0}
JUDGE = "{kind: judge, weak: small, strong: large, url: 'http://j:1/v1', model: m, threshold: 0.5, "
LOAD = "{floor: 0.05, ceiling: 0.9}"
STORE = "{url: 'valkey://h', key: 0123456789abcdef, replicas: 1, timeout_ms: 3}"

CASES: list[tuple[str, dict[str, str], str]] = [
    ("server.deadline_ms", {"SERVER__DEADLINE_MS": "8"}, "a pass of the encoder takes 9.0 ms"),
    ("server.deadline_ms", {"SERVER__DEADLINE_MS": "2500"}, "set message_timeout to 3.5s"),
    ("server.workers", {"SERVER__WORKERS": "5"}, "may use 4 of the cores"),
    ("encoder.threads", {"SERVER__WORKERS": "3", "ENCODER__THREADS": "2"}, "6 threads in all"),
    ("encoder.cache_entries", {"ENCODER__CACHE_ENTRIES": "100000"}, "takes 600.0 MB of 1.0 GB of memory"),
    (
        "controllers.session.entries_max",
        {"CONTROLLERS__SESSION": "{entries_max: 2000000}"},
        "take 600.0 MB of 1.0 GB",
    ),
    (
        "controllers.store.timeout_ms",
        {"CONTROLLERS__STORE": STORE, "SERVER__DEADLINE_MS": "2"},
        "is not below server.deadline_ms (2)",
    ),
    (
        "strategies.asked.timeout_ms",
        {"STRATEGIES__ASKED": f"{JUDGE}timeout_ms: 95}}"},
        "with a pass",
    ),
    ("strategies.pair.strong_share", {"STRATEGIES__PAIR__STRONG_SHARE": "1"}, "every request goes to large"),
    ("strategies.pair.strong_share", {"STRATEGIES__PAIR__STRONG_SHARE": "0"}, "every request goes to small"),
    (
        "strategies.pair.strong_share",
        {"STRATEGIES__PAIR__STRONG_SHARE": "0.05", "CONTROLLERS__LOAD": LOAD},
        "is not above controllers.load.floor (0.05)",
    ),
    (
        "strategies.pair.strong_share",
        {"STRATEGIES__PAIR__STRONG_SHARE": "0.9", "CONTROLLERS__LOAD": LOAD},
        "is not below controllers.load.ceiling (0.9)",
    ),
    ("strategies.fixed.threshold", {"STRATEGIES__FIXED__THRESHOLD": "1"}, "gets hardly any request"),
    ("strategies.fixed.threshold", {"STRATEGIES__FIXED__THRESHOLD": "0"}, "gets nearly every request"),
    (
        "strategies.swapped.weak",
        {"STRATEGIES__SWAPPED": "{kind: threshold, weak: large, strong: small, threshold: 0.5}"},
        "are weak and strong swapped?",
    ),
    (
        "strategies.pair.strong",
        {"POOLS__LARGE__CONTEXT": "7999"},
        "smaller context than small (7999, 8000)",
    ),
    ("models.auto.quality", {"MODELS__AUTO__QUALITY": "1"}, "is a hard preference"),
    ("models.auto.canary.other", {"MODELS__AUTO__CANARY": "{other: 1}"}, "every request gets the canary"),
    (
        "pools.small.canary.other",
        {"POOLS__SMALL__POLICY": "main", "POOLS__SMALL__CANARY": "{other: 1}"},
        "every request gets the canary",
    ),
    ("pools.small.price", {"POOLS__SMALL__PRICE": "{input: 0, output: 0}"}, "costs nothing"),
    (
        "pools.small.price.cached",
        {"POOLS__SMALL__PRICE__CACHED": "0.3"},
        "cost more than others",
    ),
    ("accounting", {"ACCOUNTING": "true", "POOLS__SMALL__PRICE": "null"}, "answers cost nothing: small"),
    (
        "telemetry.decision_log.sample",
        {"TELEMETRY__DECISION_LOG": "{path: log, sample: 0}"},
        "logs nothing",
    ),
    (
        "controllers.budgets.pair.dollars_per_thousand",
        {"CONTROLLERS__BUDGETS": "{pair: {dollars_per_thousand: 0.1}}"},
        "cannot be reached: 1000 requests of 500 and 400 tokens cost $0.13 at small alone",
    ),
    (
        "controllers.budgets.pair.dollars_per_thousand",
        {"CONTROLLERS__BUDGETS": "{pair: {dollars_per_thousand: 20}}"},
        "has no effect: 1000 requests that fill the context of large cost less",
    ),
    (
        "controllers.budgets.pair.dollars_per_thousand",
        {"CONTROLLERS__BUDGETS": "{pair: {dollars_per_thousand: 0.15, window_requests: 50}}"},
        "one request that fills the context of large costs $0.0098, more than 50 requests may",
    ),
    (
        "controllers.load.stale_seconds",
        {"CONTROLLERS__LOAD": "{stale_seconds: 2}"},
        "are read every 2 s",
    ),
]
"""The setting, what is written in the environment, and words of the note."""


@cache
def shipped() -> bundle.Bundle:
    return bundle.load(bundle.default_bundle(), ("cpu",))


def found(folder: Path, environment: dict[str, str], text: str = CONFIG) -> list[tuple[str, str]]:
    """Path and message of every note."""
    file = folder / "semroute.yaml"
    file.write_text(text)
    listen = {"SEMROUTE__SERVER__LISTEN": "unix:/x/w{worker}.sock"}
    loaded = source.load(file, listen | {f"SEMROUTE__{key}": value for key, value in environment.items()})
    notes = unlikely.notes(loaded, shipped(), MACHINE)
    return [(".".join(map(str, each.path)), each.message) for each in notes]


def test_ordinary_settings_have_no_note(tmp_path: Path) -> None:
    assert found(tmp_path, {}) == []


@pytest.mark.parametrize(("path", "environment", "words"), CASES)
def test_an_unlikely_setting_has_a_note(
    tmp_path: Path, path: str, environment: dict[str, str], words: str
) -> None:
    notes = [message for at, message in found(tmp_path, environment) if at == path]
    assert [words in message for message in notes] == [True]


def test_a_file_whose_cut_is_not_found_has_a_note(tmp_path: Path) -> None:
    [(path, message)] = found(tmp_path, {}, CONFIG.removeprefix("---\n").removesuffix("...\n"))
    assert (path, message[:18]) == ("", "a cut in this file")


def test_failover_needs_a_second_pool(tmp_path: Path) -> None:
    text = "---\npools: {s: {cluster: a, model: m}}\ndefault_pool: s\ncontrollers: {failover: {}}\n...\n"
    assert found(tmp_path, {}, text) == [
        ("controllers.failover", "there is no second pool to which a request could go")
    ]


def test_every_check_has_a_case() -> None:
    tested = {path for path, _, _ in CASES}
    counts = {check["at"]: 0 for check in unlikely.CHECKS}
    for check in unlikely.CHECKS:
        counts[check["at"]] += 1
    for at, count in counts.items():
        if at in ("", "controllers.failover"):
            continue
        matching = [path for path, _, _ in CASES if fits(at, path)]
        assert len(matching) >= count, at
        tested -= {*matching}
    assert tested == set()


def fits(pattern: str, path: str) -> bool:
    parts, keys = pattern.split("."), path.split(".")
    return len(parts) == len(keys) and all(a in ("*", b) for a, b in zip(parts, keys, strict=True))


def test_the_figures_of_the_table_are_those_of_the_code() -> None:
    text = Path(unlikely.__file__).with_suffix(".toml").read_text()
    assert f"message_seconds > {MESSAGE_SECONDS_MIN:g}" in text
    assert f"every {INTERVAL_SECONDS:g} s" in text


def test_the_machine_is_measured_and_a_containers_limit_counts(tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text("1000000\n")
    here = unlikely.this_machine(shipped(), "cpu", tmp_path / "memory.max")
    assert here["memory"] == 1_000_000
    assert 0.0 < here["pass_ms"] < 10_000
    (tmp_path / "memory.max").write_text("max\n")
    there = unlikely.this_machine(shipped(), "cuda", tmp_path / "memory.max")
    assert there["memory"] > 10**8
    assert (there["pass_ms"], there["cores"]) == (0.0, here["cores"])
