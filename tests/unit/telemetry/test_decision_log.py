"""The thread and the files of the decision log: nothing waits for them, and what is lost is counted."""

from __future__ import annotations

import base64
import errno
import json
import os
import resource
import signal
import stat
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import msgspec
import numpy as np
import pytest
from decisions import event, signals
from msgspec import structs

from semroute_extproc.errors import ConfigError
from semroute_extproc.events import Accounted, Event, Failed, OutcomeReported, RecordsWritten, Reloaded
from semroute_extproc.request.usage import Usage
from semroute_extproc.settings.process import DecisionLog
from semroute_extproc.telemetry import decision_log
from semroute_extproc.telemetry.decision_log import DecisionWriter, LogFiles, log_files
from semroute_extproc.telemetry.feedback import BURST_MAX

COLUMNS = msgspec.toml.decode(Path(decision_log.__file__).with_name("columns.toml").read_bytes())


def settings(folder: Path, **changes: Any) -> DecisionLog:
    return DecisionLog(path=folder / "log", **changes)


def answered(request_id: str) -> Accounted:
    """The usage of an answer."""
    money = {"dollars": 0.5, "baseline_dollars": 1.0, "cache_saved_dollars": 0.1}
    names = {"pool": "small", "rule": "", "model": "auto", "tenant": "", "served": "m", "problem": ""}
    times = {"parents": (), "started_ns": 1_000_000_000, "ended_ns": 3_000_000_000}
    speed = {"first_token_seconds": 0.25, "tokens_per_second": 10.0}
    usage = Usage(100, 20, 40)
    return Accounted(request_id, None, finish="stop", usage=usage, **names, **money, **speed, **times)


class Seen:
    """An `emit` whose events a test waits for."""

    def __init__(self) -> None:
        self.events = SimpleQueue[Event]()

    def __call__(self, given: Event) -> None:
        self.events.put(given)

    def next(self) -> Event:
        return self.events.get(timeout=30)


@pytest.fixture
def seen() -> Seen:
    return Seen()


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


