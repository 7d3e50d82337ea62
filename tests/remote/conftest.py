"""Fixtures of the tests against a real Triton and a real MLServer; `make test-remote` runs them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from shutil import copytree

import pytest
from click.testing import CliRunner
from semroute_bench.model_servers import ModelServer

from semroute_extproc.cli import main
from semroute_extproc.encoder import bundle

ENVIRONMENTS = {kind: os.environ.get(f"SEMROUTE_{kind.upper()}", "") for kind in ("triton", "mlserver")}
MODELS = bundle.default_bundle().parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.remote)
            if not any(ENVIRONMENTS.values()):
                item.add_marker(pytest.mark.skip(reason="needs a real Triton or MLServer: make test-remote"))


@pytest.fixture(scope="session")
def another_revision(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The default bundle with another description, and so another revision."""
    folder = tmp_path_factory.mktemp("models") / "another"
    copytree(bundle.default_bundle(), folder)
    manifest = json.loads((folder / "bundle.json").read_text())
    (folder / "bundle.json").write_text(json.dumps({**manifest, "description": "another"}))
    return folder


@pytest.fixture(scope="session", params=ENVIRONMENTS)
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, another_revision: Path
) -> Iterator[ModelServer]:
    """A server of both shipped bundles as exported, one of them in batches, and of another revision."""
    kind: str = request.param
    if not ENVIRONMENTS[kind]:
        pytest.skip(f"needs a real {kind}: make test-remote")
    folder = tmp_path_factory.mktemp(kind)
    repository = folder / "repository"
    for path, options in (
        (bundle.default_bundle(), []),
        (another_revision, []),
        (MODELS / bundle.MULTILINGUAL_BUNDLE, ["--texts", "8"]),
    ):
        command = ["bundle", "export", str(path), str(repository), "--for", kind, *options]
        result = CliRunner().invoke(main, command)
        assert result.exit_code == 0, result.output
    running = ModelServer(kind, Path(ENVIRONMENTS[kind]), repository, folder / "run")
    running.start()
    yield running
    running.process.stop()
