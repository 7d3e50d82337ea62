"""Servers that do nothing: which there are here, built from what, and that they really answer."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from semroute_bench import floors, load, native
from semroute_bench.floor import REPLIES
from semroute_bench.wire import connect
from semroute_demo.process import Process


async def test_every_server_is_measured_and_the_one_that_is_not_here_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nothing(*_: object) -> Path:
        raise native.NotBuilt("no g++")

    monkeypatch.setattr(native, "build", nothing)
    said: list[str] = []
    found = await floors.measure(2, 64, tmp_path, said.append)
    assert [row["server"] for row in found["servers"]] == [floors.SIDECAR, floors.AIO, floors.THREADS]
    assert all(row["x16 cpu ms"] > 0 and row["x1 a second"] > 0 for row in found["servers"])
    assert found["left out"] == {floors.NATIVE: "no g++"}
    assert said == [f"not measured: {floors.NATIVE}: no g++"]


def test_without_a_toolchain_nothing_is_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda tool: None if tool == "protoc" else "/usr/bin/" + tool)
    with pytest.raises(native.NotBuilt, match="no protoc"):
        native.build(tmp_path)


def test_an_installed_package_has_no_source(tmp_path: Path) -> None:
    with pytest.raises(native.NotBuilt, match="in a checkout only"):
        native.build(tmp_path, source=tmp_path / "floor.cc")


def tools(folder: Path, monkeypatch: pytest.MonkeyPatch, compiler: str) -> None:
    """A toolchain that is `compiler`, a line of shell, and nothing else."""
    bin_folder = folder / "bin"
    bin_folder.mkdir()
    for name, line in (("pkg-config", "true"), ("protoc", "true"), ("g++", compiler)):
        (bin_folder / name).write_text(f"#!/bin/sh\n{line}\n")
        (bin_folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(bin_folder), prepend=os.pathsep)


def test_what_the_compiler_says_is_passed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tools(tmp_path, monkeypatch, "echo 'floor.cc:1: error: no' >&2; exit 1")
    with pytest.raises(native.NotBuilt, match=r"g\+\+ failed: floor\.cc:1: error: no"):
        native.build(tmp_path / "out")


def test_what_is_newer_than_its_source_is_not_built_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tools(tmp_path, monkeypatch, f'echo built >> {tmp_path}/times; touch "{tmp_path}/out/floor"')
    source = tmp_path / "floor.cc"
    source.write_text("")
    os.utime(source, (1, 1))
    for _ in range(2):
        assert native.build(tmp_path / "out", source) == tmp_path / "out" / "floor"
    assert (tmp_path / "times").read_text() == "built\n"
    os.utime(source, (2**31, 2**31))
    native.build(tmp_path / "out", source)
    assert (tmp_path / "times").read_text() == "built\n" * 2


async def test_the_server_in_cpp_gives_the_replies_of_the_others(tmp_path: Path) -> None:
    try:
        binary = native.build(native.CHECKOUT / floors.BUILD)
    except native.NotBuilt as error:
        if "failed" in str(error):
            raise
        pytest.skip(f"the do-nothing server in C++ is not built here: {error}")
    socket = tmp_path / "floor.sock"
    command = [str(binary), f"unix:{socket}", *(reply.hex() for reply in REPLIES)]
    process = Process("floor", command, tmp_path / "log")
    process.start(socket.exists, 10)
    try:
        replies: list[bytes] = []
        client = await connect(str(socket))
        await client.closed([load.exchange(load.chat("m"))] * 50, 16, replies.append)
        client.close()
    finally:
        process.stop()
    assert replies == [REPLIES[1]] * 50
