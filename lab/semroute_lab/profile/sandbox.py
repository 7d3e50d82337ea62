"""Runs a model's code with its tests in a process of its own, under limits.

What it is: protection against a model's *mistakes* (endless loops, memory, full disks, children left
behind, a download). What it is not: a wall against code that wants to break out. The process runs as
your user and can read your files; run profiles with `code` questions in a container if that matters.

Limits: processor and wall time, memory, size and number of files, no core dumps; an empty environment,
an empty directory that is removed afterwards, standard input and output closed. Where the kernel
allows it (`unshare` of util-linux with user namespaces) it has no network and its children die with it.

The number of processes is limited there too, from Linux 5.14 on, which counts a namespace's processes apart
from your others. Elsewhere a limit would count those, so there is none; and the kernel holds root to none.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from typing import Literal

Verdict = Literal["passed", "failed", "timeout"]

FILE_BYTES_MAX = 1024 * 1024
"""Largest file it may write, its output among them."""

PROCESSES_MAX = 64
"""Processes it may have at once, threads among them, where they are counted apart."""

COUNTS_APART = (5, 14)
"""Linux from which on a user namespace counts its own processes (RLIMIT_NPROC)."""

PROBE_SECONDS = 5.0
"""How long the kernel may take to show whether it can isolate."""

_UNSHARE = ("unshare", "--user", "--map-root-user", "--net", "--pid", "--fork", "--kill-child", "--")

_HARNESS = r"""
import json, os, resource, sys
seconds, megabytes, file_bytes, processes, secret, code, tests = json.loads(sys.stdin.buffer.read())
for name, limit in (
    ("RLIMIT_CPU", int(seconds) + 1), ("RLIMIT_AS", megabytes << 20), ("RLIMIT_FSIZE", file_bytes),
    ("RLIMIT_NOFILE", 64), ("RLIMIT_CORE", 0),
):
    resource.setrlimit(getattr(resource, name), (limit, limit))
if processes:
    resource.setrlimit(resource.RLIMIT_NPROC, (processes, processes))
out, null = os.dup(1), os.open(os.devnull, os.O_RDWR)
for fd in (0, 1, 2):
    os.dup2(null, fd)
sys.stdin = open(os.devnull)
space = {"__name__": "__main__"}
exec(compile(code, "answer.py", "exec"), space)
exec(compile(tests, "tests.py", "exec"), space)
os.write(out, secret.encode())
os._exit(0)
"""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a program may use."""

    seconds: float = 10.0
    megabytes: int = 512


@functools.cache
def isolates() -> bool:
    """Whether programs run without a network and cannot leave children behind."""
    if shutil.which(_UNSHARE[0]) is None:
        return False
    try:
        done = subprocess.run([*_UNSHARE, "true"], capture_output=True, timeout=PROBE_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


def processes_max() -> int | None:
    """How many processes a program may have; None where yours would be counted among them."""
    release = tuple(int(part) for part in re.findall(r"\d+", os.uname().release)[:2])
    return PROCESSES_MAX if release >= COUNTS_APART and isolates() else None


def run(code: str, tests: str, limits: Limits = Limits()) -> Verdict:
    """Run `code`, then `tests` in the same namespace; `passed` if both come to their end.

    The end is told by a secret word and not by the exit status: a program that leaves early, with
    whatever status, has not passed.
    """
    secret = secrets.token_hex(16)
    program = json.dumps(
        [limits.seconds, limits.megabytes, FILE_BYTES_MAX, processes_max(), secret, code, tests]
    )
    command = [sys.executable, "-I", "-S", "-B", "-c", _HARNESS]
    with (
        tempfile.TemporaryDirectory(prefix="semroute-", ignore_cleanup_errors=True) as directory,
        # A file and no pipe: its size is limited, and a child that keeps it open holds nobody up.
        tempfile.TemporaryFile() as output,
    ):
        process = subprocess.Popen(
            [*_UNSHARE, *command] if isolates() else command,
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.DEVNULL,
            cwd=directory,
            env={"PATH": os.defpath, "LANG": "C.UTF-8", "HOME": directory, "TMPDIR": directory},
            start_new_session=True,
        )
        try:
            process.communicate(program.encode("utf-8", "surrogatepass"), limits.seconds)
        except subprocess.TimeoutExpired:
            return "timeout"
        finally:
            _kill(process)
        output.seek(0)
        return "passed" if output.read(len(secret) + 1) == secret.encode() else "failed"


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End it with its session; one that is gone already is fine."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.wait()
    if process.stdin is not None:
        with contextlib.suppress(OSError):
            process.stdin.close()
