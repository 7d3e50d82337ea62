"""Code that a model wrote runs under limits, and passes only if its tests come to their end."""

from __future__ import annotations

import os
import resource
import subprocess
import time

import pytest
from semroute_lab.profile import sandbox
from semroute_lab.profile.sandbox import Limits, run

GOOD = "def double(x):\n    return 2 * x\n"
TESTS = "assert double(2) == 4"

isolated = pytest.mark.skipif(not sandbox.isolates(), reason="the kernel gives no user namespaces here")


def test_code_that_does_what_its_tests_want_passes() -> None:
    assert run(GOOD, TESTS) == "passed"
    assert run("print('hello')\nimport math, re, collections\n" + GOOD, TESTS) == "passed"


@pytest.mark.parametrize(
    "code",
    [
        "def double(x):\n    return x\n",
        "",
        "def double(x:",
        "raise SystemExit(0)",
        "import os\nos._exit(0)",
        "import sys\nsys.exit()",
        "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)",
        "double = lambda x: exit(0)",
        "import os\nos.write(1, b'passed')\ndef double(x): return x",
        "def double(x): return double(x)",
        "\x00",
        "x = '\ud800'",
    ],
)
def test_code_that_does_not_or_leaves_early_fails(code: str) -> None:
    assert run(code, TESTS) == "failed"


def test_an_endless_loop_ends_in_time() -> None:
    began = time.monotonic()
    assert run("while True: pass", "", Limits(seconds=0.5)) in ("timeout", "failed")
    assert run("import time\ntime.sleep(60)", "", Limits(seconds=0.5)) == "timeout"
    assert time.monotonic() - began < 10


def test_memory_and_files_are_limited() -> None:
    assert run("x = bytearray(2 * 1024**3)", "", Limits(megabytes=256)) == "failed"
    assert run("open('big', 'wb').write(bytes(64 * 1024**2))", "") == "failed"


def test_output_is_limited_like_any_file_however_it_is_written() -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    code = (
        "import os, time\nend = time.time() + 0.5\nwhile time.time() < end:\n    os.write(3, bytes(1 << 16))"
    )
    assert run(code, "") == "failed"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 * 1024


def test_a_child_that_outlives_the_tests_does_not_hold_them_up() -> None:
    code = "import os, time\nif os.fork() == 0:\n    time.sleep(3)\n    os._exit(0)"
    assert run(code, "", Limits(seconds=2.0), isolated=False) == "passed"


def test_nothing_of_the_environment_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEMROUTE_TEST_SECRET", "x")
    assert run("import os", "assert 'SEMROUTE_TEST_SECRET' not in os.environ") == "passed"


def test_it_starts_in_an_empty_directory_that_is_gone_afterwards() -> None:
    assert run("import os\nopen('mine', 'w').write('x')", "assert os.listdir('.') == ['mine']") == "passed"


@isolated
def test_there_is_no_network() -> None:
    code = "import socket\ns = socket.socket()\ns.connect(('127.0.0.1', 1))"
    refused = f"try:\n    {code.splitlines()[0]}\n    s = socket.socket(); s.connect(('127.0.0.1', 1))\n"
    tests = "except OSError as error:\n    import errno\n    assert error.errno == errno.ENETUNREACH, error"
    assert run("pass", refused + tests) == "passed"


@isolated
def test_children_do_not_stay_behind() -> None:
    mark = "86399.5"
    code = f"import subprocess\nsubprocess.Popen(['sleep', '{mark}'], start_new_session=True)"
    assert run(code, "") == "passed"
    time.sleep(0.2)
    listed = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert f"sleep {mark}" not in listed


FORKS = """
import os, resource, time
number = 0
try:
    while number < 200:
        if os.fork() == 0:
            time.sleep(60)
            os._exit(0)
        number += 1
except BlockingIOError:
    pass
"""


@isolated
def test_the_number_of_processes_is_limited() -> None:
    tests = "assert resource.getrlimit(resource.RLIMIT_NPROC) == (64, 64)"
    if os.getuid() != 0:
        # Nothing holds root to it.
        tests += "\nassert number < 64, number"
    assert run(FORKS, tests) == "passed"


@isolated
def test_the_users_other_processes_are_not_among_them() -> None:
    others = [subprocess.Popen(["sleep", "60"]) for _ in range(sandbox.PROCESSES_MAX)]
    try:
        assert (
            run("import os\nchild = os.fork()\nif not child: os._exit(0)", "os.waitpid(child, 0)") == "passed"
        )
    finally:
        for other in others:
            other.kill()
            other.wait()
