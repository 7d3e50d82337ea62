"""What was answered, kept as it comes: one JSON line an answer, only ever appended.

An interrupted run goes on where it stopped: what stands in the file is not asked again. A last line
that was cut off by a crash is passed over, and written anew.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from types import TracebackType

import msgspec

from semroute_extproc.errors import DataError
from semroute_lab.profile.asking import Reply

LINE_BYTES_MAX = 16 * 1024 * 1024
"""Longest line read back."""


class _Line(msgspec.Struct):
    key: str
    text: str
    finish: str
    input_tokens: int | None
    output_tokens: int | None
    seconds: float


def key_of(model: str, prompt: str, parameters: Mapping[str, object]) -> str:
    """Names a question to a model with its parameters: another temperature is another question."""
    told = json.dumps([model, prompt, parameters], sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(told.encode()).hexdigest()[:32]


class Answers:
    """The file of answers. Use as a context manager; one process at a time has it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._known: dict[str, Reply] = {}
        self._fd = -1

    def __enter__(self) -> Answers:
        """Open and read it; raises DataError if it cannot be had."""
        try:
            self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._read()
        except BlockingIOError:
            self._close()
            raise DataError(f"{self.path}:1:: another run is writing it") from None
        except OSError as error:
            self._close()
            raise DataError(f"{self.path}:1:: cannot be opened: {error.strerror or error}") from None
        return self

    def _read(self) -> None:
        decoder = msgspec.json.Decoder(_Line)
        ends_cleanly = True
        with open(self._fd, "rb", closefd=False) as file:
            file.seek(0)
            while line := file.readline(LINE_BYTES_MAX):
                ends_cleanly = line.endswith(b"\n")
                try:
                    found = decoder.decode(line)
                except (msgspec.MsgspecError, UnicodeDecodeError):
                    continue
                reply = Reply(
                    found.text, found.finish, found.input_tokens, found.output_tokens, found.seconds
                )
                self._known[found.key] = reply
        if not ends_cleanly:
            os.write(self._fd, b"\n")

    def get(self, key: str) -> Reply | None:
        """The answer to a question, if there is one."""
        return self._known.get(key)

    def add(self, key: str, reply: Reply) -> None:
        """Keep an answer; it is in the file when this returns. Raises OSError if it cannot be written."""
        line = json.dumps({"key": key, **asdict(reply)}, ensure_ascii=True).encode() + b"\n"
        while line:
            line = line[os.write(self._fd, line) :]
        self._known[key] = reply

    def _close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()
