"""Check a configuration: compile it as `serve` would, and warn about likely mistakes."""

import re
import textwrap
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from semroute_extproc.cli import envoy_check
from semroute_extproc.cli.unlikely import WRAP, located, notes, this_machine
from semroute_extproc.config.source import Loaded, read_documents
from semroute_extproc.encoder.bundle import DEFAULT, Bundle
from semroute_extproc.encoder.cuda import open_each
from semroute_extproc.encoder.onnx import import_runtime
from semroute_extproc.policy.rules import WORK_FACTS
from semroute_extproc.serve import build
from semroute_extproc.settings.base import Problem, did_you_mean
from semroute_extproc.state.shared import client_of
from semroute_extproc.telemetry.decision_log import log_files

ENVOY_MIN = (1, 37)  # 1.36 accepts the shipped file, but refuses large bodies and delays chunked ones

NOT_FORWARDED = (
    *("authorization", "proxy-authorization", "cookie", "x-api-key", "api-key", "x-semroute-cluster"),
)
"""Client headers that the shipped Envoy does not forward to the sidecar."""

# A string literal without escapes, and a fact that has labels.
_TEXT = r"""(?P<quote>["'])(?P<text>(?:(?!(?P=quote))[^\\])*)(?P=quote)"""
_FACT = r"(?<![\w.])(?P<fact>domain|task)"
_NAMED = (
    rf"\brequest\.(?P<fact>headers)\s*\[\s*{_TEXT}\s*\]",
    rf"{_TEXT}\s+in\s+request\.(?P<fact>headers)\b",
    r"\brequest\.(?P<fact>headers)\.(?P<text>\w+)",
    rf"{_FACT}\s*[!=]=\s*{_TEXT}(?!\s*[+.])",
    rf"(?<!\+)\s*{_TEXT}\s*[!=]=\s*{_FACT}\b",
    rf"{_FACT}_probs\s*\[\s*{_TEXT}\s*\]",
)
_LISTED = rf"{_FACT}\s+in\s*\[(?P<list>(?:\s*(?:\"[^\"\\]*\"|'[^'\\]*')\s*,?)*)\]"


def check(loaded: Loaded) -> dict[str, Bundle]:
    """Language to bundle; raises ConfigError or BundleError.

    Builds the objects that `serve` builds without the network; on a GPU it also runs a first pass.
    """
    bundles = build.load_bundles(loaded.config, loaded.config.encoder.is_local)
    build.make_policies(loaded, bundles[DEFAULT])
    build.make_judges(loaded)
    if loaded.config.controllers.store is not None:
        client_of(loaded.config.controllers.store)
    if loaded.config.telemetry.decision_log is not None:
        log_files(loaded.config.telemetry.decision_log, 0)
    if loaded.config.encoder.is_local:
        import_runtime()
    if loaded.config.encoder.is_local and loaded.config.encoder.device == "cuda":
        open_each(bundles, loaded.config.encoder.device)
    return bundles


def old_envoy(version: str) -> str:
    """What is wrong with the Envoy that `envoy --version` describes; empty if it is new enough."""
    found = re.search(r"\b(\d+)\.(\d+)\.\d+", version)
    if found is None:
        return f"no version of Envoy in {version!r}: give what `envoy --version` prints"
    if (int(found[1]), int(found[2])) >= ENVOY_MIN:
        return ""
    return f"Envoy {found[0]} is too old: {ENVOY_MIN[0]}.{ENVOY_MIN[1]} is the lowest that works"


def envoy_findings(loaded: Loaded, path: Path) -> list[tuple[str, bool]]:
    """What is wrong with Envoy's file, each with whether it may be intended; raises ConfigError."""
    found = envoy_check.check(read_documents(path)[1], loaded.config)
    lines = ((f"{path}:{each.line}: {each.happens}: write {each.write}", each.note) for each in found)
    return [(textwrap.fill(line, **WRAP), note) for line, note in lines]


def warnings(loaded: Loaded, bundles: Mapping[str, Bundle]) -> list[str]:
    """Likely mistakes, each with its location."""
    machine = this_machine(bundles[DEFAULT], loaded.config.encoder.device)
    problems = list(notes(loaded, bundles[DEFAULT], machine))
    manifests = [each.manifest for each in bundles.values()]
    domains = [label for each in manifests for label in each.domain.labels]
    tasks = [label for each in manifests if each.task for label in each.task.labels]
    labels = {"domain": dict.fromkeys(domains), "task": dict.fromkeys(tasks)}
    for name, settings in loaded.config.policies.items():
        for index, rule in enumerate(settings.rules):
            path = ("policies", name, "rules", index, "when")
            problems.extend(Problem(path, each) for each in suspicious(rule.when, labels))
    listen = loaded.config.server.address(0)
    folder = Path(listen.removeprefix("unix:")).parent
    if listen.startswith("unix:") and not folder.is_dir():
        message = f"the directory {folder} does not exist, and serve needs it to start"
        problems.append(Problem(("server", "listen"), message))
    return [located(loaded, problem, "note: ") for problem in problems]


def suspicious(expression: str, labels: Mapping[str, Collection[str]]) -> Iterator[str]:
    """Members of `request` and headers that cannot exist; values of `domain` and `task` not in `labels`.

    These are warnings only: the library exposes no syntax tree, so this searches the source text.
    """
    members = ("headers", "path", "method", *WORK_FACTS)
    for member in re.findall(r"(?<![\w.])request\.(\w+)", expression):
        if member not in members:
            yield f"request has no member {member!r}{did_you_mean(member, members)}"
    named = [(m["fact"], m["text"]) for pattern in _NAMED for m in re.finditer(pattern, expression)]
    for match in re.finditer(_LISTED, expression):
        named.extend((match["fact"], text["text"]) for text in re.finditer(_TEXT, match["list"]))
    for fact, text in named:
        if fact == "headers" and text != text.lower():
            yield f"header names are lower case in conditions: {text.lower()!r}, not {text!r}"
        if fact == "headers" and text.lower() in NOT_FORWARDED:
            yield f"the shipped Envoy does not forward {text.lower()!r}: behind it, this never holds"
        # Without a task head, `task` is the empty string.
        if text and (known := labels.get(fact)) is not None and text not in known:
            hint = did_you_mean(text, known)
            yield f"no bundle has the {fact} {text!r}{hint}: {', '.join(known) or 'it has none at all'}"
