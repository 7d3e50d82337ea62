"""A child process with a log file: start it and wait until it is ready, stop it for certain."""

from __future__ import annotations

import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

STOP_SECONDS_MAX = 15.0
"""How long a process may take to exit by itself before it is killed."""

POLL_SECONDS = 0.05
"""Pause between two looks at whether a process is ready."""

LOG_LINES_SHOWN = 12
"""How much of a log's end an error shows."""


class ProcessError(Exception):
    """A process that does not start; the message carries the end of its log."""


class Process:
    """One child process. Standard error, and standard output unless it has its own file, go to `log_path`."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        log_path: Path,
        output_path: Path | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        self.command = list(command)
        self.log_path = log_path
        self._output_path = output_path or log_path
        self._environment = dict(environment) if environment is not None else None
        self._child: subprocess.Popen[bytes] | None = None

    def start(self, ready: Callable[[], bool], seconds_max: float) -> None:
        """Start it and wait until `ready()`; raises `ProcessError` if it exits or takes too long."""
        with self._output_path.open("ab") as output, self.log_path.open("ab") as log:
            # A session of its own: Ctrl-C reaches us alone, and we stop the children in order.
            self._child = subprocess.Popen(
                self.command, stdout=output, stderr=log, env=self._environment, start_new_session=True
            )
        deadline = time.monotonic() + seconds_max
        while not ready():
            status = self._child.poll()
            if status is not None or time.monotonic() > deadline:
                self.stop()
                why = f"took longer than {seconds_max:g} s" if status is None else f"exited with {status}"
                raise ProcessError(f"{self.name} {why}; the end of {self.log_path}:\n{self.log_tail()}")
            time.sleep(POLL_SECONDS)

    @property
    def pid(self) -> int:
        """Its process id; 0 when it does not run."""
        return self._child.pid if self._child is not None else 0

    def send(self, number: signal.Signals) -> None:
        """Send it a signal."""
        if self._child is not None:
            self._child.send_signal(number)

    def wait(self, seconds_max: float) -> int:
        """Its exit status; raises `subprocess.TimeoutExpired`."""
        assert self._child is not None, f"{self.name} was not started"
        return self._child.wait(seconds_max)

    def stop(self, seconds_max: float = STOP_SECONDS_MAX) -> int | None:
        """Ask it to exit, then make it; returns its exit status. Safe to call twice."""
        if self._child is None:
            return None
        self._child.send_signal(signal.SIGCONT)
        self._child.terminate()
        try:
            status = self._child.wait(seconds_max)
        except subprocess.TimeoutExpired:
            self._child.kill()
            status = self._child.wait()
        self._child = None
        return status

    def log_tail(self, lines: int = LOG_LINES_SHOWN) -> str:
        """The end of its log."""
        if not self.log_path.is_file():
            return ""
        return "\n".join(self.log_path.read_text(errors="replace").splitlines()[-lines:])


def free_port(host: str = "127.0.0.1", preferred: int = 0) -> int:
    """A TCP port that is free now: `preferred` if it is, else one the system chooses."""
    for port in (preferred, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise ProcessError(f"no free port on {host}")
