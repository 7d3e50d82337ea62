"""The live configuration and its changes."""

from __future__ import annotations

import asyncio
import json
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import numpy as np
import pytest
import pytest_asyncio
from builders import MANIFEST, FakeEncoder, classifier
from semroute_lab.common.writing import write_artifact, write_json
from structlog.testing import capture_logs

from semroute_extproc.config import source as config_source
from semroute_extproc.config.source import Loaded
from semroute_extproc.events import Event, ProfilesRead, Reloaded, ReloadRejected
from semroute_extproc.policy.context import Choice, Decision, RoutingContext
from semroute_extproc.request.view import Api, RequestHead, RequestView
from semroute_extproc.serve import reload
from semroute_extproc.serve.reload import LiveConfig
from semroute_extproc.state.controllers import ControllerState
from semroute_extproc.strategies.artifact import ArtifactManifest
from semroute_extproc.strategies.clusters import ClustersArtifact
from semroute_extproc.strategies.judge_client import JudgeClient
from semroute_extproc.strategies.profiles import Profile
from semroute_extproc.telemetry.admin import AdminServer, Page

GOOD = """\
pools:
  small: {cluster: vllm-small, model: org/small}
  large: {cluster: vllm-large, model: org/large}
default_pool: large
"""

HUGE = GOOD.replace("vllm-large", "vllm-huge")

CLUSTERS = ClustersArtifact(
    ArtifactManifest(kind="clusters", bundle="test", revision=MANIFEST.revision, dimensions=4, rows=10),
    np.eye(1, 4, dtype=np.float32),
    None,
    ("a",),
)


