"""The admin port: health, metrics and the live configuration, read-only, off the data path.

It is the standard library's server in a thread of its own, so a slow scrape delays a decision by no
more than the interpreter lock does.
"""

from __future__ import annotations

import json
import socket
import socketserver
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import structlog

TIMEOUT_SECONDS = 10
"""An admin connection that is silent for this long is closed."""

log = structlog.get_logger("semroute.admin")


@dataclass(frozen=True, slots=True)
class Page:
    """One response of the admin port."""

    status: int
    content_type: str
    body: bytes


def text(status: int, body: str) -> Page:
    """A plain-text page."""
    return Page(status, "text/plain; charset=utf-8", body.encode())


def as_json(content: object) -> Page:
    """A page of JSON."""
    return Page(200, "application/json", (json.dumps(content, indent=2) + "\n").encode())


Pages = Mapping[str, Callable[[], Page]]
"""Path to page."""


class AdminServer(ThreadingHTTPServer):
    """Serves `pages` by path in a thread of its own until closed."""

    daemon_threads = True

    def __init__(self, listen: str, pages: Pages, otherwise: Callable[[str], Page] | None = None) -> None:
        """`listen` is `host:port`, where port 0 takes a free one, or `unix:/path`.

        `otherwise` makes the pages that are not in `pages`. Raises OSError if the address is taken.
        """
        self._pages, self._otherwise = pages, otherwise
        address: Any
        if listen.startswith("unix:"):
            self.address_family, address = socket.AF_UNIX, listen.removeprefix("unix:")
        else:
            host, _, port = listen.rpartition(":")
            self.address_family = socket.AF_INET6 if host.startswith("[") else socket.AF_INET
            address = (host.strip("[]"), int(port))
        try:
            super().__init__(address, _PageHandler)
        except OSError as error:
            raise OSError(f"cannot listen on {listen} for the admin port: {error.strerror}") from None
        self._thread = threading.Thread(target=self.serve_forever, name="admin", daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        """The port in use."""
        return int(self.server_address[1])

    def close(self) -> None:
        """Stop serving."""
        self.shutdown()
        self.server_close()
        self._thread.join()
        if self.address_family == socket.AF_UNIX:
            Path(str(self.server_address)).unlink(missing_ok=True)

    def find(self, path: str) -> Page:
        """The page of a path."""
        if path in self._pages:
            return self._pages[path]()
        if self._otherwise is not None:
            return self._otherwise(path)
        return text(404, f"there is {' '.join(sorted(self._pages))}\n")

    def server_bind(self) -> None:
        """A Unix socket is for our user only and has no host name; one that a crash left is replaced."""
        if self.address_family != socket.AF_UNIX:
            super().server_bind()
            return
        path = Path(str(self.server_address))
        path.unlink(missing_ok=True)
        socketserver.TCPServer.server_bind(self)
        path.chmod(0o600)
        self.server_name, self.server_port = "localhost", 0

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that disconnects is not worth a traceback; anything else is."""
        if not isinstance(sys.exception(), OSError):
            log.exception("admin.failed")


class _PageHandler(BaseHTTPRequestHandler):
    server: AdminServer
    timeout = TIMEOUT_SECONDS
    server_version = "semroute"
    sys_version = ""

    def do_GET(self) -> None:
        page = self.server.find(self.path.partition("?")[0])
        self.send_response(page.status)
        self.send_header("content-type", page.content_type)
        self.send_header("content-length", str(len(page.body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(page.body)

    do_HEAD = do_GET  # noqa: N815

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Probes and scrapes are not logged."""
