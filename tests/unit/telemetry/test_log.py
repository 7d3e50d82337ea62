"""The thread that writes the log: a reader that stops reading blocks nothing but the log."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from semroute_demo.process import wait_until
from served import served

from semroute_extproc.envoy._pb import external_processor_pb2 as pb
from semroute_extproc.envoy.server import SERVICE
from semroute_extproc.events import Event, LogDropped
from semroute_extproc.settings.base import redacted
from semroute_extproc.telemetry.log import FLUSH_SECONDS_MAX, LineWriter
from semroute_extproc.telemetry.prom import PrometheusSink

PAGE = 4_096


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """A pipe of one page, so that it is full at once."""
    read, write = os.pipe()
    fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, PAGE)
    yield read, write
    for descriptor in (read, write):
        with contextlib.suppress(OSError):
            os.close(descriptor)


def started(descriptor: int, lines_max: int = 100) -> tuple[LineWriter, list[Event]]:
    writer, seen = LineWriter(descriptor, lines_max), list[Event]()
    writer.emit = seen.append
    writer.start()
    return writer, seen


def test_lines_are_written_in_order(pipe: tuple[int, int]) -> None:
    writer, seen = started(pipe[1])
    for number in range(50):
        writer.put(b"%d\n" % number)
    assert writer.drain()
    assert os.read(pipe[0], PAGE).split() == [b"%d" % number for number in range(50)]
    assert seen == []


def test_a_full_pipe_drops_and_counts_lines_and_the_others_are_written_later(pipe: tuple[int, int]) -> None:
    writer, seen = started(pipe[1], lines_max=10)
    line = b"x" * 999 + b"\n"
    for _ in range(100):
        writer.put(line)
    assert not writer.drain(0.2), "no one reads"
    metrics = PrometheusSink()
    for event in seen:
        metrics.handle(event)
    dropped = sum(event.lines for event in seen if isinstance(event, LogDropped))
    assert dropped >= 100 - 2 * 10 - 1
    assert f"semroute_log_lines_dropped_total {float(dropped)}" in metrics.exposition().decode()
    written = b""
    while len(written) < (100 - dropped) * len(line):
        written += os.read(pipe[0], PAGE)
    assert written == line * (100 - dropped)
    assert writer.drain()


def test_lines_of_two_writers_of_one_pipe_are_not_mixed(pipe: tuple[int, int]) -> None:
    """Workers share standard error, and only writes of up to `PIPE_BUF` bytes are whole."""
    lines = [name * 300 + b"\n" for name in (b"a", b"b") for _ in range(100)]
    writers = [started(pipe[1], lines_max=1_000)[0] for _ in range(2)]
    for writer, half in zip(writers, (lines[:100], lines[100:]), strict=True):
        for line in half:
            writer.put(line)
    written = b""
    while len(written) < sum(map(len, lines)):
        written += os.read(pipe[0], PAGE)
    assert sorted(written.splitlines(keepends=True)) == lines


def test_a_reader_that_is_gone_is_counted_and_the_thread_goes_on(pipe: tuple[int, int]) -> None:
    writer, seen = started(pipe[1])
    os.close(pipe[0])
    for _ in range(2):
        writer.put(b"a\n")
        assert writer.drain()
    assert seen == [LogDropped(1), LogDropped(1)]


def test_a_descriptor_that_does_not_block_is_waited_for(pipe: tuple[int, int]) -> None:
    """Standard error may be shared with a process that has made it so."""
    os.set_blocking(pipe[1], False)
    writer, seen = started(pipe[1])
    data = b"x" * (3 * PAGE - 1) + b"\n"
    writer.put(data)
    written = b""
    while len(written) < len(data):
        written += os.read(pipe[0], PAGE)
    assert written == data
    assert writer.drain()
    assert seen == []


@pytest.mark.timeout(300)
def test_a_process_whose_log_nobody_reads_decides_every_request_and_ends_when_told(tmp_path: Path) -> None:
    read, write = os.pipe()
    fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, PAGE)
    with (
        served(tmp_path, stderr=write) as subject,
        grpc.insecure_channel(f"unix:{subject.socket}") as channel,
    ):
        wait_until(subject.ready, 120, "the process to be ready")
        process = channel.stream_stream(
            f"/{SERVICE}/Process",
            request_serializer=pb.ProcessingRequest.SerializeToString,
            response_deserializer=pb.ProcessingResponse.FromString,
        )
        message = pb.ProcessingRequest()
        for key, value in ((":method", "GET"), (":path", "/v1/other"), ("x-request-id", "i" * 200)):
            message.request_headers.headers.headers.add(key=key, raw_value=value.encode())
        message.request_headers.end_of_stream = True
        while "semroute_log_lines_dropped_total 0.0" in subject.get("/metrics"):
            for _ in range(1_000):
                [answer] = process(iter([message]))
                assert answer.HasField("request_headers")
        assert subject.get("/livez") == "ok\n"
        started = time.monotonic()
        subject.process.send_signal(signal.SIGTERM)
        assert subject.process.wait(30) == 0
        assert time.monotonic() - started < 0.3 + FLUSH_SECONDS_MAX + 10
    os.close(read)
    os.close(write)


def test_the_secrets_of_a_line_are_masked_in_linear_time() -> None:
    """A client may write it, and the event loop masks it; the square of 30,000 took ten seconds."""
    started = time.process_time()
    assert redacted("://" * 10_000) == "://" * 10_000
    assert time.process_time() - started < 1.0
    assert redacted('"a://u:p@h/b?c=d e://f?g h"') == '"a://***@h/b?*** e://f?* h"'
