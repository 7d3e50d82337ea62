"""The do-nothing processor in C++: built from `benchmarks/floor.cc` where the toolchain is there.

Debian: `apt-get install g++ pkg-config protobuf-compiler libprotobuf-dev libgrpc++-dev`.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
SOURCE = CHECKOUT / "benchmarks" / "floor.cc"
PROTO = CHECKOUT / "protos" / "semroute" / "extproc" / "v1" / "external_processor.proto"
LIBRARIES = ("grpc++", "protobuf")
TOOLS = ("g++", "pkg-config", "protoc")

BUILD_SECONDS_MAX = 600.0
"""Of one step, on a slow machine."""


class NotBuilt(Exception):
    """Why there is no such server here."""


def build(folder: Path, source: Path = SOURCE, proto: Path = PROTO) -> Path:
    """The server's binary in `folder`, built unless it is newer than its sources; raises NotBuilt."""
    if not (source.is_file() and proto.is_file()):
        raise NotBuilt("its source is in a checkout only")
    if missing := [tool for tool in TOOLS if shutil.which(tool) is None]:
        raise NotBuilt(f"no {missing[0]}")
    query = ["pkg-config", "--cflags", "--libs", *LIBRARIES]
    flags = _run(query, "no libgrpc++-dev or libprotobuf-dev").split()
    binary = folder / "floor"
    if binary.is_file() and binary.stat().st_mtime > max(file.stat().st_mtime for file in (source, proto)):
        return binary
    folder.mkdir(parents=True, exist_ok=True)
    _run(["protoc", f"-I{proto.parent}", f"--cpp_out={folder}", str(proto)], "protoc failed")
    generated = folder / f"{proto.stem}.pb.cc"
    command = ["g++", "-O2", "-std=c++17", f"-I{folder}", str(source), str(generated), "-o", str(binary)]
    _run([*command, *flags], "g++ failed")
    return binary


def _run(command: list[str], what: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=BUILD_SECONDS_MAX)
    except subprocess.CalledProcessError as error:
        lines = error.stderr.strip().splitlines() or [f"exit status {error.returncode}"]
        raise NotBuilt(f"{what}: {lines[0]}") from None
    except subprocess.TimeoutExpired:
        raise NotBuilt(f"{what}: took longer than {BUILD_SECONDS_MAX:g} s") from None
    return done.stdout
