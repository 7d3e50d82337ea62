"""Check a configuration: compile it as `serve` would, and warn about likely mistakes."""

import re
from collections.abc import Mapping
from pathlib import Path

from semroute_extproc.config import models as config
from semroute_extproc.config.source import Loaded
from semroute_extproc.encoder.bundle import DEFAULT, Bundle
from semroute_extproc.encoder.cuda import open_each
from semroute_extproc.encoder.onnx import import_runtime
from semroute_extproc.policy import rules
from semroute_extproc.serve import build
from semroute_extproc.settings.base import Problem
from semroute_extproc.state import shared_sessions

ENVOY_MIN = (1, 37)  # 1.36 takes the shipped file, and then refuses or holds up large and chunked bodies


def check(loaded: Loaded) -> dict[str, Bundle]:
    """Language to bundle; raises ConfigError or BundleError.

    Builds the objects that `serve` builds without the network; on a GPU it also runs a first pass.
    """
    bundles = build.load_bundles(loaded.config)
    build.make_policies(loaded, bundles[DEFAULT])
    build.make_judges(loaded)
    shared_sessions.connect(loaded.config.controllers.session)
    import_runtime()
    if loaded.config.encoder.device == "cuda":
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


def warnings(loaded: Loaded, bundles: Mapping[str, Bundle]) -> list[str]:
    """Likely mistakes, each with its location."""
    problems = list(config.warnings(loaded.config))
    manifests = [each.manifest for each in bundles.values()]
    domains = [label for each in manifests for label in each.domain.labels]
    tasks = [label for each in manifests if each.task for label in each.task.labels]
    labels = {"domain": dict.fromkeys(domains), "task": dict.fromkeys(tasks)}
    for name, settings in loaded.config.policies.items():
        for index, rule in enumerate(settings.rules):
            path = ("policies", name, "rules", index, "when")
            problems.extend(Problem(path, each) for each in rules.warnings(rule.when, labels))
    listen = loaded.config.server.address(0)
    folder = Path(listen.removeprefix("unix:")).parent
    if listen.startswith("unix:") and not folder.is_dir():
        message = f"the directory {folder} does not exist, and serve needs it to start"
        problems.append(Problem(("server", "listen"), message))
    return [loaded.source.locate(problem) for problem in problems]
