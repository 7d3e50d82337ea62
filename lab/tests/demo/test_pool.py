"""The simulated pool as a process."""

from __future__ import annotations

import signal
import subprocess
import sys


def test_a_pool_handles_sigterm_because_process_1_of_a_container_would_ignore_it() -> None:
    command = [sys.executable, "-m", "semroute_demo.pool", "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert process.stderr.readline().startswith("simulated pool small on 127.0.0.1:")
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0, "negative: the signal's default action, which process 1 does not have"
        assert process.stderr.read() == ""