class TestWriter:
    def test_every_decision_and_outcome_is_one_line(self, tmp_path: Path, seen: Seen) -> None:
        writer = DecisionWriter(settings(tmp_path), 3, seen)
        writer.handle(Reloaded("d" * 64, 1))
        for number in range(600):
            writer.handle(event(request_id=f"id-{number}"))
        writer.handle(OutcomeReported("id-7", 0.5, "grader"))
        writer.close()
        *decisions, outcome = lines(tmp_path / "log" / "decisions-3.jsonl")
        assert [each["request_id"] for each in decisions] == [f"id-{number}" for number in range(600)]
        assert {each["config"] for each in decisions} == {"d" * 12}
        assert (outcome["record"], outcome["request_id"], outcome["outcome"]) == ("outcome", "id-7", 0.5)
        written = 0
        while written < 601:
            match seen.next():
                case RecordsWritten(count, "", ""):
                    written += count
                case other:
                    pytest.fail(str(other))

    def test_text_of_clients_does_not_end_a_line(self, tmp_path: Path, seen: Seen) -> None:
        writer = DecisionWriter(settings(tmp_path), 0, seen)
        writer.handle(event(request_id="a\x85b\u2028c\u202ed"))
        writer.close()
        [decision] = lines(tmp_path / "log" / "decisions-0.jsonl")
        assert decision["request_id"] == "a\x85b\u2028c\u202ed"

    def test_a_share_is_sampled(self, tmp_path: Path, seen: Seen) -> None:
        for share, low, high in ((0.0, 0, 0), (0.5, 350, 650)):
            writer = DecisionWriter(settings(tmp_path / str(share), sample=share), 0, seen)
            for _ in range(1_000):
                writer.handle(event())
            writer.close()
            file = tmp_path / str(share) / "log" / "decisions-0.jsonl"
            assert low <= (len(lines(file)) if file.exists() else 0) <= high

    def test_the_pool_of_a_logged_request_is_known(self, tmp_path: Path, seen: Seen) -> None:
        writer = DecisionWriter(settings(tmp_path), 0, seen)
        writer.handle(event(request_id="x" * 500))
        writer.close()
        assert writer.pool_of("x" * 128) == writer.pool_of("x" * 500) == "small"
        assert writer.pool_of("other") == ""

    def test_usage_is_logged_of_the_requests_that_are(self, tmp_path: Path, seen: Seen) -> None:
        writer = DecisionWriter(settings(tmp_path), 0, seen)
        writer.handle(event(request_id="id-1"))
        for request_id in ("id-1", "not-sampled", ""):
            writer.handle(answered(request_id))
        writer.close()
        _, usage = lines(tmp_path / "log" / "decisions-0.jsonl")
        assert usage == {
            "record": "usage",
            "time": 3.0,
            "request_id": "id-1",
            "input_tokens": 100,
            "output_tokens": 20,
            "cached_tokens": 40,
            "dollars": 0.5,
            "finish": "stop",
            "first_token_ms": 250.0,
            "duration_ms": 2000.0,
        }
        assert usage.keys() | {"estimated"} == COLUMNS["usage"].keys()

    def test_the_pools_are_bounded(self, tmp_path: Path, seen: Seen, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(decision_log, "POOLS_MAX", 10)
        writer = DecisionWriter(settings(tmp_path), 0, seen)
        for number in range(25):
            writer.handle(event(request_id=f"id-{number}"))
        writer.close()
        assert [bool(writer.pool_of(f"id-{number}")) for number in (14, 15, 24)] == [False, True, True]

    def test_text_that_is_not_unicode_is_logged_in_escapes(self, tmp_path: Path, seen: Seen) -> None:
        writer = DecisionWriter(settings(tmp_path, prompts=True), 0, seen)
        writer.handle(event(text="cut \ud83d"))
        writer.close()
        assert lines(tmp_path / "log" / "decisions-0.jsonl")[0]["prompt"] == "cut \ud83d"

    def test_a_record_that_cannot_be_made_is_counted_and_the_next_one_is_written(
        self, tmp_path: Path, seen: Seen
    ) -> None:
        good = event()
        broken = structs.replace(good, outcome=structs.replace(good.outcome, stages=(None,)))
        writer = DecisionWriter(settings(tmp_path), 0, seen)
        writer.handle(broken)
        assert seen.next() == Failed("decision_log.failed", "id-1")
        assert seen.next() == RecordsWritten(1, "error")
        writer.handle(good)
        assert seen.next() == RecordsWritten(1)
        writer.close()

    def test_a_full_disk_pauses_the_log_and_every_record_is_counted(self, tmp_path: Path, seen: Seen) -> None:
        now = [100.0]
        writer = DecisionWriter(settings(tmp_path), 0, seen, lambda: now[0])
        folder = tmp_path / "log"
        folder.mkdir()
        (folder / "decisions-0.jsonl").symlink_to("/dev/full")
        writer.handle(event())
        full = seen.next()
        assert isinstance(full, RecordsWritten)
        assert (full.count, full.lost) == (1, "disk")
        assert os.strerror(errno.ENOSPC) in full.problem
        now[0] += decision_log.PAUSE_SECONDS - 1
        writer.handle(event())
        assert seen.next() == RecordsWritten(1, "disk")  # Not tried again, and not reported again.
        (folder / "decisions-0.jsonl").unlink()
        now[0] += 2
        writer.handle(event())
        assert seen.next() == RecordsWritten(1)
        writer.close()
        assert len(lines(folder / "decisions-0.jsonl")) == 1

    def test_a_folder_that_cannot_be_made_is_the_same(self, tmp_path: Path, seen: Seen) -> None:
        (tmp_path / "log").write_text("a file")
        writer = DecisionWriter(settings(tmp_path), 0, seen)
        writer.handle(event())
        lost = seen.next()
        assert isinstance(lost, RecordsWritten)
        assert lost.lost == "disk"
        assert str(tmp_path / "log") in lost.problem
        writer.close()

    @pytest.mark.parametrize("bound", ["events", "characters"])
    def test_a_slow_disk_makes_nothing_wait(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bound: str
    ) -> None:
        """The thread is held up after its first batch, as a disk that hangs would."""
        holding, release, lost = threading.Event(), threading.Event(), list[Event]()

        def emit(given: Event) -> None:
            if threading.current_thread().name == "decision-log":
                holding.set()
                release.wait(30)
            else:
                lost.append(given)

        one = event()
        large = structs.replace(one, outcome=structs.replace(one.outcome, body=b"x" * 1_000))
        if bound == "events":
            monkeypatch.setattr(decision_log, "QUEUE_MAX", 10)
        else:
            monkeypatch.setattr(decision_log, "QUEUE_CHARACTERS_MAX", 10_000)
        writer = DecisionWriter(settings(tmp_path), 0, emit)
        writer.handle(large)
        assert holding.wait(30)
        for _ in range(15):
            writer.handle(large)
        assert lost == [RecordsWritten(1, "queue")] * 5
        release.set()
        writer.close()
        assert len(lines(tmp_path / "log" / "decisions-0.jsonl")) == 11

    def test_no_outcome_that_was_accepted_is_lost_while_the_disk_is_slow(
        self, tmp_path: Path, seen: Seen
    ) -> None:
        writer = DecisionWriter(settings(tmp_path), 0, seen)
        for number in range(BURST_MAX):
            writer.handle(OutcomeReported(f"id-{number}", 1.0, "user"))
        writer.close()
        written = 0
        while written < BURST_MAX:
            match seen.next():
                case RecordsWritten(count, "", ""):
                    written += count
                case other:
                    pytest.fail(str(other))


@pytest.fixture
def small_files() -> Iterator[None]:
    """No file of this process may grow beyond 1,000 bytes."""
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, limit[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    signal.signal(signal.SIGXFSZ, before)


class TestFiles:
    def test_a_file_ends_at_its_size_and_the_oldest_are_removed(self, tmp_path: Path) -> None:
        files = LogFiles(tmp_path, 0, 1_000, keep=2)
        for number in range(50):
            files.append(f"{number:>99}\n".encode())
        files.close()
        names = sorted(path.name for path in tmp_path.iterdir())
        assert names == ["decisions-0.000000003.jsonl", "decisions-0.000000004.jsonl", "decisions-0.jsonl"]
        kept = [int(line) for name in names for line in (tmp_path / name).read_text().split()]
        assert kept == list(range(20, 50))

    def test_workers_do_not_share_files(self, tmp_path: Path) -> None:
        for worker in (1, 11):
            files = LogFiles(tmp_path, worker, 1_000, keep=1)
            for _ in range(3):
                files.append(b"x" * 700 + b"\n")
            files.close()
        names = sorted(path.name for path in tmp_path.iterdir())
        assert names == [
            "decisions-1.000000002.jsonl",
            "decisions-1.jsonl",
            "decisions-11.000000002.jsonl",
            "decisions-11.jsonl",
        ]

    def test_a_restart_goes_on_where_the_log_ended(self, tmp_path: Path) -> None:
        (tmp_path / "decisions-0.old.jsonl").write_text("someone else's")
        for batch in (b"1\n", b"2\n"):
            files = LogFiles(tmp_path, 0, 3, keep=9)
            files.append(batch)
            files.append(batch)
            files.close()
        found = sorted(tmp_path.glob("decisions-0.0*.jsonl"))
        assert [path.read_bytes() for path in found] == [b"1\n", b"1\n", b"2\n"]

    def test_a_line_that_a_crash_cut_is_ended(self, tmp_path: Path) -> None:
        (tmp_path / "decisions-0.jsonl").write_bytes(b'{"a": 1}\n{"cut')
        files = LogFiles(tmp_path, 0, 1_000, keep=1)
        files.append(b'{"b": 2}\n')
        files.close()
        assert (tmp_path / "decisions-0.jsonl").read_bytes() == b'{"a": 1}\n{"cut\n{"b": 2}\n'

    @pytest.mark.usefixtures("small_files")
    def test_lines_that_fit_the_disk_in_part_are_taken_back(self, tmp_path: Path) -> None:
        files = LogFiles(tmp_path, 0, 10_000, keep=1)
        files.append(b"x" * 899 + b"\n")
        with pytest.raises(OSError, match="too large"):
            files.append(b"y" * 300 + b"\n")
        files.append(b"z" * 99 + b"\n")
        assert (tmp_path / "decisions-0.jsonl").read_bytes() == b"x" * 899 + b"\n" + b"z" * 99 + b"\n"
        files.close()

    def test_only_our_user_may_read_them(self, tmp_path: Path) -> None:
        files = LogFiles(tmp_path / "log", 0, 1_000, keep=1)
        files.append(b"1\n")
        files.close()
        for path, mode in ((tmp_path / "log", 0o700), (tmp_path / "log" / "decisions-0.jsonl", 0o600)):
            assert stat.S_IMODE(path.stat().st_mode) == mode


class TestParquet:
    """`format: parquet`: what is finished is Parquet, and nothing is lost where that fails."""

    @pytest.fixture(autouse=True)
    def library(self) -> None:
        pytest.importorskip("pyarrow", reason="needs the extra parquet")

    def rows(self, path: Path) -> list[dict[str, Any]]:
        import pyarrow.parquet as pq

        rows = pq.ParquetFile(path).read().to_pylist()
        return [{name: value for name, value in row.items() if value is not None} for row in rows]

    def parquet(self, folder: Path, worker: int = 3, **changes: Any) -> LogFiles:
        return log_files(settings(folder, format="parquet", **changes), worker)

    def test_a_record_is_the_same_but_for_json_in_strings_and_bytes(self, tmp_path: Path, seen: Seen) -> None:
        read = signals(neighbors=np.ones(4, np.float32), domain_probs={"law": 1.0})
        more = {"format": "parquet", "embedding": True, "prompts": True, "rotate_bytes": 4_096}
        writer = DecisionWriter(settings(tmp_path, **more), 3, seen)
        for each in (
            event(text="cut \ud83d", signals=read),
            OutcomeReported("id-1", 1.0, "user"),
            answered("id-1"),
        ):
            writer.handle(each)
        writer.close()
        current = tmp_path / "log" / "decisions-3.jsonl"
        plain = lines(current)
        files = self.parquet(tmp_path, rotate_bytes=4_096)
        files.append(b"{}" + b" " * 4_096 + b"\n")
        files.close()
        [file] = (tmp_path / "log").glob("date=*/part-3-000000001.parquet")
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        found = self.rows(file)
        decision = found[0]
        assert type(decision["prompt_tokens"]) is int
        assert decision.pop("embedding") == base64.b64decode(plain[0].pop("embedding"))
        for name in ("prompt", "user"):
            assert (decision.pop(name), plain[0].pop(name)) == ("cut ?", "cut \ud83d")
        columns = {**COLUMNS["decision"], **COLUMNS["outcome"], **COLUMNS["usage"]}
        for row in found:
            nested = {name for name in row if columns[name][0] in ("list", "map")}
            row.update({name: json.loads(row[name]) for name in nested})
        assert found == plain

    def test_files_end_at_their_size_and_the_oldest_are_removed(self, tmp_path: Path) -> None:
        files = self.parquet(tmp_path, rotate_bytes=4_096, keep=2)
        for number in range(20):
            files.append(json.dumps({"request_id": f"{number:0999}"}).encode() + b"\n")
        files.close()
        done = sorted((tmp_path / "log").glob("date=*/*"))
        assert [each.name for each in done] == ["part-3-000000003.parquet", "part-3-000000004.parquet"]
        kept = [row["request_id"] for file in done for row in self.rows(file)]
        kept += [row["request_id"] for row in lines(tmp_path / "log" / "decisions-3.jsonl")]
        assert list(map(int, kept)) == list(range(8, 20))

    def test_a_day_has_files_of_its_own(self, tmp_path: Path) -> None:
        for worker in (1, 11):
            files = self.parquet(tmp_path, worker)
            files.append(b'{"request_id": "a"}\n{"cut\n')
            files.close()
            os.utime(tmp_path / "log" / f"decisions-{worker}.jsonl", (0, 86_400))
            files.append(b'{"request_id": "b"}\n')
            files.close()
        names = sorted(str(each.relative_to(tmp_path / "log")) for each in tmp_path.rglob("*.*"))
        assert names == [
            "date=1970-01-02/part-1-000000001.parquet",
            "date=1970-01-02/part-11-000000001.parquet",
            "decisions-1.jsonl",
            "decisions-11.jsonl",
        ]
        assert self.rows(tmp_path / "log" / names[0]) == [{"request_id": "a"}]
        assert lines(tmp_path / "log" / names[2]) == [{"request_id": "b"}]

    def test_a_parquet_file_that_does_not_fit_the_disk_stays_json_lines(self, tmp_path: Path) -> None:
        folder = tmp_path / "log"
        folder.mkdir()
        (folder / ".decisions-3.parquet").symlink_to("/dev/full")
        files = self.parquet(tmp_path, rotate_bytes=4_096)
        for number in range(3):
            files.append(json.dumps({"request_id": f"{number:02000}"}).encode() + b"\n")
        files.close()
        names = sorted(each.name for each in folder.rglob("*.*"))
        assert names == ["decisions-3.000000001.jsonl", "decisions-3.jsonl"]
        assert [len(lines(folder / name)) for name in names] == [2, 1]

    def test_without_the_library_the_writer_says_how_to_install_it(
        self, tmp_path: Path, seen: Seen, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "semroute_extproc.telemetry.parquet_files", None)
        with pytest.raises(ConfigError, match=r"semroute-extproc\[parquet\]"):
            DecisionWriter(settings(tmp_path, format="parquet"), 3, seen)