class Subject:
    """A live configuration, its file and what it emitted."""

    def __init__(self, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.file = file
        self.events: list[Event] = []
        file.write_text(GOOD)
        load = config_source.load
        loaded = load(file, {})
        self.load: Callable[[Path], Loaded] = lambda path: load(path, {})
        monkeypatch.setattr(config_source, "load", lambda path: self.load(path))
        self.controllers = ControllerState(bytes(32))
        self.live = LiveConfig(
            file,
            loaded,
            classifier(FakeEncoder()),
            self.controllers,
            self.events.append,
        )
        assert self.events == [Reloaded(loaded.sha256, 1)]
        self.events.clear()

    async def reload(self, text: str) -> list[Event]:
        """Reload with this text in the file; what was emitted."""
        await asyncio.to_thread(self.file.write_text, text)
        self.events.clear()
        await self.live.reload()
        return self.events

    @property
    def number(self) -> int:
        return self.live.snapshot.number

    @property
    def cluster(self) -> str:
        return self.live.snapshot.settings.default_cluster

    def judge(self) -> Any:
        return self.live.snapshot.pipeline.judges["s"]


@pytest_asyncio.fixture
async def subject(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Subject]:
    running = Subject(tmp_path / "semroute.yaml", monkeypatch)
    yield running
    await running.live.close()


def rejection(events: list[Event]) -> list[str]:
    [rejected] = events
    assert isinstance(rejected, ReloadRejected)
    return list(rejected.problems)


async def test_a_change_is_taken_as_a_whole(subject: Subject) -> None:
    assert await subject.reload(HUGE) == [Reloaded(subject.live.loaded.sha256, 2)]
    assert (subject.number, subject.cluster) == (2, "vllm-huge")


async def test_a_file_that_says_what_is_live_changes_nothing(subject: Subject) -> None:
    assert await subject.reload(GOOD + "# a comment\n") == []
    assert subject.number == 1


async def test_what_is_wrong_changes_nothing_until_it_is_put_right_again(subject: Subject) -> None:
    assert rejection(await subject.reload(GOOD.replace("default_pool: large", "default_pool: larg")))
    [restored] = await subject.reload(GOOD)
    assert restored == Reloaded(subject.live.loaded.sha256, 1, changed=False)
    assert subject.number == 1
    assert await subject.reload(GOOD) == [], "it is said once"


async def test_a_change_that_needs_a_restart_is_named_with_its_place_and_nothing_else_is_taken(
    subject: Subject,
) -> None:
    problems = rejection(await subject.reload(HUGE + "server: {deadline_ms: 250, workers: 2}\n"))
    assert [problem.split(": ", 2)[1] for problem in problems] == ["server.workers", "server.deadline_ms"]
    assert all("nothing of this file was applied" in problem for problem in problems)
    assert subject.cluster == "vllm-large"


async def test_a_file_that_is_gone_changes_nothing(subject: Subject) -> None:
    subject.file.unlink()
    await subject.live.reload()
    assert rejection(subject.events)
    assert subject.number == 1


async def test_a_failure_of_ours_while_reloading_does_not_end_the_watch(subject: Subject) -> None:
    good = subject.load

    def broken(_: Path) -> Loaded:
        raise ZeroDivisionError

    subject.load = broken
    assert rejection(await subject.reload(HUGE)) == [], "an exception and no problem of the file"
    subject.load = good
    await subject.reload(HUGE)
    assert subject.number == 2


async def test_files_that_take_long_to_read_hold_no_request_up(subject: Subject) -> None:
    read, begun, released = subject.load, asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def held(path: Path) -> Loaded:
        loop.call_soon_threadsafe(begun.set)
        assert released.wait(5), "the loop was held up by the read"
        return read(path)

    subject.load = held
    subject.file.write_text(HUGE)
    reloads = [asyncio.create_task(subject.live.reload()) for _ in range(2)]
    await asyncio.wait_for(begun.wait(), 5)
    assert subject.number == 1, "requests are served by the old generation meanwhile"
    released.set()
    await asyncio.gather(*reloads)
    assert subject.number == 2, "one after the other, and the second found nothing new"


async def test_the_file_is_watched_until_it_stops(subject: Subject) -> None:
    stop = asyncio.Event()
    watch = asyncio.create_task(subject.live.watch(stop))
    await asyncio.sleep(0.3)
    subject.file.write_text(HUGE)
    async with asyncio.timeout(20):
        while subject.number == 1:
            await asyncio.sleep(0.02)
        stop.set()
        await watch


async def until(met: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not met():
            await asyncio.sleep(0.02)


@pytest_asyncio.fixture
async def watched(subject: Subject) -> AsyncIterator[Subject]:
    """The same while it watches."""
    stop = asyncio.Event()
    watch = asyncio.create_task(subject.live.watch(stop))
    await asyncio.sleep(0.3)
    yield subject
    stop.set()
    await asyncio.wait_for(watch, 10)


async def test_a_swap_of_a_mounted_directory_is_noticed(watched: Subject) -> None:
    """As Kubernetes does: the file is a link into `..data`, which is replaced by a rename."""
    folder = watched.file.parent
    for name, text in (("v1", GOOD), ("v2", HUGE)):
        (folder / name).mkdir()
        (folder / name / "semroute.yaml").write_text(text)
    (folder / "..data").symlink_to("v1")
    (folder / "new").symlink_to("..data/semroute.yaml")
    (folder / "new").rename(watched.file)
    await asyncio.sleep(0.3)
    assert watched.number == 1
    (folder / "..new").symlink_to("v2")
    (folder / "..new").rename(folder / "..data")
    await until(lambda: watched.number == 2)


async def test_only_another_content_is_read_again(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each write is followed by one notice of its directory."""
    file, reads = subject.file, list[int]()
    writes = [(file, GOOD), (file.parent / "other", "x"), (file, GOOD), (file, GOOD + "# changed\n")]
    noticed: list[int] = []

    async def notices(*_: object) -> AsyncIterator[None]:
        for number, (path, text) in enumerate(writes):
            noticed.append(number)
            path.write_text(text)
            yield

    load = subject.load
    subject.load = lambda path: reads.append(noticed[-1]) or load(path)  # type: ignore[func-returns-value]
    monkeypatch.setattr(reload, "notices", notices)
    await subject.live.watch(asyncio.Event())
    assert noticed == [0, 1, 2, 3]
    assert reads == [0, 3]


CLUSTERED = """\
models:
  auto: {policy: main}
policies:
  main: {otherwise: {strategy: s}}
strategies:
  s: {kind: clusters, artifact: c.npz, profiles: first, pools: [small]}
"""


@pytest.fixture
def folders(subject: Subject) -> list[Path]:
    """Two directories of profiles, and an artifact next to them."""
    folder = subject.file.parent
    write_artifact(folder / "c.npz", CLUSTERS)
    folders = [folder / "first", folder / "second"]
    for each in folders:
        each.mkdir()
    return folders


def write_profile(folder: Path, model: str) -> None:
    profile = Profile(model=model, clusters=CLUSTERS.digest, answers=(20,), errors=(1,))
    write_json(folder / f"{model}.json", profile)


PRICED = GOOD.replace("org/small", "small, price: {input: 1, output: 1}") + CLUSTERED


def profiled(events: list[Event]) -> list[int | None]:
    return [event.used for event in events if isinstance(event, ProfilesRead)]


async def test_profiles_that_come_while_it_watches_are_used(watched: Subject, folders: list[Path]) -> None:
    first, second = folders
    await watched.reload(PRICED)
    await until(lambda: profiled(watched.events) == [0])
    write_profile(first, "m")
    await until(lambda: profiled(watched.events) == [0, 1])
    # A mounted ConfigMap is replaced by a swap of a link to another directory.
    (first / "..data").mkdir()
    write_profile(first / "..data", "n")
    (first / "n.json").symlink_to("..data/n.json")
    await until(lambda: profiled(watched.events) == [0, 1, 2])
    watched.events.clear()
    watched.file.write_text(PRICED.replace("first", "second"))
    await until(lambda: profiled(watched.events) == [0])
    write_profile(second, "m")
    await until(lambda: profiled(watched.events) == [0, 1])


async def test_a_reload_keeps_a_directory_of_profiles_and_its_last_good_content(
    subject: Subject, folders: list[Path]
) -> None:
    write_profile(folders[0], "m")
    assert profiled(await subject.reload(PRICED)) == [1]
    (folders[0] / "m.json").write_text("{")
    assert profiled(await subject.reload(PRICED.replace("vllm-large", "vllm-huge"))) == []
    rejection(await subject.reload(PRICED.replace("first", "nowhere")))
    assert profiled(await subject.reload(PRICED.replace("first", "second"))) == [0]
    assert profiled(await subject.reload(GOOD)) == [None]


JUDGED = """\
models:
  auto: {policy: main}
policies:
  main: {otherwise: {strategy: s}}
strategies:
  s: {kind: judge, weak: small, strong: large, url: "http://judge:8000/v1", model: j, threshold: 0.5}
"""


async def test_a_reload_keeps_a_judge_that_it_does_not_change(subject: Subject) -> None:
    await subject.reload(GOOD + JUDGED)
    judge = subject.judge()
    await subject.reload(HUGE + JUDGED)
    assert subject.number == 3
    assert subject.judge() is judge
    await subject.reload(GOOD + JUDGED.replace("model: j", "model: k"))
    assert subject.judge() is not judge


async def test_a_judge_that_was_replaced_is_closed_when_open_streams_have_finished(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[JudgeClient] = []

    async def close(judge: JudgeClient) -> None:
        closed.append(judge)

    monkeypatch.setattr(JudgeClient, "close", close)
    await subject.reload(GOOD + JUDGED)
    first = subject.judge()
    await subject.reload(GOOD + JUDGED.replace("model: j", "model: k"))
    second = subject.judge()
    await asyncio.sleep(0)
    assert closed == [], "streams may still use it"
    monkeypatch.setattr(reload, "RETIRE_SECONDS", 0.01)
    await subject.reload(GOOD)
    await until(lambda: closed == [second])
    await subject.live.close()
    assert closed == [second, first], "closing waits for none"


async def test_a_judge_that_cannot_be_made_is_a_configuration_that_is_refused(subject: Subject) -> None:
    text = GOOD + JUDGED.replace("model: j", "model: j, api_key_env: NO_SUCH_KEY")
    [problem] = rejection(await subject.reload(text))
    assert "NO_SUCH_KEY" in problem
    assert subject.number == 1


CONTROLLED = (
    GOOD.replace("model: org/large", "model: org/large, metrics: 'http://large/metrics'")
    + """\
policies:
  main: {otherwise: {strategy: pair}}
strategies:
  pair: {kind: threshold, weak: small, strong: large, strong_share: 0.3}
controllers:
  load: {}
  budgets: {pair: {strong_share: 0.3}}
  session: {}
"""
)


async def test_controllers_come_and_go_with_a_reload_and_keep_what_they_know(subject: Subject) -> None:
    controllers = subject.controllers
    assert controllers.status()["pools"] == controllers.status()["budgets"] == {}
    assert controllers.status()["sessions"] is None
    await subject.reload(CONTROLLED)
    for now in range(5):
        controllers.observe("large", {"running": 1.0, "waiting": 9.0}, float(now))
    before = controllers.status()
    assert before["pools"]["large"]["level"] > 0.0
    await subject.reload(CONTROLLED.replace("strong_share: 0.3}}", "strong_share: 0.4}}"))
    after = controllers.status()
    assert after["pools"] == before["pools"]
    assert after["budgets"]["pair"]["target"] == 0.4
    assert subject.number == 3


async def test_live_scores_survive_a_reload_of_a_strategy_whose_reference_is_the_same(
    subject: Subject,
) -> None:
    def scores() -> Any:
        return subject.controllers.status()["traffic"]["pair"]

    await subject.reload(CONTROLLED)
    context = RoutingContext(RequestHead("POST", "/"), RequestView(Api.CHAT_COMPLETIONS, "auto"), "en", 1)
    choice = Choice("large", "because", sample=(0.9, 0.3, True))
    decision = Decision("large", "because", strategy="pair", choice=choice)
    subject.controllers.decided(context, decision, "", 0.0)
    before = scores()
    await subject.reload(CONTROLLED.replace("strong_share: 0.3}\n", "strong_share: 0.4}\n"))
    assert scores() == {**before, "share": 0.4, "threshold": ANY, "reference": pytest.approx(0.6)}
    await subject.reload(CONTROLLED.replace("strong_share: 0.3}\n", "threshold: 0.3}\n"))
    assert subject.controllers.status()["traffic"] == {}
    await subject.reload(CONTROLLED)
    assert scores()["scores"] == 0


async def test_a_password_that_changed_is_a_change(subject: Subject) -> None:
    pytest.importorskip("redis", reason="needs the extra valkey")
    for password in ("old", "new"):
        store = f"{{url: 'valkey://:{password}@localhost', key: 0123456789abcdef, replicas: 1}}"
        await subject.reload(CONTROLLED.replace("session: {}", f"store: {store}"))
    assert subject.number == 3


async def test_a_shared_memory_without_its_library_changes_nothing(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "redis", None)
    store = "{url: 'valkey://localhost', key: 0123456789abcdef, replicas: 1}"
    assert rejection(await subject.reload(CONTROLLED.replace("session: {}", f"store: {store}")))
    assert subject.number == 1


class TestEnvoy:
    """The clusters that a change adds must be in Envoy, if its admin address can be asked."""

    @pytest.fixture
    def admin(self) -> Iterator[str]:
        clusters = [{"name": name} for name in ("vllm-small", "vllm-large", "vllm-new")]
        page = json.dumps({"cluster_statuses": clusters}).encode()
        server = AdminServer("127.0.0.1:0", {"/clusters": lambda: Page(200, "application/json", page)})
        yield f"http://127.0.0.1:{server.port}"
        server.close()

    @staticmethod
    def text(address: str, pool: str) -> str:
        """A configuration with a third pool, and with failover."""
        pools = GOOD.replace("default_pool", f"  {pool}\ndefault_pool")
        return f"{pools}controllers: {{failover: {{envoy_admin: '{address}'}}}}\n"

    async def test_a_cluster_that_envoy_lacks_is_refused_with_its_place(
        self, subject: Subject, admin: str
    ) -> None:
        text = self.text(admin, "huge: {cluster: vllm-huge, model: org/huge}")
        problems = rejection(await subject.reload(text))
        place = "semroute.yaml:4:10: pools.huge.cluster: Envoy has no cluster 'vllm-huge'"
        assert any(place in each for each in problems)
        assert subject.number == 1

    async def test_so_are_the_clusters_that_failover_needs(self, subject: Subject, admin: str) -> None:
        problems = rejection(await subject.reload(self.text(admin, "new: {cluster: vllm-new, model: m}")))
        assert len(problems) == 3
        assert all("-or-next': add it to Envoy first, then send SIGHUP" in each for each in problems)

    async def test_clusters_that_were_live_before_are_not_asked_for(
        self, subject: Subject, admin: str
    ) -> None:
        live = self.text("http://127.0.0.1:1", "huge: {cluster: vllm-huge, model: org/huge}")
        await subject.reload(live)
        assert subject.number == 2
        events = await subject.reload(live.replace("http://127.0.0.1:1", admin))
        assert events == [Reloaded(subject.live.loaded.sha256, 3)]

    @pytest.mark.parametrize("address", ["http://127.0.0.1:1", None])
    async def test_if_envoy_cannot_be_asked_the_change_is_taken_with_a_warning(
        self, subject: Subject, address: str | None
    ) -> None:
        text = self.text(address, "huge: {cluster: vllm-huge, model: org/huge}") if address else HUGE
        with capture_logs() as logs:
            await subject.reload(text)
        assert subject.number == 2
        [warning] = [each for each in logs if each["event"] == "config.clusters_unchecked"]
        assert "vllm-huge" in warning["clusters"]
