"""The admin port: health, metrics and the live configuration, read-only, off the data path.

It runs on the standard library's server in a thread of its own, so that a slow scrape cannot
delay a decision by more than the interpreter lock does.
"""

from __future__ import annotations

import socket
import socketserver
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import structlog

TIMEOUT_SECONDS = 10
"""An admin connection that is silent for so long is closed."""

log = structlog.get_logger("semroute.admin")


@dataclass(frozen=True, slots=True)
class Page:
    """One answer of the admin port."""

    status: int
    content_type: str
    body: bytes


def text(status: int, body: str) -> Page:
    """A plain-text page."""
    return Page(status, "text/plain; charset=utf-8", body.encode())


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that goes away is not worth a traceback; anything else is."""
        if not isinstance(sys.exception(), OSError):
            log.exception("admin.failed")


class _ServerV6(_Server):
    address_family = socket.AF_INET6


class _ServerUnix(_Server):
    address_family = socket.AF_UNIX

    def server_bind(self) -> None:
        """As any socket server: a path has no host name to look up. One that a crash left is taken."""
        Path(str(self.server_address)).unlink(missing_ok=True)
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = "localhost", 0


class AdminServer:
    """Serves `pages` by path until closed."""

    def __init__(
        self,
        listen: str,
        pages: Mapping[str, Callable[[], Page]],
        otherwise: Callable[[str], Page] | None = None,
    ) -> None:
        """`listen` is `host:port`, where port 0 takes a free one, or `unix:/path`.

        `otherwise` makes the pages that are not among `pages`. Raises OSError if the address is taken.
        """
        handler = _handler(pages, otherwise)
        host, _, port = listen.rpartition(":")
        try:
            if listen.startswith("unix:"):
                self._server: _Server = _ServerUnix(listen.removeprefix("unix:"), handler)  # type: ignore[arg-type]
            elif host.startswith("["):
                self._server = _ServerV6((host.strip("[]"), int(port)), handler)
            else:
                self._server = _Server((host, int(port)), handler)
        except OSError as error:
            raise OSError(f"cannot listen on {listen} for the admin port: {error.strerror}") from None
        self._thread = threading.Thread(target=self._server.serve_forever, name="admin", daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        """The port in use."""
        return int(self._server.server_address[1])

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _handler(
    pages: Mapping[str, Callable[[], Page]], otherwise: Callable[[str], Page] | None
) -> type[BaseHTTPRequestHandler]:
    def find(path: str) -> Page:
        if path in pages:
            return pages[path]()
        return otherwise(path) if otherwise else text(404, "there is " + " ".join(sorted(pages)) + "\n")

    class Handler(BaseHTTPRequestHandler):
        timeout = TIMEOUT_SECONDS
        server_version = "semroute"
        sys_version = ""

        def address_string(self) -> str:
            """A Unix socket's client has no address."""
            return "local"

        def do_GET(self) -> None:
            page = find(self.path.partition("?")[0])
            self.send_response(page.status)
            self.send_header("content-type", page.content_type)
            self.send_header("content-length", str(len(page.body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(page.body)

        do_HEAD = do_GET  # noqa: N815

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            """Probes and scrapes are not worth a line each."""

    return Handler
