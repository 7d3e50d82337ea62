"""A running configuration and its changes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from builders import BUNDLE

from semroute_extproc import app, config_source
from semroute_extproc.app import App

GOOD = """\
pools:
  small: {cluster: vllm-small, model: org/small}
  large: {cluster: vllm-large, model: org/large}
default_pool: large
"""


class Model:
    """Enough of a model for an app that is never asked anything."""

    bundle = BUNDLE
    device = "cpu"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "semroute.yaml"
    path.write_text(GOOD)
    return path


@pytest_asyncio.fixture
async def subject(file: Path) -> AsyncIterator[App]:
    models: Any = {app.DEFAULT: Model()}
    running = App(file, config_source.load(file, {}), models)
    yield running
    await running._classifier.close()


def successful(subject: App) -> bool:
    return b"semroute_config_last_reload_successful 1.0" in subject._metrics.exposition()


def write(file: Path, text: str) -> None:
    file.write_text(text)


def remove(file: Path) -> None:
    file.unlink()


async def test_a_change_is_taken_as_a_whole(subject: App, file: Path) -> None:
    write(file, GOOD.replace("vllm-large", "vllm-huge"))
    subject._reload()
    assert subject._generation.number == 2
    assert subject._generation.settings.default_cluster == "vllm-huge"
    assert successful(subject)


async def test_what_is_wrong_changes_nothing_until_it_is_put_right_again(subject: App, file: Path) -> None:
    write(file, GOOD.replace("default_pool: large", "default_pool: larg"))
    subject._reload()
    assert not successful(subject)
    write(file, GOOD)
    subject._reload()
    assert successful(subject), "the file says again what is live"
    assert subject._generation.number == 1


async def test_a_file_that_is_gone_changes_nothing(subject: App, file: Path) -> None:
    remove(file)
    subject._reload()
    assert subject._generation.number == 1
    assert not successful(subject)


async def test_a_failure_of_ours_while_reloading_does_not_end_the_watch(
    subject: App, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise ZeroDivisionError

    with monkeypatch.context() as patched:
        patched.setattr(config_source, "load", broken)
        subject._reload()
    assert not successful(subject)
    write(file, GOOD.replace("vllm-large", "vllm-huge"))
    subject._reload()
    assert subject._generation.number == 2


JUDGED = """\
models:
  auto: {policy: main}
policies:
  main: {otherwise: {strategy: s}}
strategies:
  s: {kind: judge, weak: small, strong: large, url: "http://judge:8000/v1", model: j, threshold: 0.5}
"""


async def test_a_reload_keeps_a_judge_that_it_does_not_change(subject: App, file: Path) -> None:
    write(file, GOOD + JUDGED)
    subject._reload()
    judge = subject._generation.pipeline.judges["s"]
    write(file, GOOD.replace("vllm-large", "vllm-huge") + JUDGED)
    subject._reload()
    assert subject._generation.number == 3
    assert subject._generation.pipeline.judges["s"] is judge
    write(file, GOOD + JUDGED.replace("model: j", "model: k"))
    subject._reload()
    assert subject._generation.pipeline.judges["s"] is not judge
    await subject._judges.close()


async def test_a_judge_that_cannot_be_made_is_a_configuration_that_is_refused(
    subject: App, file: Path
) -> None:
    write(file, GOOD + JUDGED.replace("model: j", "model: j, api_key_env: NO_SUCH_KEY"))
    subject._reload()
    assert subject._generation.number == 1
    assert not successful(subject)
