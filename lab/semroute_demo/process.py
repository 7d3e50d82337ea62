"""A child process with a log file: start it, wait until it is ready, and stop it."""

import contextlib
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx2

STOP_SECONDS_MAX = 15.0  # how long a process may take to exit by itself before it is killed

HTTP = httpx2.Client(limits=httpx2.Limits(max_keepalive_connections=0), trust_env=False)
"""For requests to the processes; a new client for each request would cost 17 ms of CPU."""


class ProcessError(Exception):
    """A process that does not start; the message carries the end of its log."""


@dataclass
class Process:
    """One child process. Standard error, and standard output unless it has its own file, go to `log_path`."""

    name: str
    command: Sequence[str]
    log_path: Path
    output_path: Path | None = None
    environment: Mapping[str, str] | None = None
    _child: subprocess.Popen[bytes] | None = field(default=None, init=False)

    def start(self, ready: Callable[[], bool], seconds_max: float) -> None:
        """Start it and wait until `ready()`; raises `ProcessError` if it exits or takes too long."""
        with (self.output_path or self.log_path).open("ab") as output, self.log_path.open("ab") as log:
            # Its own session: Ctrl-C reaches this process only, which stops its children in order.
            child = self._child = subprocess.Popen(
                self.command, stdout=output, stderr=log, env=self.environment, start_new_session=True
            )
        try:
            wait_until(lambda: child.poll() is not None or ready(), seconds_max, f"{self.name} to be ready")
            if child.poll() is not None:
                raise ProcessError(f"{self.name} exited with {child.returncode}")
        except ProcessError as error:
            self.stop()
            raise ProcessError(f"{error}; the end of {self.log_path}:\n{self.log_tail()}") from None

    @property
    def pid(self) -> int:
        """Its process id; 0 if it is not running."""
        return self._child.pid if self._child is not None else 0

    def send(self, number: signal.Signals) -> None:
        """Send it a signal."""
        if self._child is not None:
            self._child.send_signal(number)

    def wait(self, seconds_max: float) -> int:
        """Its exit status; raises `subprocess.TimeoutExpired`."""
        assert self._child is not None, f"{self.name} was not started"
        return self._child.wait(seconds_max)

    def stop(self) -> int | None:
        """Ask it to exit, then kill it; returns its exit status. Safe to call twice."""
        child, self._child = self._child, None
        if child is None:
            return None
        child.send_signal(signal.SIGCONT)
        child.terminate()
        try:
            return child.wait(STOP_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            child.kill()
            return child.wait()

    def log_tail(self, lines: int = 12) -> str:
        """The end of its log."""
        text = self.log_path.read_text(errors="replace") if self.log_path.is_file() else ""
        return "\n".join(text.splitlines()[-lines:])


def wait_until(condition: Callable[[], bool], seconds_max: float, what: str) -> None:
    """Check `condition` until it holds without an error; raises `ProcessError` if it does not in time."""
    deadline = time.monotonic() + seconds_max
    while time.monotonic() < deadline:
        # Errors of a process that does not listen yet, or whose files or answers are incomplete.
        with contextlib.suppress(httpx2.HTTPError, OSError, LookupError, ValueError):
            if condition():
                return
        time.sleep(0.05)
    raise ProcessError(f"waited {seconds_max:g} s for {what}")


def free_port(preferred: int = 0) -> int:
    """A loopback TCP port that is free now: `preferred` if it is, else one that the system chooses."""
    for port in (preferred, 0):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            return int(probe.getsockname()[1])
    raise ProcessError("no free port on 127.0.0.1")
