"""Runs a model's code with its tests in a process of its own, under limits.

This protects against a model's *mistakes* (endless loops, memory, full disks, orphaned children, a
download). It is not a barrier against code that wants to break out: the process runs as your user and
can read your files. Where the kernel allows it (`unshare` with user namespaces) there is no network, the
number of processes is limited, and children die with the process.
"""

import contextlib
import functools
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from typing import Literal

Verdict = Literal["passed", "failed", "timeout"]

FILE_BYTES_MAX = 1024 * 1024  # Largest file that the program may write, its output included
PROCESSES_MAX = 64  # Processes and threads at once, in a user namespace
PROBE_SECONDS = 5.0  # Bound on the check whether the kernel can isolate
_UNSHARE = ("unshare", "--user", "--map-root-user", "--net", "--pid", "--fork", "--kill-child", "--")

_HARNESS = r"""
import json, os, resource, sys
seconds, megabytes, file_bytes, processes, secret, code, tests = json.loads(sys.stdin.buffer.read())
for name, limit in (
    ("RLIMIT_CPU", int(seconds) + 1), ("RLIMIT_AS", megabytes << 20), ("RLIMIT_FSIZE", file_bytes),
    ("RLIMIT_NOFILE", 64), ("RLIMIT_CORE", 0), *([("RLIMIT_NPROC", processes)] if processes else []),
):
    resource.setrlimit(getattr(resource, name), (limit, limit))
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
    """Limits of a program."""

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


def run(code: str, tests: str, limits: Limits = Limits(), isolated: bool | None = None) -> Verdict:
    """Run `code`, then `tests` in the same namespace; `passed` if both run to their end.
    The program prints a secret at its end. Its exit status is ignored, so a program that exits early, with
    any status, has not passed. `isolated` is whether to use namespaces, by default where possible.
    """
    isolated = isolates() if isolated is None else isolated
    secret = secrets.token_hex(16)
    bounds = [limits.seconds, limits.megabytes, FILE_BYTES_MAX, PROCESSES_MAX if isolated else None]
    program = json.dumps([*bounds, secret, code, tests])
    command = [sys.executable, "-I", "-S", "-B", "-c", _HARNESS]
    with (
        tempfile.TemporaryDirectory(prefix="semroute-", ignore_cleanup_errors=True) as directory,
        # A file and not a pipe: its size is limited, and a child that keeps it open delays nothing.
        tempfile.TemporaryFile() as output,
    ):
        process = subprocess.Popen(
            [*_UNSHARE, *command] if isolated else command,
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
    """End it with its session; it may have ended already."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.wait()
    if process.stdin is not None:
        with contextlib.suppress(OSError):
            process.stdin.close()
