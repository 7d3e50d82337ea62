"""Is a configuration right? What `serve` would make of it, and what is allowed and more likely a slip."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from semroute_extproc.config import models as config
from semroute_extproc.config import source as config_source
from semroute_extproc.encoder.bundle import Bundle
from semroute_extproc.encoder.onnx import import_runtime
from semroute_extproc.policy import plan as policy
from semroute_extproc.policy import rules
from semroute_extproc.serve import app
from semroute_extproc.settings.base import Problem
from semroute_extproc.strategies.judge_client import Judges


def check(loaded: config_source.Loaded) -> tuple[Mapping[str, Bundle], Mapping[str, policy.Policy]]:
    """What `serve` makes, as far as that needs no network; on a GPU with a first pass.

    Language to bundle, and every policy; raises ConfigError or BundleError.
    """
    bundles = app.load_bundles(loaded.config)
    policies = app.make_policies(loaded, bundles[app.DEFAULT])
    app.make_judges(loaded, Judges())
    app.connect_sessions(loaded.config)
    import_runtime()
    if loaded.config.encoder.device == "cuda":
        app.make_models(loaded.config, bundles)
    return bundles, policies


def doubts(loaded: config_source.Loaded, bundles: Mapping[str, Bundle]) -> list[str]:
    """What is allowed and may keep it from serving well here, each with its place."""
    problems = list(config.warnings(loaded.config))
    manifests = [each.manifest for each in bundles.values()]
    labels = {
        "domain": dict.fromkeys(label for each in manifests for label in each.domain.labels),
        "task": dict.fromkeys(label for each in manifests if each.task for label in each.task.labels),
    }
    for name, settings in loaded.config.policies.items():
        for index, rule in enumerate(settings.rules):
            path = ("policies", name, "rules", index, "when")
            problems.extend(Problem(path, doubt) for doubt in rules.doubts(rule.when, labels))
    listen = loaded.config.server.address(0)
    folder = Path(listen.removeprefix("unix:")).parent
    if listen.startswith("unix:") and not folder.is_dir():
        message = f"there is no folder {folder} here, and serve does not start without it"
        problems.append(Problem(("server", "listen"), message))
    return [loaded.source.locate(problem) for problem in problems]
